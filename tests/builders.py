"""Small real things for tests: slides, tables, stores, checkpoints, all of known content."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.core.calibration import Calibration, ModelTerms
from wsi_pipeline.core.choices import FOLD, FOLDS_JSON, FOLDS_SUMMARY, MANIFEST, MODEL_FILE
from wsi_pipeline.core.geometry import Grid, PatchSpec
from wsi_pipeline.core.patch_table import PatchBlock, PatchTable
from wsi_pipeline.core.slide import SlideInfo, Thumbnail
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.checkpoint import Checkpoint, save_checkpoint
from wsi_pipeline.runs.synthetic_slides import write_pyramid
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.manifest import seal
from wsi_pipeline.store.patches import finish_patch_store, prepare_patch_store, write_patch_block
from wsi_pipeline.store.predictions import write_prediction_block

PINK = (225, 120, 190)
WHITE = (255, 255, 255)


def paint(width: int, height: int, color: tuple[int, int, int] = PINK) -> NDArray[np.uint8]:
    """One colour everywhere: RGB (height, width, 3)."""
    return np.full((height, width, 3), color, dtype=np.uint8)


def paint_coordinates(width: int, height: int) -> NDArray[np.uint8]:
    """Every pixel tells where it is: red = x mod 251, green = y mod 251, blue 60 (so that it counts
    as tissue).
    """
    y, x = np.indices((height, width))
    return np.stack([x % 251, y % 251, np.full_like(x, 60)], axis=-1).astype(np.uint8)


def paint_noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random colours from a seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tissue(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Pink tissue with texture."""
    noise = paint_noise(width, height, seed).astype(np.int16) // 8 - 16
    return np.clip(np.array(PINK) + noise, 0, 255).astype(np.uint8)


def write_slide(path: Path, pixels: NDArray[np.uint8], mpp: float = 0.5) -> Path:
    """A pyramidal TIFF that OpenSlide reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, pixels, mpp)
    return path


def write_png(path: Path, pixels: NDArray[np.uint8], mpp: float | None = None) -> Path:
    """A PNG, with its scale in the header where one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mpp is None:
        Image.fromarray(pixels).save(path)
    else:
        Image.fromarray(pixels).save(path, dpi=(25_400 / mpp, 25_400 / mpp))
    return path


def break_tile(slide: Path, page: int, tile: int) -> None:
    """Overwrite one tile's data in a TIFF with noise."""
    import tifffile

    with tifffile.TiffFile(slide) as tiff:
        offset, count = tiff.pages[page].dataoffsets[tile], tiff.pages[page].databytecounts[tile]
    with slide.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(255 - i % 251 for i in range(count)))


def make_slide_info(
    slide_id: str = "slide", size_l0: tuple[int, int] = (100, 100), mpp: float = 0.5
) -> SlideInfo:
    """A slide that exists on paper."""
    return SlideInfo(
        slide_id=slide_id,
        path=f"/slides/{slide_id}.tiff",
        size_l0=size_l0,
        mpp=mpp,
        mpp_source="property",
        level_downsamples=(Fraction(1),),
        bounds_l0=(0, 0, *size_l0),
        fingerprint=f"fingerprint of {slide_id}",
    )


def make_table(
    positions: Sequence[tuple[int, int]],
    *,
    labels: Sequence[int] | None = None,
    slide_id: str = "slide",
    patient_id: str | None = None,
    side_px: int = 50,
    mpp: float = 0.5,
    block_size: int = 4,
    rows: int | None = None,
    cols: int | None = None,
) -> PatchTable:
    """A patch table on a grid just large enough for the cells."""
    array = np.array(positions, dtype=np.int32).reshape(-1, 2)
    rows = rows if rows is not None else int(array[:, 0].max(initial=-1)) + 1
    cols = cols if cols is not None else int(array[:, 1].max(initial=-1)) + 1
    return PatchTable(
        slide=make_slide_info(slide_id, (max(cols, 1) * side_px, max(rows, 1) * side_px), mpp),
        grid=Grid(PatchSpec(side_px, side_px, mpp), rows, cols, Fraction(1)),
        positions=array,
        labels=np.array(labels if labels is not None else [-1] * len(array), dtype=np.int8),
        label_fraction=np.full(len(array), np.nan, dtype=np.float32),
        tissue_fraction=np.ones(len(array), dtype=np.float32),
        thumbnail=Thumbnail(
            paint(max(cols, 1) * 5, max(rows, 1) * 5), Fraction(side_px, 5), (0, 0)
        ),
        block_size=block_size,
        patient_id=patient_id or slide_id,
        class_names=("negative", "positive"),
    )


def make_patches(count: int, side_px: int = 50, seed: int = 0) -> NDArray[np.uint8]:
    """Random patches (count, side, side, 3)."""
    return np.random.default_rng(seed).integers(
        0, 256, (count, side_px, side_px, 3), dtype=np.uint8
    )


def make_store(
    path: Path,
    table: PatchTable,
    pixels: NDArray[np.uint8] | None = None,
    unreadable: Sequence[int] = (),
) -> Path:
    """A committed patch store."""
    pixels = make_patches(table.patches, table.grid.spec.side_px) if pixels is None else pixels
    readable = np.ones(table.patches, dtype=np.bool_)
    readable[list(unreadable)] = False
    staging = Staging(path, {"slide": table.slide.fingerprint, "labels": table.labels.tolist()})
    prepare_patch_store(staging, table, {})
    for block in range(-(-table.patches // table.block_size)):
        rows = slice(block * table.block_size, (block + 1) * table.block_size)
        write_patch_block(staging, table, block, PatchBlock(pixels[rows], readable[rows]))
    finish_patch_store(staging, table)
    return path


def write_probabilities(
    staging: Staging, table: PatchTable, block: int, probability: NDArray[np.float32]
) -> None:
    """Write a block of logits whose sigmoid is the probability; 0 and 1 become the nearest number
    that has a logit, NaN stays NaN.
    """
    write_prediction_block(staging, table, block, Calibration().undo(probability), {})


def draw_regions(path: Path, squares: dict[str, tuple[int, int, int, int]]) -> None:
    """A QuPath export with one square (x0, y0, x1, y1) of each class."""
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]],
            },
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, (x0, y0, x1, y1) in squares.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def make_training_stores(folder: Path, patients: int = 4, patches: int = 24) -> Path:
    """Stores of patients whose positive patches are dark and whose negative ones are bright: a
    network learns that at once.
    """
    for number in range(patients):
        rng = np.random.default_rng(number)
        labels = np.arange(patches) % 2
        level = np.where(labels == 1, 60, 200)[:, None, None, None]
        pixels = (level + rng.integers(-25, 26, (patches, 50, 50, 3))).astype(np.uint8)
        table = make_table(
            [(k // 6, k % 6) for k in range(patches)],
            labels=labels.tolist(),
            slide_id=f"p{number}",
            block_size=16,
        )
        make_store(folder / f"p{number}.patches.zarr", table, pixels)
    return folder


SMALL = "wide_resnet_10_1"
"""A network whose weights are soon written, hashed and run."""
LAST_LAYERS = {SMALL: "classifier", "idc_cnn": "classifier.6"}


def make_checkpoint(
    *,
    mpp: float = 0.5,
    threshold: float = 0.5,
    temperature: float = 1.0,
    terms: ModelTerms | None = None,
    bias: float | None = None,
    side_px: int = 50,
    seed: int = 0,
    architecture: str = SMALL,
) -> Checkpoint:
    """A network with seeded random weights; with `bias`, every patch has that logit. `terms` take
    the place of threshold and temperature.
    """
    torch.manual_seed(seed)
    weights = build_network(architecture, side_px).state_dict()
    if bias is not None:
        last = LAST_LAYERS[architecture]
        weights[f"{last}.weight"] = torch.zeros_like(weights[f"{last}.weight"])
        weights[f"{last}.bias"] = torch.full_like(weights[f"{last}.bias"], bias)
    return Checkpoint(
        architecture=architecture,
        spec=PatchSpec(side_px, side_px, mpp),
        class_names=("negative", "positive"),
        normalisation=Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        terms=terms or ModelTerms.plain(threshold, temperature),
        threshold_source="set by a test",
        weights=weights,
    )


def make_overflowing() -> Checkpoint:
    """A network for patches of 22 px whose values leave the range of fp16, and come back."""
    checkpoint = make_checkpoint(side_px=22, architecture="idc_cnn")
    large = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    large["features.0.weight"] *= 1e4  # beyond 65,504, the largest of fp16 …
    large["features.1.bias"] *= 0
    large["features.4.weight"] *= 1e4
    large["classifier.0.weight"] *= 1e-8  # … and back
    return replace(checkpoint, weights=large)


def write_model(path: Path, checkpoint: Checkpoint | None = None) -> Path:
    """A checkpoint on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(checkpoint or make_checkpoint(), path)
    return path


def write_folds(folder: Path, members: Sequence[Checkpoint]) -> Path:
    """The models of a cross-validation on disk, as `wsi train --folds` leaves them."""
    names = [f"{FOLD}{number}" for number in range(1, len(members) + 1)]
    for name, member in zip(names, members, strict=True):
        write_model(folder / name / MODEL_FILE, member)
    models = {name: f"../{name}/{MODEL_FILE}" for name in names}
    (folder / FOLDS_SUMMARY).mkdir()
    (folder / FOLDS_SUMMARY / FOLDS_JSON).write_text(json.dumps({"models": models}))
    return folder


def rewrite_manifest(product: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a product's manifest says, as a stranger would who seals it again."""
    value = json.loads((product / MANIFEST).read_bytes())
    del value["checksum"]
    change(value)
    (product / MANIFEST).write_bytes(seal(json.dumps(value, indent=1).encode()))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content; run.yaml, which names the folder, is left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.yaml"
    }
