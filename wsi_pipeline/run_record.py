"""What a run of inference leaves beside the slides' results: tables, its record, and the page of all slides."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsi_pipeline.batch import Batch
from wsi_pipeline.models.model import Model
from wsi_pipeline.outputs.index_page import write_index
from wsi_pipeline.outputs.run_tables import read_summaries, write_failures_csv, write_run_json, write_slides_tables
from wsi_pipeline.provenance import describe_tool
from wsi_pipeline.store.files import remove_dead_asides


def describe_run(batch: Batch, model: Model, parameters: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """What was asked for, by which versions, and how long each stage took."""
    return {
        "account": batch.account.closing_line,
        "outcomes": [asdict(outcome) for outcome in batch.account.outcomes],
        "model": model.to_json(),
        "seed": dict(model.training).get("parameters", {}).get("seed"),
        "parameters": parameters,
        "patches_predicted": batch.patches_predicted,
        "seconds": seconds,
        "tool": describe_tool(),
    }


def write_tables(results: Path, batch: Batch, record: Mapping[str, Any], suffix: str) -> None:
    """failures.csv and run.json of this run, the tables and the page of all finished slides."""
    _, damaged = read_summaries(results)
    write_failures_csv(results, [*batch.account.outcomes, *damaged], suffix)
    write_run_json(results, record, suffix)
    write_slides_tables(results)
    write_index(results)
    remove_dead_asides(results)
