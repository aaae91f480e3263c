"""Real slides and patches, where they are at hand."""

import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from tests.commands import HERE, run, tile
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.options import IngestOptions
from wsi_pipeline.runs.tile import IngestAccount, ingest_patches
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.openslide_reader import OpenSlideReader
from wsi_pipeline.slides.tiff_reader import TiffReader
from wsi_pipeline.slides.tissue import TissueParameters
from wsi_pipeline.stages.ingest_layouts import IDC_NAME
from wsi_pipeline.stages.tile_config import TileConfig
from wsi_pipeline.store.patches import PatchStore

EVERY_CELL = TissueParameters(min_tissue=0.0)


@pytest.fixture(scope="module")
def ingested(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[IngestAccount, Path]:
    out = tmp_path_factory.mktemp("stores")
    return ingest_patches(shared_data / "idc", out, IngestOptions(mpp=4.0)), out


@pytest.mark.system
def test_the_idc_set_gives_82_stores(ingested: tuple[IngestAccount, Path]) -> None:
    account, out = ingested
    assert (account.patches, len(account.left_out), len(list(out.glob("*.patches.zarr")))) == (
        7130,
        20,
        82,
    )
    assert all("instead of 50 × 50" in entry.reason for entry in account.left_out)


@pytest.mark.system
def test_store_8863_holds_its_pngs_pixel_for_pixel(
    ingested: tuple[IngestAccount, Path], shared_data: Path
) -> None:
    store = PatchStore(ingested[1] / "8863.patches.zarr")
    stored = dict(
        zip(map(tuple, store.positions.tolist()), store.read_block(0).pixels, strict=True)
    )
    compared = 0
    for path in (shared_data / "idc" / "8863").glob("*/*.png"):
        match = IDC_NAME.fullmatch(path.stem)
        assert match
        pixels = np.asarray(Image.open(path).convert("RGB"))
        if pixels.shape == (50, 50, 3):
            assert np.array_equal(stored[int(match["y"]) // 50, int(match["x"]) // 50], pixels)
            compared += 1
    assert compared == len(stored) == 975


@pytest.mark.system
def test_the_mosaic_and_the_patches_are_the_same_tissue(
    ingested: tuple[IngestAccount, Path], shared_data: Path, tmp_path: Path
) -> None:
    config = TileConfig(spec=PatchSpec(mpp=4.0), tissue=EVERY_CELL)
    tile([shared_data / "slides" / "idc_8865_mosaic.tiff"], tmp_path, config, workers=HERE)
    cut = PatchStore(tmp_path / "idc_8865_mosaic.patches.zarr")
    place = {position: index for index, position in enumerate(map(tuple, cut.positions.tolist()))}
    pixels = np.concatenate([cut.read_block(block).pixels for block in range(cut.blocks)])
    patches = PatchStore(ingested[1] / "8865.patches.zarr")
    for position, patch in zip(
        map(tuple, patches.positions.tolist()), patches.read_block(0).pixels, strict=True
    ):
        assert np.array_equal(pixels[place[position]], patch)


@pytest.fixture
def cmu(shared_data: Path) -> Path:
    return shared_data / "slides" / "CMU-1-Small-Region.svs"


def tile_cmu(cmu: Path, out: Path, mpp: float, **options: object) -> PatchStore:
    config = TileConfig(spec=PatchSpec(mpp=mpp), tissue=EVERY_CELL, **options)  # type: ignore[arg-type]
    tile([cmu], out, config, workers=HERE)
    return PatchStore(out / "CMU-1-Small-Region.patches.zarr")


def patch_at(store: PatchStore, row: int, col: int) -> np.ndarray:
    index = int(np.flatnonzero((store.positions == (row, col)).all(axis=1))[0])
    pixels: np.ndarray = store.read_block(index // store.block_size).pixels[
        index % store.block_size
    ]
    return pixels


@pytest.fixture
def region(cmu: Path) -> Iterator[np.ndarray]:
    """All pixels of the slide, from OpenSlide itself."""
    with openslide.OpenSlide(cmu) as slide:
        yield np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]


def test_cmu_at_half_a_micrometre_is_level_0_as_it_is(
    cmu: Path, region: np.ndarray, tmp_path: Path
) -> None:
    store = tile_cmu(cmu, tmp_path, 0.5)
    assert store.grid.spec.mpp == 0.499
    assert (store.grid.cols, store.grid.rows, store.table.patches) == (
        2220 // 50,
        2967 // 50,
        44 * 59,
    )
    for row, col in ((0, 0), (17, 31), (58, 43)):
        assert np.array_equal(
            patch_at(store, row, col), region[row * 50 : row * 50 + 50, col * 50 : col * 50 + 50]
        )


def test_cmu_at_one_micrometre_is_averaged_exactly(
    cmu: Path, region: np.ndarray, tmp_path: Path
) -> None:
    store = tile_cmu(cmu, tmp_path, 1.0)
    assert store.grid.downsample == Fraction(1000, 499)
    assert (store.grid.cols, store.grid.rows) == (22, 29)  # 1107.78 and 1480.53 px of 1 µm
    for row, col in ((0, 0), (13, 9), (28, 21)):
        patch = patch_at(store, row, col)
        for y, x in ((0, 0), (24, 31), (49, 49)):
            assert patch[y, x].tolist() == mean_under(
                region, row * 50 + y, col * 50 + x, Fraction(1000, 499)
            )


def mean_under(region: np.ndarray, y: int, x: int, step: Fraction) -> list[int]:
    """The area mean of the level-0 pixels under one patch pixel, by the definition."""
    shares = []
    for start in (y * step, x * step):
        stop = start + step
        shares.append(
            {
                k: min(stop, Fraction(k + 1)) - max(start, Fraction(k))
                for k in range(int(start), -int(-stop // 1))
            }
        )
    total = [
        sum(
            sy * sx * int(region[ky, kx, c])
            for ky, sy in shares[0].items()
            for kx, sx in shares[1].items()
        )
        for c in range(3)
    ]
    return [int(value / step**2 + Fraction(1, 2)) for value in total]


def test_cmu_at_a_quarter_is_refused(cmu: Path, tmp_path: Path) -> None:
    refused = run("tile", str(cmu), "--out", str(tmp_path / "a"), "--workers", "0")
    assert refused.exit_code == 4
    assert "scanned at 0.499 µm/px, patches at 0.25 µm/px" in refused.stderr


@pytest.mark.system
def test_cmu_at_a_quarter_is_cut_where_upsampling_is_allowed(cmu: Path, tmp_path: Path) -> None:
    assert (
        tile_cmu(cmu, tmp_path / "b", 0.25, allow_upsample=True).grid.cols == 88
    )  # 2220 · 0.499 / 0.25 = 4431 px


def test_a_folder_with_one_good_slide(shared_data: Path, cmu: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for path in (
        cmu,
        shared_data / "slides" / "broken.svs",
        shared_data / "slides" / "openslide-python_unreadable.svs",
    ):
        shutil.copy(path, slides)
    (slides / "readme.txt").write_text("copied on Monday")
    result = run(
        "tile", str(slides), "--out", str(tmp_path / "out"), "--mpp", "0.5", "--workers", "0"
    )
    assert result.exit_code == 3
    assert "passed over: 1 file that is no slide (1 .txt)" in result.stderr
    assert "3 slides: 1 ok, 2 failed" in result.stdout
    failures = (tmp_path / "out" / "failures.csv").read_text()
    for name in ("broken", "openslide-python_unreadable"):
        assert f"{name}," in failures


def test_other_scanners_slides_open(shared_data: Path) -> None:
    ndpi = open_slide(shared_data / "slides" / "test3-DAPI-2-387.ndpi").info
    assert (ndpi.size_l0, ndpi.magnification, ndpi.vendor) == ((3968, 4864), 40.0, "hamamatsu")
    assert ndpi.mpp == pytest.approx(0.2282, abs=1e-4)
    dicom = open_slide(shared_data / "slides" / "openslide-python_boxes_dcm" / "boxes_0.dcm").info
    assert (dicom.vendor, dicom.mpp) == ("dicom", 0.499)


def test_an_impossible_scale_is_refused_and_may_be_corrected(shared_data: Path) -> None:
    boxes = shared_data / "slides" / "openslide-python_boxes.tiff"
    with pytest.raises(SlideError, match=r"352\.778 µm per pixel"):
        open_slide(boxes)
    assert [level.downsample for level in open_slide(boxes, slide_mpp=0.5).levels] == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("broken.svs", "not a slide"),
        ("openslide-python_unopenable.tiff", "OpenSlide cannot open it"),
    ],
)
def test_broken_files_are_named(name: str, fault: str, shared_data: Path) -> None:
    with pytest.raises(SlideError, match=fault) as caught:
        open_slide(shared_data / "slides" / name)
    assert name in str(caught.value)


@pytest.mark.system
def test_slides_labelled_by_regions_train_like_the_patches_they_came_from(
    ingested: tuple[IngestAccount, Path], shared_data: Path, tmp_path: Path
) -> None:
    """Labels of 8863 and 8865 → joined GeoJSON → cut from the slides and labelled by it: the same
    labels, the same weights.
    """
    import torch

    from wsi_pipeline.labels.geojson import write_labels_geojson
    from wsi_pipeline.models.checkpoint import load_checkpoint
    from wsi_pipeline.training.config import TrainConfig
    from wsi_pipeline.training.run import train
    from wsi_pipeline.training.split import SplitChoice

    patients = ("8863", "8865")
    stores = [ingested[1] / f"{patient}.patches.zarr" for patient in patients]
    lines = ["wsi,patient_id,labels"]
    for patient, store in zip(patients, stores, strict=True):
        write_labels_geojson(PatchStore(store).table, tmp_path / f"{patient}.geojson")
        shutil.copy(shared_data / "slides" / f"idc_{patient}_mosaic.tiff", tmp_path)
        lines.append(f"idc_{patient}_mosaic.tiff,{patient},{patient}.geojson")
    (tmp_path / "sheet.csv").write_text("\n".join(lines) + "\n")
    places = ["--sheet", tmp_path / "sheet.csv", "--out", tmp_path / "cut"]
    options = ["--mpp", 4, "--min-tissue", 0, "--class-names", "non_idc", "idc", "--workers", 0]
    result = run("tile", *map(str, [*places, *options]))
    assert result.exit_code == 0, result.output
    cut = [tmp_path / "cut" / f"idc_{patient}_mosaic.patches.zarr" for patient in patients]
    for one, other in zip(stores, cut, strict=True):
        assert labels_by_cell(one) == labels_by_cell(other)
    config, choice = (
        TrainConfig("wide_resnet_10_1", epochs=1, device="cpu"),
        SplitChoice(val_patients=("8865",)),
    )
    weights = [
        load_checkpoint(train(paths, tmp_path / name, config, choice).model).weights
        for name, paths in (("ingested", stores), ("regions", cut))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def labels_by_cell(store: Path) -> dict[tuple[int, ...], int]:
    table = PatchStore(store).table
    labels = zip(map(tuple, table.positions.tolist()), table.labels.tolist(), strict=True)
    return {position: label for position, label in labels if label >= 0}


@pytest.mark.parametrize(
    "name",
    [
        "CMU-1-Small-Region.svs",
        "idc_8863_mosaic.tiff",
        "idc_8865_mosaic.tiff",
        "openslide-python_boxes.tiff",
    ],
)
def test_the_direct_reader_gives_openslides_pixels(name: str, shared_data: Path) -> None:
    path = shared_data / "slides" / name
    ours, theirs = (
        open_slide(path, slide_mpp=0.5, reader=reader) for reader in ("tiff", "openslide")
    )
    assert isinstance(ours, TiffReader)
    assert 0 in ours.direct_levels
    for level in ours.levels:
        width, height = level.size
        for box in (
            (0, 0, width, height),
            (width // 3, height // 2, 333, 222),
            (width - 30, height - 20, 60, 60),
        ):
            assert np.array_equal(ours.read(level, *box), theirs.read(level, *box))
    assert ours.fallbacks == 0


@pytest.mark.parametrize(
    "name", ["test3-DAPI-2-387.ndpi", "openslide-python_boxes_dcm/boxes_0.dcm"]
)
def test_other_formats_go_through_openslide(name: str, shared_data: Path) -> None:
    assert isinstance(open_slide(shared_data / "slides" / name), OpenSlideReader)
