"""Formats of stores, results and checkpoints, today's and earlier ones, written by zarr, json and
safetensors.
"""

import hashlib
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import xxhash
import zarr
from safetensors.torch import save
from torch import Tensor
from zarr.codecs import Crc32cCodec, ZstdCodec

from tests.builders import folder_bytes, write_png
from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.outcome import SlideState
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.runs.verify import find_products, verify
from wsi_pipeline.stages.aggregate import aggregate_results
from wsi_pipeline.stages.relabel import relabel_store
from wsi_pipeline.store.manifest import find_damage
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.slide_results import open_result

CELLS, LABELS, PROBABILITY = [[0, 0], [0, 1], [1, 1]], [1, 0, -1], [0.75, 0.25, math.nan]
PIXELS = np.arange(3 * 50 * 50 * 3, dtype=np.uint32).reshape(3, 50, 50, 3).astype(np.uint8)
THUMBNAIL = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
PATCH, CLASSES, RECIPE = (
    {"side_px": 50, "stride_px": 50, "mpp": 0.5},
    ["normal", "tumour"],
    {"slide": "f" * 64, "patch": {"side_px": 50}},
)
FLOAT_ARRAYS = {
    "label_fraction": [1, 0, math.nan],
    "tissue_fraction": [1, 1, 0.5],
    "pen_fraction": [0, 0.25, 0],
    "sharpness": [9, 8, 7],
}
TABLE: dict[str, Any] = {
    "block_size": 2, "patient_id": "p", "class_names": CLASSES,
    "has_quality": True, "has_tissue": True,
    "slide": {
        "slide_id": "s", "path": "/slides/s.tiff", "size_l0": [200, 200], "mpp": 0.25,
        "mpp_source": "TIFF tag", "vendor": None,
        "level_downsamples": ["1", "1001/250"], "bounds_l0": [0, 0, 200, 200],
        "fingerprint": "f" * 64, "magnification": 40.0,
    },
    "grid": {"spec": PATCH, "rows": 2, "cols": 2, "downsample": "2", "origin_xy_l0": [0, 0]},
    "thumbnail": {"downsample": "20", "origin_xy_l0": [0, 0]},
}  # fmt: skip
MODEL = {"digest": "d" * 64, "architecture": "idc_cnn", "class_names": CLASSES}
PLAIN = {"threshold": 0.5, "temperature": 1.0}
"""Terms of a model before contexts."""
TERMS = {
    "on_grid": {"slope": 2.0, "offset": 0.5, "count": 0.4, "detect": 0.3, "context_um": 25.0},
    "alone": {"slope": 0.5, "offset": 0.0, "count": 0.6, "detect": 0.2, "context_um": 0.0},
    "positive_share": 0.25,
    "count_errors": [-0.1, 0.2],
}
SUMMARY: dict[str, Any] = {
    "slide_id": "s", "state": "damaged", "patches": 3, "unreadable": 1, "positives": 1,
    "positive_fraction": 0.5, "assessed_mm2": 0.00125,
    "positive_mm2": 0.000625, "mean_probability": 0.5, "p95_probability": 0.725,
    "max_probability": 0.75, "positive_regions": 1,
    "mean_positive_region_mm2": 0.000625, "largest_positive_region_mm2": 0.000625,
    "hot_spot_positive_mm2": 0.000625, "hot_spot_x_l0": 50.0,
    "hot_spot_y_l0": 50.0, "unreadable_fraction": 1 / 3, "unassessed_fraction": 0.5,
    "positives_left_out": 0, "threshold": 0.5,
    "min_region_mm2": 0.0,
    "positive_class": "tumour", "mpp": 0.5, "slide_mpp": 0.25,
    "slide_mpp_source": "TIFF tag", "model_digest": "d" * 64,
}  # fmt: skip
SMOOTHED = {"threshold_source": "model", "smooth_um": 0.0}
"""Of a summary before contexts."""
TODAY = {
    "threshold_source": "detect", "context_um": 25.0, "prevalence": None,
    "positives_estimate": 1.0, "positives_low": 0.5, "positives_high": 1.5,
    "interval_source": "validation", "patch_um": 25.0,
}  # fmt: skip
compact = partial(json.dumps, sort_keys=True, separators=(",", ":"))


def put(
    group: Any, name: str, values: Any, rows: int = 3, codecs: tuple[Any, ...] = (Crc32cCodec(),)
) -> None:
    """Chunks of so many rows, with a checksum in each, and none left out."""
    layout = {
        "shape": values.shape,
        "chunks": (rows, *values.shape[1:]),
        "dtype": values.dtype.name,
        "compressors": codecs,
    }
    made = group.create_array(
        name, **layout, fill_value=math.nan if values.dtype.kind == "f" else 0
    )
    made.with_config({"write_empty_chunks": True})[...] = values


def put_table(path: Path, attributes: dict[str, Any], version: int = 2) -> Any:
    attributes = TABLE | {"format_version": version} | attributes
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)
    # The tissue is 12 px wide: four tissue, four none, four tissue.
    if version == 1:
        put(group, "cells", np.array(CELLS, np.int32))
        put(group, "tissue", np.full((10, 2), [0b11110000, 0b11110000], np.uint8), rows=10)
    else:
        put(group, "row", np.array([0, 0, 1], np.int32))
        put(group, "col", np.array([0, 1, 1], np.int32))
        put(group, "x_um", np.array([0, 25, 25], np.float64))
        put(group, "y_um", np.array([0, 0, 25], np.float64))
        put(group, "tissue", np.array([[True] * 4 + [False] * 4 + [True] * 4] * 10), rows=10)
    put(group, "labels", np.array(LABELS, np.int8))
    put(group, "thumbnail", THUMBNAIL, rows=10)
    put(group, "flags", np.array([0, 1, 2], np.uint8))
    for name, values in FLOAT_ARRAYS.items():
        put(group, name, np.array(values, np.float32))
    return group


def put_manifest(product: Path, kind: str, counts: dict[str, int]) -> None:
    entries = {
        name: [len(content), xxhash.xxh3_128(content).hexdigest()]
        for name, content in folder_bytes(product).items()
    }
    value = {
        "format": 3,
        "tool": "wsi-pipeline 0.1.0",
        "kind": kind,
        "recipe": RECIPE,
        "counts": counts,
        "files": entries,
    }
    said = json.dumps(value, indent=1).removesuffix("\n}").encode()
    (product / "manifest.json").write_bytes(
        said + b',\n "checksum": "' + xxhash.xxh3_128(said).hexdigest().encode() + b'"\n}'
    )


def put_store(path: Path, version: int, codec: str = "none") -> Path:
    group = put_table(
        path,
        {"kind": "wsi patch store", "codec": {"name": codec, "quality": None, "is_lossy": False}},
        version,
    )
    put(
        group,
        "patches",
        PIXELS,
        rows=2,
        codecs=(Crc32cCodec(),) if codec == "none" else (ZstdCodec(level=3), Crc32cCodec()),
    )
    put(group, "readable", np.array([True, True, False]))
    put_manifest(path, "wsi patch store", {"patches": 3, "unreadable": 1, "labelled": 2})
    return path


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_either_format_is_read(tmp_path: Path, version: int, codec: str) -> None:
    path = put_store(tmp_path / "s.patches.zarr", version, codec)
    store = PatchStore(path)
    assert (find_damage(path), verify(find_products([path])[0]).is_whole) == ([], True)
    assert [store.read_block(block).pixels.tolist() for block in (0, 1)] == [
        PIXELS[:2].tolist(),
        PIXELS[2:].tolist(),
    ]
    assert (store.read_patches([2, 0]).tolist(), store.readable.tolist()) == (
        PIXELS[[2, 0]].tolist(),
        [True, True, False],
    )
    check_table(store.table)
    assert (store.slide.path, *map(str, store.slide.level_downsamples)) == (
        "/slides/s.tiff",
        "1",
        "1001/250",
    )
    assert (
        (grid := store.grid).rows,
        grid.cols,
        int(grid.downsample),
        grid.spec.side_px,
        grid.spec.mpp,
    ) == (2, 2, 2, 50, 0.5)


def test_a_store_of_format_1_is_relabelled_into_one_of_today(tmp_path: Path) -> None:
    path = put_store(tmp_path / "s.patches.zarr", 1)
    labels = write_png(tmp_path / "s.png", np.full((200, 200), 200, dtype=np.uint8))
    relabel_store(path, labels, LabelRules())
    store = PatchStore(path)
    assert (store.attributes["format_version"], store.table.labels.tolist()) == (2, [1, 1, 1])
    assert (store.positions.tolist(), store.readable.tolist()) == (CELLS, [True, True, False])
    opened = xr.open_zarr(path)
    np.testing.assert_array_equal(opened.patches, PIXELS)
    np.testing.assert_array_equal(opened.tissue, store.table.tissue)
    assert (find_damage(path), (path / "cells").exists()) == ([], False)


def check_table(table: Any) -> None:
    assert (table.positions.tolist(), table.labels.tolist(), table.class_names) == (
        CELLS,
        LABELS,
        tuple(CLASSES),
    )
    assert (table.block_size, table.patient_id, table.thumbnail.downsample) == (2, "p", 20)
    np.testing.assert_array_equal(table.thumbnail.pixels, THUMBNAIL)
    assert (table.tissue.tolist(), table.quality.flags.tolist()) == (
        [[True] * 4 + [False] * 4 + [True] * 4] * 10,
        [0, 1, 2],
    )
    found = (
        table.label_fraction,
        table.tissue_fraction,
        table.quality.pen_fraction,
        table.quality.sharpness,
    )
    np.testing.assert_array_equal(found, np.array([*FLOAT_ARRAYS.values()], np.float32))


def put_result(
    folder: Path,
    terms: dict[str, Any],
    arrays: dict[str, list[float]],
    summary: dict[str, Any],
    version: int = 1,
) -> None:
    """A slide's folder by a model of such terms."""
    group = put_table(
        folder / "predictions.zarr",
        {"kind": "wsi predictions", "model": MODEL | terms, "engine": {"engine": "torch"}},
        version,
    )
    for name, values in arrays.items():
        put(group, name, np.array(values, np.float32), rows=2)
    (folder / "summary.json").write_text(json.dumps(SUMMARY | summary, indent=1) + "\n")
    put_manifest(folder, "wsi slide result", {"patches": 3, "unreadable": 1, "positives": 1})


@pytest.mark.parametrize("version", [1, 2])
def test_a_result_with_logits_is_read(tmp_path: Path, version: int) -> None:
    folder = tmp_path / "s"
    # σ(log(3)) = 3/4 and σ(-log(3)) = 1/4.
    arrays = {
        "logit": [2 * math.log(3), -2 * math.log(3), math.nan],
        "raw_probability": PROBABILITY,
        "probability": [0.7, 0.3, math.nan],
    }
    put_result(folder, {"terms": TERMS}, arrays, TODAY, version)
    result = open_result(folder)
    check_table(result.table)
    np.testing.assert_array_equal(result.logit, np.array(arrays["logit"], np.float32))
    np.testing.assert_allclose(result.alone, PROBABILITY, rtol=1e-6)
    np.testing.assert_array_equal(result.probability, np.array(arrays["probability"], np.float32))
    assert (result.terms.to_json(), result.positive_class) == (TERMS, "tumour")
    summary = read_summary(folder)
    assert (find_damage(folder), summary.state) == ([], SlideState.DAMAGED)
    assert {name: getattr(summary, name) for name in TODAY} == TODAY


def test_a_result_of_format_1_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    put_result(folder, PLAIN, {"probability": PROBABILITY}, SMOOTHED)
    result = open_result(folder)
    check_table(result.table)
    np.testing.assert_array_equal(result.probability, PROBABILITY)
    assert (
        result.terms,
        result.negative_class,
        result.positive_class,
        result.model_digest,
    ) == (ModelTerms.plain(0.5), "normal", "tumour", "d" * 64)
    summary = read_summary(folder)
    assert (find_damage(folder), summary.state, summary.positives, summary.hot_spot_x_l0) == (
        [],
        SlideState.DAMAGED,
        1,
        50.0,
    )


@pytest.mark.parametrize(("source", "today"), [("model", "count"), ("user", "user")])
def test_a_summary_before_contexts_is_read_as_one_of_today(
    source: str, today: str, tmp_path: Path
) -> None:
    old = {"threshold_source": source, "smooth_um": 100.0}
    put_result(tmp_path / "s", PLAIN, {"probability": PROBABILITY}, old)
    summary = read_summary(tmp_path / "s")
    assert (summary.threshold_source, summary.context_um, summary.prevalence) == (today, 100, None)
    assert (summary.positives_estimate, summary.positives_low, summary.interval_source) == (
        1,
        None,
        "none",
    )
    assert summary.patch_um is None


def test_a_result_of_format_1_is_aggregated_and_keeps_its_probabilities(tmp_path: Path) -> None:
    put_result(tmp_path / "s", PLAIN, {"probability": PROBABILITY}, SMOOTHED)
    account = aggregate_results(tmp_path, View(("summary",)), tmp_path / "out")
    assert [outcome.state for outcome in account.outcomes] == [SlideState.DAMAGED]
    result = open_result(tmp_path / "out" / "s")
    np.testing.assert_array_equal(result.probability, PROBABILITY)
    # log(3) is the logit of 3/4.
    np.testing.assert_allclose(result.logit, [math.log(3), -math.log(3), math.nan], rtol=1e-6)
    assert result.attributes["format_version"] == 2
    opened = xr.open_zarr(tmp_path / "out" / "s" / "predictions.zarr")
    np.testing.assert_array_equal(opened.raw_probability, PROBABILITY)
    assert set(opened.probability.coords) == {"row", "col", "x_um", "y_um"}


def make_weights(bias: float) -> dict[str, Tensor]:
    """Of wide_resnet_10_1, whose last weights are zero, so that every patch has this logit."""
    weights = {
        "stem.weight": torch.zeros(16, 3, 3, 3),
        "classifier.weight": torch.zeros(1, 64),
        "classifier.bias": torch.tensor([bias]),
    }
    norms, parts = {"norm": 64}, ("weight", "bias", "running_mean", "running_var")
    for block, (taken, given) in enumerate(((16, 16), (16, 32), (32, 64))):
        name = f"blocks.{block}"
        weights |= {
            f"{name}.conv1.weight": torch.zeros(given, taken, 3, 3),
            f"{name}.conv2.weight": torch.zeros(given, given, 3, 3),
        }
        weights |= (
            {} if taken == given else {f"{name}.shortcut.weight": torch.zeros(given, taken, 1, 1)}
        )
        norms |= {f"{name}.norm1": taken, f"{name}.norm2": given}
    weights |= {
        f"{name}.{part}": torch.ones(size) for name, size in norms.items() for part in parts
    }
    return weights | {f"{name}.num_batches_tracked": torch.tensor(0) for name in norms}


@pytest.mark.parametrize("card_format", [2, 3, 4])
def test_a_checkpoint_of_format_2_to_4_is_read(tmp_path: Path, card_format: int) -> None:
    tested = {
        "self_test.pixels": torch.zeros(2, 50, 50, 3, dtype=torch.uint8),
        "self_test.probability": torch.tensor([0.75, 0.75]),
    }
    tensors = make_weights(math.log(3)) | (tested if card_format >= 3 else {})
    plain = {"temperature": 2.0, "threshold": 0.4}
    parts = [
        f"{name}:{each.dtype}:{tuple(each.shape)}:".encode() + each.numpy().tobytes()
        for name, each in sorted(tensors.items())
    ]
    card: dict[str, Any] = {
        "format": card_format, "architecture": "wide_resnet_10_1", "patch": PATCH,
        "class_names": CLASSES,
        "mean": [0.5] * 3, "std": [0.25] * 3,
        **({"terms": TERMS} if card_format == 4 else plain),
        "threshold_source": "Youden on 9 patients",
        "scores": {"auc": 0.9}, "training": {}, "is_leaky": False,
        "weights_sha256": hashlib.sha256(b"".join(parts)).hexdigest(),
        "options": {"dropout": None, "head": "linear", "batch_norm": False, "logits": 1},
    }  # fmt: skip
    card["card_sha256"] = hashlib.sha256(compact(card).encode()).hexdigest()
    (path := tmp_path / "model.safetensors").write_bytes(
        save(tensors, metadata={"wsi": compact(card)})
    )
    model = load_checkpoint(path)
    assert (verify(find_products([path])[0]).is_whole, model.is_leaky, model.self_test is None) == (
        True,
        False,
        card_format == 2,
    )
    assert (model.spec.side_px, model.class_names, model.normalisation.mean) == (
        50,
        (*CLASSES,),
        (0.5,) * 3,
    )
    terms = ModelTerms.plain(0.4, temperature=2.0)
    assert model.terms == (ModelTerms.of_record({"terms": TERMS}) if card_format == 4 else terms)
    logit = model.logit(model.network()(torch.zeros(1, 50, 50, 3, dtype=torch.uint8)))
    assert logit.tolist() == pytest.approx([math.log(3)])
    assert model.terms.alone.calibration.apply(logit.detach().numpy()).tolist() == pytest.approx(
        [0.633975]
    )  # σ(log(3) / 2) = √3 / (1 + √3)
