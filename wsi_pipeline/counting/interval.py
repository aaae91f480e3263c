"""The interval of a slide's count without a review: from the errors that a model made before.

Conformal prediction (Vovk et al. 2005) over patients, each of whom counts once however many patches
it has; errors are taken in the arcsine of the share's square root, where they vary alike for few
and for many positives.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

LEVEL = 0.95
FEWEST_PATCHES = 20
"""The error of a patient with fewer labelled patches is mostly the noise of its true share."""


def share_error(counted: float, true: float) -> float:
    """Return the difference of two shares, 0 to 1, in the arcsine of their square root."""
    return math.asin(math.sqrt(true)) - math.asin(math.sqrt(counted))


def conformal_radius(errors: Sequence[float], level: float = LEVEL) -> float | None:
    """Return the error that another patient's stays below; None for too few: 95 % needs 19.

    The errors are those of other patients, as `share_error` gives them.
    """
    rank = math.ceil((len(errors) + 1) * level - 1e-9)
    return sorted(map(abs, errors))[rank - 1] if rank <= len(errors) else None


def predict_error(errors: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Return the middle of the next slide's error and how far it strays from there.

    Student's prediction interval: for the few slides of one site, fewer than a conformal interval
    needs. Two errors or more.
    """
    from scipy.stats import t as student_t

    spread = stdev(errors) * math.sqrt(1 + 1 / len(errors))
    return fmean(errors), float(student_t.ppf((1 + level) / 2, len(errors) - 1)) * spread


def spread_share(share: float, radius: float, center: float = 0.0) -> tuple[float, float]:
    """Return the ends of a share, 0 to 1, that is off by `center` ± `radius` in its arcsine."""
    middle = math.asin(math.sqrt(share)) + center
    ends = (min(max(end, 0.0), math.pi / 2) for end in (middle - radius, middle + radius))
    low, high = (math.sin(end) ** 2 for end in ends)
    return low, high
