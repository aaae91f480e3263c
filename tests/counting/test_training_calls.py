"""Patches that are called for training: which, in what order, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.builders import make_table
from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.counting.training_calls import (
    LONGEST_S,
    TOP,
    UNSURE,
    TrainingCalls,
    add_call,
    change_training_calls,
    choose_patches,
    list_training_calls,
    read_training_calls,
    remove_last_call,
    training_path,
)

TABLE = make_table([(0, 0)], rows=2, cols=4)
EMPTY = TrainingCalls("one", "f", TABLE.grid, ("negative", "positive"))
PROBABILITY = np.array([[0.9, 0.1, 0.55, 0.8], [0.3, np.nan, 0.45, 0.99]], dtype=np.float32)


def call(calls: TrainingCalls, number: int, value: bool, queue: str = TOP) -> TrainingCalls:
    return add_call(calls, number, value, queue, "ann", 3.0)


def test_half_are_the_most_probable_and_half_those_nearest_to_the_threshold() -> None:
    chosen = choose_patches(PROBABILITY, None, 0.5, {}, 6)
    assert chosen == [(7, TOP), (2, UNSURE), (0, TOP), (6, UNSURE), (3, TOP), (4, UNSURE)]


def test_of_an_ensemble_those_are_unsure_on_which_its_members_differ() -> None:
    spread = np.array([[0, 3, 1, 0], [0, np.nan, 0, 0]], dtype=np.float32)
    chosen = choose_patches(PROBABILITY, spread, 0.5, {}, 4)
    assert chosen == [(7, TOP), (1, UNSURE), (0, TOP), (2, UNSURE)]


def test_what_was_called_is_not_shown_again_and_the_queues_take_turns() -> None:
    calls = call(EMPTY, 7, False)
    assert choose_patches(PROBABILITY, None, 0.5, calls.calls, 2) == [(2, UNSURE), (0, TOP)]
    assert len(choose_patches(PROBABILITY, None, 0.5, calls.calls, 50)) == 6  # one is NaN


def test_negatives_from_the_top_are_hard_ones() -> None:
    calls = call(call(call(EMPTY, 7, False), 2, False, UNSURE), 0, True)
    assert (calls.hard_negatives, len(calls.calls), calls.seconds) == (1, 3, 9.0)
    assert calls.labels == {7: False, 2: False, 0: True}


def test_an_answer_counts_no_longer_than_somebody_is_at_work() -> None:
    assert add_call(EMPTY, 7, True, TOP, "ann", 5000.0).seconds == LONGEST_S


def test_an_answer_is_not_overwritten_but_taken_back() -> None:
    calls = call(EMPTY, 7, False)
    assert call(calls, 7, False) is calls
    with pytest.raises(ConfigError, match="undo that first"):
        call(calls, 7, True)
    assert remove_last_call(calls, "bob") == (calls, None)
    left, number = remove_last_call(calls, "ann")
    assert (dict(left.calls), number) == ({}, 7)


def test_answers_go_round_and_lie_where_no_count_looks(tmp_path: Path) -> None:
    path = training_path(tmp_path, "one")
    written = change_training_calls(path, EMPTY, lambda calls: call(calls, 7, False))
    (found,) = list_training_calls(tmp_path)
    assert dict(found.calls) == dict(written.calls)
    assert (found.grid, found.class_names) == (EMPTY.grid, EMPTY.class_names)
    assert not list((tmp_path / "reviews").glob("*.json"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "wsi review"},
        {"format_version": 2},
        {"class_names": ["a", "b", "c"]},
        {"calls": {}},
        {"calls": [{"row": 9}]},
        {"calls": [{"call": 2}]},
        {"calls": [{"queue": "other"}]},
        {"calls": [{"seconds": 1e9}]},
        {"calls": [{"at": "today"}]},
        {"calls": [{"reviewer": ""}]},
        {"calls": [{}, {}]},
    ],
)
def test_damaged_answers_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = training_path(tmp_path, "one")
    change_training_calls(path, EMPTY, lambda calls: call(calls, 7, False))
    value = json.loads(path.read_text())
    entries = wrong.get("calls")
    if isinstance(entries, list):
        wrong = {"calls": [value["calls"][0] | entry for entry in entries]}
    path.write_text(json.dumps(value | wrong))
    with pytest.raises(StoreError, match="damaged"):
        read_training_calls(path)


def test_answers_about_another_slide_are_not_continued(tmp_path: Path) -> None:
    path = training_path(tmp_path, "one")
    change_training_calls(path, EMPTY, lambda calls: call(calls, 7, False))
    other = TrainingCalls("one", "other", TABLE.grid, EMPTY.class_names)
    with pytest.raises(StoreError, match="another slide"):
        change_training_calls(path, other, lambda calls: calls)
