"""`wsi verify`."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from .main import leave, printable
from .options import EXISTING
from .run_file import ConfigCommand

if TYPE_CHECKING:
    from wsi_pipeline.runs.verify import Verified

DAMAGED = 3


@click.command(cls=ConfigCommand)
@click.argument("paths", nargs=-1, required=True, type=EXISTING, metavar="PATH…")
@click.option("--json", "is_json", is_flag=True, help="As JSON, for machines.")
def verify(paths: tuple[Path, ...], is_json: bool) -> None:
    """Read every file of every product at or below PATH and name each that was changed.

    Products are patch stores, slides' results, models with their reports, and exports; a checkpoint
    may be named by itself. Files that are missing, cut short or changed are named, and those that
    are no part of a product are mentioned. Nothing is written, and runs under way are not
    disturbed. Exit code 0 where all is whole, 3 where something is damaged.
    """
    from wsi_pipeline.core.progress import describe_rate
    from wsi_pipeline.runs.verify import find_products
    from wsi_pipeline.runs.verify import verify as verify_product

    from .progress import show_progress

    found = find_products(paths)
    total, done, started = sum(product.bytes for product in found), 0, time.perf_counter()
    with show_progress() as progress:

        def count(size: int) -> None:
            nonlocal done
            done += size
            rate = describe_rate(done / 1e6, total / 1e6, time.perf_counter() - started, "MB")
            progress.progress(f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB{rate}", done, total)

        verified = [verify_product(product, count) for product in found]
    if is_json:
        rows = [
            asdict(product) | {"path": str(product.path), "is_whole": product.is_whole}
            for product in verified
        ]
        click.echo(json.dumps(rows, indent=1, allow_nan=False))
    else:
        for product in verified:
            _print(product)
        damaged = sum(not product.is_whole for product in verified)
        files = sum(product.files for product in verified)
        size = sum(product.bytes for product in verified) / 1e6
        click.echo(
            f"{len(verified)} products = whole {len(verified) - damaged} + damaged {damaged};"
            f" {files:,} files, {size:,.1f} MB"
        )
    leave(0 if all(product.is_whole for product in verified) else DAMAGED)


def _print(product: "Verified") -> None:
    for name, fault in product.faults.items():
        click.echo(printable(f"{product.path}: {name}: {fault}"))
    if product.others:
        more = " …" if len(product.others) > 3 else ""
        click.echo(
            printable(f"{product.path}: not a part of it: {', '.join(product.others[:3])}{more}")
        )
