"""The demo, from drawing to score."""

from pathlib import Path

import numpy as np
import pytest

from tests.commands import run
from wsi_pipeline.runs.synthetic_slides import LABEL_BENIGN, LABEL_NONE, LABEL_TUMOUR, draw_phantom


def test_a_phantom_is_the_same_for_the_same_seed() -> None:
    assert np.array_equal(
        draw_phantom(300, 200, seed=4).pixels, draw_phantom(300, 200, seed=4).pixels
    )


def test_patients_differ() -> None:
    assert not np.array_equal(
        draw_phantom(300, 200, seed=4).truth, draw_phantom(300, 200, seed=5).truth
    )


def test_a_phantom_has_tumour_benign_tissue_and_glass() -> None:
    phantom = draw_phantom(1600, 1200, seed=1)
    assert phantom.pixels.shape == (1200, 1600, 3)
    shares = {
        value: (phantom.truth == value).mean() for value in (LABEL_NONE, LABEL_BENIGN, LABEL_TUMOUR)
    }
    assert sum(shares.values()) == 1.0
    assert all(share > 0.05 for share in shares.values())
    assert phantom.pixels[phantom.truth == LABEL_NONE].mean() > 235
    assert (
        phantom.pixels[phantom.truth == LABEL_TUMOUR].mean()
        < phantom.pixels[phantom.truth == LABEL_BENIGN].mean()
    )


@pytest.mark.system
def test_the_demo_ends_with_a_heatmap_and_a_good_score(tmp_path: Path) -> None:
    result = run("demo", "--out", str(tmp_path / "demo"))
    assert result.exit_code == 0, result.output
    line = next(
        line for line in result.stdout.splitlines() if line.startswith("F1 on the held-out slides:")
    )
    assert float(line.split(":")[1]) >= 0.9
    for name in ("index.html", "slides.csv", "held-out-1/heatmap.png", "held-out-2/overlay.png"):
        assert (tmp_path / "demo" / "results" / name).is_file()
