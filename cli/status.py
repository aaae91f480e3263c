"""`wsi status`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from .main import leave, printable
from .options import results_argument
from .run_file import ConfigCommand

if TYPE_CHECKING:
    from wsi_pipeline.runs.status import LastRun, Status, UnderWay

DAMAGED = 3


@click.command(cls=ConfigCommand)
@results_argument()
@click.option("--json", "is_json", is_flag=True, help="As JSON, for machines.")
def status(results: Path, is_json: bool) -> None:
    """Show RESULTS: finished slides, slides in progress and their owners, failures, the last run.

    What is finished is told by its manifest, and files that are missing or cut short are noticed;
    `wsi verify` and `wsi train` compare checksums. Nothing is written, and runs under way are not
    disturbed. Folders of patch stores are understood, too. Exit code 3 where something is damaged,
    has lost its manifest, or is not there although the last run finished it.
    """
    from wsi_pipeline.runs.status import read_status

    found = read_status(results)
    if is_json:
        click.echo(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        _print(found)
    leave(DAMAGED if any(slide.fault for slide in found.finished) else 0)


def _print(found: "Status") -> None:
    from wsi_pipeline.core.outcome import SlideState, describe_counts

    for slide in found.finished:
        unreadable = f", {slide.unreadable} unreadable" if slide.unreadable else ""
        said = slide.fault or f"{slide.patches:,} patches{unreadable}"
        click.echo(printable(f"{slide.slide_id}: {slide.state.word}: {said}"))
    for work in found.under_way:
        click.echo(printable(f"{work.slide_id}: under way: {describe_work(work)}"))
    for failure in found.failures:
        click.echo(
            printable(f"{failure.slide_id}: {failure.state} in the last run: {failure.reason}")
        )
    counts = {SlideState(state).word: count for state, count in found.counts.items()}
    click.echo(f"finished {describe_counts(counts)}; under way: {len(found.under_way)}")
    if found.last_run is not None:
        click.echo(printable(describe_run(found.last_run)))


def describe_work(work: "UnderWay") -> str:
    """Return the progress of a slide, and the process that works on it."""
    done = (
        "its patches are being chosen"
        if work.blocks is None
        else f"{work.blocks_done} of {work.blocks} blocks done"
    )
    if work.owner is None:
        return f"{done}, no process works on it; run the same line again to go on"
    if work.is_alive is None:
        return f"{done}, held by {work.owner}, which cannot be seen from here"
    return f"{done}, held by {work.owner}" + (
        "" if work.is_alive else ", which has died; run the same line again to go on"
    )


def describe_run(run: "LastRun") -> str:
    """Return the state of the last run."""
    began = f" of {run.began}" if run.began else ""
    ending = {
        "ended": f"ended: {run.sentence}",
        "stopped": (
            f"was stopped ({run.reason}) after {run.slides_ended} of {run.slides} slides; run the"
            " same line again"
        ),
        "under way": f"is under way, {run.slides_ended} of {run.slides} slides have ended",
        "killed": (
            f"was killed after {run.slides_ended} of {run.slides} slides; run the same line again"
        ),
        "begun": (
            f"has ended {run.slides_ended} of {run.slides} slides; whether it goes on cannot be"
            " seen from here"
        ),
    }
    return f"last run{began} (wsi {run.command}) {ending[run.ending]}"
