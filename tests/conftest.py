"""What tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: on a busy machine a slow example is no fault.
settings.register_profile("wsi", deadline=None)
settings.load_profile("wsi")

SHARED_DATA = Path(os.environ.get("WSI_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real slides and patches, which are not part of the project; WSI_TEST_DATA names another place."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data are not at {SHARED_DATA}; set WSI_TEST_DATA to where they are")
    return SHARED_DATA


@pytest.fixture(scope="session")
def served_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides `one` and `two` in `slides`, and what two random models made of them, in `results` and `other`; made once, to be copied."""
    from tests.served import make_run

    root = tmp_path_factory.mktemp("served")
    make_run(root, name="results", seed=0)
    make_run(root, name="other", seed=1)
    return root
