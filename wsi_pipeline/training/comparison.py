"""Two models on the same patches of the same patients: which is better, and could it be chance."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.training.bootstrap import (
    DRAWS,
    Interval,
    ResampledFigures,
    draw_patients,
    find_interval,
)
from wsi_pipeline.training.metrics import FIGURES


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both models; None where it has no meaning."""

    figure: str
    """A key of `FIGURES`."""
    one: float | None
    other: float | None
    difference: float | None
    """One minus the other."""
    interval: Interval | None
    """95 %, from drawing the same patients for both; None with a single patient."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every figure of two models on the same patches."""

    patches: int
    patients: int
    thresholds: tuple[float, float]
    draws: int
    differences: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def compare(
    labels: NDArray[np.int8],
    one: NDArray[np.float32],
    other: NDArray[np.float32],
    patients: NDArray[np.str_],
    *,
    thresholds: tuple[float, float],
    seed: int = 0,
    draws: int = DRAWS,
) -> Comparison:
    """Compare probabilities of two models (n,) (n,), each at its own threshold, on labels (n,) 0 or 1 of patients (n,).

    In each draw both models get the same patients, so what is hard for both cancels out.
    """
    names, codes = np.unique(patients, return_inverse=True)
    first, second = (
        ResampledFigures(labels, probability, codes, len(names), threshold)
        for probability, threshold in zip((one, other), thresholds, strict=True)
    )
    once = np.ones(len(names), dtype=np.int64)
    weights = draw_patients(len(names), draws, seed)
    drawn = np.stack([first(row) - second(row) for row in weights])  # (draws, figures)
    pairs = zip(FIGURES, first(once), second(once), strict=True)
    differences = tuple(
        _describe(
            figure, float(a), float(b), find_interval(drawn[:, index]) if len(names) > 1 else None
        )
        for index, (figure, a, b) in enumerate(pairs)
    )
    return Comparison(len(labels), len(names), thresholds, draws, differences)


def _describe(figure: str, one: float, other: float, interval: Interval | None) -> Difference:
    known = not (np.isnan(one) or np.isnan(other))
    return Difference(
        figure=figure,
        one=None if np.isnan(one) else one,
        other=None if np.isnan(other) else other,
        difference=one - other if known else None,
        interval=interval if known else None,
    )
