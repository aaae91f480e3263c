"""The interval of a slide's count without a review: from the errors that a model made before.

Conformal prediction (Vovk et al. 2005) over patients, each of whom counts once however many patches
it has; errors are taken in the arcsine of the share's square root, where they vary alike for few
and for many positives.
"""

import math
from collections.abc import Sequence

LEVEL = 0.95
FEWEST_PATCHES = 30
"""A patient with fewer labelled patches says little of the error of a share."""


def share_error(counted: float, true: float) -> float:
    """Return the difference of two shares, 0 to 1, in the arcsine of their square root."""
    return math.asin(math.sqrt(true)) - math.asin(math.sqrt(counted))


def interval_of_share(
    share: float, errors: Sequence[float], level: float = LEVEL
) -> tuple[float, float] | None:
    """Return the ends of the interval of a share, 0 to 1; None where there are too few errors.

    The errors are those of other patients, as `share_error` gives them; 95 % needs 19 of them.
    """
    rank = math.ceil((len(errors) + 1) * level - 1e-9)
    if rank > len(errors):
        return None
    return spread_share(share, sorted(map(abs, errors))[rank - 1])


def spread_share(share: float, radius: float) -> tuple[float, float]:
    """Return the ends of a share, 0 to 1, that lie `radius` away in its arcsine."""
    center = math.asin(math.sqrt(share))
    low, high = max(center - radius, 0.0), min(center + radius, math.pi / 2)
    return math.sin(low) ** 2, math.sin(high) ** 2
