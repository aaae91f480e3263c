"""From a network's logits to the probabilities that results show: context, calibration, thresholds.

The logit of a patch is averaged with its neighbours' on the grid, then turned into a probability.
Logits are averaged, not probabilities, because their mean ranks patches better.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.outcome import Distance, Limits

Floats = NDArray[np.float32]
COUNT, DETECT, USER = "count", "detect", "user"
"""Sources of a threshold: the two of a model, and a number that the user gave."""
MAX_CONTEXT_UM = 100_000.0
LARGEST_LOGIT = 87.0
"""exp(-87) is about the smallest ordinary float32."""
SMALLEST_SHARE = 1e-6
AGAIN = "train or export the model again"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Slope and offset of logits before the sigmoid (Platt 1999), fitted on labels."""

    slope: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and self.slope > 0 and math.isfinite(self.offset)):
            raise ModelError(
                f"a calibration of slope {self.slope} and offset {self.offset} is not a positive"
                f" and a finite number; {AGAIN}"
            )

    def apply(self, logits: Floats) -> Floats:
        """Return probabilities float32 of logits of any shape; NaN stays NaN."""
        # In float64: torch's float32 can give equal logits different last bits, which breaks ties.
        with np.errstate(invalid="ignore"):  # NaN
            return np.exp(-np.logaddexp(0, -self.scale(logits))).astype(np.float32)

    def scale(self, logits: Floats) -> NDArray[np.float64]:
        """Return calibrated logits float64."""
        return np.asarray(logits, dtype=np.float64) * self.slope + self.offset

    def undo(self, probability: Floats) -> Floats:
        """Return uncalibrated logits float32 of probabilities.

        0 and 1 become the nearest numbers that float32 distinguishes from them.
        """
        p = np.clip(probability.astype(np.float64), math.exp(-LARGEST_LOGIT), 1 - 2.0**-25)
        return np.asarray((np.log(p) - np.log1p(-p) - self.offset) / self.slope, dtype=np.float32)

    def shift(self, log_odds: float) -> "Calibration":
        """Return the calibration for patches whose log-odds are higher by so much."""
        return replace(self, offset=self.offset + log_odds)


@dataclass(frozen=True, slots=True)
class Terms:
    """Context, calibration and two thresholds, by which logits are read."""

    calibration: Calibration = Calibration()
    count: float = 0.5
    """Probability from which on a patch counts: for counts, maps and areas."""
    detect: float = 0.5
    """The threshold with the highest balanced accuracy (Youden), for finding patches."""
    context_um: float = 0.0
    """Standard deviation in µm of the Gaussian over the neighbours' logits; 0: no context."""

    def __post_init__(self) -> None:
        for name, value in ((COUNT, self.count), (DETECT, self.detect)):
            if not 0 <= value <= 1:
                raise ModelError(f"a {name} threshold of {value} is not a probability; {AGAIN}")
        if not 0 <= self.context_um <= MAX_CONTEXT_UM:
            raise ModelError(
                f"a context of {self.context_um} µm; it must be 0 to {MAX_CONTEXT_UM:g}; {AGAIN}"
            )

    def to_json(self) -> dict[str, float]:
        """Return the terms as cards and results record them."""
        thresholds = {COUNT: self.count, DETECT: self.detect}
        return {**asdict(self.calibration), **thresholds, "context_um": self.context_um}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Terms":
        """Return the recorded terms. Raises KeyError, TypeError, ValueError or ModelError."""
        names = ("slope", "offset", COUNT, DETECT, "context_um")
        numbers = {name: _read_number(value[name]) for name in names}
        calibration = Calibration(numbers.pop("slope"), numbers.pop("offset"))
        return cls(calibration, **numbers)

    def threshold(self, name: str) -> float:
        """Return the threshold that is called `count` or `detect`."""
        return self.detect if name == DETECT else self.count


@dataclass(frozen=True, slots=True)
class ModelTerms:
    """A model's terms on a grid and for single patches, and what validation patients showed."""

    on_grid: Terms = field(default_factory=Terms)
    """For patches whose neighbours are known."""
    alone: Terms = field(default_factory=Terms)
    """For single images and exports: no context."""
    positive_share: float | None = None
    """Share of positive patches among those of the validation patients; None: not known."""
    count_errors: tuple[float, ...] = ()
    """Errors of the validation patients' counts, as `conformal_radius` takes them; sorted."""

    def __post_init__(self) -> None:
        if self.positive_share is not None and not 0 <= self.positive_share <= 1:
            raise ModelError(f"a share of positive patches of {self.positive_share}; {AGAIN}")

    @classmethod
    def plain(cls, threshold: float = 0.5, temperature: float = 1.0) -> "ModelTerms":
        """Return terms without context: logits over a temperature, cut at one threshold."""
        if not (math.isfinite(temperature) and temperature > 0):
            raise ModelError(f"a temperature of {temperature} is not positive; {AGAIN}")
        terms = Terms(Calibration(1 / temperature), threshold, threshold)
        return cls(terms, terms)

    def to_json(self) -> dict[str, Any]:
        """Return the terms as cards and results record them."""
        return {
            "on_grid": self.on_grid.to_json(),
            "alone": self.alone.to_json(),
            "positive_share": self.positive_share,
            "count_errors": list(self.count_errors),
        }

    @classmethod
    def of_record(cls, model: Mapping[str, Any]) -> "ModelTerms":
        """Return the terms in a model's card or its record in results, of any format.

        Raises KeyError, TypeError, ValueError or ModelError.
        """
        if "terms" not in model:
            temperature = _read_number(model.get("temperature", 1.0))
            return cls.plain(_read_number(model["threshold"]), temperature)
        value = model["terms"]
        share, errors = value["positive_share"], value["count_errors"]
        if not isinstance(errors, list):
            raise TypeError("its errors of counts are not a list")
        return cls(
            Terms.from_json(value["on_grid"]),
            Terms.from_json(value["alone"]),
            None if share is None else _read_number(share),
            tuple(sorted(map(_read_number, errors))),
        )

    def choose(self, context_um: float | None) -> Terms:
        """Return the terms for a context in µm, None for the model's own.

        Another width than the model's is read with the calibration of the model's own.
        """
        if context_um is None or context_um == self.on_grid.context_um:
            return self.on_grid
        return self.alone if context_um == 0 else replace(self.on_grid, context_um=context_um)


def _read_number(value: Any) -> float:
    """Return a finite number. Raises TypeError or ValueError."""
    if type(value) not in (int, float):
        raise TypeError(f"{str(value)[:20]!r} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return float(value)


def read_limits(value: Mapping[str, Any]) -> Limits:
    """Return the limits for distances that a model's card records. Raises ModelError."""
    found = [value.get(name) for name in Limits._fields]
    for limit in found:
        if limit is not None and not (type(limit) in (int, float) and 0 < limit < math.inf):
            raise ModelError(f"a limit of {str(limit)[:20]} for distances; {AGAIN}")
    return Limits(*found)


def read_distance(value: Mapping[str, Any]) -> Distance:
    """Return the distance that results record. Raises TypeError or ValueError."""
    found = [value.get(name) for name in Distance._fields]
    distance = Distance(*(None if each is None else _read_number(each) for each in found))
    if any(each is not None and each < 0 for each in distance):
        raise ValueError(f"a distance of {distance}")
    return distance


def log_odds(share: float) -> float:
    """Return the logarithm of the odds of a share, which is kept off 0 and 1."""
    kept = min(max(share, SMALLEST_SHARE), 1 - SMALLEST_SHARE)
    return math.log(kept / (1 - kept))
