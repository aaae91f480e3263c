"""Levels that show something else than level 0 are refused; those made in any usual way are not."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.builders import PINK, paint_noise, tissue, write_model, write_slide
from tests.commands import PLAIN, run
from tests.hostile_slides import set_tile, spoil_tiles
from wsi_pipeline.slides import open_slide, scaling
from wsi_pipeline.slides.level_check import check_level
from wsi_pipeline.slides.scaling import read_thumbnail

WIDTH, HEIGHT = 2048, 1536


def draw() -> np.ndarray:
    """Tissue at the upper left of a slide, (1536, 2048): a third of the width, half the height."""
    pixels = np.full((HEIGHT, WIDTH, 3), 244, np.uint8)
    pixels[: HEIGHT // 2, : WIDTH // 3] = tissue(WIDTH // 3, HEIGHT // 2)
    return pixels


def shrink(pixels: np.ndarray, step: int = 4) -> np.ndarray:
    height, width = pixels.shape[0] // step * step, pixels.shape[1] // step * step
    blocks = pixels[:height, :width].reshape(height // step, step, width // step, step, 3)
    return np.asarray(blocks.mean(axis=(1, 3)).astype(np.uint8))


def write_levels(path: Path, *levels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for pixels in levels:
            step = levels[0].shape[1] / pixels.shape[1]
            writer.write(
                pixels,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                resolution=(20_000 / step,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(step > 1),
                metadata=None,
                software=False,
                **options,
            )
    return path


def cut_slide(path: Path) -> tuple[int, str]:
    done = run("tile", path, "--out", path.parent / "out", "--mpp", 0.5, "--workers", 0)
    return done.exit_code, done.output


OTHER: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blank": lambda pixels: np.full_like(pixels, 244),
    "black": np.zeros_like,
    "all tissue": lambda pixels: np.full_like(pixels, PINK),
    "mirrored": lambda pixels: pixels[:, ::-1],
    "upside down": lambda pixels: pixels[::-1],
    "inverted": lambda pixels: 255 - pixels,
    "of other colours": lambda pixels: pixels[..., ::-1] // 2,
    "moved": lambda pixels: np.roll(pixels, pixels.shape[1] // 3, axis=1),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_picture_on_the_level_of_the_tissue_is_refused(name: str, tmp_path: Path) -> None:
    path = write_levels(tmp_path / "s.tiff", draw(), OTHER[name](shrink(draw())))
    exit_code, said = cut_slide(path)
    assert exit_code == 4
    assert "level 1 shows another picture than level 0, as at" in said
    assert said.count("s.tiff") == 1


def test_another_picture_on_the_level_of_the_patches_is_refused(tmp_path: Path) -> None:
    half, quarter = shrink(draw(), 2), shrink(draw())
    path = write_levels(tmp_path / "s.tiff", draw(), half[::-1], quarter)
    done = run("tile", path, "--out", tmp_path / "out", "--mpp", 1, "--workers", 0)
    assert (done.exit_code, "level 1 shows another picture" in done.output) == (4, True)


def test_a_level_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "s.tiff", draw(), shrink(draw())[:100])
    exit_code, said = cut_slide(path)
    assert exit_code == 4
    assert "level 1 has 512 × 100 px, another shape than level 0 (2048 × 1536)" in said


def test_infer_refuses_it_and_goes_on_with_the_others(tmp_path: Path) -> None:
    good = write_levels(tmp_path / "in/good.tiff", draw(), shrink(draw()))
    write_levels(good.with_name("other.tiff"), draw(), shrink(draw())[::-1])
    model = write_model(tmp_path / "model.safetensors")
    options = ["--model", model, *PLAIN, "--outputs", "summary", "--workers", 0]
    done = run("infer", "--slides", good.parent, "--results-dir", tmp_path / "out", *options)
    assert done.exit_code == 3
    assert "2 slides: 1 ok, 1 failed" in done.output


def shift(pixels: np.ndarray) -> np.ndarray:
    """Move a level by half of its pixel."""
    wide = np.pad(pixels, ((0, 1), (0, 1), (0, 0)), mode="edge").astype(np.uint16)
    return ((wide[:-1, :-1] + wide[1:, 1:]) // 2).astype(np.uint8)


SAME: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "averaged": lambda pixels: shrink(pixels),
    "every fourth pixel": lambda pixels: pixels[::4, ::4],
    "shifted by half a pixel": lambda pixels: shift(shrink(pixels)),
    "a pixel short": lambda pixels: shrink(pixels)[:-1, :-1],
    "brighter": lambda pixels: np.minimum(shrink(pixels).astype(int) + 12, 255).astype(np.uint8),
    "coarse": lambda pixels: shrink(pixels, 32),
}


@pytest.mark.parametrize("name", SAME)
def test_levels_made_in_any_usual_way_are_read(name: str, tmp_path: Path) -> None:
    path = write_levels(
        tmp_path / "s.tiff", draw(), SAME[name](draw()), compressionargs={"level": 60}
    )
    exit_code, said = cut_slide(path)
    assert (exit_code, "another" in said) == (0, False)


def test_noise_is_no_other_picture(tmp_path: Path) -> None:
    reader = open_slide(write_slide(tmp_path / "s.tiff", paint_noise(2057, 1801)))
    for level in reader.levels:
        check_level(reader, level, np.empty((0, 2), np.int64))


def test_places_that_a_sparse_tiff_lacks_say_nothing(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "s.tiff", draw(), shrink(draw()))
    for tile in range(48):
        set_tile(path, tile, count=0)
    reader = open_slide(path)
    check_level(reader, reader.levels[1], np.array([[300, 300]]))


def test_places_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "s.tiff", draw(), shrink(draw()))
    spoil_tiles(path, range(8, 48))
    reader = open_slide(path)
    check_level(reader, reader.levels[1], np.array([[300, 300]]))


@pytest.mark.parametrize(
    "name",
    [
        "CMU-1-Small-Region.svs",
        "idc_8863_mosaic.tiff",
        "idc_8865_mosaic.tiff",
        "openslide-python_boxes.tiff",
        "test3-DAPI-2-387.ndpi",
    ],
)
def test_the_levels_of_real_slides_agree(name: str, shared_data: Path) -> None:
    reader = open_slide(shared_data / "slides" / name, slide_mpp=0.5)
    chance = np.random.default_rng(0)
    for level in reader.levels:
        check_level(reader, level, chance.integers(0, min(reader.info.size_l0), (60, 2)))


def test_a_slide_too_large_to_be_read_for_its_tissue_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2,048 × 1,536 px are 3,145,728; at 8 µm/px they are 128 × 96 px of 16 × 16.
    monkeypatch.setattr(scaling, "MAX_LEVEL_PX", 3_145_727)
    path = write_levels(tmp_path / "s.tiff", draw())
    exit_code, said = cut_slide(path)
    assert exit_code == 4
    assert "no level is coarse enough to find tissue on" in said
    assert "convert it to a pyramidal TIFF" in said
    monkeypatch.setattr(scaling, "MAX_LEVEL_PX", 3_145_728)
    assert read_thumbnail(open_slide(path), 8.0).thumbnail.downsample == Fraction(16)
