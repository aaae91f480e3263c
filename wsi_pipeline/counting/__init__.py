"""Counts one can trust: patches that a person calls, and the count that follows from them."""

from wsi_pipeline.counting.design import Design, Drawn, draw, make_design
from wsi_pipeline.counting.estimate import (
    CountEstimate,
    estimate_count,
    kappa,
    patches_needed,
)

__all__ = [
    "CountEstimate",
    "Design",
    "Drawn",
    "draw",
    "estimate_count",
    "kappa",
    "make_design",
    "patches_needed",
]
