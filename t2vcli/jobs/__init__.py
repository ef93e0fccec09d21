"""The stories: what happens, in order, for each command."""
