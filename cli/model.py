"""`wsi model`."""

import json
from pathlib import Path
from typing import Any, NoReturn

import rich_click as click

from wsi_pipeline.core.options import ExternalModelOptions

from .main import leave, printable
from .options import options_of
from .run_file import ConfigCommand


@click.group()
def model() -> None:
    """Show what a model is, and check that it is whole."""


@model.command("list")
def list_models() -> None:
    """List the models that come with the package; their names can be given as --model."""
    from wsi_pipeline.models.loading import describe_model as describe
    from wsi_pipeline.models.loading import list_boxed

    for name, path in list_boxed().items():
        facts = describe(path)
        patch = facts["patch"]
        click.echo(
            f"{name}: {facts['architecture']}, {' and '.join(facts['class_names'])},"
            f" {patch['side_px']} px at {patch['mpp']:g} µm/px, {path.stat().st_size / 1e6:.1f} MB"
        )


@model.command(cls=ConfigCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--json", "is_json", is_flag=True, help="As JSON, with everything that the model's card holds."
)
def info(model: Path, is_json: bool) -> None:
    """Show the input and output of MODEL, its training and scores, and the digest to trust."""
    from wsi_pipeline.models.loading import describe_lines, describe_model, find_model

    model = find_model(model)
    facts = describe_model(model)
    if is_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False))
        return
    click.echo(printable(str(model)))
    for name, text in describe_lines(facts):
        click.echo(f"  {printable(name):<24} {printable(text)}")


@model.command(cls=ConfigCommand)
@click.argument("model", type=click.Path(path_type=Path))
@options_of(ExternalModelOptions)
@click.option(
    "--patch-size",
    type=click.IntRange(1),
    default=50,
    metavar="PX",
    help="Of FILE.py:FUNCTION: side of the patches that it is tried with.",
)
def check(model: Path, patch_size: int, **terms: Any) -> None:
    """Load MODEL, verify its checksums and run a batch: says ok, or the fault, with exit code 1.

    A network of your own, FILE.py:FUNCTION, is built and tried in all that training, inference and
    export ask of it; the file runs.
    """
    from wsi_pipeline.models.own_code import is_own_code

    if is_own_code(str(model)):
        _check_own(str(model), patch_size)
    from wsi_pipeline.models.choice import read_terms
    from wsi_pipeline.models.loading import find_model
    from wsi_pipeline.models.opening import check_model

    model = find_model(model)
    found = check_model(model, read_terms(ExternalModelOptions(**terms)))
    click.echo(
        printable(
            f"{model}: ok: {found.architecture}, {found.spec.side_px} px at {found.spec.mpp:g}"
            f" µm/px, digest {found.digest[:16]}"
        )
    )


def _check_own(name: str, side_px: int) -> NoReturn:
    """Print a line for each thing that is asked of a user's network; end with 1 for a fault."""
    from wsi_pipeline.models.conformance import check_conformance
    from wsi_pipeline.models.own_code import read_code

    code = read_code(name)
    findings = check_conformance(code, side_px)
    for finding in findings:
        click.echo(printable(f"{'no' if finding.fault else 'ok':<3} {finding.name}"))
        if finding.fault:
            click.echo(printable(f"    {finding.fault}"))
    click.echo(printable(f"{code.name}: sha256:{code.sha256}"))
    leave(1 if any(finding.fault for finding in findings) else 0)
