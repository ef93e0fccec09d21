"""The UNet's forward in pieces: the same numbers as diffusers' own forward, with less memory alive at once."""
