"""A review on disk: it goes round, it holds its own design, and what does not fit is refused."""

import base64
import json
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.core.geometry import Grid, PatchSpec
from wsi_pipeline.counting import review_file
from wsi_pipeline.counting.review import (
    Review,
    add_answer,
    ask_for_more,
    remove_last_answer,
    start_review,
)
from wsi_pipeline.counting.review_file import (
    change_review,
    describe_review,
    list_reviews,
    read_estimate,
    read_review,
    review_path,
    write_review,
)

GRID = Grid(PatchSpec(50, 50, 4.0), 10, 12, Fraction(16))
FINGERPRINT = "f" * 64


def make_probability() -> np.ndarray:
    """120 positions of which 20 were not assessed; the model's probability rises by row."""
    probability = np.linspace(0.01, 0.99, 120, dtype=np.float32).reshape(10, 12)
    probability[:, 10:] = np.nan
    return probability


def start(wanted: int = 20, probability: np.ndarray | None = None) -> Review:
    values = make_probability() if probability is None else probability
    return start_review("s", FINGERPRINT, GRID, values, "d1", ("negative", "tumour"), wanted)


def answer_all(review: Review, reviewer: str, is_positive: Callable[[int], bool]) -> Review:
    while open_ones := review.list_open(reviewer):
        review = add_answer(review, reviewer, open_ones[0], is_positive(open_ones[0]))
    return review


def lower_half(number: int) -> bool:
    return number >= 60


def test_a_review_goes_round(tmp_path: Path) -> None:
    review = answer_all(start(), "Ann Meyer-Özil", lower_half)
    path = review_path(tmp_path, "s")
    write_review(path, review)
    again = read_review(path, FINGERPRINT, GRID)
    assert path == tmp_path / "reviews" / "s.json"
    assert list_reviews(tmp_path) == [path]
    assert np.array_equal(again.strata, review.strata)
    assert (again.shown, again.answers, again.wanted, again.seed, again.class_names) == (
        review.shown,
        review.answers,
        20,
        review.seed,
        ("negative", "tumour"),
    )


def test_a_patch_is_named_by_its_place_with_call_date_and_design(tmp_path: Path) -> None:
    review = start()
    number = review.list_open("ann")[0]
    write_review(tmp_path / "s.json", add_answer(review, "ann", number, True))
    value = json.loads((tmp_path / "s.json").read_text())
    answer = value["reviewers"][0]["answers"][0]
    place = {"row": number // 12, "col": number % 12}
    assert value["reviewers"][0]["name"] == "ann"
    assert answer == place | {"call": 1, "at": answer["at"]}
    assert review_file.DATE.fullmatch(answer["at"])
    assert value["patches"][0].items() >= place.items()
    assert sum(value["strata"]["sizes"]) == 100
    assert value["patches"][0]["inclusion"] == pytest.approx(
        5 / value["strata"]["sizes"][value["patches"][0]["stratum"]]
    )


def test_patches_that_were_not_assessed_are_never_shown() -> None:
    review = answer_all(start(wanted=120), "ann", lower_half)
    assert review.patches == 100
    assert len(review.shown) == 100
    assert all(patch.number % 12 < 10 for patch in review.shown)


def test_all_patches_called_give_the_count_itself() -> None:
    review = answer_all(start(wanted=120), "ann", lower_half)
    found = review.estimate
    assert found is not None
    assert (found.estimate, found.low, found.high, found.reviewed) == (50, 50, 50, 100)


def test_a_slide_with_fewer_patches_than_wanted_is_reviewed_whole(tmp_path: Path) -> None:
    review = answer_all(start(wanted=5000), "ann", lower_half)
    write_review(tmp_path / "s.json", review)
    assert read_review(tmp_path / "s.json").wanted == 100


def test_a_slide_without_patches_has_nothing_to_review(tmp_path: Path) -> None:
    review = start(probability=np.full((10, 12), np.nan, dtype=np.float32))
    write_review(tmp_path / "s.json", review)
    again = read_review(tmp_path / "s.json")
    assert (again.patches, again.list_open("ann")) == (0, [])


def test_the_estimate_is_read_from_the_file(tmp_path: Path) -> None:
    path = review_path(tmp_path, "s")
    assert read_estimate(path, FINGERPRINT, GRID) is None
    review = answer_all(start(wanted=40), "ann", lower_half)
    write_review(path, review)
    found = read_estimate(path, FINGERPRINT, GRID)
    assert found == review.estimate
    assert found is not None
    assert found.low <= 50 <= found.high


def test_another_model_changes_neither_patches_nor_estimate(tmp_path: Path) -> None:
    path = review_path(tmp_path, "s")
    review = add_answer(start(), "ann", start().list_open("ann")[0], True)
    write_review(path, review)
    other = start(probability=make_probability()[::-1].copy())
    assert other.shown != review.shown
    kept = change_review(path, FINGERPRINT, GRID, lambda found: found or other)
    assert kept.shown == review.shown
    assert np.array_equal(kept.strata, review.strata)


def test_a_review_of_another_slide_is_not_changed(tmp_path: Path) -> None:
    path = review_path(tmp_path, "s")
    write_review(path, start())
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another slide's file"):
        change_review(path, "0" * 64, GRID, lambda _found: start())
    assert path.read_bytes() == before


def test_a_review_of_another_slide_is_refused(tmp_path: Path) -> None:
    write_review(tmp_path / "s.json", start())
    with pytest.raises(StoreError, match=r"s\.json: is a review of another slide.*move it away"):
        read_estimate(tmp_path / "s.json", "e" * 64, GRID)


def test_a_review_of_another_grid_is_refused(tmp_path: Path) -> None:
    write_review(tmp_path / "s.json", start())
    with pytest.raises(StoreError, match=r"s\.json: is a review of patches of another size"):
        read_estimate(tmp_path / "s.json", FINGERPRINT, replace(GRID, rows=11))


def pack(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


def change_answer(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: value["reviewers"][0]["answers"][0].update(changes)


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another kind": (lambda value: value.update(kind="wsi run"), "not a review"),
    "a newer format": (lambda value: value.update(format_version=2), "has format 2"),
    "no grid": (lambda value: value.pop("grid"), "damaged"),
    "a call of 2": (change_answer(call=2), "neither 0 nor 1"),
    "a call that is a boolean": (change_answer(call=True), "neither 0 nor 1"),
    "a date of words": (change_answer(at="today"), "the date"),
    "an answer beyond the grid": (change_answer(row=10), "10 is not a whole number from 0 to 9"),
    "an answer to a patch not drawn": (change_answer(row=0, col=11), "no patch that was drawn"),
    "a name of control characters": (
        lambda value: value["reviewers"][0].update(name="a\x1b[2J"),
        "control character",
    ),
    "a name too long": (lambda value: value["reviewers"][0].update(name="a" * 101), "1 to 100"),
    "a reviewer twice": (
        lambda value: value["reviewers"].append(value["reviewers"][0]),
        "is in it twice",
    ),
    "a patch twice": (lambda value: value["patches"].append(value["patches"][0]), "twice"),
    "a patch of another stratum": (
        lambda value: value["patches"][0].update(stratum=77),
        "not in the stratum",
    ),
    "an inclusion above 1": (lambda value: value["patches"][0].update(inclusion=2), "not a share"),
    "sizes that disagree": (
        lambda value: value["strata"].update(sizes=[100]),
        "the sizes of its strata",
    ),
    "a map that is no base64": (
        lambda value: value["strata"].update(map="§"),
        "unpacked|base64|ASCII",
    ),
    "a map that is no zlib": (lambda value: value["strata"].update(map="AAAA"), "unpacked"),
    "a short map": (lambda value: value["strata"].update(map=pack(b"\0" * 119)), "another size"),
    "a map that would not end": (
        lambda value: value["strata"].update(map=pack(b"\0" * 10**7)),
        "another size",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_review_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    review = start()
    write_review(tmp_path / "s.json", add_answer(review, "ann", review.list_open("ann")[0], True))
    value = json.loads((tmp_path / "s.json").read_text())
    change, fault = DAMAGES[name]
    change(value)
    (tmp_path / "s.json").write_text(json.dumps(value))
    with pytest.raises(StoreError, match=fault) as raised:
        read_review(tmp_path / "s.json")
    assert "move it away" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_beyond_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_review(tmp_path / "s.json", start())
    monkeypatch.setattr(review_file, "MAX_REVIEW_BYTES", 1000)
    with pytest.raises(StoreError, match="more than 1000"):
        read_review(tmp_path / "s.json")


def test_no_review_is_said_with_the_command() -> None:
    with pytest.raises(StoreError, match="no such review; begin one with `wsi review`"):
        read_review(Path("nowhere.json"))


def test_an_answer_cannot_be_overwritten_by_a_page_that_does_not_know_it() -> None:
    review = start()
    number = review.list_open("ann")[0]
    answered = add_answer(review, "ann", number, True)
    assert add_answer(answered, "ann", number, True) is answered
    with pytest.raises(ConfigError, match="has called this patch otherwise"):
        add_answer(answered, "ann", number, False)


def test_a_patch_that_was_not_drawn_cannot_be_answered() -> None:
    with pytest.raises(ConfigError, match="was not drawn"):
        add_answer(start(), "ann", 11, True)


def test_undo_shows_the_last_patch_again() -> None:
    review = start()
    first, second = review.list_open("ann")[:2]
    review = add_answer(add_answer(review, "ann", first, True), "ann", second, False)
    review, removed = remove_last_answer(review, "ann")
    assert removed == second
    assert review.list_open("ann")[0] == second
    review, removed = remove_last_answer(review, "ann")
    assert (removed, review.answers) == (first, {})
    assert remove_last_answer(review, "ann")[1] is None


def test_the_second_reviewer_is_shown_the_same_patches_and_decides_nothing() -> None:
    review = answer_all(start(), "ann", lower_half)
    estimate = review.estimate
    assert review.list_open("bob") == [patch.number for patch in review.shown]
    review = answer_all(review, "bob", lambda number: number >= 50)
    assert review.estimate == estimate
    assert [patch.number for patch in review.shown] == list(review.answers["bob"])


def test_agreement_is_over_the_patches_that_both_called() -> None:
    review = answer_all(start(), "ann", lower_half)
    for number in review.list_open("bob")[:10]:
        review = add_answer(review, "bob", number, lower_half(number))
    (agreement,) = review.list_agreements()
    assert agreement == ("ann", "bob", 1.0, 10)


def test_who_undoes_everything_stays_the_first_reviewer() -> None:
    review = start()
    number = review.list_open("ann")[0]
    review = add_answer(add_answer(review, "ann", number, True), "bob", number, True)
    review, _ = remove_last_answer(review, "ann")
    assert review.first_reviewer == "ann"
    assert [*review.answers] == ["ann", "bob"]


def test_more_are_asked_for_up_to_the_whole_slide() -> None:
    review = answer_all(start(), "ann", lower_half)
    assert review.list_open("ann") == []
    more = ask_for_more(review, 30)
    assert (more.wanted, len(answer_all(more, "ann", lower_half).answers["ann"])) == (50, 50)
    assert ask_for_more(more, 1000).wanted == 100


def test_answers_of_two_writers_at_a_time_are_all_kept(tmp_path: Path) -> None:
    path = review_path(tmp_path, "s")
    numbers = start().list_open("ann")

    def write(number: int) -> None:
        change_review(
            path, FINGERPRINT, GRID, lambda found: add_answer(found or start(), "ann", number, True)
        )

    def write_half(which: int) -> None:
        for number in numbers[which::2]:
            write(number)

    threads = [threading.Thread(target=write_half, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_review(path).answers["ann"]) == sorted(numbers)
    assert [entry.name for entry in path.parent.iterdir()] == ["s.json"]


def test_a_review_is_described_in_one_line() -> None:
    assert describe_review(start()) == "s: 0 patches reviewed, too few for an estimate"
    review = answer_all(answer_all(start(120), "ann", lower_half), "bob", lower_half)
    assert describe_review(review) == (
        "s: about 50 of 100 patches tumour (50 to 50), 100 reviewed by ann; kappa 1.00 with bob"
        " over 100"
    )
