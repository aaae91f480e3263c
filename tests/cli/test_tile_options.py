"""Every option of `wsi tile` changes something, and is recorded; what is refused is refused by
name.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.builders import PINK, WHITE, folder_bytes, paint, paint_noise, write_png, write_slide
from tests.commands import run
from wsi_pipeline.store.patches import PatchStore

BLUE_INK = (30, 60, 200)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """800 × 400 px at 4 µm/px: tissue on the left, glass on the right."""
    pixels = paint(800, 400, WHITE)
    pixels[:, :400] = PINK
    return write_slide(tmp_path / "slides" / "one.tiff", pixels, mpp=4.0)


def tile(slide: Path, out: Path, *options: object) -> PatchStore:
    result = run("tile", slide, "-o", out, "--workers", 0, "--mpp", 4, *options)
    assert result.exit_code == 0, result.output
    return PatchStore(next(out.glob("*.patches.zarr")))


def test_magnification_is_a_scale_by_another_name(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tiff", paint(300, 200), mpp=0.5)
    result = run("tile", slide, "-o", tmp_path / "out", "--workers", 0, "--magnification", 20)
    assert "20x is taken as 0.5 µm/px" in result.stderr
    assert PatchStore(tmp_path / "out" / "s.patches.zarr").grid.spec.mpp == 0.5
    assert (
        run("tile", slide, "-o", tmp_path / "out", "--magnification", 20, "--mpp", 0.5).exit_code
        == 2
    )
    assert run("tile", slide, "-o", tmp_path / "out", "--magnification", 0).exit_code == 2


def test_a_table_of_scales_has_authority_and_is_recorded(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "mpp.csv").write_text("wsi,mpp\nelsewhere.svs,0.25\none.tiff,2.0\n")
    store = tile(slide, tmp_path / "out", "--mpp-csv", tmp_path / "mpp.csv", "--slide-mpp", 1.0)
    assert (store.slide.mpp, store.slide.mpp_source) == (2.0, "user (mpp.csv)")
    assert (store.grid.rows, store.grid.cols) == (
        4,
        8,
    )  # 400 × 800 px of 2 µm are 200 × 400 of 4 µm


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ("wsi,mpp\none.tiff,0.25um\n", "line 2: mpp is '0.25um', which is not a number"),
        ("wsi,mpp\none.tiff,25\n", "line 2: mpp is 25; a slide has 0.05 to 10"),
        ("wsi,mpp\none.tiff,1\none.tiff,2\n", "line 3: one.tiff was given another mpp above"),
        ("slide,mpp\none.tiff,1\n", "wsi and mpp must be among them"),
        ("wsi,mpp\n,1\n", "line 2: names no slide"),
    ],
)
def test_a_broken_table_of_scales_is_refused_by_line(
    table: str, fault: str, slide: Path, tmp_path: Path
) -> None:
    (tmp_path / "mpp.csv").write_text(table)
    result = run(
        "tile", slide, "-o", tmp_path / "out", "--workers", 0, "--mpp-csv", tmp_path / "mpp.csv"
    )
    assert (result.exit_code, fault in result.stderr) == (1, True), result.stderr


def test_an_mpp_with_a_comma_is_a_usage_error(slide: Path, tmp_path: Path) -> None:
    assert run("tile", slide, "-o", tmp_path / "out", "--slide-mpp", "0,25").exit_code == 2


def test_a_mask_image_says_where_the_tissue_is(slide: Path, tmp_path: Path) -> None:
    mask = np.zeros((40, 80), dtype=np.uint8)
    mask[:20, 60:] = 255  # the top right quarter, all glass: cells of rows 0–3 and columns 12–15
    write_png(tmp_path / "masks" / "one_mask.png", mask)
    store = tile(slide, tmp_path / "out", "--mask", tmp_path / "masks")
    assert sorted(map(tuple, store.positions.tolist())) == [
        (row, col) for row in range(4) for col in range(12, 16)
    ]
    assert store.attributes["tissue"]["mask"] == "one_mask.png"
    assert (store.table.tissue_fraction == 1).all()


def test_a_drawn_mask_says_where_the_tissue_is(slide: Path, tmp_path: Path) -> None:
    corners = [[0, 0], [125, 0], [125, 100], [0, 100], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {},
    }
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "one.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": [feature]})
    )
    store = tile(slide, tmp_path / "out", "--mask", tmp_path / "masks", "--min-tissue", 0.4)
    fractions = dict(
        zip(map(tuple, store.positions.tolist()), store.table.tissue_fraction.tolist(), strict=True)
    )
    assert fractions == {(0, 0): 1, (0, 1): 1, (0, 2): 0.5, (1, 0): 1, (1, 1): 1, (1, 2): 0.5}


def test_the_mask_that_was_used_is_kept_over_the_thumbnail(slide: Path, tmp_path: Path) -> None:
    # The thumbnail has 400 × 200 px of 8 µm.
    mask = np.zeros((40, 80), dtype=np.uint8)
    mask[:20, 60:] = 255
    write_png(tmp_path / "picture" / "one.png", mask)
    corners = [[0, 0], [124, 0], [124, 100], [0, 100], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {},
    }
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "one.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": [feature]})
    )
    found, picture, drawn = (
        tile(slide, tmp_path / name, *options).table.tissue
        for name, options in (
            ("a", ()),
            ("b", ("--mask", tmp_path / "picture")),
            ("c", ("--mask", tmp_path / "drawn")),
        )
    )
    for tissue, box in (
        (found, np.s_[:, :200]),
        (picture, np.s_[:100, 300:]),
        (drawn, np.s_[:50, :62]),
    ):
        wanted = np.zeros((200, 400), dtype=np.bool_)
        wanted[box] = True
        assert np.array_equal(tissue, wanted)  # type: ignore[arg-type]


def test_another_mask_is_another_recipe(slide: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "masks" / "one.png", np.full((40, 80), 255, dtype=np.uint8))
    tile(slide, tmp_path / "out", "--mask", tmp_path / "masks")
    write_png(tmp_path / "masks" / "one.png", np.full((20, 40), 255, dtype=np.uint8))
    result = run(
        "tile",
        slide,
        "-o",
        tmp_path / "out",
        "--workers",
        0,
        "--mpp",
        4,
        "--mask",
        tmp_path / "masks",
    )
    assert "was made from another mask" in result.stderr


def test_a_slide_without_a_mask_fails_by_name_and_the_others_go_on(
    slide: Path, tmp_path: Path
) -> None:
    write_slide(slide.parent / "two.tiff", paint(200, 200), mpp=4.0)
    write_png(tmp_path / "masks" / "two.png", np.full((20, 20), 255, dtype=np.uint8))
    result = run(
        "tile",
        slide.parent,
        "-o",
        tmp_path / "out",
        "--workers",
        0,
        "--mpp",
        4,
        "--mask",
        tmp_path / "masks",
    )
    assert result.exit_code == 3
    assert "failed: one: no mask of that name" in result.stderr


def test_a_mask_of_another_slide_is_refused(slide: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "masks" / "one.png", np.full((40, 40), 255, dtype=np.uint8))
    result = run(
        "tile",
        slide,
        "-o",
        tmp_path / "out",
        "--workers",
        0,
        "--mpp",
        4,
        "--mask",
        tmp_path / "masks",
    )
    assert "does not lie over a slide of 800 × 400 px" in result.stderr


def test_what_counts_as_dust_and_as_a_hole(tmp_path: Path) -> None:
    pixels = paint(800, 400, WHITE)
    pixels[50:350, 50:350] = PINK
    pixels[175:225, 175:225] = WHITE  # 200 µm square: 40,000 µm²; closing takes some of it
    pixels[100:150, 600:650] = PINK
    slide = write_slide(tmp_path / "slides" / "one.tiff", pixels, mpp=4.0)
    usual = set(map(tuple, tile(slide, tmp_path / "a", "--min-tissue", 0.9).positions.tolist()))
    filled = set(
        map(
            tuple,
            tile(
                slide, tmp_path / "b", "--min-tissue", 0.9, "--max-hole", 60_000
            ).positions.tolist(),
        )
    )
    cleaned = set(
        map(
            tuple,
            tile(
                slide, tmp_path / "c", "--min-tissue", 0.9, "--min-object", 60_000
            ).positions.tolist(),
        )
    )
    assert filled - usual != set()
    assert usual - cleaned == {(2, 12)}


def test_the_scale_of_the_mask_is_recorded(slide: Path, tmp_path: Path) -> None:
    store = tile(slide, tmp_path / "out", "--mask-mpp", 16)
    assert float(store.table.thumbnail.downsample) == 4
    assert store.attributes["tissue"]["mask_mpp"] == 16


def test_pen_is_flagged_and_left_out_only_when_asked(tmp_path: Path) -> None:
    pixels = paint(800, 400)
    pixels[:200, :200] = BLUE_INK
    slide = write_slide(tmp_path / "slides" / "one.tiff", pixels, mpp=4.0)
    flagged = tile(slide, tmp_path / "a")
    assert flagged.table.patches == 8 * 16
    assert flagged.table.quality is not None
    inked = flagged.positions[(flagged.table.quality.flags & 1) > 0].tolist()
    assert sorted(inked) == [[row, col] for row in range(4) for col in range(4)]
    assert tile(slide, tmp_path / "b", "--drop", "pen").table.patches == 8 * 16 - 16
    assert not (
        tile(slide, tmp_path / "c", "--max-pen", 1).table.quality or flagged.table.quality
    ).flags.any()


def test_blur_is_measured_when_asked(tmp_path: Path) -> None:
    pixels = paint(800, 400)
    sharp = paint_noise(400, 400)
    pixels[:, :400] = np.clip(pixels[:, :400].astype(int) + (sharp.astype(int) - 128) // 4, 0, 255)
    slide = write_slide(tmp_path / "slides" / "one.tiff", pixels, mpp=4.0)
    usual = tile(slide, tmp_path / "a")
    assert usual.table.quality is not None
    assert np.isnan(usual.table.quality.sharpness).all()
    measured = tile(slide, tmp_path / "b", "--min-sharpness", 20)
    assert measured.table.quality is not None
    blurred = measured.table.quality.flags & 2 > 0
    assert (measured.positions[blurred][:, 1] >= 8).all()
    assert (measured.positions[~blurred][:, 1] < 9).all()
    assert measured.attributes["quality"]["min_sharpness"] == 20
    assert (
        tile(slide, tmp_path / "c", "--min-sharpness", 20, "--drop", "blur").positions[:, 1].max()
        < 9
    )


def test_blur_cannot_be_dropped_unmeasured(slide: Path, tmp_path: Path) -> None:
    result = run("tile", slide, "-o", tmp_path / "out", "--drop", "blur")
    assert (result.exit_code, "--min-sharpness" in result.stderr) == (1, True)


def test_every_reader_gives_the_same_store(slide: Path, tmp_path: Path) -> None:
    stores = [
        folder_bytes(tile(slide, tmp_path / name, "--reader", name).path)
        for name in ("auto", "tiff", "openslide")
    ]
    assert stores[0] == stores[1] == stores[2]


def test_a_reader_that_does_not_know_the_file_says_so(tmp_path: Path) -> None:
    png = write_png(tmp_path / "s.png", paint(100, 100), mpp=4.0)
    result = run("tile", png, "-o", tmp_path / "out", "--reader", "tiff", "--workers", 0)
    assert "leave the choice to --reader auto" in result.stderr


def test_zstd_is_lossless_and_recorded(slide: Path, tmp_path: Path) -> None:
    plain, packed = tile(slide, tmp_path / "a"), tile(slide, tmp_path / "b", "--codec", "zstd")
    assert np.array_equal(plain.read_block(0).pixels, packed.read_block(0).pixels)
    assert packed.attributes["codec"] == {"name": "zstd", "quality": None, "is_lossy": False}
    assert (
        sum(size for size, _ in packed.manifest.files.values())
        < sum(size for size, _ in plain.manifest.files.values()) / 2
    )


def test_jpeg_says_that_it_is_lossy_and_records_its_quality(tmp_path: Path) -> None:
    slide = write_slide(
        tmp_path / "slides" / "one.tiff",
        np.kron(paint_noise(100, 50), np.ones((8, 8, 1), np.uint8)),
        mpp=4.0,
    )
    result = run(
        "tile",
        slide,
        "-o",
        tmp_path / "out",
        "--workers",
        0,
        "--mpp",
        4,
        "--codec",
        "jpeg",
        "--quality",
        80,
        "--min-tissue",
        0,
    )
    assert "lossy (JPEG quality 80)" in result.stderr
    store = PatchStore(tmp_path / "out" / "one.patches.zarr")
    assert store.attributes["codec"] == {"name": "jpeg", "quality": 80, "is_lossy": True}
    exact = tile(slide, tmp_path / "exact", "--min-tissue", 0).read_block(0).pixels.astype(int)
    assert 0 < np.abs(store.read_block(0).pixels - exact).mean() < 20
    assert np.array_equal(store.read_patches([5, 2]), store.read_block(0).pixels[[5, 2]])


def test_a_quality_without_jpeg_is_a_usage_error(slide: Path, tmp_path: Path) -> None:
    assert run("tile", slide, "-o", tmp_path / "out", "--quality", 80).exit_code == 2


def test_slides_by_pattern_folder_and_table(tmp_path: Path) -> None:
    for name in ("a/one.tiff", "a/two.tiff", "a/deep/three.tiff"):
        write_slide(tmp_path / name, paint(60, 60), mpp=4.0)
    (tmp_path / "list.csv").write_text("wsi,mpp\na/two.tiff,8\n")

    def names(out: str, *options: object) -> set[str]:
        result = run(
            "tile", "-o", tmp_path / out, "--workers", 0, "--mpp", 4, "--allow-upsample", *options
        )
        assert result.exit_code == 0, result.output
        return {path.name.split(".")[0] for path in (tmp_path / out).glob("*.zarr")}

    assert names("pattern", "--slides", f"{tmp_path}/a/t*.tiff") == {"two"}
    assert names("folder", "--slides", tmp_path / "a") == {"one", "two"}
    assert names("recursive", "--slides", tmp_path / "a", "--recursive") == {"one", "two", "three"}
    assert names("table", "--slides", tmp_path / "list.csv") == {"two"}
    assert PatchStore(tmp_path / "table" / "two.patches.zarr").slide.mpp_source == "user (list.csv)"


def test_a_pattern_that_nothing_matches_is_named(tmp_path: Path) -> None:
    result = run("tile", f"{tmp_path}/*.svs", "-o", tmp_path / "out")
    assert (result.exit_code, "no pattern that anything matches" in result.stderr) == (1, True)


def test_shards_share_the_slides_out(tmp_path: Path) -> None:
    for number in range(5):
        write_slide(tmp_path / "slides" / f"s{number}.tiff", paint(60, 60), mpp=4.0)
    (tmp_path / "slides" / "s9.svs").write_text("broken")
    done = []
    for shard in ("1/3", "2/3", "3/3"):
        result = run(
            "tile",
            tmp_path / "slides",
            "-o",
            tmp_path / "out",
            "--workers",
            0,
            "--mpp",
            4,
            "--shard",
            shard,
        )
        done.append(result.stdout.count("2 slides: 2 ok") + result.stdout.count("2 slides: 1 ok"))
    assert done == [1, 1, 1]
    assert len(list((tmp_path / "out").glob("*.zarr"))) == 5
    assert "s9," in (tmp_path / "out" / "failures.3-of-3.csv").read_text()


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_an_impossible_shard_is_refused(shard: str, slide: Path, tmp_path: Path) -> None:
    result = run("tile", slide, "-o", tmp_path / "out", "--shard", shard)
    assert (result.exit_code, "shard" in result.stderr) == (1, True)


def test_a_preview_shows_which_patches_were_taken(slide: Path, tmp_path: Path) -> None:
    from PIL import Image

    tile(slide, tmp_path / "out")
    preview = np.asarray(Image.open(tmp_path / "out" / "one.mask.png"))
    thumbnail_width = 800 // 2  # 8 µm/px
    assert preview.shape == (200, thumbnail_width, 3)
    assert preview[100, 100].tolist() == list(PINK)
    assert preview[100, 300].tolist() == list(WHITE)
    assert preview[100, 199].tolist() == [0, 120, 60]  # the outline


def test_zero_tissue_is_a_result(tmp_path: Path) -> None:
    slide = write_slide(
        tmp_path / "slides" / "glass.tiff", paint(400, 400, (243, 243, 243)), mpp=4.0
    )
    result = run("tile", slide, "-o", tmp_path / "out", "--workers", 0, "--mpp", 4)
    assert result.exit_code == 0
    assert "1 slide: 1 empty" in result.stdout
    assert (tmp_path / "out" / "glass.mask.png").exists()


def test_info_says_who_reads_the_slide(slide: Path) -> None:
    assert "reader         tiff (level 0" in run("info", slide).output
    assert (
        "reader         openslide (level 0" in run("info", slide, "--reader", "openslide").output
        or "openslide" in run("info", slide, "--reader", "openslide").output
    )


@pytest.mark.system
def test_tiling_needs_no_torch(tmp_path: Path) -> None:
    """Loading it takes seconds and a third of a gigabyte, in this process and in every worker."""
    write_slide(tmp_path / "s.tiff", paint(100, 100), mpp=0.5)
    code = f"""
import sys
from wsi_cli.main import wsi
line = ["tile", {str(tmp_path / "s.tiff")!r}, "-o", {str(tmp_path / "out")!r}]
wsi([*line, "--mpp", "0.5", "--workers", "0"], standalone_mode=False)
print("torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "False"
