"""The one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import os
import signal
import traceback
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from t2vcli.cli.console import say, say_error
from t2vcli.errors import EXIT_CODES, Interrupted, T2VError

# What Typer's own parser raises. Its base class is in a module that Typer keeps to itself, so it is reached from here.
_TyperUsageError: type[Exception] = typer.BadParameter.__mro__[1]

_show_traceback = bool(os.environ.get("T2V_DEBUG"))


def enable_debug(value: bool) -> bool:
    """Option callback of `--debug`."""
    global _show_traceback
    _show_traceback = _show_traceback or value
    return value


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as what no `except Exception` on the way can swallow."""


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise _Terminated


class ErrorBoundary(TyperGroup):
    """Runs a command and ends the process as errors.py documents. (Typer renders usage errors of its own, exit 2.)"""

    def invoke(self, ctx: Any) -> Any:
        signal.signal(signal.SIGTERM, _on_sigterm)
        try:
            return super().invoke(ctx)
        except T2VError as error:
            self._leave(str(error), error.exit_code)
        except _Terminated:
            stopped = Interrupted("terminated; nothing was written", signal_name="SIGTERM")
            self._leave(str(stopped), stopped.exit_code)
        except KeyboardInterrupt:
            stopped = Interrupted("interrupted; nothing was written")
            self._leave(str(stopped), stopped.exit_code)
        except (typer.Exit, typer.Abort, _TyperUsageError):
            raise
        except Exception as error:  # the boundary: whatever is left is a bug, and says so
            hint = "" if _show_traceback else "; --debug shows where"
            self._leave(f"this is a bug in t2v: {type(error).__name__}: {error}{hint}", 1)

    def _leave(self, message: str, code: int) -> None:
        if _show_traceback:
            for line in traceback.format_exc().splitlines():
                say(line)
        say_error(message)
        raise typer.Exit(code) from None


def exit_code_table() -> str:
    rows = [f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items()]
    return "Exit codes:\n\n\b\n" + "\n".join(rows)
