"""`wsi doctor`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.options import ExternalModelOptions

from .main import leave, printable
from .options import FOLDER, options_of
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@click.option(
    "--model",
    "-m",
    type=click.Path(path_type=Path),
    help="Measure this model. [default: an untrained idc_cnn]",
)
@options_of(ExternalModelOptions)
@click.option(
    "--out",
    "-o",
    type=FOLDER,
    default=Path(),
    metavar="DIR",
    help="Folder that results will go to; it is not made.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60), default=10.0, help="How long to measure."
)
def doctor(model: Path | None, out: Path, seconds: float, **terms: Any) -> None:
    """Say whether this machine is fit, and how many patches per second are to be expected of it.

    A line per check: ok, warn (works, but slower or not for long) or bad (work will fail), with the
    remedy. Exit code 5 where one is bad.
    """
    from wsi_pipeline.models.choice import read_terms
    from wsi_pipeline.runs.doctor import examine, exit_code

    checks = []
    trusted = read_terms(ExternalModelOptions(**terms))
    for check in examine(model, out, trusted, seconds / 2):
        click.echo(printable(check.line))
        checks.append(check)
    leave(exit_code(checks))
