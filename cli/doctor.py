"""`wsi doctor`."""

from pathlib import Path

import rich_click as click

from .main import leave, printable
from .options import FOLDER, positive_class_option, trust_option


@click.command()
@click.option(
    "--model",
    "-m",
    type=click.Path(path_type=Path),
    help="Measure this model. [default: an untrained idc_cnn]",
)
@trust_option
@positive_class_option
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
def doctor(
    model: Path | None,
    trust_model: str | None,
    positive_class: str | None,
    out: Path,
    seconds: float,
) -> None:
    """Say whether this machine is fit, and how many patches per second are to be expected of it.

    A line per check: ok, warn (works, but slower or not for long) or bad (work will fail), with the
    remedy. Exit code 5 where one is bad.
    """
    from wsi_pipeline.models.loading import ExternalModelTerms
    from wsi_pipeline.runs.doctor import examine, exit_code

    checks = []
    for check in examine(model, out, ExternalModelTerms(trust_model, positive_class), seconds / 2):
        click.echo(printable(check.line))
        checks.append(check)
    leave(exit_code(checks))
