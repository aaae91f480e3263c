"""Colour profiles: what is told of them, and pixels in sRGB against an independent computation."""

import dataclasses
import hashlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from tests.builders import make_checkpoint, make_store, make_table, tissue, write_model
from tests.commands import infer, run
from wsi_pipeline.core.errors import ConfigError, ModelError, SlideError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.models.export import describe_export
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.colour_profile import describe_profile
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.training.data import load_labelled

GAMMA = 1.8
SRGB_MATRIX = np.array(
    [[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]]
)
"""XYZ (D50) of the primaries of sRGB, in columns (ICC's profile of IEC 61966-2-1)."""
SWAPPED = np.array([[0.4161, 0.3983, 0.1498], [0.2400, 0.6900, 0.0700], [0.0110, 0.0950, 0.7190]])
"""XYZ (D50) of the primaries of an invented scanner, which add up to the same white."""


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def make_profile(name: str = "Drawn scanner", matrix: np.ndarray = SWAPPED) -> bytes:
    """A matrix profile (ICC v2) of an invented scanner, byte by byte: gamma 1.8, its primaries."""
    text = name.encode() + b"\0"
    desc = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(8 + 3 + 67)
    tags = {
        b"desc": desc,
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642) + fixed(1.0) + fixed(0.8249),
        **{
            letter + b"XYZ": b"XYZ " + bytes(4) + b"".join(map(fixed, column))
            for letter, column in zip((b"r", b"g", b"b"), matrix.T.tolist(), strict=True)
        },
        **{
            letter + b"TRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(GAMMA * 256))
            for letter in (b"r", b"g", b"b")
        },
    }
    place, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for signature, content in tags.items():
        content += bytes(-len(content) % 4)
        table += signature + struct.pack(">II", place + len(body), len(content))
        body += content
    size = struct.pack(">I", place + len(body))
    head = size + bytes(4) + b"\x02\x10\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return head + bytes(128 - len(head)) + table + body


def to_srgb(pixels: np.ndarray, matrix: np.ndarray = SWAPPED) -> np.ndarray:
    """The same conversion by the formulas of ICC and IEC 61966-2-1, in floating point."""
    xyz = (pixels / 255.0) ** (round(GAMMA * 256) / 256) @ matrix.T
    linear = np.clip(xyz @ np.linalg.inv(SRGB_MATRIX).T, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    scaled: np.ndarray = curved * 255
    return scaled


def write_scan(path: Path, pixels: np.ndarray, profile: bytes | None, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    how: dict[str, Any] = {"tile": (128, 128), "compression": "deflate"} | more
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        metadata=None,
        iccprofile=profile,
        resolution=(10_000, 10_000),
        resolutionunit="CENTIMETER",
        **how,
    )
    return path


PIXELS = np.random.default_rng(3).integers(40, 256, (300, 300, 3), dtype=np.uint8)
PROFILE = make_profile()


def read_all(path: Path, icc: str = "raw", reader: str = "auto") -> np.ndarray:
    slide = open_slide(path, icc=icc, reader=reader)
    return slide.read(slide.levels[0], 0, 0, 300, 300)


@pytest.mark.parametrize(("reader", "tile"), [("tiff", (128, 128)), ("openslide", (128, 128))])
def test_pixels_in_srgb_are_those_of_the_formulas(
    reader: str, tile: tuple[int, int], tmp_path: Path
) -> None:
    path = write_scan(tmp_path / "a.tif", PIXELS, PROFILE, tile=tile)
    difference = np.abs(read_all(path, "srgb", reader) - to_srgb(PIXELS))
    assert difference.max() < 1.6  # LittleCMS rounds to 8 bits once, and its tables once more
    assert difference.mean() < 0.4


def test_a_flat_image_is_converted_too(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png", dpi=(25_400, 25_400), icc_profile=PROFILE)
    difference = np.abs(read_all(tmp_path / "a.png", "srgb") - to_srgb(PIXELS))
    assert difference.max() < 1.6


def test_both_readers_give_the_same_pixels(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "a.tif", PIXELS, PROFILE)
    one, other = (read_all(path, "srgb", reader) for reader in ("tiff", "openslide"))
    assert np.array_equal(one, other)


def test_raw_is_the_default_and_what_the_file_has(tmp_path: Path) -> None:
    assert np.array_equal(read_all(write_scan(tmp_path / "a.tif", PIXELS, PROFILE)), PIXELS)


def test_a_slide_without_a_profile_stays_as_it_is(tmp_path: Path) -> None:
    assert np.array_equal(read_all(write_scan(tmp_path / "a.tif", PIXELS, None), "srgb"), PIXELS)


def test_srgb_to_srgb_changes_nothing_that_is_seen(tmp_path: Path) -> None:
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    converted = read_all(write_scan(tmp_path / "a.tif", PIXELS, content), "srgb")
    assert np.abs(converted.astype(int) - PIXELS).max() <= 1


def test_a_profile_has_its_name_and_digest() -> None:
    told = describe_profile(PROFILE)
    assert told == ("Drawn scanner", hashlib.sha256(PROFILE).hexdigest())
    assert ImageCms.ImageCmsProfile(io.BytesIO(PROFILE)).profile.xcolor_space == "RGB "


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"no profile", "unreadable"),
        (make_profile("a\n\x1b[31mb"), "a[31mb"),
        (make_profile(""), "without a name"),
    ],
)
def test_names_of_odd_profiles_are_safe_to_print(content: bytes, name: str) -> None:
    told = describe_profile(content)
    assert told is not None
    assert told.name == name


@pytest.mark.parametrize("content", [None, b""])
def test_no_profile_is_none(content: bytes | None) -> None:
    assert describe_profile(content) is None


def test_a_broken_profile_is_refused_for_srgb_only(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "a.tif", PIXELS, b"no profile" * 20)
    assert np.array_equal(read_all(path), PIXELS)
    with pytest.raises(SlideError, match="its colour profile cannot be used"):
        open_slide(path, icc="srgb")


def test_info_names_the_profile(tmp_path: Path) -> None:
    shown = run("info", write_scan(tmp_path / "a.tif", PIXELS, PROFILE)).output
    digest = hashlib.sha256(PROFILE).hexdigest()[:12]
    assert f"colour profile Drawn scanner ({digest})" in shown
    shown = run("info", write_scan(tmp_path / "b.tif", PIXELS, None)).output
    assert "colour profile none" in shown


def cut(folder: Path, out: Path, *options: str) -> Any:
    plain = ("--mpp", 1, "--workers", 0, "--min-tissue", 0)
    return run("tile", folder, "-o", out, *plain, *options)


def test_stores_keep_the_profile_and_the_pixels_that_were_asked_for(tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.tif", PIXELS, PROFILE)
    for icc in ("raw", "srgb"):
        result = cut(tmp_path / "in", tmp_path / icc, "--icc", icc)
        assert result.exit_code == 0, result.output
    raw, srgb = (PatchStore(tmp_path / icc / "a.patches.zarr") for icc in ("raw", "srgb"))
    digest = hashlib.sha256(PROFILE).hexdigest()
    for store, icc in ((raw, "raw"), (srgb, "srgb")):
        slide = store.slide
        assert (slide.icc_name, slide.icc_digest) == ("Drawn scanner", digest)
        assert store.grid.spec.icc == icc
    expected = to_srgb(raw.read_block(0).pixels)
    assert np.abs(srgb.read_block(0).pixels - expected).max() < 1.6


def test_the_recipe_knows_the_colours(tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.tif", PIXELS, PROFILE)
    cut(tmp_path / "in", tmp_path / "out")
    again = cut(tmp_path / "in", tmp_path / "out", "--icc", "srgb")
    assert (again.exit_code, "another recipe" in again.output or "--force" in again.output) == (
        4,
        True,
    ), again.output


def test_a_run_that_mixes_slides_with_and_without_says_so(tmp_path: Path) -> None:
    for name, profile in (("a", PROFILE), ("b", None), ("c", PROFILE)):
        write_scan(tmp_path / "in" / f"{name}.tif", PIXELS, profile)
    result = cut(tmp_path / "in", tmp_path / "out")
    lines = [line for line in result.stderr.splitlines() if "colours differ" in line]
    assert len(lines) == 1, result.output
    assert "2 slides with Drawn scanner" in lines[0]
    assert "1 slide without a colour profile" in lines[0]


@pytest.mark.parametrize("profile", [PROFILE, None])
def test_a_run_of_slides_alike_says_nothing(profile: bytes | None, tmp_path: Path) -> None:
    for name in "ab":
        write_scan(tmp_path / "in" / f"{name}.tif", PIXELS, profile)
    assert "colours differ" not in cut(tmp_path / "in", tmp_path / "out").output


def test_specifications_say_raw_by_saying_nothing() -> None:
    assert "icc" not in PatchSpec().to_json()
    assert PatchSpec(**PatchSpec(icc="srgb").to_json()).icc == "srgb"


def test_missing_tiles_are_the_same_white_with_both_readers(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "a.tif", PIXELS, make_profile(matrix=SWAPPED * 0.9))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        counts = tiff.pages.first.tags["TileByteCounts"]
        counts.overwrite([0, *counts.value[1:]])
    one, other = (read_all(path, "srgb", reader) for reader in ("tiff", "openslide"))
    assert np.array_equal(one, other)


def test_a_model_and_a_store_of_other_colours_are_refused(tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.tif", PIXELS, PROFILE)
    cut(tmp_path / "in", tmp_path / "stores")
    checkpoint = make_checkpoint(mpp=1.0)
    srgb = dataclasses.replace(checkpoint, spec=dataclasses.replace(checkpoint.spec, icc="srgb"))
    model = write_model(tmp_path / "m.safetensors", srgb)
    account = infer(tmp_path / "stores", model, tmp_path / "results")
    assert account.exit_code == 4
    assert "patches in raw colours, the model was trained on srgb" in account.outcomes[0].message


def test_slides_are_cut_in_the_colours_of_the_model(tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.tif", tissue(300, 300), PROFILE)
    checkpoint = make_checkpoint(mpp=1.0)
    srgb = dataclasses.replace(checkpoint, spec=dataclasses.replace(checkpoint.spec, icc="srgb"))
    model = write_model(tmp_path / "m.safetensors", srgb)
    account = infer(tmp_path / "in", model, tmp_path / "results", keep_patches=tmp_path / "kept")
    assert account.exit_code == 0, account.outcomes
    store = PatchStore(tmp_path / "kept" / "a.patches.zarr")
    assert store.grid.spec.icc == "srgb"
    summary = json.loads((tmp_path / "results" / "a" / "summary.json").read_text())
    assert summary["colour_profile"] == store.slide.colour_profile
    assert summary["colour_profile"].startswith("Drawn scanner (")


def test_stores_of_other_colours_are_not_trained_on_together(tmp_path: Path) -> None:
    for name, icc in (("a", "raw"), ("b", "srgb")):
        table = make_table([(0, 0), (0, 1)], labels=[0, 1], slide_id=name)
        grid = dataclasses.replace(table.grid, spec=dataclasses.replace(table.grid.spec, icc=icc))
        make_store(tmp_path / f"{name}.patches.zarr", dataclasses.replace(table, grid=grid))
    with pytest.raises(ConfigError, match=r"kind of colours srgb, .* has raw"):
        load_labelled([tmp_path / "a.patches.zarr", tmp_path / "b.patches.zarr"])


def test_a_model_of_srgb_is_not_exported() -> None:
    checkpoint = make_checkpoint()
    srgb = dataclasses.replace(checkpoint, spec=dataclasses.replace(checkpoint.spec, icc="srgb"))
    with pytest.raises(ModelError, match="takes patches in srgb"):
        describe_export(srgb, is_normalised_inside=True)
