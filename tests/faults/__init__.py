"""Faults put into real commands: of files, machines, headers and finished products."""

import pytest

by_extent = pytest.mark.parametrize(
    "is_whole", [False, pytest.param(True, marks=pytest.mark.faults)], ids=["sample", "all"]
)
"""Tries a sample of the faults, and in the tier `faults` every one."""
