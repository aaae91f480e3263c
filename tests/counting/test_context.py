"""Context: which neighbours weigh how much in a patch's averaged logit."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from wsi_pipeline.counting.context import average_context

NAN = float("nan")
NEXT = math.exp(-0.5)
"""Weight of a value one deviation away, where one in the middle weighs 1."""


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def test_neighbours_weigh_by_a_gaussian() -> None:
    # One row: beyond the map lies nothing that is known.
    averaged = average_context(floats(0, 3, 0)[None], 1.0)[0]
    two_away = math.exp(-2.0)
    ends = 3 * NEXT / (1 + NEXT + two_away)
    assert averaged == pytest.approx([ends, 3 / (1 + 2 * NEXT), ends], rel=1e-5)


def test_unknown_neighbours_weigh_nothing_and_stay_unknown() -> None:
    averaged = average_context(floats(2, NAN, 5, NAN)[None], 1.0)[0]
    far = math.exp(-2.0)
    assert averaged == pytest.approx(
        [(2 + 5 * far) / (1 + far), NAN, (5 + 2 * far) / (1 + far), NAN], rel=1e-5, nan_ok=True
    )


def test_a_lone_patch_keeps_its_logit() -> None:
    averaged = average_context(floats(NAN, 4, NAN)[None], 2.0)[0]
    assert averaged == pytest.approx([NAN, 4, NAN], nan_ok=True)


def test_without_context_logits_are_as_they_were() -> None:
    logits = floats(1, NAN)[None]
    assert average_context(logits, 0.0) is logits


def test_an_empty_map_has_no_context() -> None:
    assert average_context(np.empty((0, 3), dtype=np.float32), 1.0).shape == (0, 3)
