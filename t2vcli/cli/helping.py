"""Help that fits: what people use first, every name whole, lines broken between words, experts' options under --help-all."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from t2vcli.cli.console import result
from t2vcli.cli.examples import EXAMPLES

LEAST_COLUMNS, MOST_COLUMNS = 50, 100
LEFT = 26

USUAL = (
    "preset",
    "prompt",
    "output",
    "from_clip",
    "frames",
    "duration",
    "scale",
    "strength",
    "seed",
    "count",
    "steps",
    "negative_prompt",
    "upscale",
    "overwrite",
)
"""The options of the first section, in this order, of a command that takes at least USUAL_LEAST of them."""
USUAL_LEAST = 6

EXPERT_PANELS = ("Long clips and large frames", "Memory and device", "Tensors in and out")
NOT_EXPERT = ("device", "memory", "vram", "dry_run", "exact")
EXPERT = (
    "revision",
    "variant",
    "lora",
    "eta",
    "clip_skip",
    "noise",
    "prompt_at",
    "embedding",
    "prompt_weights",
    "long_prompt",
    "strict",
    "allow_empty_prompt",
    "scheduler",
    "spacing",
    "timesteps",
    "timestep_scaling",
    "cfg_rescale",
    "apg",
    "freeu",
    "speed",
    "guidance_from",
    "guidance_until",
    "cache",
    "cache_level",
    "cache_first",
    "smooth",
    "audio",
    "sweep",
    "sheet",
    "context",
    "upscale_strength",
    "keep_draft",
    "no_resume",
    "progress",
    "keep_every",
    "debug",
)
"""What --help leaves to --help-all, where it leaves out anything: whole panels but for some, and some of the others."""

OF_THE_PRESET: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "generate": ("ms-1.7b", {"frames": 16, "fps": 8, "width": 256, "height": 256, "steps": 25, "guidance_scale": 9}),
    "upscale": ("zeroscope-XL", {"steps": 50, "strength": 0.6, "guidance_scale": 15}),
}
"""What the preset that a command takes by itself says, for the help: reading a preset takes as long as all else of it."""

_METAVARS = {"int": "N", "float": "NUMBER", "str": "TEXT", "Path": "PATH"}


class Helpful:
    """The help of a command or a group of commands, in place of Typer's tables."""

    params: list[Any]
    help: str | None
    epilog: str | None
    _help_all: TyperOption | None = None

    def get_params(self, ctx: Any) -> list[Any]:
        """Returns the parameters, and --help-all where there is more than --help tells."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        if not any(is_expert(each) for each in self.params) or not is_long(self.params):
            return params
        if self._help_all is None:
            self._help_all = TyperOption(
                param_decls=["--help-all"],
                type_descriptor=params[-1].type_descriptor,
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show,
                help="Show the options for experts, too.",
            )
        return [*params, self._help_all]

    def get_help_option(self, ctx: Any) -> Any:
        """Returns --help, which prints as all results are printed: a full disk is told, a reader that left is no fault."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        option.callback = _show
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n".join(help_lines(self, ctx)) + "\n")


class HelpfulCommand(Helpful, TyperCommand):
    """A command with such a help."""


def _show(ctx: Any, param: Any, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        result("\n".join(help_lines(ctx.command, ctx, everything="--help-all" in param.opts)))
        ctx.exit()


def is_long(params: Sequence[Any]) -> bool:
    """Returns whether a command has so many options that the usual ones are told first, and the experts' not at all."""
    return sum(each.name in USUAL for each in params) >= USUAL_LEAST


def is_expert(param: Any) -> bool:
    panel = getattr(param, "rich_help_panel", None)
    return param.name in EXPERT or (panel in EXPERT_PANELS and param.name not in NOT_EXPERT)


def help_lines(command: Any, ctx: Any, *, everything: bool = False, columns: int | None = None) -> Iterator[str]:
    """Yields the help of a command, or a group, line by line."""
    width = columns or max(LEAST_COLUMNS, min(MOST_COLUMNS, shutil.get_terminal_size().columns))
    params = [each for each in command.get_params(ctx) if not getattr(each, "hidden", False)]
    arguments = [each for each in params if each.param_type_name == "argument"]
    options = [each for each in params if each.param_type_name == "option"]
    commands: Mapping[str, Any] = getattr(command, "commands", {})
    pieces = ["COMMAND", "..."] if commands else [argument_piece(each) for each in arguments]
    yield from _wrapped(f"Usage: {ctx.command_path} [OPTIONS] {' '.join(pieces)}".rstrip(), width, indent="  ")
    for paragraph in paragraphs(command.help):
        yield ""
        yield from _wrapped(paragraph, width)
    examples = EXAMPLES.get(" ".join(ctx.command_path.split()[1:]), ())
    if examples:
        yield from ["", _heading("Examples:"), *(f"  {line}" for line in examples)]
    if commands:
        yield from ["", _heading("Commands:")]
        for name, first in abouts(command).items():
            yield from _row(name, first, width, left=16)
    if any(each.help for each in arguments):
        yield from ["", _heading("Arguments:")]
        for each in arguments:
            yield from _row(argument_piece(each).strip("[]"), described(each), width)
    for title, group in sections(command.params, options, everything=everything):
        yield from ["", _heading(f"{title}:")]
        for each in group:
            yield from _row(option_names(each), described(each, command.name), width)
    for paragraph in (command.epilog or "").split("\n\n"):
        if paragraph:
            yield ""
            yield from paragraph.removeprefix("\b\n").splitlines()


def abouts(group: Any) -> Mapping[str, str]:
    """Returns what each command of a group is for: of commands that are imported only when they are named, from their list."""
    listed: Mapping[str, str] | None = getattr(group, "abouts", None)
    if listed is not None:
        return listed
    return {name: next(iter(paragraphs(each.help)), "") for name, each in group.commands.items()}


def sections(params: Sequence[Any], options: Sequence[Any], *, everything: bool) -> list[tuple[str, list[Any]]]:
    """Returns the options in their groups: the usual ones, then those of each panel, last what is for experts."""
    if not is_long(params):
        return [("Options", list(options))] if options else []
    usual = sorted((each for each in options if each.name in USUAL), key=lambda each: USUAL.index(each.name))
    rest = [each for each in options if each.name not in USUAL]
    groups: dict[str, list[Any]] = {"Usual": usual}
    for each in [each for each in rest if not is_expert(each)]:
        groups.setdefault(getattr(each, "rich_help_panel", None) or "Help", []).append(each)
    if everything:
        told = set(groups)
        for each in [each for each in rest if is_expert(each)]:
            panel = getattr(each, "rich_help_panel", None) or "Others"
            groups.setdefault(f"{panel}, more" if panel in told else panel, []).append(each)
    if "Help" in groups:
        groups["Help"] = groups.pop("Help")
    return list(groups.items())


def paragraphs(text: str | None) -> list[str]:
    """Returns the paragraphs of a docstring, each on one line."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text or "") if part.strip()]


def argument_piece(param: Any) -> str:
    name = param.metavar or param.name.upper()
    return name if param.required else f"[{name}]"


def option_names(param: Any) -> str:
    """Returns "-o, --output PATH", or "    --loop, --no-loop"."""
    short = [name for name in param.opts if not name.startswith("--")]
    long = [name for name in param.opts if name.startswith("--")] + list(param.secondary_opts)
    names = f"{short[0] + ',' if short else '   '} {', '.join(long)}"
    return f"{names} {metavar_of(param)}".rstrip() if not param.is_flag and not param.count else names


def metavar_of(param: Any) -> str:
    """Returns what stands for an option's value."""
    if param.metavar:
        return str(param.metavar)
    annotation = param.type_descriptor.annotation
    return "WORD" if choices_of(param) else _METAVARS.get(getattr(annotation, "__name__", ""), "TEXT")


def choices_of(param: Any) -> tuple[str, ...]:
    annotation = param.type_descriptor.annotation
    return tuple(map(str, typing.get_args(annotation))) if typing.get_origin(annotation) is typing.Literal else ()


def described(param: Any, command: str | None = None) -> str:
    """Returns an option's help, with its choices, its default and its variable."""
    text = " ".join((param.help or "").split())
    choices = choices_of(param)
    if choices:
        text = f"{', '.join(choices)}. {text}"
    default = param.default
    if default not in (None, False, ...) and isinstance(default, int | float | str) and not isinstance(default, bool):
        text += f" (default: {default})"
    preset, values = OF_THE_PRESET.get(command or "", ("", {}))
    if param.name in values:
        text += f" (default: the preset's, {values[param.name]} for {preset})"
    if param.envvar:
        text += f" [{param.envvar}]"
    return text


def _row(names: str, text: str, width: int, *, left: int = LEFT) -> Iterator[str]:
    """Yields a name and its description beside it; below it where the name is long."""
    left = min(left, width // 3)
    indent = " " * (left + 2)
    lines = _wrapped(text, width - len(indent)) or [""]
    head = f"  {names}"
    if len(head) > left:
        yield head
    else:
        yield f"{head:<{len(indent)}}{lines.pop(0)}".rstrip()
    for line in lines:
        yield f"{indent}{line}"


def _wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    return textwrap.wrap(text, max(20, width), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _heading(text: str) -> str:
    """Returns a heading, bold on a terminal; elsewhere what is not text is taken out when it is printed."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not (sys.stdout and sys.stdout.isatty())
    return text if plain else typer.style(text, bold=True)
