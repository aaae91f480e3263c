"""`wsi export`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.choices import MODEL_FORMATS, NORMALISATIONS
from wsi_pipeline.core.options import ExternalModelOptions, ForceOptions

from .options import mode_option, options_of, out_option
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "formats",
    type=click.Choice(MODEL_FORMATS),
    multiple=True,
    required=True,
    help="Format: torchscript (QuPath, WSInfer), onnx, pt2 (torch.export). May be repeated.",
)
@out_option
@click.option(
    "--normalisation",
    type=click.Choice(NORMALISATIONS),
    default="transform",
    help=(
        "Whether the program that runs it normalises pixels, as config.json says, or the network"
        " itself."
    ),
)
@options_of(ExternalModelOptions, "trust_model", "arch")
@options_of(ForceOptions)
@mode_option
def export(
    model: Path,
    formats: tuple[str, ...],
    out: Path,
    normalisation: str,
    force: bool,
    **terms: Any,
) -> None:
    """Write MODEL for other programs, with the WSInfer zoo's config.json beside it.

    The network in the file gives two logits, whose softmax is the calibrated probability. Every
    file is read back and compared with the checkpoint; one that differs is not kept.
    """
    from wsi_pipeline.models.choice import read_terms
    from wsi_pipeline.models.loading import find_model
    from wsi_pipeline.stages.export_model import export_model

    exported = export_model(
        find_model(model),
        formats,
        out,
        is_normalised_inside=normalisation == "inside",
        force=force,
        terms=read_terms(ExternalModelOptions(**terms)),
    )
    if exported.is_resumed_whole:
        click.echo("nothing to do: an earlier run made these very files")
    for (name, difference), path in zip(exported.differences.items(), exported.files, strict=True):
        click.echo(f"{name}: largest difference from the checkpoint {difference:.1e}  →  {path}")
