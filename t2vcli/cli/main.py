"""The command line's entry: `t2v`. A command is imported when it is named."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any, NamedTuple

import typer

from t2vcli import __version__
from t2vcli.cli.boundary import ErrorBoundary, exit_code_table
from t2vcli.cli.console import prepare_streams, result
from t2vcli.cli.helping import HelpfulCommand


class Entry(NamedTuple):
    """Where a command is, and what it is for: the first line of its own help."""

    where: str  # module, and the function in it or the Typer of several commands
    about: str
    kind: str = ""  # the class of the command in that module, if it has one of its own


COMMANDS = {
    "generate": Entry(
        "generate:generate", "Make a clip from a prompt, or from a prompt and a video.", "GenerateCommand"
    ),
    "upscale": Entry(
        "upscale:upscale", "Enlarge a clip: add noise to it, and denoise it at another size.", "UpscaleCommand"
    ),
    "resume": Entry(
        "resume:resume",
        "Go on with an unfinished run where it was, to the same frames as if it had not been interrupted.",
    ),
    "decode": Entry(
        "resume:decode", "Make the video of an unfinished run from its final latents alone; the folder stays."
    ),
    "plan": Entry("planned:app", "Print how a command would run, and the memory that it is predicted to take."),
    "batch": Entry(
        "batch:app", "Make the clips of a list of jobs: t2v batch JOBS -o FOLDER, with the options of t2v batch run."
    ),
    "presets": Entry("presets:app", "List the presets, or show one."),
    "pull": Entry("pull:pull", "Download a model, or complete and verify one that is here."),
    "models": Entry("models:app", "List the models that are downloaded, or remove one."),
    "convert": Entry(
        "convert:convert",
        "Write a finished clip as another kind of file, smaller, slower, shorter, or with sound. The recipe goes along.",
    ),
    "info": Entry(
        "info:info",
        "Print what a video is, and its recipe if t2v made it; of several, what differs; of an unfinished run, how far it is.",
    ),
    "sheet": Entry("sheet:sheet", "Lay out the frames of a clip in one PNG; of several clips, a labelled row each."),
    "compare": Entry("compare:compare", "Put clips side by side into one video, each with a label."),
    "gallery": Entry(
        "gallery:gallery", "Write one HTML page to look at many clips: play, search, sort, filter, compare, copy."
    ),
    "doctor": Entry("doctor:doctor", "Check that everything is here that a run needs, and say how to fix what is not."),
}


class _Loaded(MutableMapping[str, Any]):
    """The commands by their names, each imported and built when it is first looked up."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = _build(name, COMMANDS[name])
        return self._built[name]

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("the commands are listed in COMMANDS")

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _build(name: str, entry: Entry) -> Any:
    module_name, _, attribute = entry.where.partition(":")
    module = importlib.import_module(f"t2vcli.cli.{module_name}")
    found = getattr(module, attribute)
    if isinstance(found, typer.Typer):
        command: Any = typer.main.get_group(found)
    else:
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        alone.command(name, cls=getattr(module, entry.kind) if entry.kind else HelpfulCommand)(found)
        command = typer.main.get_command(alone)
    command.name = name
    return command


class Commands(ErrorBoundary):
    """The commands of `t2v`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Loaded()
        self.abouts = {name: entry.about for name, entry in COMMANDS.items()}

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for option in self.get_params(ctx):
            # Typer has pydantic look at a flag that is None where it is not given, as its own are, but not at a bool.
            if option.default is None and option.name in ("help", "install_completion", "show_completion"):
                option.default = False
        words: list[str] = super().parse_args(ctx, args)
        return words


app = typer.Typer(
    name="t2v",
    cls=Commands,
    help="Text to video, from the command line: ModelScope and ZeroScope models.",
    epilog=exit_code_table(),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(value: bool) -> None:
    if value:
        result(f"t2v {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


def main() -> None:
    prepare_streams()
    app()
