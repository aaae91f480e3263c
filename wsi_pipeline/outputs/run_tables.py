"""slides.csv, failures.csv and run.json: what a run came to."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from wsi_pipeline.errors import StoreError
from wsi_pipeline.outcome import SlideOutcome, SlideSummary, describe_failure, find_failures
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.store.commit import read_manifest
from wsi_pipeline.store.files import write_file
from wsi_pipeline.store.predictions import find_results

SLIDES_CSV = "slides.csv"
FAILURES_CSV = "failures.csv"
RUN_JSON = "run.json"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_slides_csv(results: Path) -> list[SlideSummary]:
    """One row for every finished slide in the results folder, from this run or an earlier one; returns them."""
    summaries, _ = read_summaries(results)
    names = [field.name for field in fields(SlideSummary)]
    write_csv(results / SLIDES_CSV, names, ([row[name] for name in names] for row in map(asdict, summaries)))
    return summaries


def read_summaries(results: Path) -> tuple[list[SlideSummary], list[SlideOutcome]]:
    """The figures of every whole slide in the results folder, by name, and a failure for every slide whose results are damaged."""
    summaries: list[SlideSummary] = []
    damaged: list[SlideOutcome] = []
    for folder in find_results([results]):
        try:
            read_manifest(folder)
            summaries.append(read_summary(folder))
        except StoreError as error:
            damaged.append(describe_failure(folder.name, str(folder), error))
    return summaries, damaged


def write_failures_csv(results: Path, outcomes: Sequence[SlideOutcome], suffix: str = "") -> None:
    """The slides of this run that failed or are damaged, with the reason."""
    rows = ([failure.slide_id, failure.path, failure.state, failure.message] for failure in find_failures(outcomes))
    path = results / FAILURES_CSV
    write_csv(path.with_stem(path.stem + suffix), ["slide_id", "path", "state", "reason"], rows)


def write_run_json(results: Path, record: Mapping[str, Any]) -> None:
    """What was asked for, by which versions, and how long each stage took."""
    write_file(results / RUN_JSON, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV table, whole or not at all; empty cells for None, and no cell that a spreadsheet would run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[_plain_cell(value) for value in row] for row in rows])
    write_file(path, text.getvalue().encode(errors="surrogateescape"))


def _plain_cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
