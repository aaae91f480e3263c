"""Logits, context and thresholds: numbers worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wsi_pipeline.core.calibration import (
    Calibration,
    ModelTerms,
    Terms,
    log_odds,
)
from wsi_pipeline.core.errors import ModelError

NAN = float("nan")


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def test_slope_and_offset_come_before_the_sigmoid() -> None:
    # 2 ln 3 - ln 3 = ln 3, the logit of 3/4.
    found = Calibration(2.0, -math.log(3)).apply(floats(math.log(3), NAN))
    assert found == pytest.approx([0.75, NAN], nan_ok=True)
    assert found.dtype == np.float32


def test_a_calibration_can_be_undone() -> None:
    calibration = Calibration(2.0, -1.0)
    logits = floats(-3, 0, 0.25, 4, NAN)
    assert calibration.undo(calibration.apply(logits)) == pytest.approx(
        logits, rel=1e-4, abs=1e-6, nan_ok=True
    )


@pytest.mark.parametrize(("certain", "logit"), [(0, -87), (1, 25 * math.log(2))])
def test_certainty_becomes_the_nearest_finite_logit(certain: float, logit: float) -> None:
    found = Calibration().undo(floats(certain))
    assert found == pytest.approx([logit], rel=1e-5)
    assert Calibration().apply(found) == pytest.approx([certain], abs=1e-7)


def test_a_shift_adds_to_the_log_odds_whatever_the_slope() -> None:
    # Odds of 1 become odds of 3.
    found = Calibration(0.5).shift(math.log(3)).apply(floats(0))
    assert found == pytest.approx([0.75])


@pytest.mark.parametrize(("share", "odds"), [(0.5, 1), (0.75, 3), (0.2, 0.25)])
def test_log_odds_by_hand(share: float, odds: float) -> None:
    assert log_odds(share) == pytest.approx(math.log(odds))


@pytest.mark.parametrize("share", [0, 1])
def test_log_odds_of_nothing_and_of_all_are_finite(share: float) -> None:
    assert abs(log_odds(share)) == pytest.approx(math.log(1e6), rel=1e-6)


@pytest.mark.parametrize(
    ("slope", "offset"), [(0, 0), (-1, 0), (NAN, 0), (math.inf, 0), (1, NAN), (1, math.inf)]
)
def test_a_calibration_that_is_none_is_refused(slope: float, offset: float) -> None:
    with pytest.raises(ModelError, match="train or export the model again"):
        Calibration(slope, offset)


GRID = Terms(Calibration(0.8, 0.1), 0.4, 0.3, 84.0)
TERMS = ModelTerms(GRID, Terms(count=0.6), 0.25, (-0.2, 0.1))


@pytest.mark.parametrize("terms", [ModelTerms(), TERMS])
def test_terms_come_back_from_a_record(terms: ModelTerms) -> None:
    assert ModelTerms.of_record({"terms": terms.to_json()}) == terms


def test_errors_of_counts_are_sorted_when_they_are_read() -> None:
    record = {"terms": TERMS.to_json() | {"count_errors": [0.3, -1, 0]}}
    assert ModelTerms.of_record(record).count_errors == (-1, 0, 0.3)


def test_a_record_of_format_2_or_3_is_a_temperature_and_one_threshold() -> None:
    terms = ModelTerms.of_record({"threshold": 0.4, "temperature": 2.0})
    assert terms == ModelTerms.plain(0.4, 2.0)
    assert terms.on_grid == terms.alone == Terms(Calibration(0.5), 0.4, 0.4, 0.0)
    assert (terms.positive_share, terms.count_errors) == (None, ())


def test_a_record_without_a_temperature_has_none() -> None:
    assert ModelTerms.of_record({"threshold": 0.4}) == ModelTerms.plain(0.4)


HOSTILE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a threshold that is a text": {"threshold": "half"},
    "a threshold that is a truth": {"threshold": True},
    "a threshold above 1": {"threshold": 1.5},
    "a threshold that is no number": {"threshold": NAN},
    "a temperature of nothing": {"threshold": 0.5, "temperature": 0},
    "a temperature below nothing": {"threshold": 0.5, "temperature": -1},
    "a temperature that is none": {"threshold": 0.5, "temperature": None},
    "a number beyond floats": {"threshold": 0.5, "temperature": 10**400},
    "a temperature whose slope is infinite": {"threshold": 0.5, "temperature": 1e-320},
    "terms that are a list": {"terms": []},
    "terms beside a threshold": {"terms": None, "threshold": 0.5},
    "no grid": {"terms": TERMS.to_json() | {"on_grid": None}},
    "a slope of nothing": {"terms": TERMS.to_json() | {"alone": GRID.to_json() | {"slope": 0}}},
    "a context beyond any slide": {
        "terms": TERMS.to_json() | {"on_grid": GRID.to_json() | {"context_um": 1e6}}
    },
    "a context below nothing": {
        "terms": TERMS.to_json() | {"on_grid": GRID.to_json() | {"context_um": -1}}
    },
    "a threshold to detect that is missing": {
        "terms": TERMS.to_json() | {"on_grid": {"slope": 1, "offset": 0, "count": 0.5}}
    },
    "a share that is a text": {"terms": TERMS.to_json() | {"positive_share": "half"}},
    "a share above 1": {"terms": TERMS.to_json() | {"positive_share": 1.5}},
    "errors that are a table": {"terms": TERMS.to_json() | {"count_errors": {"a": 1}}},
    "an infinite error": {"terms": TERMS.to_json() | {"count_errors": [math.inf]}},
}


@pytest.mark.parametrize("record", HOSTILE.values(), ids=HOSTILE.keys())
def test_terms_that_cannot_be_are_refused(record: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, OverflowError, ModelError)):
        ModelTerms.of_record(record)


@pytest.mark.parametrize(
    ("context_um", "chosen"),
    [
        (None, TERMS.on_grid),
        (84.0, TERMS.on_grid),
        (0.0, TERMS.alone),
        (300.0, replace(TERMS.on_grid, context_um=300.0)),
    ],
)
def test_the_terms_for_a_context(context_um: float | None, chosen: Terms) -> None:
    assert TERMS.choose(context_um) == chosen


def test_thresholds_are_called_by_name() -> None:
    assert (GRID.threshold("count"), GRID.threshold("detect")) == (0.4, 0.3)
