"""slides.csv, slides.parquet, failures.csv and run.json: what a run came to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import FAILURES_CSV, RUN_JSON, SLIDES_CSV, SLIDES_PARQUET
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.outcome import SlideOutcome, SlideSummary, describe_failure, find_failures
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.outputs.tables import (
    write_csv as write_csv,
)  # tables of runs are written with it elsewhere too
from wsi_pipeline.outputs.tables import write_parquet
from wsi_pipeline.store.files import write_file
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.predictions import find_results


@dataclass(frozen=True, slots=True)
class Finished:
    """What stands in a results folder, read once, so that all that is written of it says the same."""

    summaries: tuple[SlideSummary, ...]
    """The figures of every whole slide, by name."""
    damaged: tuple[SlideOutcome, ...]
    """A failure for every slide whose results are not whole."""


def write_slides_tables(results: Path, summaries: Sequence[SlideSummary]) -> None:
    """slides.csv and slides.parquet: one row for every finished slide in the folder, from this run or an earlier one."""
    rows = [asdict(summary) for summary in summaries]
    types = {field.name: _plain_type(field.type) for field in fields(SlideSummary)}
    write_csv(results / SLIDES_CSV, list(types), ([row[name] for name in types] for row in rows))
    write_parquet(results / SLIDES_PARQUET, types, rows)


def _plain_type(annotation: Any) -> type:
    """int, float or str for the type of a figure, which may also be None."""
    return next((kind for kind in (int, float) if annotation in (kind, kind | None)), str)


def read_finished(results: Path) -> Finished:
    """Every slide in the results folder."""
    summaries: list[SlideSummary] = []
    damaged: list[SlideOutcome] = []
    for folder in find_results([results]):
        try:
            read_manifest(folder)
            # By the folder's name, which is unique where stores of one slide were inferred side by
            # side.
            summaries.append(replace(read_summary(folder), slide_id=folder.name))
        except StoreError as error:
            damaged.append(describe_failure(folder.name, str(folder), error))
    return Finished(tuple(summaries), tuple(damaged))


def write_failures_csv(results: Path, outcomes: Sequence[SlideOutcome], suffix: str = "") -> None:
    """The slides of this run that failed or are damaged, with the reason."""
    rows = (
        [failure.slide_id, failure.path, failure.state, failure.message]
        for failure in find_failures(outcomes)
    )
    path = results / FAILURES_CSV
    write_csv(path.with_stem(path.stem + suffix), ["slide_id", "path", "state", "reason"], rows)


def write_run_json(results: Path, record: Mapping[str, Any], suffix: str = "") -> None:
    """What was asked for, by which versions, and how long each stage took."""
    path = results / RUN_JSON
    write_file(
        path.with_stem(path.stem + suffix),
        (json.dumps(record, indent=1, allow_nan=False) + "\n").encode(),
    )
