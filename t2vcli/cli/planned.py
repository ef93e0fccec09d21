"""`t2v plan`: how the other commands would run."""

from __future__ import annotations

import typer

from t2vcli.cli import generate, upscale
from t2vcli.cli.boundary import ErrorBoundary

app = typer.Typer(
    cls=ErrorBoundary,
    help="Print how a command would run, and the memory that it is predicted to take.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.command("generate", cls=generate.GenerateCommand)(generate.plan_generate)
app.command("upscale", cls=upscale.UpscaleCommand)(upscale.plan_upscale)
