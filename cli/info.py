"""`wsi info`."""

from pathlib import Path

import rich_click as click

from wsi_pipeline.core.options import TileOptions

from .main import printable
from .options import options_of
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@click.argument("slide", type=click.Path(path_type=Path))
@options_of(TileOptions, "slide_mpp", "reader")
def info(slide: Path, slide_mpp: float | None, reader: str) -> None:
    """Show a slide's size, scale and pyramid, as the other commands see them.

    A folder may be given that holds one slide, such as a DICOM series.
    """
    from wsi_pipeline.core.errors import SlideError
    from wsi_pipeline.core.limits import limited_memory
    from wsi_pipeline.slides import describe_reader, open_slide
    from wsi_pipeline.slides.selection import find_one

    slide = find_one(slide)
    try:
        with limited_memory():
            opened = open_slide(slide, slide_mpp=slide_mpp, reader=reader)
    except MemoryError as error:
        raise SlideError(
            f"{slide}: needs more memory than this machine has; leave it out"
        ) from error
    facts = opened.info
    width, height = facts.size_l0
    click.echo(printable(str(slide)))
    click.echo(
        f"  size           {width} × {height} px, {width * facts.mpp / 1000:.2f} ×"
        f" {height * facts.mpp / 1000:.2f} mm"
    )
    click.echo(f"  scale          {facts.mpp:g} µm/px (from: {facts.mpp_source})")
    stated = f"{facts.magnification:g}x, as written in the file" if facts.magnification else ""
    click.echo(f"  magnification  {stated or 'not stated'}")
    click.echo(f"  vendor         {facts.vendor or 'not stated'}")
    click.echo(f"  colour profile {printable(facts.colour_profile or 'none')}")
    if facts.bounds_l0 != (0, 0, width, height):
        click.echo(f"  scanned area   x, y, width, height = {facts.bounds_l0} px")
    for level in opened.levels:
        mpp = facts.mpp * float(level.downsample)
        click.echo(
            f"  level {level.number:<8} {level.size[0]} × {level.size[1]} px, {mpp:.4g} µm/px,"
            f" reduced {float(level.downsample):g} times"
        )
    click.echo(f"  reader         {describe_reader(opened)}")
    click.echo(f"  fingerprint    {facts.fingerprint[:16]}")
