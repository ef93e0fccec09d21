"""Where the weights are: in a folder, in the hub's cache, or still to be downloaded. No torch."""
