"""Splitting patients, and the one split that leaks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.training.split import (
    PatientSplit,
    SplitChoice,
    read_split_file,
    split_at_random,
    split_folds,
    split_patients,
)


def labelled(**patients: list[int]) -> tuple[np.ndarray, np.ndarray]:
    names = np.array([name for name, labels in patients.items() for _ in labels])
    return names, np.array(
        [label for labels in patients.values() for label in labels], dtype=np.int8
    )


def divide_patients(
    names: np.ndarray, labels: np.ndarray, seed: int = 0, **choice: Any
) -> PatientSplit:
    return split_patients(names, labels, SplitChoice(**choice), seed)


@settings(max_examples=40)
@given(st.integers(4, 12), st.integers(0, 10_000), st.floats(0.1, 0.5))
def test_no_patient_is_in_two_parts(count: int, seed: int, fraction: float) -> None:
    rng = np.random.default_rng(seed)
    names, labels = labelled(
        **{f"p{k}": [0, 1, *rng.integers(0, 2, rng.integers(0, 20)).tolist()] for k in range(count)}
    )
    split = divide_patients(names, labels, val_fraction=fraction, seed=seed)
    assert {*split.train} & {*split.val} == set()
    assert {*split.train} | {*split.val} == {*names.tolist()}


def test_the_same_seed_gives_the_same_split() -> None:
    names, labels = labelled(**{f"p{k}": [0, 1, 1] for k in range(10)})
    assert divide_patients(names, labels, seed=3) == divide_patients(names, labels, seed=3)


def test_named_patients_are_where_they_were_put() -> None:
    names, labels = labelled(a=[0, 1], b=[0, 1], c=[0, 1], d=[0, 1])
    split = divide_patients(names, labels, val_patients=["b"], test_patients=["d"])
    assert split == PatientSplit(train=("a", "c"), val=("b",), test=("d",))


def test_held_out_patients_are_never_drawn() -> None:
    names, labels = labelled(**{f"p{k}": [0, 1, 1] for k in range(10)})
    for seed in range(20):
        split = divide_patients(names, labels, test_patients=["p3", "p4"], seed=seed)
        assert {"p3", "p4"} & {*split.train, *split.val} == set()


def test_a_patient_in_two_parts_is_refused() -> None:
    names, labels = labelled(a=[0, 1], b=[0, 1], c=[0, 1])
    with pytest.raises(ConfigError, match="two parts"):
        divide_patients(names, labels, val_patients=["b"], test_patients=["b"])


def test_a_patient_without_patches_is_named() -> None:
    names, labels = labelled(a=[0, 1], b=[0, 1])
    with pytest.raises(ConfigError, match="nobody"):
        divide_patients(names, labels, val_patients=["nobody"])


def test_one_patient_cannot_be_divided() -> None:
    names, labels = labelled(a=[0, 1, 0, 1])
    with pytest.raises(ConfigError, match="at least two"):
        divide_patients(names, labels)


def test_one_class_cannot_be_learnt() -> None:
    names, labels = labelled(a=[0, 0], b=[0, 0])
    with pytest.raises(ConfigError, match="one class"):
        divide_patients(names, labels)


def test_a_class_too_rare_to_draw_by_is_refused() -> None:
    names, labels = labelled(a=[0, 0, 0], b=[0, 0, 1], c=[0, 0])
    with pytest.raises(ConfigError, match="too few to split the patients into 3 parts"):
        divide_patients(names, labels)


def test_a_part_with_one_class_is_refused() -> None:
    names, labels = labelled(a=[0, 1], b=[0, 0], c=[0, 1])
    with pytest.raises(ConfigError, match="validation patients have 0 positive and 2 negative"):
        divide_patients(names, labels, val_patients=["b"])


def test_named_training_patients_leave_the_others_out() -> None:
    names, labels = labelled(a=[0, 1], b=[0, 1], c=[0, 1], d=[0, 1])
    split = divide_patients(names, labels, train_patients=["a"], val_patients=["b"])
    assert (split.train, split.val, split.test) == (("a",), ("b",), ())


@settings(max_examples=30)
@given(st.integers(5, 12), st.integers(2, 4), st.integers(0, 999))
def test_every_patient_validates_in_exactly_one_fold(count: int, folds: int, seed: int) -> None:
    names, labels = labelled(**{f"p{k}": [0, 1, k % 2] for k in range(count)})
    splits = split_folds(names, labels, folds, test_patients=["p0"], seed=seed)
    assert sorted(name for split in splits for name in split.val) == sorted(
        {*names.tolist()} - {"p0"}
    )
    assert all(split.test == ("p0",) for split in splits)


def test_more_folds_than_patients_are_refused() -> None:
    names, labels = labelled(a=[0, 1, 0, 1], b=[0, 1])
    with pytest.raises(ConfigError, match="3 folds of 2 patients"):
        split_folds(names, labels, 3)


def test_a_division_puts_every_patch_in_its_patients_part() -> None:
    names, _ = labelled(a=[0, 1], b=[0, 1, 1], c=[0])
    division = PatientSplit(("a",), ("b",), ("c",)).divide(names)
    assert (division.train.tolist(), division.val.tolist(), division.is_leaky) == (
        [0, 1],
        [2, 3, 4],
        False,
    )


def test_a_random_division_says_that_it_leaks_and_whom() -> None:
    names, labels = labelled(a=[0, 1] * 20, b=[0, 1] * 20, held=[0, 1] * 5)
    division = split_at_random(
        names, labels, SplitChoice(val_fraction=0.25, test_patients=("held",))
    )
    assert division.is_leaky
    assert division.record["patients_on_both_sides"] == ["a", "b"]
    assert "held" not in {*names[division.train].tolist(), *names[division.val].tolist()}
    assert (len(division.train), len(division.val)) == (60, 20)
    assert {*division.train.tolist()} & {*division.val.tolist()} == set()


def write_lists(folder: Path, **lists: str) -> Path:
    for side, text in lists.items():
        (folder / f"someone_cases_{side}.txt").write_text(text)
    return folder


def test_three_lists_are_a_split(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, train="9029\n9346\n\n", val="16554\n", test="12909\n9382\n")
    assert read_split_file(folder) == PatientSplit(("9029", "9346"), ("16554",), ("12909", "9382"))


def test_the_test_list_may_be_absent(tmp_path: Path) -> None:
    assert read_split_file(write_lists(tmp_path, train="a\n", val="b\n")).test == ()


def test_a_patient_on_two_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two parts of the split: b"):
        read_split_file(write_lists(tmp_path, train="a\nb\n", val="b\n"))


@pytest.mark.parametrize("lists", [{"train": "a\n"}, {"train": "a\n", "val": "\n"}, {}])
def test_missing_and_empty_lists_are_refused(lists: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="list"):
        read_split_file(write_lists(tmp_path, **lists))


def test_a_split_json_of_ours_is_a_split(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["a"], "val": ["b"], "test": [], "is_leaky": False}))
    assert read_split_file(path) == PatientSplit(("a",), ("b",))


@pytest.mark.parametrize("content", ["", "[]", '{"train": ["a"]}', '{"random": true}', "\udcff"])
def test_other_files_are_no_split(content: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="split"):
        read_split_file(path)


def test_absent_patients_of_a_published_split_are_passed_over() -> None:
    split = PatientSplit(("a", "x"), ("b", "y"), ("z",)).keep_present(np.array(["a", "a", "b"]))
    assert split == PatientSplit(("a",), ("b",), ())


def test_a_published_split_of_other_patients_is_refused() -> None:
    with pytest.raises(ConfigError, match="none of the 1 listed validation patients"):
        PatientSplit(("a",), ("y",)).keep_present(np.array(["a", "b"]))


def test_listed_patients_without_patches_and_patients_of_no_list_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names, labels = labelled(a=[0, 1], b=[0, 1], c=[0, 1])
    listed = SplitChoice(("b",), 0.2, ("y",), ("a", "x"), ignores_absent=True)
    split_patients(names, labels, listed)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "split: 2 of 4 listed patients have no labelled patch: x, y",
        "split: 1 patients with labelled patches are in no part of it, and not used: c",
    ]


def test_patients_of_a_sheet_without_patches_are_named(caplog: pytest.LogCaptureFixture) -> None:
    names, labels = labelled(a=[0, 1], b=[0, 1])
    listed = SplitChoice(("b",), 0.2, ignores_absent=True, listed=("a", "b", "z"))
    assert split_patients(names, labels, listed).train == ("a",)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["split: 1 of 3 listed patients have no labelled patch: z"]


def test_a_split_of_exactly_the_patients_is_not_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    names, labels = labelled(a=[0, 1], b=[0, 1])
    divide_patients(names, labels, ignores_absent=True, train_patients=("a",), val_patients=("b",))
    assert not caplog.records


def test_lists_of_a_split_are_read_as_spreadsheets_save_them(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, train="\ufeffa,,\r\nb;;\r\n,,\r\n", val="c\t\n")
    assert read_split_file(folder) == PatientSplit(("a", "b"), ("c",))
