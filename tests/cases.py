"""Inputs of reported faults, which lie beside the test data: each folder's `make.py` writes one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

CASES = Path(os.environ.get("WSI_TEST_CASES", ROOT.parent / "shared" / "cases"))


def make_case(name: str, tmp_path: Path) -> Path:
    """Return a folder with the input of a case; the test is skipped where the case is not there."""
    script = CASES / name / "make.py"
    if not script.is_file():
        pytest.skip(f"the cases are not at {CASES}; WSI_TEST_CASES says where they are")
    subprocess.run([sys.executable, str(script), str(tmp_path / "in")], check=True)
    return tmp_path / "in"
