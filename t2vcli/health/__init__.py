"""Is the installation all right? What `t2v doctor` looks at: facts of this machine, each with the way out. No torch."""
