"""One block's way from a slide to its logits, on a device that takes tiles and on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import tissue, write_slide
from tests.models.test_domain import with_domain
from tests.models.test_gpu_runs import PretendedCuda, gpu
from tests.slides.test_tiff_reader import spoil_tile
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.models import device_run
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.stages import predict
from wsi_pipeline.stages.tile import plan_patches
from wsi_pipeline.stages.tile_config import TileConfig
from wsi_pipeline.store.commit import Staging

BLOCK = 0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> PretendedCuda:
    device = PretendedCuda()
    monkeypatch.setattr(device_run, "Cuda", lambda: device)
    return device


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "s.tiff", tissue(1024, 768))


def predict_first(
    slide: Path, setting: EngineSetting, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, ...]:
    """Return logits, unreadable patches, fallbacks and compared values of the first block."""
    reader = open_slide(slide)
    table, _ = plan_patches(reader, TileConfig(spec=PatchSpec(50, 50, 0.5)))
    predictor = Predictor(with_domain(), setting, 1)
    staging = Staging(folder / setting.device, {})
    predict.begin_predictions(staging, table, predictor.model, predictor.setting)
    written: list[Any] = []
    monkeypatch.setattr(predict, "write_prediction_block", lambda *given: written.append(given[3]))
    source = SlidePatches(reader, table.grid, table.positions, table.block_size)
    report = predict.predict_block(source, predictor, staging, table, BLOCK)
    assert report.compared
    return written[0].tobytes(), report.unreadable, report.fallbacks, report.compared


def test_a_block_of_tiles_gives_what_a_block_of_patches_gives(
    slide: Path, cuda: PretendedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    read = SlidePatches.read_tiles
    monkeypatch.setattr(
        SlidePatches,
        "read_tiles",
        lambda *given: taken.append((tiles := read(*given)) is not None) or tiles,  # type: ignore[func-returns-value]
    )
    given, known = (
        predict_first(slide, setting, tmp_path, monkeypatch) for setting in (gpu(), EngineSetting())
    )
    assert given == known
    assert taken == [True]  # the GPU's


def test_a_block_with_a_tile_that_cannot_be_read_gives_the_same(
    slide: Path, cuda: PretendedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_tile(slide, 5)
    given, known = (
        predict_first(slide, setting, tmp_path, monkeypatch) for setting in (gpu(), EngineSetting())
    )
    assert given == known
    assert given[1] > 0


def test_patches_that_are_also_stored_are_cut_on_the_cpu(
    slide: Path, cuda: PretendedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlidePatches, "read_tiles", lambda *_: pytest.fail("tiles of a store"))
    reader = open_slide(slide)
    table, _ = plan_patches(reader, TileConfig(spec=PatchSpec(50, 50, 0.5)))
    predictor, staging, store = Predictor(with_domain(), gpu(), 32), *(
        Staging(tmp_path / name, {}) for name in ("predictions", "store")
    )  # fmt: skip
    predict.begin_predictions(staging, table, predictor.model, predictor.setting)
    stored: list[Any] = []
    monkeypatch.setattr(predict, "write_patch_block", lambda *given: stored.append(given[3].pixels))
    source = SlidePatches(reader, table.grid, table.positions, table.block_size)
    predict.predict_block(source, predictor, staging, table, BLOCK, store)
    assert np.array_equal(stored[0], source.read_block(BLOCK).pixels)
