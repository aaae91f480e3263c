"""results/reviews/<slide_id>.json: a review on disk.

The file is written aside and renamed after every answer. It holds its design, so that it can be
continued whatever model the results beside it are of. Whoever reads it checks all of it: it may
come from anywhere.
"""

import base64
import binascii
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import REVIEWS
from wsi_pipeline.core.errors import DAMAGES, StoreError, machine_fault, one_line
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.json_io import format_json, read_json
from wsi_pipeline.counting.estimate import CountEstimate
from wsi_pipeline.counting.review import MAX_REVIEWER, UNDRAWN, Answer, Answers, Review, ShownPatch
from wsi_pipeline.store.files import write_file
from wsi_pipeline.store.lock import wait_for_lock

KIND = "wsi review"
FORMAT_VERSION = 1
MAX_REVIEW_BYTES = 64 * 1024**2
"""Limit of a review's file; one of a million patches and a thousand answers takes a megabyte."""
MAX_SHOWN = 100_000
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
WAIT_S = 10.0
"""Longest time that an answer waits for another writer of the same file."""
MOVE_AWAY = "move it away to begin another review"


def review_path(results: Path, slide_id: str) -> Path:
    """Return the place of a slide's review: outside of the slide's folder, which is replaced."""
    return results / REVIEWS / f"{slide_id}.json"


def list_reviews(results: Path) -> list[Path]:
    """Return the review files of a results folder, sorted by name."""
    return sorted((results / REVIEWS).glob("[!.]*.json"))


def write_review(path: Path, review: Review) -> None:
    """Write a review aside and rename it. Raises EnvironmentFault."""
    write_file(path, (format_json(_to_json(review), indent=1) + "\n").encode())


def read_review(path: Path, fingerprint: str | None = None, grid: Grid | None = None) -> Review:
    """Return the review in a file, of the slide and the grid that are named.

    Raises StoreError for a damaged file, another slide or another grid, EnvironmentFault where the
    machine refuses.
    """
    try:
        value = read_json(path, MAX_REVIEW_BYTES)
        check_format(path, value)
        review = _from_json(value)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such review; begin one with `wsi review`") from error
    except (*DAMAGES, OSError) as error:
        if isinstance(error, OSError) and (fault := machine_fault(path, error)):
            raise fault from error
        raise StoreError(f"{path}: damaged: {one_line(error)}; {MOVE_AWAY}") from error
    if fingerprint not in (None, review.fingerprint):
        raise StoreError(f"{path}: is a review of another slide's file; {MOVE_AWAY}")
    if grid not in (None, review.grid):
        raise StoreError(
            f"{path}: is a review of patches of another size or place; {MOVE_AWAY}, or infer the"
            " slide as before"
        )
    return review


def check_format(path: Path, value: Any) -> None:
    """Raise StoreError for another kind of file or another format."""
    named = value if isinstance(value, dict) else {}
    if named.get("kind") != KIND:
        raise StoreError(f"{path}: not a review; {MOVE_AWAY}")
    if (version := named.get("format_version")) != FORMAT_VERSION:
        what = f"has format {str(version)[:20]}, this version of wsi reads {FORMAT_VERSION}"
        raise StoreError(f"{path}: {what}; update wsi, or {MOVE_AWAY}")


def read_estimate(path: Path, fingerprint: str, grid: Grid) -> CountEstimate | None:
    """Return the estimate of a slide's review; None without a file or with too few answers.

    Raises as `read_review`.
    """
    return read_review(path, fingerprint, grid).estimate if path.exists() else None


def describe_review(review: Review) -> str:
    """Return what a review comes to, as one line."""
    answers = len(review.calls_of(review.first_reviewer))
    found = review.estimate
    if found is None or not answers:
        return f"{review.slide_id}: {answers} patches reviewed, too few for an estimate"
    line = (
        f"{review.slide_id}: about {found.estimate:.0f} of {review.patches} patches"
        f" {review.class_names[1]} ({found.low:.0f} to {found.high:.0f}), {answers} reviewed by"
        f" {review.first_reviewer}"
    )
    agreements = (
        f"; kappa {'unknown' if each.kappa is None else f'{each.kappa:.2f}'} with {each.other} over"
        f" {each.shared}"
        for each in review.list_agreements()
    )
    return line + "".join(agreements)


def change_review(
    path: Path, fingerprint: str, grid: Grid, change: Callable[[Review | None], Review]
) -> Review:
    """Return what `change` makes of the review of a slide on disk, after it is written.

    None stands for a review that is not there yet. One writer at a time, on this machine and on
    others that share the folder; a change that raises writes nothing. Raises as `read_review`.
    """
    with wait_for_lock(path, WAIT_S):
        old = read_review(path, fingerprint, grid) if path.exists() else None
        new = change(old)
        if new is not old:
            write_review(path, new)
    return new


def _to_json(review: Review) -> dict[str, Any]:
    def place(number: int) -> dict[str, int]:
        row, col = review.place_of(number)
        return {"row": row, "col": col}

    packed = base64.b64encode(zlib.compress(review.strata.tobytes(), 6)).decode()
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "slide_id": review.slide_id,
        "fingerprint": review.fingerprint,
        "grid": review.grid.to_json(),
        "model_digest": review.model_digest,
        "class_names": list(review.class_names),
        "seed": review.seed,
        "wanted": review.wanted,
        "strata": {"sizes": review.design.sizes.tolist(), "map": packed},
        "patches": [
            place(patch.number) | {"stratum": patch.stratum, "inclusion": patch.inclusion}
            for patch in review.shown
        ],
        "reviewers": [
            {
                "name": name,
                "answers": [
                    place(number) | {"call": int(answer.call), "at": answer.at}
                    for number, answer in answers.items()
                ],
            }
            for name, answers in review.answers.items()
        ],
    }


def _from_json(value: Mapping[str, Any]) -> Review:
    """Return the review that `_to_json` wrote. Raises one of `DAMAGES` for anything else."""
    grid = Grid.from_json(value["grid"])
    texts = [value["slide_id"], value["fingerprint"], value["model_digest"], *value["class_names"]]
    if len(texts) != 5 or not all(isinstance(text, str) for text in texts):
        raise TypeError("a name in it is not a text, or it has not two classes")
    slide_id, fingerprint, model_digest, negative, positive = texts
    strata = _read_strata(value["strata"], grid)
    shown = _read_shown(value["patches"], strata)
    review = Review(
        slide_id=slide_id,
        fingerprint=fingerprint,
        grid=grid,
        model_digest=model_digest,
        class_names=(negative, positive),
        seed=_read_integer(value["seed"], 2**32),
        strata=strata,
        wanted=_read_integer(value["wanted"], grid.rows * grid.cols),
        shown=shown,
        answers=_read_reviewers(value["reviewers"], grid, {patch.number for patch in shown}),
    )
    if review.design.sizes.tolist() != value["strata"]["sizes"]:
        raise ValueError("the sizes of its strata and their map disagree")
    return review


def _read_integer(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{str(value)[:20]} is not a whole number from 0 to {most}")
    return value


def _read_number(entry: Mapping[str, Any], grid: Grid) -> int:
    row = _read_integer(entry["row"], grid.rows - 1)
    return row * grid.cols + _read_integer(entry["col"], grid.cols - 1)


def _read_strata(value: Mapping[str, Any], grid: Grid) -> NDArray[np.uint8]:
    """Return the map of strata, unpacked to the grid's size and no further."""
    size = grid.rows * grid.cols
    try:
        packed = base64.b64decode(value["map"], validate=True)
        content = zlib.decompressobj().decompress(packed, size + 1)
    except (zlib.error, binascii.Error) as error:
        raise ValueError("the map of its strata cannot be unpacked") from error
    if len(content) != size:
        raise ValueError("the map of its strata has another size than its grid")
    return np.frombuffer(content, dtype=np.uint8).reshape(grid.rows, grid.cols)


def _read_shown(value: Any, strata: NDArray[np.uint8]) -> tuple[ShownPatch, ...]:
    if not isinstance(value, list) or len(value) > MAX_SHOWN:
        raise ValueError("its patches are not a list, or too long a one")
    rows, cols = strata.shape
    shown = []
    for entry in value:
        row, col = _read_integer(entry["row"], rows - 1), _read_integer(entry["col"], cols - 1)
        stratum, inclusion = int(strata[row, col]), entry["inclusion"]
        if stratum == UNDRAWN or entry["stratum"] != stratum:
            raise ValueError(f"row {row}, column {col} is not in the stratum that it names")
        if type(inclusion) not in (int, float) or not 0 <= inclusion <= 1:
            raise ValueError("an inclusion is not a share")
        shown.append(ShownPatch(row * cols + col, stratum, float(inclusion)))
    if len({patch.number for patch in shown}) != len(shown):
        raise ValueError("a patch is in it twice")
    return tuple(shown)


def _read_reviewers(value: Any, grid: Grid, shown: set[int]) -> Mapping[str, Answers]:
    if not isinstance(value, list):
        raise TypeError("its reviewers are not a list")
    reviewers: dict[str, Answers] = {}
    for entry in value:
        name = check_reviewer(entry["name"])
        if name in reviewers:
            raise ValueError(f"reviewer {name!r} is in it twice")
        reviewers[name] = MappingProxyType(_read_answers(entry["answers"], grid, shown))
    return MappingProxyType(reviewers)


def _read_answers(value: Any, grid: Grid, shown: set[int]) -> dict[int, Answer]:
    answers: dict[int, Answer] = {}
    for entry in value:
        number, call, at = _read_number(entry, grid), entry["call"], entry["at"]
        if number not in shown or number in answers:
            raise ValueError("an answer is to no patch that was drawn, or it is there twice")
        if type(call) is not int or call not in (0, 1):
            raise ValueError("a call is neither 0 nor 1")
        if not isinstance(at, str) or not DATE.fullmatch(at):
            raise ValueError("the date of an answer is not as 2026-11-29T05:00:00Z")
        answers[number] = Answer(bool(call), at)
    return answers


def check_reviewer(name: Any) -> str:
    """Return the name of a reviewer. Raises ValueError."""
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_REVIEWER:
        raise ValueError(f"the name of a reviewer has 1 to {MAX_REVIEWER} characters")
    if not name.isprintable():
        raise ValueError("the name of a reviewer has a control character")
    return name
