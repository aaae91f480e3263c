"""Slides that fastslide alone opens: the same pixels, a scale, a note, and nothing taken from the
other readers.
"""

import importlib.metadata
import importlib.util
import json
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr

from tests.builders import make_checkpoint, paint_noise, tissue, write_model
from tests.commands import PLAIN, run
from tests.slides.czi_files import UNCOMPRESSED, write_czi
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides import describe_reader, fastslide_reader, open_slide
from wsi_pipeline.slides.fastslide_reader import FastSlideReader
from wsi_pipeline.slides.openslide_reader import OpenSlideReader
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.store.manifest import read_manifest

NOTE = "damage cannot be seen by this reader"
needs_fastslide = pytest.mark.skipif(
    importlib.util.find_spec("fastslide") is None,
    reason="no fastslide here; pip install 'wsi-pipeline[formats]' (Python 3.11 on Linux)",
)


def write_ome_zarr(
    folder: Path, pixels: np.ndarray, mpp: float | None = 0.5, version: Literal[2, 3] = 3
) -> Path:
    """Write (h, w, c) as OME-Zarr 0.5 (or 0.4 in Zarr 2) with a level of every second pixel."""
    group = zarr.open_group(folder, mode="w", zarr_format=version)
    datasets: list[Any] = []
    for number, step in enumerate((1, 2)):
        level = np.moveaxis(pixels[::step, ::step], 2, 0)
        array = group.create_array(
            str(number), shape=level.shape, dtype=level.dtype, chunks=(len(level), 128, 128)
        )
        array[:] = level
        scale = [1, step * (mpp or 1), step * (mpp or 1)]
        datasets.append(
            {
                "path": str(number),
                "coordinateTransformations": [{"type": "scale", "scale": scale}],
            }
        )
    unit = {"unit": "micrometer"} if mpp else {}
    axes: list[Any] = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space"} | unit for name in "yx"]
    images: list[Any] = [{"axes": axes, "datasets": datasets, "name": "slide"}]
    if version == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": images}
    else:
        group.attrs["multiscales"] = [images[0] | {"version": "0.4"}]
    return folder


@needs_fastslide
def test_czi_in_jpeg_xr_has_the_pixels_that_openslide_reads_of_the_same_without(
    tmp_path: Path,
) -> None:
    pixels = paint_noise(700, 600)
    ours = open_slide(write_czi(tmp_path / "xr.czi", pixels))
    theirs = open_slide(write_czi(tmp_path / "plain.czi", pixels, compression=UNCOMPRESSED))
    assert isinstance(ours, FastSlideReader)
    assert isinstance(theirs, OpenSlideReader)
    assert [level.size for level in ours.levels] == [(700, 600), (350, 300)]
    for mine, other in zip(ours.levels, theirs.levels, strict=True):
        box = (90, 110, 150, 140)
        assert np.array_equal(ours.read(mine, *box), theirs.read(other, *box))


@needs_fastslide
def test_a_tile_that_was_not_scanned_is_white(tmp_path: Path) -> None:
    slide = open_slide(write_czi(tmp_path / "s.czi", paint_noise(384, 128), left_out=1))
    region = slide.read(slide.levels[0], 0, 0, 384, 128)
    assert (region[:, 128:256] == 255).all()
    assert np.array_equal(region[:, 256:], paint_noise(384, 128)[:, 256:])


@needs_fastslide
def test_the_reader_is_named_with_its_note(tmp_path: Path) -> None:
    path = write_czi(tmp_path / "s.czi", tissue(300, 280))
    assert describe_reader(open_slide(path)).startswith("fastslide ")
    assert f"{NOTE}\n" in run("info", path).output


@needs_fastslide
def test_a_slide_without_a_scale_needs_one(tmp_path: Path) -> None:
    path = write_czi(tmp_path / "s.czi", tissue(300, 280), mpp=0)
    with pytest.raises(SlideError, match="--slide-mpp"):
        open_slide(path)
    assert open_slide(path, slide_mpp=0.25).info.mpp == 0.25


@needs_fastslide
def test_an_ome_zarr_folder_is_one_slide(tmp_path: Path) -> None:
    pixels = paint_noise(500, 300)
    write_ome_zarr(tmp_path / "slides" / "one.ome.zarr", pixels)
    (found,) = find_slides([tmp_path / "slides"])
    assert found.slide_id == "one.ome"
    slide = open_slide(found.path, found.slide_id)
    assert (slide.info.size_l0, slide.info.mpp) == ((500, 300), 0.5)
    assert np.array_equal(slide.read(slide.levels[0], 100, 20, 300, 270), pixels[20:290, 100:400])
    assert np.array_equal(slide.read(slide.levels[1], 0, 0, 250, 150), pixels[::2, ::2])


@needs_fastslide
def test_the_folder_itself_may_be_named(tmp_path: Path) -> None:
    folder = write_ome_zarr(tmp_path / "one.ome.zarr", paint_noise(500, 300))
    assert "500 × 300 px" in run("info", folder).output
    assert [slide.slide_id for slide in find_slides([folder])] == ["one.ome"]


@needs_fastslide
def test_another_chunk_is_another_slide(tmp_path: Path) -> None:
    folder = write_ome_zarr(tmp_path / "one.ome.zarr", paint_noise(500, 300))
    before = open_slide(folder / "zarr.json").info.fingerprint
    (chunk, *_) = (path for path in (folder / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes() + b"\0")
    assert open_slide(folder / "zarr.json").info.fingerprint != before


@needs_fastslide
@pytest.mark.parametrize(
    "pixels",
    [np.zeros((200, 200, 5), np.uint8), np.zeros((200, 200, 3), np.uint16)],
    ids=["5 channels", "16 bits"],
)
def test_other_pixels_than_8_bit_rgb_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    folder = write_ome_zarr(tmp_path / "one.ome.zarr", pixels)
    with pytest.raises(SlideError, match="not 8-bit RGB"):
        open_slide(folder / "zarr.json")


def test_ome_zarr_of_zarr_2_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "slides" / "old.ome.zarr", paint_noise(300, 200), version=2)
    (found,) = find_slides([tmp_path / "slides"])
    with pytest.raises(SlideError, match=r"old\.ome\.zarr: .* convert it to OME-Zarr 0\.5"):
        open_slide(found.path)


def test_a_zarr_folder_without_an_image_is_no_slide(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "slides" / "table.zarr", mode="w").attrs["what"] = "numbers"
    write_czi(tmp_path / "slides" / "s.czi", tissue(300, 280))
    assert [slide.slide_id for slide in find_slides([tmp_path / "slides"])] == ["s"]


@pytest.mark.parametrize("name", ["s.czi", "s.isyntax", "s.vsi"])
def test_without_the_library_the_extra_is_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastslide_reader, "LIBRARY", "fastslide_that_is_not_installed")
    path = write_czi(tmp_path / name, tissue(300, 280))
    with pytest.raises(SlideError, match=r"pip install 'wsi-pipeline\[formats\]'"):
        open_slide(path)


@needs_fastslide
def test_what_is_no_slide_of_its_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.isyntax"
    path.write_bytes(b"not a slide" * 100)
    with pytest.raises(SlideError, match="fastslide cannot read it"):
        open_slide(path)


@needs_fastslide
def test_a_czi_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_czi(tmp_path / "s.czi", tissue(300, 280))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(SlideError):
        open_slide(path)


@needs_fastslide
def test_it_is_not_asked_for_what_others_read(tmp_path: Path) -> None:
    path = write_czi(tmp_path / "s.svs", tissue(300, 280))
    with pytest.raises(SlideError, match="does not know this kind"):
        open_slide(path, reader="fastslide")


@needs_fastslide
def test_a_call_that_hangs_fails_its_slide_after_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_slide(write_czi(tmp_path / "s.czi", tissue(300, 280)))
    assert isinstance(slide, FastSlideReader)
    monkeypatch.setattr(fastslide_reader, "READ_S", 0.05)
    with pytest.raises(SlideError, match=r"gave nothing within 0\.05 s"):
        slide._call(lambda: time.sleep(3))
    with pytest.raises(SlideError, match="an earlier read hangs"):
        slide.read(slide.levels[0], 0, 0, 10, 10)


@needs_fastslide
def test_store_and_results_carry_the_note(tmp_path: Path) -> None:
    write_czi(tmp_path / "slides" / "s.czi", tissue(600, 500))
    tiled = run("tile", tmp_path / "slides", "--out", tmp_path / "stores", "--mpp", 0.5)
    assert f"1 slide was read by fastslide {fastslide_version()}: {NOTE}" in tiled.output
    store = tmp_path / "stores" / "s.patches.zarr"
    assert read_manifest(store).recipe["reader"] == f"fastslide {fastslide_version()}"
    assert NOTE in run("store", "info", store).output
    model = tmp_path / "model.safetensors"
    write_model(model, make_checkpoint())
    results = tmp_path / "results"
    words = ("--model", model, "--results-dir", results, *PLAIN, "--workers", 0)
    run("infer", "--slides", tmp_path / "slides", *words)
    summary = json.loads((results / "s" / "summary.json").read_text())
    assert summary["reader_note"].endswith(NOTE)
    assert NOTE in (results / "slides.csv").read_text()
    assert NOTE in (results / "s" / "report.html").read_text()


def fastslide_version() -> str:
    return importlib.metadata.version("fastslide")
