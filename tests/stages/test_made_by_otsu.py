"""What the detector otsu made, or began, is taken as it is where no detector is asked for."""

from pathlib import Path
from typing import Any

import pytest

from tests.builders import folder_bytes, make_checkpoint, tissue, write_model, write_slide
from tests.commands import infer
from wsi_pipeline.core.options import TileOptions
from wsi_pipeline.core.outcome import SlideOutcome
from wsi_pipeline.runs.tile import read_tiling, tile_slides
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.slides.tissue import TissueParameters
from wsi_pipeline.stages import infer as inference
from wsi_pipeline.stages.tile import TileJob
from wsi_pipeline.stages.tile_config import MADE_BY_OTSU, TileConfig, tile_recipe
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.patches import PatchStore

SIDE = 50


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide and a model."""
    folder = tmp_path_factory.mktemp("made")
    write_slide(folder / "s.tiff", tissue(400, 300))
    write_model(folder / "m.safetensors", make_checkpoint(side_px=SIDE))
    return folder


def cut(made: Path, out: Path, **options: Any) -> SlideOutcome:
    """The outcome of the slide, tiled."""
    chosen = TileOptions(patch_size=SIDE, mpp=0.5, workers=0, **options)
    return tile_slides(find_slides([made / "s.tiff"]), out, chosen).outcomes[0]


def predict(made: Path, results: Path, **options: Any) -> SlideOutcome:
    """The outcome of the slide, predicted."""
    return infer(made / "s.tiff", made / "m.safetensors", results, **options).outcomes[0]


def detector_of(store: Path) -> str:
    return str(PatchStore(store / "s.patches.zarr").attributes["tissue"]["detector"])


def sources_of(results: Path) -> str:
    """The detector by the recipe of results; earlier versions named none."""
    return str(read_manifest(results / "s").recipe["source"]["tissue"].get("detector", "otsu"))


def test_the_recipe_of_otsu_is_that_of_versions_without_another_detector(made: Path) -> None:
    slide = find_slides([made / "s.tiff"])[0]
    config = TileConfig(tissue=TissueParameters("otsu"))
    with TileJob(slide, made, config)._open() as reader:
        recipe = tile_recipe(reader.info, config)
    assert recipe["tissue"] == {
        "mask_mpp": 8.0,
        "median_radius_px": 1,
        "min_saturation": 0.03,
        "max_saturation": 0.08,
        "closing_radius_um": 48.0,
        "min_object_um2": 20_000.0,
        "max_hole_um2": 20_000.0,
        "min_tissue": 0.5,
    }
    assert recipe["quality"] == {
        "max_pen": 0.1,
        "min_sharpness": None,
        "drop": [],
        "sharpness_mpp": 1.0,
    }


def test_a_finished_store_is_taken_with_a_note(made: Path, tmp_path: Path) -> None:
    cut(made, tmp_path, tissue="otsu")
    before = folder_bytes(tmp_path / "s.patches.zarr")
    outcome = cut(made, tmp_path)
    assert outcome.is_resumed_whole
    assert outcome.message.endswith(MADE_BY_OTSU)
    assert folder_bytes(tmp_path / "s.patches.zarr") == before


def test_force_makes_it_anew(made: Path, tmp_path: Path) -> None:
    cut(made, tmp_path, tissue="otsu")
    outcome = cut(made, tmp_path, force=True)
    assert detector_of(tmp_path) == "local"
    assert MADE_BY_OTSU not in outcome.message


def test_a_begun_store_is_gone_on_with(made: Path, tmp_path: Path) -> None:
    by_otsu = read_tiling(TileOptions(patch_size=SIDE, mpp=0.5, tissue="otsu"))
    TileJob(find_slides([made / "s.tiff"])[0], tmp_path, by_otsu).prepare()
    outcome = cut(made, tmp_path)
    assert detector_of(tmp_path) == "otsu"
    assert outcome.message.endswith(MADE_BY_OTSU)


def test_who_names_otsu_is_told_nothing(made: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert MADE_BY_OTSU not in cut(made, tmp_path, tissue="otsu").message


@pytest.mark.parametrize(
    "asked", [{"tissue": "local"}, {"min_density": 0.1}, {"max_fold": 0.2}, {"drop": ("bubble",)}]
)
def test_a_store_is_refused_where_local_was_asked_for(
    asked: dict[str, Any], made: Path, tmp_path: Path
) -> None:
    cut(made, tmp_path, tissue="otsu")
    outcome = cut(made, tmp_path, **asked)
    assert outcome.state == "failed"
    assert "was made from another" in outcome.message
    assert detector_of(tmp_path) == "otsu"


def test_a_store_that_differs_in_more_is_refused(made: Path, tmp_path: Path) -> None:
    cut(made, tmp_path, tissue="otsu")
    assert cut(made, tmp_path, min_tissue=0.4).state == "failed"


def test_finished_results_are_taken_with_a_note(made: Path, tmp_path: Path) -> None:
    predict(made, tmp_path, tissue="otsu")
    outcome = predict(made, tmp_path)
    assert outcome.is_resumed_whole
    assert outcome.message.endswith(MADE_BY_OTSU)


def test_other_outputs_of_finished_results_are_made_of_their_predictions(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(made, tmp_path, tissue="otsu")

    def refuse(*_: object) -> None:
        raise AssertionError("predicted again")

    monkeypatch.setattr(inference, "predict_block", refuse)
    outcome = predict(made, tmp_path, colormap="magma")
    assert outcome.message.endswith(MADE_BY_OTSU)
    assert sources_of(tmp_path) == "otsu"


def test_results_are_refused_where_local_was_asked_for(made: Path, tmp_path: Path) -> None:
    predict(made, tmp_path, tissue="otsu")
    outcome = predict(made, tmp_path, tissue="local")
    assert outcome.state == "failed"
    assert "was made from another source.quality and source.tissue;" in outcome.message


def test_results_that_another_engine_computed_are_taken_too(made: Path, tmp_path: Path) -> None:
    predict(made, tmp_path, tissue="otsu")
    assert predict(made, tmp_path, engine="auto", precision="auto").is_resumed_whole


def test_begun_results_are_gone_on_with(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(inference, "predict_block", stop)
        with pytest.raises(KeyboardInterrupt):
            predict(made, tmp_path, tissue="otsu")
    outcome = predict(made, tmp_path)
    assert sources_of(tmp_path) == "otsu"
    assert outcome.message.endswith(MADE_BY_OTSU)


def test_a_kept_store_decides_the_patches_of_new_results(made: Path, tmp_path: Path) -> None:
    cut(made, tmp_path / "kept", tissue="otsu")
    outcome = predict(made, tmp_path / "results", keep_patches=tmp_path / "kept")
    assert sources_of(tmp_path / "results") == "otsu"
    assert outcome.message.endswith(MADE_BY_OTSU)


def test_results_decide_the_patches_of_a_new_kept_store(made: Path, tmp_path: Path) -> None:
    predict(made, tmp_path / "results", tissue="otsu")
    predict(made, tmp_path / "results", keep_patches=tmp_path / "kept")
    assert detector_of(tmp_path / "kept") == "otsu"


def test_results_of_local_are_not_mixed_with_a_store_of_otsu(made: Path, tmp_path: Path) -> None:
    cut(made, tmp_path / "kept", tissue="otsu")
    predict(made, tmp_path / "results")
    outcome = predict(made, tmp_path / "results", keep_patches=tmp_path / "kept")
    assert outcome.state == "failed"
    assert "s.patches.zarr: was made from another" in outcome.message
