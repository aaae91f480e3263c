"""The queue of patches that a reviewer calls for training: chosen anew after every answer."""

import shlex
from collections.abc import Callable
from pathlib import Path

from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.counting.training_calls import (
    TrainingCalls,
    add_call,
    change_training_calls,
    choose_patches,
    read_own,
    remove_last_call,
    training_path,
)
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.result_reader import LoadedResult
from wsi_pipeline.serve.reviews import refuse_review

Chosen = list[tuple[int, str]]
"""Numbers of patches, each with its queue."""


class TrainingQueue:
    """The answers of one reviewer for training; safe to share between threads."""

    def __init__(self, reviewer: str) -> None:
        self.reviewer = reviewer

    def read(self, loaded: LoadedResult) -> TrainingCalls:
        """Return the answers on disk. Raises Refusal."""
        try:
            return read_own(_path(loaded), _start(loaded))
        except StoreError as error:
            raise refuse_review(error) from error

    def choose(self, loaded: LoadedResult, calls: TrainingCalls, count: int) -> Chosen:
        """Return the next patches to call."""
        heatmap = loaded.heatmap
        return choose_patches(
            heatmap.probability, loaded.spread, heatmap.threshold, calls.calls, count
        )

    def answer(
        self, loaded: LoadedResult, row: int, col: int, call: bool, seconds: float, ahead: int
    ) -> TrainingCalls:
        """Write one answer to one of the next patches. Raises Refusal."""
        number = row * loaded.table.grid.cols + col

        def change(calls: TrainingCalls) -> TrainingCalls:
            if number in calls.calls:
                return add_call(calls, number, call, "", self.reviewer, seconds)
            queue = dict(self.choose(loaded, calls, ahead)).get(number)
            if queue is None:
                raise ConfigError("this patch is not asked about; reload the page")
            return add_call(calls, number, call, queue, self.reviewer, seconds)

        return self._change(loaded, change)

    def undo(self, loaded: LoadedResult) -> tuple[TrainingCalls, int | None]:
        """Remove the reviewer's last answer; return the number of its patch, None for none."""
        removed: list[int | None] = [None]

        def change(calls: TrainingCalls) -> TrainingCalls:
            calls, removed[0] = remove_last_call(calls, self.reviewer)
            return calls

        return self._change(loaded, change), removed[0]

    def _change(
        self, loaded: LoadedResult, change: Callable[[TrainingCalls], TrainingCalls]
    ) -> TrainingCalls:
        try:
            return change_training_calls(_path(loaded), _start(loaded), change)
        except ConfigError as error:
            raise Refusal(409, str(error)) from error
        except StoreError as error:
            raise refuse_review(error) from error


def _path(loaded: LoadedResult) -> Path:
    folder = loaded.result.folder
    return training_path(folder.parent, folder.name)


def _start(loaded: LoadedResult) -> TrainingCalls:
    table = loaded.table
    names = (table.class_names[0], loaded.heatmap.positive_class)
    slide_id = loaded.result.folder.name
    return TrainingCalls(slide_id, table.slide.fingerprint, table.grid, names)


def list_lines(run_name: str) -> list[str]:
    """Return the commands that train with the answers of a results folder."""
    results = shlex.quote(run_name)
    return [
        "wsi tile SLIDES --out stores",
        f"wsi label stores --reviews {results}",
        "wsi train stores --out model",
    ]
