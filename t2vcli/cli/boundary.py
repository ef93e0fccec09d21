"""The one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from t2vcli import shell, stopping
from t2vcli.cli.console import printable, say_error, say_of_error, speak_json, speak_less, speaks_json
from t2vcli.cli.helping import Helpful, HelpfulCommand
from t2vcli.errors import EXIT_CODES, HOW_IT_STOPPED, Interrupted, ModelError, T2VError, UsageError
from t2vcli.quiet import keep_warnings_quiet

# What Typer's own parser raises. Its base class is in a module that Typer keeps to itself, so it is reached from here.
_TyperUsageError: Any = typer.BadParameter.__mro__[1]

_show_traceback = bool(os.environ.get("T2V_DEBUG"))


def enable_debug(value: bool) -> bool:
    """Option callback of `--debug`."""
    global _show_traceback
    _show_traceback = _show_traceback or value
    return value


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, as what no `except Exception` on the way can swallow."""


CLEANING_S = 5.0
"""How long after an interruption another signal is taken for the same wish.

People press Ctrl-C again, and programs that start others pass on what the terminal has sent to all of them: that must
not interrupt the removal of what is unfinished. Later ones do, should that hang.
"""

_interrupted_s: float | None = None


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Stops at the next step where there are steps, and at once elsewhere and the second time."""
    global _interrupted_s
    if stopping.by_signals().ask(signal.Signals(number).name):
        said = "stopping after this step; once more stops at once"
        line = json.dumps({"event": "say", "message": said}) if speaks_json() else f"t2v: {said}"
        with contextlib.suppress(OSError):  # not by a stream: the signal may have come in the middle of a write
            os.write(2, f"\n{line}\n".encode())
        return
    now_s = time.monotonic()
    if _interrupted_s is not None and now_s - _interrupted_s < CLEANING_S:
        return
    _interrupted_s = now_s
    stopping.interrupt(KeyboardInterrupt() if number == signal.SIGINT else _Terminated())


class ErrorBoundary(Helpful, TyperGroup):
    """Runs a command and ends the process as errors.py documents."""

    def make_context(self, *args: Any, **extra: Any) -> Any:  # here `--help` and `--version` print
        with _ending():
            return super().make_context(*args, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Says where an option of a command belongs that stands before the command's name."""
        own = {name for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)}
        option = args[0].partition("=")[0] if args else ""
        if option.startswith("-") and option not in own and not self.invoke_without_command:
            takers = [
                f"{ctx.command_path} {name}"
                for name, command in self.commands.items()
                if any(option in (*param.opts, *param.secondary_opts) for param in command.params)
            ]
            if takers:
                first, *others = takers
                also = f" (also {' and '.join(others)})" if len(others) == 1 else ""
                raise UsageError(printable(f"{option} belongs to a command and comes after it: {first} {option}{also}"))
        words: list[str] = super().parse_args(ctx, args)
        return words

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if "generate" in self.commands and args and args[0] not in self.commands:
            if len(args[0].split()) > 1:
                raise UsageError(
                    printable(
                        f"{args[0]!r} is no command; to make a clip of it: {ctx.command_path} generate {quoted(args[:1])}"
                    )
                )
            if os.path.lexists(args[0]):
                raise UsageError(
                    printable(
                        f"{args[0]!r} is no command; to enlarge it: {ctx.command_path} upscale {shell.word(args[0])}"
                    )
                )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        global _interrupted_s
        _interrupted_s = None
        speak_json(False)
        speak_less(0)
        stopping.forget()
        keep_warnings_quiet()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # not where nohup has it ignored
                signal.signal(number, _on_signal)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
            signal.signal(signal.SIGINT, _on_signal)
        try:
            with _ending():
                return super().invoke(ctx)
        finally:
            stopping.forget()


class OneTextCommand(HelpfulCommand):
    """A command that says what to do with words that belong to nothing: texts of several words that lack quotes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.allow_extra_args = True
        words: list[str] = super().parse_args(ctx, args)
        if words and not ctx.resilient_parsing:  # else only a shell's completion
            most = 60
            said = " ".join(words)
            said = said if len(said) <= most else said[: most - 3] + "..."
            raise UsageError(printable(f"{said!r} is left over; {self.left_over(ctx.params, words)}"))
        return words

    def left_over(self, given: Mapping[str, Any], words: Sequence[str]) -> str:
        """Returns what to do about `words`, which no parameter takes; `given` are the parameters' values."""
        return "put a text of several words in quotes"


def quoted(words: Sequence[str]) -> str:
    return shell.word(" ".join(words))


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """Turns what is raised inside into a sentence on stderr and the exit code of its kind."""
    try:
        yield
    except T2VError as error:
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        name = stopping.by_signals().asked or ("SIGTERM" if isinstance(error, _Terminated) else "SIGINT")
        stopped = Interrupted(HOW_IT_STOPPED[name], signal_name=name)
        _leave(str(stopped), stopped.exit_code)
    except _TyperUsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group asked for nothing: it shows its help
            raise
        _leave(_usage_sentence(error), UsageError.exit_code)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        from t2vcli.limits import limit_met
        from t2vcli.weights.hub import wrong_in_environment

        met = limit_met(error)
        if met is not None:
            _leave(str(met), met.exit_code)
        wrong = wrong_in_environment()  # some variables make the import of the libraries fail
        if wrong:
            _leave(wrong, ModelError.exit_code)
        # the boundary: whatever is left is a bug, and says so
        hint = "" if _show_traceback else "; --debug shows where"
        _leave(f"this is a bug in t2v: {type(error).__name__}: {error}{hint}", 1)


def _usage_sentence(error: Any) -> str:
    """Returns what Typer's parser met as the other errors are told."""
    if getattr(error, "possibilities", None):  # the parser's own are anything that shares a few letters
        error.possibilities = difflib.get_close_matches(error.option_name, error.possibilities, n=2, cutoff=0.75)
    said = printable(error.format_message()).rstrip(".")
    for clutter, plain in _PLAIN.items():
        said = re.sub(clutter, plain, said)
    variable = getattr(getattr(error, "param", None), "envvar", None)
    if variable and f"(env var: '{variable}')" in said and variable in os.environ:
        return f"{variable} is {os.environ[variable]!r:.200}; set it to 1 or 0, or unset it"
    path = error.ctx.command_path if error.ctx else "t2v"
    return f"{said[:1].lower()}{said[1:]}; `{path} --help` tells what there is"


# pydantic's, which Typer parses values with
_PLAIN = {"Value error, ": "", "Input should be ": "must be ", ", unable to parse.*": ""}


def _leave(message: str, code: int) -> NoReturn:
    if _show_traceback:
        for line in traceback.format_exc().splitlines():
            say_of_error(line)
    say_error(message, code)
    raise typer.Exit(code) from None


def exit_code_table() -> str:
    rows = [f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items()]
    return "Exit codes:\n\n\b\n" + "\n".join(rows)
