from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.builders import PINK, break_tile, paint, write_png, write_slide
from wsi_pipeline.core.errors import ConfigError, SlideError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.tissue import TissueParameters
from wsi_pipeline.stages.tile import plan_patches, resolve_scale
from wsi_pipeline.stages.tile_config import TileConfig, tile_recipe


def config(mpp: float, **other: object) -> TileConfig:
    return TileConfig(spec=PatchSpec(mpp=mpp), **other)  # type: ignore[arg-type]


def pyramid(tmp_path: Path, mpp: float = 0.5) -> Path:
    """2048 × 1024 px, levels reduced 1, 2 and 4 times; tissue is the right half."""
    pixels = paint(2048, 1024, (255, 255, 255))
    pixels[:, 1024:] = PINK
    return write_slide(tmp_path / "s.tiff", pixels, mpp)


@pytest.mark.parametrize(
    ("wanted", "got", "downsample"),
    [
        (0.5, 0.5, Fraction(1)),
        (0.505, 0.5, Fraction(1)),  # 1 % off: level 0 as it is
        (0.495, 0.5, Fraction(1)),
        (1.0, 1.0, Fraction(2)),
        (2.03, 2.0, Fraction(4)),  # 1.5 % off: level 2 as it is
        (2.1, 2.1, Fraction(21, 5)),  # 5 % off: averaged to 2.1
        (0.75, 0.75, Fraction(3, 2)),
    ],
)
def test_a_level_near_the_wanted_scale_is_read_as_it_is(
    wanted: float, got: float, downsample: Fraction, tmp_path: Path
) -> None:
    spec, ratio = resolve_scale(open_slide(pyramid(tmp_path)), config(wanted))
    assert spec.mpp == pytest.approx(got)
    assert ratio == downsample


def test_cutting_finer_than_the_scan_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(
        SlideError, match=r"scanned at 0\.5 µm/px, patches at 0\.25 µm/px .* --allow-upsample"
    ):
        resolve_scale(open_slide(pyramid(tmp_path)), config(0.25))


def test_upsampling_may_be_allowed(tmp_path: Path) -> None:
    spec, ratio = resolve_scale(open_slide(pyramid(tmp_path)), config(0.25, allow_upsample=True))
    assert (spec.mpp, ratio) == (0.25, Fraction(1, 2))


def test_an_upsampled_patch_repeats_the_pixels_of_the_scan(tmp_path: Path) -> None:
    from wsi_pipeline.slides.patches import SlidePatches

    reader = open_slide(pyramid(tmp_path))
    table, _ = plan_patches(reader, config(0.25, allow_upsample=True))
    block = SlidePatches(reader, table.grid, table.positions[:1], 1).read_block(0)
    assert (block.pixels == PINK).all()


def test_cells_are_those_with_tissue(tmp_path: Path) -> None:
    table, _ = plan_patches(open_slide(pyramid(tmp_path)), config(0.5))
    assert table.grid.cols == 40
    # Tissue begins at 1024 px: column 20 spans 1000 to 1050, and half of it or more is tissue; a
    # mask pixel is 16 px wide.
    assert table.positions[:, 1].min() in (20, 21)
    assert set(table.positions[:, 0].tolist()) == set(range(20))
    assert (table.tissue_fraction >= 0.5).all()


def test_every_cell_is_kept_where_no_tissue_is_asked_for(tmp_path: Path) -> None:
    table, _ = plan_patches(
        open_slide(pyramid(tmp_path)), config(0.5, tissue=TissueParameters(min_tissue=0.0))
    )
    assert table.patches == 20 * 40


def test_a_slide_of_glass_has_no_patches(tmp_path: Path) -> None:
    table, _ = plan_patches(
        open_slide(write_slide(tmp_path / "g.tiff", paint(600, 600, (243, 243, 243)))), config(0.5)
    )
    assert table.patches == 0


def test_unreadable_areas_are_tried_rather_than_taken_for_glass(tmp_path: Path) -> None:
    pixels = np.full((512, 512, 3), 255, dtype=np.uint8)
    pixels[256:, 256:] = PINK
    path = write_slide(tmp_path / "s.tiff", pixels, mpp=8.0)
    break_tile(path, page=0, tile=0)
    table, _ = plan_patches(open_slide(path), config(8.0))
    assert [0, 0] in table.positions.tolist()
    assert [0, 8] not in table.positions.tolist()


def test_labels_are_taken_from_a_mask(tmp_path: Path) -> None:
    mask = np.zeros((1024, 2048), dtype=np.uint8)
    mask[:512] = 100
    mask[512:] = 200
    table, _ = plan_patches(
        open_slide(pyramid(tmp_path)), config(0.5), write_png(tmp_path / "s_labels.png", mask)
    )
    rows = table.positions[:, 0]
    assert (table.labels[rows < 10] == 0).all()
    assert (table.labels[rows > 10] == 1).all()


def test_without_a_mask_nothing_is_known(tmp_path: Path) -> None:
    assert (plan_patches(open_slide(pyramid(tmp_path)), config(0.5))[0].labels == -1).all()


def test_the_recipe_changes_with_whatever_changes_the_patches(tmp_path: Path) -> None:
    info = open_slide(pyramid(tmp_path)).info
    base = tile_recipe(info, config(0.5))
    assert base == tile_recipe(info, config(0.5))
    assert base != tile_recipe(info, config(1.0))
    assert base != tile_recipe(info, config(0.5, tissue=TissueParameters(min_tissue=0.4)))
    assert base != tile_recipe(info, config(0.5, allow_upsample=True))
    assert base != tile_recipe(open_slide(pyramid(tmp_path), slide_mpp=0.4).info, config(0.5))


@pytest.mark.parametrize("mpp", [0.0, -1.0, 11.0, float("nan")])
def test_an_impossible_scale_of_the_users_is_refused(mpp: float) -> None:
    with pytest.raises(ConfigError, match="slide mpp"):
        TileConfig(slide_mpp=mpp)
