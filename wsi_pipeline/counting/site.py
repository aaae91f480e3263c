"""results/calibration.json: a model calibrated anew on the reviewed slides of one site.

Slope and offset follow from the answers of all reviews together, each answer weighted by the
patches that it stands for. What a count is then worth is measured by leaving each slide out in
turn: fitted on the others, the counted share is compared with the share that the review found.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.calibration import Calibration
from wsi_pipeline.core.errors import DAMAGES, ConfigError, ModelError, StoreError, one_line
from wsi_pipeline.core.json_io import MAX_RECORD_BYTES, format_json, read_json
from wsi_pipeline.counting.interval import predict_error, share_error, spread_share
from wsi_pipeline.counting.review import Review
from wsi_pipeline.store.files import write_file

CALIBRATION_JSON = "calibration.json"
KIND = "wsi site calibration"
FORMAT_VERSION = 1
FEWEST_SLIDES = 4
"""Reviewed slides below which nothing is fitted."""
RIDGE = 0.5
"""Draws the slope towards the model's and the offset towards 0, as half an answer of a slide."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SiteCalibration:
    """A model's calibration for one site, and the errors of its counts there."""

    model_digest: str
    calibration: Calibration
    errors: tuple[float, ...]
    """Of each reviewed slide left out in turn, as `share_error` gives them; sorted."""
    answers: int

    def to_json(self) -> dict[str, Any]:
        """Return it as calibration.json and the manifests of slides record it."""
        value = asdict(self)
        return {**value.pop("calibration"), **value, "errors": list(self.errors)}

    @classmethod
    def from_json(cls, value: Any) -> "SiteCalibration":
        """Return what `to_json` gave. Raises one of `DAMAGES`, or ModelError."""
        numbers = [value["slope"], value["offset"], *value["errors"]]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise TypeError("a value in it is not a number")
        if not isinstance(value["model_digest"], str) or type(value["answers"]) is not int:
            raise TypeError("its model or its answers are missing")
        if len(value["errors"]) < 2:
            raise ValueError("the errors of its slides are too few")
        slope, offset, *errors = map(float, numbers)
        calibration = Calibration(slope, offset)
        return cls(value["model_digest"], calibration, tuple(sorted(errors)), value["answers"])


@dataclass(frozen=True, slots=True)
class ReviewedSlide:
    """A slide's logits and what a person called some of its patches."""

    slide_id: str
    logits: Floats
    """(n,) of every assessed patch, averaged over its context."""
    answered: Floats
    """(k,) logits of the answered patches."""
    calls: NDArray[np.bool_]
    """(k,) called positive."""
    weights: NDArray[np.float64]
    """(k,) patches that each answer stands for, with the mean 1."""
    share: float
    """Estimated share of positive patches."""

    @classmethod
    def of_review(cls, review: Review, logits: Floats) -> "ReviewedSlide | None":
        """Return the slide of a review and its map of logits (rows, cols), NaN: not assessed.

        None where the review has no estimate yet, or none of its patches has a logit.
        """
        found = review.estimate
        if found is None or not found.reviewed:
            return None
        calls = review.calls_of(review.first_reviewer)
        drawn, _ = review.design.tally(calls)
        numbers = [number for number in calls if not np.isnan(logits.ravel()[number])]
        stratum = review.strata.ravel()[numbers].astype(np.int64)
        if not numbers:
            return None
        stands_for = review.design.sizes[stratum] / drawn[stratum]
        return cls(
            review.slide_id,
            logits[~np.isnan(logits)],
            logits.ravel()[numbers],
            np.array([calls[number] for number in numbers]),
            stands_for / stands_for.mean(),
            found.estimate / review.patches,
        )


def fit_site(
    slides: Sequence[ReviewedSlide], before: Calibration, threshold: float, digest: str
) -> SiteCalibration:
    """Return the calibration for a site; the model's own where the fitted one counts no better.

    `threshold` is the model's for counting. Raises ConfigError for fewer than four slides.
    """
    if len(slides) < FEWEST_SLIDES:
        raise ConfigError(
            f"{len(slides)} reviewed slides; review at least {FEWEST_SLIDES} with `wsi review`"
        )
    own = measure_errors(slides, [before] * len(slides), threshold)
    left_out = [
        _fit([*slides[:number], *slides[number + 1 :]], before) for number in range(len(slides))
    ]
    fitted = measure_errors(slides, left_out, threshold)
    is_better = np.mean(np.square(fitted)) < np.mean(np.square(own))
    calibration, errors = (_fit(slides, before), fitted) if is_better else (before, own)
    answers = sum(len(slide.calls) for slide in slides)
    return SiteCalibration(digest, calibration, tuple(sorted(errors)), answers)


def measure_errors(
    slides: Sequence[ReviewedSlide], calibrations: Sequence[Calibration], threshold: float
) -> list[float]:
    """Return the error of each slide's counted share, against that of its review."""
    return [
        share_error(
            float(np.mean(calibration.apply(slide.logits) >= np.float32(threshold))), slide.share
        )
        for slide, calibration in zip(slides, calibrations, strict=True)
    ]


def _fit(slides: Sequence[ReviewedSlide], before: Calibration) -> Calibration:
    """Return slope and offset of the highest weighted likelihood, near to the model's own."""
    from scipy.optimize import minimize
    from scipy.special import expit

    logits, calls, weights = (
        np.concatenate([getattr(slide, name) for slide in slides]).astype(np.float64)
        for name in ("answered", "calls", "weights")
    )

    def loss(point: NDArray[np.float64]) -> float:
        z = math.exp(point[0]) * logits + point[1]
        lost = float(np.sum(weights * (np.logaddexp(0, z) - calls * z)))
        change = (point[0] - math.log(before.slope)) ** 2 + (point[1] - before.offset) ** 2
        return lost + RIDGE * float(change)

    def slope(point: NDArray[np.float64]) -> NDArray[np.float64]:
        gap = weights * (expit(math.exp(point[0]) * logits + point[1]) - calls)
        by_slope = float(np.sum(gap * logits)) * math.exp(point[0])
        pull = 2 * RIDGE * (point - [math.log(before.slope), before.offset])
        return np.array([by_slope, float(np.sum(gap))]) + pull

    start = [math.log(before.slope), before.offset]
    found = minimize(loss, start, jac=slope, method="BFGS")
    return Calibration(math.exp(float(found.x[0])), float(found.x[1]))


def describe_site(site: SiteCalibration, before_radius: float | None) -> str:
    """Return what the reviews of a site came to, in two lines; the radius is the model's own."""
    center, radius = predict_error(site.errors)
    line = (
        f"slope {site.calibration.slope:.3f}, offset {site.calibration.offset:+.3f} from"
        f" {site.answers} answers on {len(site.errors)} slides"
    )
    at = [_half_width(share, center, radius) for share in (0.05, 0.25)]
    new = f"a share of 5 % is now known to ± {at[0]:.0%}, one of 25 % to ± {at[1]:.0%}"
    if before_radius is None:
        return f"{line}\n{new}; the model itself gives no interval"
    old = [_half_width(share, 0.0, before_radius) for share in (0.05, 0.25)]
    word = "narrower" if radius < before_radius else "not narrower"
    return f"{line}\n{new}, {word} than the model's own ± {old[0]:.0%} and ± {old[1]:.0%}"


def _half_width(share: float, center: float, radius: float) -> float:
    low, high = spread_share(share, radius, center)
    return (high - low) / 2


def write_site(results: Path, site: SiteCalibration) -> None:
    """Write calibration.json. Raises EnvironmentFault."""
    record = {"kind": KIND, "format_version": FORMAT_VERSION, **site.to_json()}
    write_file(results / CALIBRATION_JSON, (format_json(record, indent=1) + "\n").encode())


def read_site(results: Path) -> SiteCalibration | None:
    """Return the calibration of a results folder, None without one. Raises StoreError."""
    path = results / CALIBRATION_JSON
    try:
        value = read_json(path, MAX_RECORD_BYTES)
        if (value["kind"], value["format_version"]) != (KIND, FORMAT_VERSION):
            raise ValueError("of another kind or version")
        return SiteCalibration.from_json(value)
    except FileNotFoundError:
        return None
    except (ModelError, OSError, *DAMAGES) as error:
        raise StoreError(
            f"{path}: damaged ({one_line(error)}); make it again with `wsi calibrate`, or remove it"
        ) from error
