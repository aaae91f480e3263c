"""What a run of inference leaves beside the slides' results: tables, its record, and the page of all slides."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsi_pipeline.batch import Batch
from wsi_pipeline.core.outcome import RunAccount
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.models.model import Model
from wsi_pipeline.outputs.index_page import write_index
from wsi_pipeline.outputs.run_tables import read_finished, write_failures_csv, write_run_json, write_slides_tables

logger = logging.getLogger(__name__)


def describe_run(batch: Batch, model: Model, parameters: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """What was asked for, by which versions, and how long each stage took."""
    return {
        "model": model.to_json(),
        "seed": dict(model.training).get("parameters", {}).get("seed"),
        "parameters": parameters,
        "patches_predicted": batch.patches_predicted,
        "seconds": seconds,
        "tool": describe_tool(),
    }


def write_tables(results: Path, account: RunAccount, record: Mapping[str, Any], suffix: str) -> RunAccount:
    """failures.csv and run.json of this run, the tables and the page of all finished slides.

    Returns the account, in which a slide has failed whose results cannot be read back.
    """
    finished = read_finished(results)
    account = account.with_failures(finished.damaged)
    own = {outcome.slide_id for outcome in account.outcomes}
    for failure in finished.damaged:
        logger.warning("%s", failure.message)
    write_failures_csv(results, [*account.outcomes, *(failure for failure in finished.damaged if failure.slide_id not in own)], suffix)
    outcomes = [asdict(outcome) for outcome in account.outcomes]
    write_run_json(results, {"account": account.closing_line, "outcomes": outcomes, **record}, suffix)
    write_slides_tables(results, finished.summaries)
    write_index(results, finished)
    return account
