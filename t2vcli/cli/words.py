"""The prompt, from where a command line has it: an argument, a file or stdin."""

from __future__ import annotations

import sys
from pathlib import Path

from t2vcli.errors import InputError, UsageError
from t2vcli.strangers import UnreadableError, open_regular

MAX_PROMPT_BYTES = 1_000_000
_OWN_STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str | None:
    """Returns the prompt from the argument, from stdin (`-`) or from a file; None if none was given."""
    if prompt is not None and prompt_file is not None:
        raise UsageError("give a prompt or --prompt-file, not both")
    if prompt_file is not None:
        try:
            if str(prompt_file).startswith(_OWN_STREAMS):  # what the shell gave us: --prompt-file <(date)
                with prompt_file.open("rb") as file:
                    content = file.read(MAX_PROMPT_BYTES + 1)
            else:
                with open_regular(prompt_file) as file:
                    content = file.read(MAX_PROMPT_BYTES + 1)
        except OSError as error:
            raise InputError(f"--prompt-file {prompt_file} cannot be read ({error.strerror})") from None
        except UnreadableError as error:
            raise InputError(f"--prompt-file {prompt_file} cannot be read ({error})") from None
        return _decode(content, str(prompt_file))
    if prompt == "-":
        if sys.stdin is None:
            raise InputError("the prompt was to come from stdin, which is closed")
        return _decode(sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1), "stdin")
    return prompt


def _decode(content: bytes, name: str) -> str:
    if len(content) > MAX_PROMPT_BYTES:
        raise InputError(f"the prompt in {name} is over {MAX_PROMPT_BYTES:,} bytes; a model reads 75 tokens of it")
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InputError(f"the prompt in {name} is not UTF-8 text") from None
