"""The stories: what happens, in order, for each command."""

from t2vcli.limits import load_libraries

load_libraries("torch", "scipy.linalg")  # before anything imports them
