"""Tiles that a scanner's file has lost are unreadable, not glass; glass that was never stored, and
missing tiles of other TIFFs, are background.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.builders import PINK, write_model
from tests.commands import PLAIN, run
from tests.hostile_slides import APERIO, put_tile, set_tile
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.lost_tiles import shows_tissue

SIDE, TILE = 1024, 256
GLASS, TISSUE = 0, 5
"""Numbers of tiles, of 4 × 4: tissue is on the tiles 5, 6, 9 and 10, so that 10 × 10 patches of 50
px, from column and row 5 to 14, are tissue by half or more. Tile 5 lies under the columns and rows
5 to 10: 36 of them."""
ALL, DAMAGED = "100 patches", "100 patches, 36 unreadable"


def draw(side: int, glass: int = 245) -> np.ndarray:
    """Tissue in the middle half of glass, with some grain."""
    pixels = np.full((side, side, 3), glass, np.uint8)
    middle = slice(side // 4, side * 3 // 4)
    grain = np.random.default_rng(0).integers(-9, 10, (side // 2, side // 2, 1))
    pixels[middle, middle] = np.array(PINK) + grain
    return pixels


def write_scan(path: Path, downsamples: Sequence[int] = (1, 4), is_aperio: bool = True) -> Path:
    """A pyramid at 0.5 µm/px, as Aperio's scanner or as any program writes it."""
    description = APERIO.format(SIDE, SIDE, "0.5") if is_aperio else None
    common: dict[str, Any] = {"metadata": None, "software": False, "photometric": "rgb"}
    with tifffile.TiffWriter(path) as writer:
        for step in downsamples:
            writer.write(
                draw(SIDE // step),
                tile=(TILE, TILE),
                compression="jpeg",
                compressionargs={"level": 90},
                description=description,
                resolution=(20_000 / step,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(step > 1),
                **common,
            )
    return path


def tile_slide(path: Path, *options: object) -> tuple[int, str]:
    out = ("--out", path.parent / "out", "--tissue", "otsu")  # which counts as said above
    done = run("tile", path, *out, "--mpp", 0.5, "--workers", 0, *options)
    return done.exit_code, done.output


def test_a_lost_tile_of_a_scan_is_damage(tmp_path: Path) -> None:
    path = set_tile(write_scan(tmp_path / "s.svs"), TISSUE, count=0)
    exit_code, said = tile_slide(path)
    assert exit_code == 3
    assert DAMAGED in said
    counts = json.loads((tmp_path / "out/s.patches.zarr/manifest.json").read_text())["counts"]
    assert (counts["patches"], counts["unreadable"]) == (100, 36)


def test_predictions_say_so(tmp_path: Path) -> None:
    path = set_tile(write_scan(tmp_path / "s.svs"), TISSUE, count=0)
    model = write_model(tmp_path / "model.safetensors")
    options = ["--model", model, *PLAIN, "--outputs", "summary", "--workers", 0]
    done = run("infer", "--slides", path, "--results-dir", tmp_path / "out", *options)
    summary = json.loads((tmp_path / "out/s/summary.json").read_text())
    assert done.exit_code == 3
    assert (summary["state"], summary["unreadable"]) == ("damaged", 36)


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_either_reader_finds_it(reader: str, tmp_path: Path) -> None:
    path = set_tile(write_scan(tmp_path / "s.svs"), TISSUE, count=0)
    exit_code, said = tile_slide(path, "--reader", reader)
    assert (exit_code, DAMAGED in said) == (3, True)


def test_glass_that_a_scan_leaves_out_is_background(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "s.svs")
    for tile in (GLASS, 1, 7, 15):
        set_tile(path, tile, count=0, offset=0)
    exit_code, said = tile_slide(path)
    assert (exit_code, "unreadable" in said) == (0, False)
    assert ALL in said
    reader = open_slide(path)
    assert (reader.read(reader.levels[0], 0, 0, TILE, TILE) == 255).all()
    assert reader.fallbacks == 0


def test_missing_tiles_of_a_sparse_tiff_are_background(tmp_path: Path) -> None:
    path = set_tile(write_scan(tmp_path / "s.tiff", is_aperio=False), TISSUE, count=0)
    exit_code, said = tile_slide(path)
    assert (exit_code, "unreadable" in said) == (0, False)


@pytest.mark.parametrize("compression", [33003, 33005])
def test_jpeg_2000_of_aperio_is_looked_at(compression: int, tmp_path: Path) -> None:
    path = tmp_path / "s.svs"
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 4):
            side = SIDE // step
            pixels = draw(side)
            if compression == 33003:
                pixels = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
            places = [(y, x) for y in range(0, side, TILE) for x in range(0, side, TILE)]
            packed: Any = iter(
                imagecodecs.jpeg2k_encode(
                    np.ascontiguousarray(pixels[y : y + TILE, x : x + TILE]),
                    level=0,
                    codecformat="j2k",
                    mct=False,
                )
                for y, x in places
            )
            writer.write(
                packed,
                shape=(side, side, 3),
                dtype="uint8",
                tile=(TILE, TILE),
                compression=compression,
                photometric="rgb",
                description=APERIO.format(SIDE, SIDE, "0.5"),
                subfiletype=int(step > 1),
                metadata=None,
                software=False,
            )
    assert ALL in tile_slide(path)[1]
    for tile in (TISSUE, GLASS):
        set_tile(path, tile, count=0)
    exit_code, said = tile_slide(path, "--force")
    assert (exit_code, DAMAGED in said) == (3, True)


def two_at_one_place(path: Path) -> None:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[6], page.databytecounts[6]
    set_tile(path, TISSUE, offset=offset, count=count)


DAMAGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "no offset": (lambda path: set_tile(path, TISSUE, offset=0), 36),
    "a length of one byte": (lambda path: set_tile(path, TISSUE, count=1), 36),
    # Which of the two is right is not known: 10 columns × 6 rows lie over the tiles 5 and 6.
    "two tiles at one place": (two_at_one_place, 60),
    "no content, but an offset of its own": (lambda path: set_tile(path, TISSUE, count=0), 36),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_other_damages_of_the_table_of_tiles_are_damage(name: str, tmp_path: Path) -> None:
    make, unreadable = DAMAGES[name]
    make(path := write_scan(tmp_path / "s.svs"))
    exit_code, said = tile_slide(path)
    assert (exit_code, f"100 patches, {unreadable} unreadable" in said) == (3, True)


def test_a_tile_that_lies_beyond_the_file_is_refused(tmp_path: Path) -> None:
    path = set_tile(write_scan(tmp_path / "s.svs"), TISSUE, offset=2**31)
    exit_code, said = tile_slide(path)
    assert (exit_code, "truncated" in said) == (4, True)


def test_a_tile_of_another_size_is_damage(tmp_path: Path) -> None:
    small = bytes(imagecodecs.jpeg8_encode(draw(128)))
    exit_code, said = tile_slide(put_tile(write_scan(tmp_path / "s.svs"), TISSUE, small))
    assert (exit_code, DAMAGED in said) == (3, True)


def test_glass_stored_once_for_many_tiles_is_glass(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "s.svs")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[GLASS], page.databytecounts[GLASS]
    for tile in (1, 2, 3, 12):
        set_tile(path, tile, offset=offset, count=count)
    exit_code, said = tile_slide(path)
    assert (exit_code, ALL in said, "unreadable" in said) == (0, True, False)


def test_a_coarser_level_drawn_from_a_finer_one_is_readable(tmp_path: Path) -> None:
    path = set_tile(write_scan(tmp_path / "s.svs", (1, 2, 4)), 0, page=1, count=0)
    reader = open_slide(path)
    assert abs(int(reader.read(reader.levels[1], 200, 200, 1, 1)[0, 0, 1]) - PINK[1]) < 20


def test_a_coarser_level_whose_finer_ones_lack_the_tile_is_not_readable(tmp_path: Path) -> None:
    path = set_tile(write_scan(tmp_path / "s.svs", (1, 2, 4)), 0, page=1, count=0)
    set_tile(path, TISSUE, count=0)
    reader = open_slide(path)
    with pytest.raises(SlideError, match="a tile is missing where a coarser level shows tissue"):
        reader.read(reader.levels[1], 200, 200, 1, 1)


def test_without_a_coarser_level_nothing_is_known_of_missing_tiles(tmp_path: Path) -> None:
    path = set_tile(write_scan(tmp_path / "s.svs", (1,)), TISSUE, count=0)
    reader = open_slide(path)
    assert (reader.read(reader.levels[0], 256, 256, 256, 256) == 255).all()


@pytest.mark.parametrize(
    ("colour", "is_tissue"),
    [((255, 255, 255), False), ((240, 238, 236), False), (PINK, True), ((90, 90, 90), True)],
)
def test_tissue_is_stained_or_dark(colour: tuple[int, int, int], is_tissue: bool) -> None:
    assert shows_tissue(np.full((16, 3), colour, np.uint8)) == is_tissue
