"""The command line's entry: `t2v`."""

from __future__ import annotations

from typing import Annotated

import typer

from t2vcli import __version__
from t2vcli.cli import batch, convert, doctor, gallery, generate, info, models, presets, pull, resume, upscale
from t2vcli.cli.boundary import ErrorBoundary, exit_code_table
from t2vcli.cli.console import prepare_streams, result
from t2vcli.cli.helping import HelpfulCommand

app = typer.Typer(
    name="t2v",
    cls=ErrorBoundary,
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


plan_app = typer.Typer(
    cls=ErrorBoundary,
    help="Print how a command would run, and the memory that it is predicted to take.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
plan_app.command("generate", cls=generate.GenerateCommand)(generate.plan_generate)
plan_app.command("upscale", cls=upscale.UpscaleCommand)(upscale.plan_upscale)

app.command(cls=generate.GenerateCommand)(generate.generate)
app.command(cls=upscale.UpscaleCommand)(upscale.upscale)
app.command(cls=HelpfulCommand)(resume.resume)
app.command(cls=HelpfulCommand)(resume.decode)
app.add_typer(plan_app, name="plan")
app.add_typer(batch.app, name="batch")
app.add_typer(presets.app, name="presets")
app.command(cls=HelpfulCommand)(pull.pull)
app.add_typer(models.app, name="models")
app.command(cls=HelpfulCommand)(convert.convert)
app.command(cls=HelpfulCommand)(info.info)
app.command(cls=HelpfulCommand)(info.sheet)
app.command(cls=HelpfulCommand)(gallery.gallery)
app.command(cls=HelpfulCommand)(doctor.doctor)


def main() -> None:
    prepare_streams()
    app()
