"""The errors that a user can meet, each with its exit code. A message is one sentence: what is wrong, and the way out.

T2VError                 1   a bug, or anything not foreseen below
├── UsageError           2   the command line is wrong
├── BatchError           3   some jobs of a batch failed
├── InputError           4   a file given is missing, damaged or not what it should be
├── ModelError           5   the model is not there, damaged, or could not be downloaded
├── DeviceError          6   no usable device
├── OutOfMemoryError     7   the device's memory did not suffice
├── OutputError          8   the video could not be encoded or written, or a disk is full
│   ├── ExistsError     10   the output is there already, and --overwrite was not given
│   └── BusyError        8   another t2v is making the very same output right now
├── NonFiniteError       9   the result holds NaN or infinity
└── Interrupted    130/143   stopped by Ctrl-C (130), SIGTERM or SIGHUP (143)
"""

from __future__ import annotations

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "a bug in t2v (--debug shows the traceback)",
    2: "usage: the command line is wrong",
    3: "batch: some jobs failed",
    4: "bad input: a file is missing, damaged or not what it should be",
    5: "model: not found, damaged or not downloadable",
    6: "device: none that can be used",
    7: "out of memory",
    8: "output: encoding failed, disk full, or the path cannot be written",
    9: "non-finite result: the model produced NaN or infinity",
    10: "exists: the output is there already (--overwrite replaces it)",
    130: "interrupted by Ctrl-C",
    143: "terminated by SIGTERM or SIGHUP",
}


class T2VError(Exception):
    """An expected failure. `str(error)` is the one sentence that the user reads."""

    exit_code = 1


class UsageError(T2VError):
    exit_code = 2


class BatchError(T2VError):
    exit_code = 3


class InputError(T2VError):
    exit_code = 4


class ModelError(T2VError):
    exit_code = 5


class DeviceError(T2VError):
    exit_code = 6


class OutOfMemoryError(T2VError):
    exit_code = 7


class OutputError(T2VError):
    exit_code = 8


class ExistsError(OutputError):
    exit_code = 10


class BusyError(OutputError):
    """Another process is at work on the same output: later it may be there, or free."""


class NonFiniteError(T2VError):
    exit_code = 9


HOW_IT_STOPPED = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "terminated"}


class Interrupted(T2VError):  # noqa: N818 - not an error, a wish
    """Stopped by a signal; `signal_name` is SIGINT, SIGTERM or SIGHUP."""

    def __init__(self, message: str, *, signal_name: str = "SIGINT") -> None:
        super().__init__(message)
        self.exit_code = 130 if signal_name == "SIGINT" else 143
