"""The talk: the only code that knows typer and rich, reads the command line, prints or exits."""
