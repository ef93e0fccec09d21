"""Keeps what libraries have to say off the screen, where it would stand in the middle of what t2v says.

It is for people who program with them. A program that uses t2v and has set up a log of its own finds it there.
"""

from __future__ import annotations

import logging

_NOWHERE = logging.NullHandler()


def keep_warnings_quiet() -> None:
    """Sends Python's warnings, and the log of libraries that have set up nothing, to the log of this process."""
    logging.getLogger().addHandler(_NOWHERE)  # without any handler, Python writes them to stderr
    logging.captureWarnings(True)


def keep_quiet(library: str) -> None:
    """Takes away the handler by which an imported library writes its log onto the screen."""
    logger = logging.getLogger(library)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(_NOWHERE)
    logger.propagate = True
