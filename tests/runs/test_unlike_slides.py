"""Slides unlike the training patches: told in the summary, the tables, the pages and the line."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray
from PIL import Image

from tests.builders import make_checkpoint, tissue, write_model, write_slide
from tests.commands import PLAIN, run
from tests.written_results import write_result
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.outcome import Distance, Limits
from wsi_pipeline.models.checkpoint import save_checkpoint
from wsi_pipeline.models.domain import show_features
from wsi_pipeline.models.model import PatchNetwork
from wsi_pipeline.models.stains import measure_stains
from wsi_pipeline.store.predictions import Predictions, record_distance
from wsi_pipeline.store.zarr_io import add_attributes
from wsi_pipeline.training.domain import Looked, fit_domain

HERE = (*PLAIN, "--workers", 0)
LIMITS = {"colour_limit": 4.0, "feature_limit": 4.0}


def look_at_patients(side_px: int = 50) -> list[Looked]:
    """Patches of ten made slides, as training sees them."""
    model = make_checkpoint()
    network = PatchNetwork(show_features(model.build()), model.normalisation).eval()
    found = []
    for seed in range(10):
        pixels = tissue(500, 500, seed=100 + seed).reshape(10, 50, 10, 50, 3).swapaxes(1, 2)
        patches = np.ascontiguousarray(pixels.reshape(-1, 50, 50, 3))[:30]
        with torch.inference_mode():
            features = network(torch.from_numpy(patches))[:, 1:]
        labels = (np.arange(30) % 2).astype(np.int8)
        found.append(Looked(labels, measure_stains(patches), features))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unlike")
    done = infer_with_domain(folder, ("--outputs", "summary,report"))
    (folder / "said.txt").write_text(done.stderr)
    return folder


def infer_with_domain(folder: Path, options: tuple[object, ...]) -> Result:
    """Results of a slide like the training patches and of its negative, of one model."""
    domain = replace(fit_domain(look_at_patients()), limits=Limits(*LIMITS.values()))
    save_checkpoint(replace(make_checkpoint(), domain=domain), folder / "m.safetensors")
    write_slide(folder / "slides" / "like.tiff", tissue(500, 300))
    write_slide(folder / "slides" / "negative.tiff", 255 - tissue(500, 300))
    arguments = ("--model", folder / "m.safetensors", "-o", folder / "results")
    done = run("infer", folder / "slides", *arguments, *HERE, *options)
    assert done.exit_code == 0, done.stderr
    return done


def read_summary(made: Path, slide: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((made / "results" / slide / "summary.json").read_text())
    return found


def test_a_slide_like_the_training_patches_is_within_the_limits(made: Path) -> None:
    summary = read_summary(made, "like")
    assert summary["unlike_training"] == ""
    assert {name: summary[name] for name in LIMITS} == LIMITS


def test_its_negative_is_unlike_by_colour_and_features(made: Path) -> None:
    assert read_summary(made, "negative")["unlike_training"] == "colour and features"


def test_the_line_of_the_slide_says_so(made: Path) -> None:
    said = (made / "said.txt").read_text()
    lines = {line.split(":")[0]: line for line in said.splitlines() if ": ok: " in line}
    assert "unlike the training patches: colour " in lines["negative"]
    assert "unlike" not in lines["like"]


def test_the_table_of_slides_has_distances_and_verdict(made: Path) -> None:
    with (made / "results" / "slides.csv").open(newline="") as stream:
        rows = {row["slide_id"]: row for row in csv.DictReader(stream)}
    assert float(rows["negative"]["colour_distance"]) > 4
    assert rows["negative"]["unlike_training"] == "colour and features"
    assert rows["like"]["unlike_training"] == ""


def test_the_pages_show_it(made: Path) -> None:
    assert "colour and features</td>" in (made / "results" / "index.html").read_text()
    assert (
        "unlike the training patches" in (made / "results" / "negative" / "report.html").read_text()
    )


def test_outputs_made_again_keep_the_distance(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert run("aggregate", made / "results", "--out", out, "--threshold", 0.4).exit_code == 0
    again = json.loads((out / "negative" / "summary.json").read_text())
    before = read_summary(made, "negative")
    for name in ("colour_distance", "feature_distance", "unlike_training"):
        assert again[name] == before[name]


def test_a_distance_of_nothing_is_read_back(tmp_path: Path) -> None:
    """A network whose features are the same for everything gives 0, which is a distance."""
    write_result(tmp_path / "s", [0.9, 0.1])
    record_distance(tmp_path / "s" / "predictions.zarr", Distance(0.5, 0.0))
    assert Predictions(tmp_path / "s" / "predictions.zarr").distance == Distance(0.5, 0.0)


@pytest.mark.parametrize("wrong", [-0.1, "far", True])
def test_a_distance_that_cannot_be_is_damage(wrong: object, tmp_path: Path) -> None:
    write_result(tmp_path / "s", [0.9, 0.1])
    add_attributes(tmp_path / "s" / "predictions.zarr", {"distance": {"colour": wrong}})
    with pytest.raises(StoreError, match="a distance in its attributes is invalid"):
        Predictions(tmp_path / "s" / "predictions.zarr")


def test_a_model_without_domain_says_nothing(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", 255 - tissue(200, 200))
    arguments = ("--model", write_model(tmp_path / "m.safetensors"), "-o", tmp_path / "results")
    done = run("infer", tmp_path / "slides", *arguments, *HERE, "--outputs", "summary")
    assert done.exit_code == 0
    summary = json.loads((tmp_path / "results" / "s" / "summary.json").read_text())
    assert summary["unlike_training"] is None
    assert "unlike" not in done.stderr


def take_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = pixels.mean(axis=-1, keepdims=True)
    return np.broadcast_to(grey, pixels.shape).astype(np.uint8)


def lay_out_patches(folder: Path) -> NDArray[np.uint8]:
    """A patient's first 400 patches as a slide of 20 × 20 that is nothing but tissue."""
    files = sorted(folder.glob("*/*.png"))[:400]
    patches = [np.asarray(Image.open(path).convert("RGB")) for path in files]
    whole = np.stack([patch for patch in patches if patch.shape == (50, 50, 3)][:400])
    rows = whole[: len(whole) // 20 * 20].reshape(-1, 20, 50, 50, 3)
    return rows.swapaxes(1, 2).reshape(len(rows) * 50, 1000, 3)


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the model in the box says of real slides, and of one that was changed."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "slides").mkdir()
    for name in ("idc_8863_mosaic.tiff", "idc_8865_mosaic.tiff", "test3-DAPI-2-387.ndpi"):
        (folder / "slides" / name).symlink_to(shared_data / "slides" / name)
    pixels = lay_out_patches(shared_data / "idc" / "8863")
    faded = (255 - (255 - pixels.astype(np.float64)) * 0.5).astype(np.uint8)
    changed = {"grey": take_grey(pixels), "inverted": 255 - pixels, "faded": faded}
    for name, values in changed.items():
        write_slide(folder / "slides" / f"{name}.tiff", values, mpp=4.0)
    arguments = ("-o", folder / "results", *HERE, "--min-tissue", 0, "--outputs", "summary")
    assert run("infer", folder / "slides", *arguments).exit_code == 0
    summaries = (folder / "results").glob("*/summary.json")
    return {path.parent.name: json.loads(path.read_text())["unlike_training"] for path in summaries}


@pytest.mark.system
@pytest.mark.parametrize("slide", ["idc_8863_mosaic", "idc_8865_mosaic"])
def test_held_out_slides_of_the_same_centre_are_within_the_limits(
    slide: str, real: dict[str, str]
) -> None:
    assert real[slide] == ""


@pytest.mark.system
def test_half_the_stain_is_within_the_limits(real: dict[str, str]) -> None:
    assert real["faded"] == ""


@pytest.mark.system
@pytest.mark.parametrize("slide", ["test3-DAPI-2-387", "inverted", "grey"])
def test_fluorescence_negatives_and_grey_are_unlike_in_colour_and_features(
    slide: str, real: dict[str, str]
) -> None:
    assert real[slide] == "colour and features"
