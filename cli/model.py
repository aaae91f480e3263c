"""`wsi model`."""

import json
from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.options import ExternalModelOptions

from .main import printable
from .options import EXISTING, options_of


@click.group()
def model() -> None:
    """Show what a model is, and check that it is whole."""


@model.command()
@click.argument("model", type=EXISTING)
@click.option(
    "--json", "is_json", is_flag=True, help="As JSON, with everything that the model's card holds."
)
def info(model: Path, is_json: bool) -> None:
    """Show the input and output of MODEL, its training and scores, and the digest to trust."""
    from wsi_pipeline.models.loading import describe_lines, describe_model

    facts = describe_model(model)
    if is_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False))
        return
    click.echo(printable(str(model)))
    for name, text in describe_lines(facts):
        click.echo(f"  {printable(name):<24} {printable(text)}")


@model.command()
@click.argument("model", type=EXISTING)
@options_of(ExternalModelOptions)
def check(model: Path, **terms: Any) -> None:
    """Load MODEL, verify its checksums and run a batch: says ok, or the fault, with exit code 1."""
    from wsi_pipeline.models.loading import read_terms
    from wsi_pipeline.models.opening import check_model

    found = check_model(model, read_terms(ExternalModelOptions(**terms)))
    click.echo(
        printable(
            f"{model}: ok: {found.architecture}, {found.spec.side_px} px at {found.spec.mpp:g}"
            f" µm/px, digest {found.digest[:16]}"
        )
    )
