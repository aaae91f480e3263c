"""Results in Python: numpy, pandas, xarray."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.written_results import CASES, write_result
from wsi_pipeline.core.calibration import Calibration, ModelTerms
from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.counting.site import SiteCalibration
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs import results as results_module
from wsi_pipeline.outputs.heatmap import Aggregation, read_aggregation
from wsi_pipeline.outputs.results import Slide, check_extra, open_results, slides_frame

SITE = Aggregation(site=SiteCalibration("d" * 64, Calibration(0.5, -1.0), (-0.1, 0.1), 40))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    folder = tmp_path_factory.mktemp("results")
    write_result(
        folder / "slide", CASES["mixed"], view=View(("summary",), Aggregation(threshold=0.6))
    )
    (slide,) = open_results(folder)
    return slide


def test_the_map_is_that_of_the_summary(slide: Slide) -> None:
    assert slide.heatmap.probability.shape == (4, 5)
    assert slide.heatmap.threshold == 0.6
    assert int(slide.heatmap.positive.sum()) == slide.summary.positives == 3


@pytest.mark.parametrize(
    "made",
    [Aggregation(), Aggregation("detect", 300), Aggregation(0.25, 0, 0.04, 0.3), SITE],
    ids=str,
)
def test_how_a_map_was_made_is_read_from_its_folder(made: Aggregation, tmp_path: Path) -> None:
    terms = replace(ModelTerms(), positive_share=0.5)
    write_result(tmp_path / "s", CASES["mixed"], view=View(("summary",), made), terms=terms)
    assert read_aggregation(tmp_path / "s") == made


def test_any_other_map_can_be_drawn(slide: Slide) -> None:
    assert int(slide.build_heatmap(Aggregation(threshold=0.5)).positive.sum()) == 4


def test_regions_are_those_that_count(slide: Slide) -> None:
    assert sum(region.patches for region in slide.regions) == slide.summary.positives


def test_a_frame_has_a_row_per_patch(slide: Slide) -> None:
    frame = slide.to_frame()
    assert len(frame) == 6
    assert frame["positive"].sum() == 3
    assert frame.loc[
        (frame["row"] == 0) & (frame["col"] == 0), "probability"
    ].item() == pytest.approx(0.9)


def test_xarray_knows_micrometres(slide: Slide) -> None:
    image = slide.to_xarray()
    assert image.dims == ("y", "x")
    assert float(image.sel(x=120, y=80, method="nearest")) == pytest.approx(
        0.9
    )  # the first patch covers 0–200 µm
    assert float(image.sel(x=900, y=700)) == pytest.approx(0.7)  # the centre of cell (3, 4)
    assert np.isnan(float(image.sel(x=100, y=300)))


def test_the_slides_frame_is_indexed_by_name(slide: Slide) -> None:
    frame = slides_frame(slide.folder.parent)
    assert frame.loc["slide", "positives"] == 3


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no finished slide"):
        open_results(tmp_path)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=r"pandas: is not installed; pip install 'wsi-pipeline\[analysis\]'",
    ):
        check_extra("pandas")
