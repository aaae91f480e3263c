"""Images of a TIFF: which are met, which are levels, and the scale that stands in words."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.builders import tissue, write_png
from tests.cases import make_case
from tests.commands import run
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.stated_scale import read_description, read_magnification
from wsi_pipeline.slides.tiff_structure import BrokenTiff, read_structure

SIDE = 300
TILED: dict[str, Any] = {"tile": (128, 128), "metadata": None}
ONE_UM: dict[str, Any] = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}
RGB: dict[str, Any] = {**TILED, "photometric": "rgb"}


def write_pages(path: Path, *pages: tuple[np.ndarray, dict[str, Any]]) -> Path:
    with tifffile.TiffWriter(path) as tiff:
        for pixels, how in pages:
            tiff.write(pixels, **{name: value for name, value in how.items() if name != "tags"})
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for page, (_, how) in zip(tiff.pages, pages, strict=True):
            for code, value in how.get("tags", {}).items():
                page.aspage().tags[code].overwrite(value)
    return path


def pyramid(side: int = SIDE) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """A slide of 1 µm/px and a level of it, reduced twice."""
    pixels = tissue(side, side)
    mean = pixels.reshape(side // 2, 2, side // 2, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    return [(pixels, RGB | ONE_UM), (mean, RGB | {"subfiletype": 1})]


def next_pointers(path: Path) -> dict[int, int]:
    """Return the place of each image's pointer to the next one, by the image's own place."""
    with path.open("rb") as stream:
        content = stream.read()
    places = [page.place for page in read_structure(path).pages]
    counts = {at: int.from_bytes(content[at : at + 2], "little") for at in places}
    return {at: at + 2 + 12 * count for at, count in counts.items()}


def point(path: Path, at: int, to: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(to.to_bytes(4, "little"))


def write_subs(path: Path, *subs: int) -> list[int]:
    """Write images with so many images hanging on each; return the places of all, in order."""
    with tifffile.TiffWriter(path) as tiff:
        for count in subs:
            tiff.write(tissue(SIDE, SIDE), subifds=count, **RGB, **ONE_UM)
            for number in range(count):
                side = SIDE >> number + 1
                tiff.write(tissue(side, side), subfiletype=1, **RGB)
    return [page.place for page in read_structure(path).pages]


@pytest.mark.parametrize("subs", [(1,), (2,), (5,), (2, 3), (0, 2)])
def test_images_that_lists_and_pointers_lead_to_are_met_once(
    subs: tuple[int, ...], tmp_path: Path
) -> None:
    write_subs(tmp_path / "a.tif", *subs)
    pages = read_structure(tmp_path / "a.tif").pages
    kinds = [kind for count in subs for kind in (False, *[True] * count)]
    assert [page.is_sub for page in pages] == kinds


def test_images_are_the_same_without_the_pointers_between_them(tmp_path: Path) -> None:
    places = write_subs(tmp_path / "a.tif", 3)
    for place in places[1:]:
        point(tmp_path / "a.tif", next_pointers(tmp_path / "a.tif")[place], 0)
    assert [page.place for page in read_structure(tmp_path / "a.tif").pages] == places


@pytest.mark.parametrize(("from_image", "to_image"), [(3, 1), (2, 2), (3, 0), (1, 0), (0, 0)])
def test_a_real_circle_is_refused(from_image: int, to_image: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    places = write_subs(path, 3)
    point(path, next_pointers(path)[places[from_image]], places[to_image])
    with pytest.raises(BrokenTiff, match="go round in a circle"):
        read_structure(path)


def test_a_pointer_to_a_later_image_of_the_row_is_no_circle(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    places = write_subs(path, 1, 1)
    point(path, next_pointers(path)[places[1]], places[2])
    pages = read_structure(path).pages
    assert [(page.place, page.is_sub) for page in pages] == [
        *((places[0], False), (places[1], True)),
        *((places[2], False), (places[3], True)),
    ]


MASK: dict[str, Any] = {**TILED, "photometric": "mask", "compression": "deflate"}
GREY: dict[str, Any] = {**TILED, "photometric": "minisblack"}
BOOLS = np.ones((SIDE, SIDE), np.bool_)
BYTES = np.full((SIDE // 2, SIDE // 2), 255, np.uint8)
EXTRA = {
    "mask": (BOOLS, MASK | {"subfiletype": 4}),
    "mask of a level": (BYTES, GREY | {"subfiletype": 1, "tags": {262: 4}}),
    "grey mask of a level": (BYTES, GREY | {"subfiletype": 1, "tags": {254: 5}}),
    "scores": (np.ones((75, 75), np.float32), GREY),
    "scores as a level": (np.ones((60, 60), np.float32), GREY | {"subfiletype": 1}),
    "depth": (np.ones((SIDE, SIDE), np.uint16), GREY),
    "palette": (
        np.zeros((SIDE, SIDE), np.uint8),
        TILED | {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
    ),
}


@pytest.mark.parametrize("extra", EXTRA)
def test_images_that_are_no_levels_change_no_pixel(extra: str, tmp_path: Path) -> None:
    plain = open_slide(write_pages(tmp_path / "a.tif", *pyramid()[:1]))
    slide = open_slide(write_pages(tmp_path / "b.tif", *pyramid()[:1], EXTRA[extra]))
    assert [level.size for level in slide.levels] == [(SIDE, SIDE)]
    box = (0, 0, SIDE, SIDE)
    assert np.array_equal(slide.read(slide.levels[0], *box), plain.read(plain.levels[0], *box))


@pytest.mark.parametrize("extra", ["mask", "scores", "scores as a level", "depth", "palette"])
def test_levels_beside_other_images_stay(extra: str, tmp_path: Path) -> None:
    slide = open_slide(write_pages(tmp_path / "a.tif", *pyramid(), EXTRA[extra]))
    assert [level.size for level in slide.levels] == [(SIDE, SIDE), (SIDE // 2, SIDE // 2)]


@pytest.mark.parametrize("extra", ["mask of a level", "grey mask of a level"])
def test_a_level_that_may_be_a_mask_is_not_read(extra: str, tmp_path: Path) -> None:
    slide = open_slide(write_pages(tmp_path / "a.tif", *pyramid(), EXTRA[extra]))
    assert [level.size for level in slide.levels] == [(SIDE, SIDE)]


@pytest.mark.parametrize("pixels", [np.ones((SIDE, SIDE), np.uint16), BOOLS])
def test_a_first_image_of_other_pixels_is_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    path = write_pages(tmp_path / "a.tif", (pixels, GREY | ONE_UM), *pyramid())
    with pytest.raises(SlideError, match="not 8-bit grey or RGB"):
        open_slide(path)


def ome(size: str, unit: str = "", beside: str = "") -> str:
    stated = f'PhysicalSizeX="{size}" PhysicalSizeY="{size}"'
    units = f' PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"' if unit else ""
    image = f"<Image><Pixels {stated}{units}/></Image>"
    return f'<?xml version="1.0"?><OME xmlns="x">{beside}{image}</OME>'


@pytest.mark.parametrize(
    ("text", "mpp"),
    [
        (ome("0.5"), 0.5),
        (ome("500", "nm"), 0.5),
        (ome("0.0005", "mm"), 0.5),
        (ome("0.5", "&#181;m"), 0.5),
        (ome("0.5", "\u03bcm"), 0.5),
        (ome("0.5").replace('"', "'"), 0.5),
        (ome("0.5").replace("<Pixels", "<ome:Pixels"), 0.5),
        ("ImageJ=1.53t\nunit=micron\n", 0.25),
        ("ImageJ=1.53t\nunit=um\n", 0.25),
        ("ImageJ=1.53t\nunit=\\u00B5m\n", 0.25),
        ("ImageJ=1.53t\nimages=1\nunit=nm\n", 0.00025),
    ],
)
def test_a_scale_in_words_is_read(text: str, mpp: float) -> None:
    stated = read_description(text, ("4", "4"))
    assert stated is not None
    assert (float(stated.mpp_x or 0), float(stated.mpp_y or 0)) == pytest.approx((mpp, mpp))


@pytest.mark.parametrize(
    "text",
    [ome("1", "pixel"), ome("0"), ome("x"), "ImageJ=1.53t\nunit=pixel\n", "ImageJ=1.5", "scan"],
)
def test_words_without_a_known_unit_state_no_scale(text: str) -> None:
    assert read_description(text, ("4", "4")) is None


def describe(text: str, **more: Any) -> dict[str, Any]:
    return RGB | {"description": text.encode(), "resolutionunit": "NONE"} | more


@pytest.mark.parametrize(
    ("how", "mpp", "source"),
    [
        (describe(ome("0.5")), 0.5, "OME-XML"),
        (describe(ome("0.5"), resolution=(72, 72), resolutionunit="INCH"), 0.5, "OME-XML"),
        (describe("ImageJ=1.53t\nunit=micron\n", resolution=(4, 4)), 0.25, "ImageJ"),
        (describe("scan", **ONE_UM), 1.0, "TIFF tag"),
    ],
)
@pytest.mark.parametrize("is_tiled", [True, False])
def test_a_file_has_the_scale_that_it_states(
    how: dict[str, Any], mpp: float, source: str, is_tiled: bool, tmp_path: Path
) -> None:
    if not is_tiled:
        how = {name: value for name, value in how.items() if name != "tile"}
    slide = open_slide(write_pages(tmp_path / "a.tif", (tissue(SIDE, SIDE), how)))
    expected = source if is_tiled or source != "TIFF tag" else "image header"
    assert slide.info.mpp == pytest.approx(mpp)
    assert slide.info.mpp_source == expected


SVS = "Aperio Image Library v12.0.15\r\n300x300 [0,0 300x300] (128x128) JPEG/RGB Q=87"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (describe(SVS + "|AppMag = 20"), "only a magnification of 20x (0.5 µm/px with most"),
        (describe(SVS + "|AppMag = 20|MPP = unknown"), "no µm per pixel, but 'unknown', which is"),
        (
            describe(ome("1", "pixel", '<Objective NominalMagnification="40"/>')),
            "only a magnification of 40x (0.25 µm/px",
        ),
        (describe("scan", resolution=(40_000, 40_000)), "only 40000 pixels per unit, without"),
        (describe("scan"), "no µm per pixel; give it"),
    ],
)
def test_what_a_file_states_instead_of_a_scale_is_told(
    how: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = write_pages(tmp_path / "a.tif", (tissue(SIDE, SIDE), how))
    with pytest.raises(SlideError) as refused:
        open_slide(path)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "hostile",
    ["<Pixels" * 60_000, f"<Pixels {'a' * 120_000}>", f"<{'a' * 200_000}", "<a:" * 90_000],
)
@pytest.mark.timeout(60)
def test_a_description_of_very_many_tags_costs_little(hostile: str) -> None:
    began = time.process_time()
    assert read_description(f"<OME>{hostile}", ("", "")) is None
    assert read_magnification(hostile.replace("Pixels", "Objective")) is None
    assert time.process_time() - began < 1


def test_a_magnification_beyond_any_number_is_none(tmp_path: Path) -> None:
    how = describe(SVS + "|AppMag = inf|MPP = 0.5")
    slide = open_slide(write_pages(tmp_path / "a.svs", (tissue(SIDE, SIDE), how)))
    assert (slide.info.mpp, slide.info.magnification) == (0.5, None)


def test_an_image_without_a_scale_states_none(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="states no µm per pixel; give it"):
        open_slide(write_png(tmp_path / "a.png", tissue(50, 50)))


@pytest.mark.parametrize(
    ("case", "slides"),
    [
        ("01-ome-tiff-chained-subifds", 3),
        ("02-extra-page-that-is-no-level", 2),
        ("31-odd-but-sound-tiffs", 7),
    ],
)
def test_odd_files_are_cut(case: str, slides: int, tmp_path: Path) -> None:
    made = make_case(case, tmp_path)
    result = run("tile", made, "-o", tmp_path / "out", "--mpp", 1, "--workers", 0)
    assert (result.exit_code, f"{slides} slides: {slides} ok" in result.stdout) == (0, True), (
        result.output
    )


def test_scales_of_all_kinds_are_read_or_refused(tmp_path: Path) -> None:
    made = make_case("30-scales-of-all-kinds", tmp_path)
    result = run("tile", made, "-o", tmp_path / "out", "--mpp", 1, "--workers", 0)
    assert result.exit_code == 3, result.output
    assert sorted(path.name for path in (tmp_path / "out").glob("*.zarr")) == [
        f"{name}.patches.zarr" for name in ("cm", "comma", "inch")
    ]
    refused = [line for line in result.stderr.splitlines() if "failed" in line]
    assert len(refused) == 3
    assert all("--slide-mpp" in line for line in refused)
