"""`wsi review`."""

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import rich_click as click

from .main import leave, printable
from .options import EXISTING, mode_option, port_option, results_argument, slides_option
from .run_file import ConfigCommand
from .view import login_name, show_in_browser


@click.command(cls=ConfigCommand)
@results_argument()
@click.argument("slide", required=False)
@click.option(
    "--patches",
    type=click.IntRange(1, 10_000),
    default=50,
    help="Patches that a new review asks about; more can be asked for on the page.",
)
@click.option(
    "--reviewer",
    metavar="NAME",
    help="Name under which the answers are written. [default: the login name]",
    show_default=False,
)
@slides_option
@click.option(
    "--stores",
    type=EXISTING,
    multiple=True,
    metavar="STORE_OR_FOLDER",
    help="Patch stores, shown where a slide's file is not here.",
)
@port_option
@click.option(
    "--open/--no-open", "is_opened", default=True, help="Open the browser, or only say the address."
)
@mode_option
def review(
    results: Path,
    slide: str | None,
    patches: int,
    reviewer: str | None,
    slides: Path | None,
    stores: tuple[Path, ...],
    port: int,
    is_opened: bool,
) -> None:
    """Call drawn patches of RESULTS positive or negative by one key, and count what is positive.

    The browser opens on the slides, or on SLIDE. Patches are drawn by a stratified random design;
    from the answers follows the number of positive patches with an interval. Each answer is written
    to RESULTS/reviews/<slide_id>.json before the next patch is shown. The server runs until Ctrl+C
    and then says what every review comes to.
    """
    from wsi_pipeline.core.errors import ConfigError
    from wsi_pipeline.counting.review_file import list_reviews
    from wsi_pipeline.serve.settings import ServeSettings
    from wsi_pipeline.store.manifest import is_product

    if slide is not None and (Path(slide).name != slide or not is_product(results / slide)):
        raise ConfigError(f"{results}: has no slide {slide!r}; name one of its folders")
    settings = ServeSettings(
        results=(results,),
        slides=slides,
        stores=stores,
        port=port,
        reviewer=reviewer or login_name(),
        review_patches=patches,
    )
    if slide is not None:
        settings = replace(settings, start_page=f"/review/r0/{quote(slide, safe='')}")
    show_in_browser(settings, is_opened)
    faults = [fault for path in list_reviews(results) if (fault := _say_result(path))]
    if list_reviews(results):
        click.echo(f"next: wsi label STORES --reviews {printable(str(results))}", err=True)
    click.echo("stopped", err=True)
    leave(1 if faults else 0)


def _say_result(path: Path) -> bool:
    """Print what one review comes to; return True where its file cannot be read."""
    from wsi_pipeline.core.errors import StoreError
    from wsi_pipeline.counting.review_file import describe_review, read_review

    try:
        click.echo(printable(describe_review(read_review(path))))
    except StoreError as error:
        click.echo(f"wsi: {printable(str(error))}", err=True)
        return True
    return False
