"""Patches that a person calls for a model to learn from, never for a count.

Half of them are the most probable ones, which are hard negatives where they are called negative;
half are those of which the model, or the members of an ensemble, are least sure. They are chosen,
not drawn at random, so nothing may be estimated from them; results/reviews/training/<slide_id>.json
holds them apart from the reviews that counts are made of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import REVIEWS
from wsi_pipeline.core.errors import DAMAGES, ConfigError, StoreError, one_line
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.json_io import format_json, read_json
from wsi_pipeline.counting.review_file import DATE, MAX_REVIEW_BYTES, WAIT_S, check_reviewer
from wsi_pipeline.store.files import write_file
from wsi_pipeline.store.lock import wait_for_lock

KIND = "wsi training calls"
FORMAT_VERSION = 1
TRAINING = "training"
TOP, UNSURE = "top", "unsure"
QUEUES = (TOP, UNSURE)
LONGEST_S = 120.0
"""Seconds that one answer counts at most: who leaves the page is not at work."""
SMALLEST_SHARE = 1e-6
MAX_CALLS = 100_000


class TrainingCall(NamedTuple):
    """One answer."""

    call: bool
    queue: str
    """Reason for which the patch was shown: TOP or UNSURE."""
    reviewer: str
    seconds: float
    at: str
    """UTC, as 2026-11-29T05:00:00Z."""


@dataclass(frozen=True, eq=False)
class TrainingCalls:
    """The answers about one slide."""

    slide_id: str
    fingerprint: str
    grid: Grid
    class_names: tuple[str, str]
    """(negative, positive)"""
    calls: Mapping[int, TrainingCall] = field(default_factory=lambda: MappingProxyType({}))
    """By the patch's number, row · columns + column, in the order in which they were given."""

    @property
    def labels(self) -> dict[int, bool]:
        """True for each patch that was called positive, by its number."""
        return {number: call.call for number, call in self.calls.items()}

    @property
    def hard_negatives(self) -> int:
        """Patches from the top of the ranking that were called negative."""
        return sum(not each.call and each.queue == TOP for each in self.calls.values())

    @property
    def seconds(self) -> float:
        """Time that the answers took."""
        return sum(each.seconds for each in self.calls.values())


def choose_patches(
    probability: NDArray[np.float32],
    spread: NDArray[np.float32] | None,
    threshold: float,
    called: Mapping[int, TrainingCall],
    count: int,
) -> list[tuple[int, str]]:
    """Return the numbers of the next patches to call, each with its queue, in turns of the two.

    `probability` and the members' `spread` are (rows, cols), NaN where nothing was assessed. The
    least sure patches are those of the largest spread or, of one model, nearest to the threshold.
    """
    flat = probability.ravel().astype(np.float64)
    free = np.flatnonzero(~np.isnan(flat))
    free = free[~np.isin(free, list(called))]
    doubt = _distances(flat[free], threshold) if spread is None else -spread.ravel()[free]
    orders = {TOP: _take_first(free, -flat[free], count), UNSURE: _take_first(free, doubt, count)}
    so_far = sum(each.queue == TOP for each in called.values())
    is_top = so_far <= len(called) - so_far
    chosen: dict[int, str] = {}
    while len(chosen) < min(count, len(free)):
        queue = TOP if is_top else UNSURE
        number = next(int(each) for each in orders[queue] if int(each) not in chosen)
        chosen[number] = queue
        is_top = not is_top
    return list(chosen.items())


def _take_first(numbers: NDArray[np.intp], order: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Return the numbers of the lowest values of `order`, at least twice `count` of them."""
    if len(numbers) > 2 * count:
        lowest = np.argpartition(order, 2 * count - 1)[: 2 * count]
        numbers, order = numbers[lowest], order[lowest]
    return numbers[np.lexsort((numbers, order))]


def _distances(probability: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Return how far log-odds lie from those of the threshold (n,)."""
    kept = np.clip(probability, SMALLEST_SHARE, 1 - SMALLEST_SHARE)
    at = np.clip(threshold, SMALLEST_SHARE, 1 - SMALLEST_SHARE)
    distances: NDArray[np.float64] = np.abs(np.log(kept / (1 - kept)) - np.log(at / (1 - at)))
    return distances


def add_call(
    calls: TrainingCalls, number: int, call: bool, queue: str, reviewer: str, seconds: float
) -> TrainingCalls:
    """Return the answers with one more. Raises ConfigError for a patch that was called otherwise.

    The same answer once more changes nothing.
    """
    if number in calls.calls:
        if calls.calls[number].call == call:
            return calls
        row, col = divmod(number, calls.grid.cols)
        raise ConfigError(f"row {row}, column {col}: was called otherwise; undo that first")
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    new = TrainingCall(call, queue, reviewer, min(max(seconds, 0.0), LONGEST_S), at)
    return replace(calls, calls=MappingProxyType({**calls.calls, number: new}))


def remove_last_call(calls: TrainingCalls, reviewer: str) -> tuple[TrainingCalls, int | None]:
    """Return the answers without a reviewer's last one, and the number of its patch."""
    own = [number for number, each in calls.calls.items() if each.reviewer == reviewer]
    if not own:
        return calls, None
    rest = {number: each for number, each in calls.calls.items() if number != own[-1]}
    return replace(calls, calls=MappingProxyType(rest)), own[-1]


def training_path(results: Path, slide_id: str) -> Path:
    """Return the place of a slide's answers for training: where no count looks for them."""
    return results / REVIEWS / TRAINING / f"{slide_id}.json"


def list_training_calls(results: Path) -> list[TrainingCalls]:
    """Return the answers for training in a results folder, by slide. Raises StoreError."""
    paths = sorted((results / REVIEWS / TRAINING).glob("[!.]*.json"))
    return [read_training_calls(path) for path in paths]


def read_training_calls(path: Path) -> TrainingCalls:
    """Return the answers in a file. Raises StoreError for a damaged one."""
    try:
        value = read_json(path, MAX_REVIEW_BYTES)
        if (value["kind"], value["format_version"]) != (KIND, FORMAT_VERSION):
            raise ValueError("of another kind or format")
        return _from_json(value)
    except (*DAMAGES, OSError) as error:
        raise StoreError(f"{path}: damaged: {one_line(error)}; move it away") from error


def change_training_calls(
    path: Path, empty: TrainingCalls, change: Callable[[TrainingCalls], TrainingCalls]
) -> TrainingCalls:
    """Return what `change` makes of the answers on disk, after it is written.

    `empty` stands for a file that is not there yet. One writer at a time; a change that raises
    writes nothing. Raises StoreError for a damaged file, or one of another slide or grid.
    """
    with wait_for_lock(path, WAIT_S):
        old = read_own(path, empty)
        new = change(old)
        if new is not old:
            write_file(path, (format_json(_to_json(new), indent=1) + "\n").encode())
    return new


def read_own(path: Path, empty: TrainingCalls) -> TrainingCalls:
    """Return the answers on disk, or `empty` without a file. Raises as above."""
    if not path.exists():
        return empty
    found = read_training_calls(path)
    if (found.fingerprint, found.grid) != (empty.fingerprint, empty.grid):
        raise StoreError(f"{path}: is of another slide, or other patches; move it away")
    return found


def _to_json(calls: TrainingCalls) -> dict[str, Any]:
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "slide_id": calls.slide_id,
        "fingerprint": calls.fingerprint,
        "grid": calls.grid.to_json(),
        "class_names": list(calls.class_names),
        "calls": [
            {"row": number // calls.grid.cols, "col": number % calls.grid.cols}
            | each._asdict()
            | {"call": int(each.call)}
            for number, each in calls.calls.items()
        ],
    }


def _from_json(value: Mapping[str, Any]) -> TrainingCalls:
    """Return the answers that `_to_json` wrote. Raises one of `DAMAGES` for anything else."""
    grid = Grid.from_json(value["grid"])
    texts = [value["slide_id"], value["fingerprint"], *value["class_names"]]
    if len(texts) != 4 or not all(isinstance(text, str) for text in texts):
        raise TypeError("a name in it is not a text, or it has not two classes")
    slide_id, fingerprint, negative, positive = texts
    calls = MappingProxyType(_read_calls(value["calls"], grid))
    return TrainingCalls(slide_id, fingerprint, grid, (negative, positive), calls)


def _read_calls(value: Sequence[Any], grid: Grid) -> dict[int, TrainingCall]:
    if not isinstance(value, list) or len(value) > MAX_CALLS:
        raise ValueError("its answers are not a list, or too long a one")
    calls: dict[int, TrainingCall] = {}
    for entry in value:
        row, col, call, seconds = (entry[name] for name in ("row", "col", "call", "seconds"))
        if not all(type(each) is int for each in (row, col, call)) or call not in (0, 1):
            raise ValueError("an answer has no place, or is neither 0 nor 1")
        if not (0 <= row < grid.rows and 0 <= col < grid.cols):
            raise ValueError("an answer lies outside the grid")
        if type(seconds) not in (int, float) or not 0 <= seconds <= LONGEST_S:
            raise ValueError("the time of an answer is not a number of seconds")
        if entry["queue"] not in QUEUES or not DATE.fullmatch(entry["at"]):
            raise ValueError("an answer is of no queue, or has no date")
        number = row * grid.cols + col
        if number in calls:
            raise ValueError("an answer is there twice")
        name = check_reviewer(entry["reviewer"])
        calls[number] = TrainingCall(bool(call), entry["queue"], name, float(seconds), entry["at"])
    return calls
