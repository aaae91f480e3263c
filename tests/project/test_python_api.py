"""The Python API: functions with the commands' options, and objects that print well."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from wsi_cli.main import wsi as wsi_command

import wsi_pipeline as wsi
from tests.builders import make_checkpoint, make_training_stores, tissue, write_slide
from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.core.options import (
    AggregateOptions,
    InferOptions,
    IngestOptions,
    LabelOptions,
    TileOptions,
)
from wsi_pipeline.core.training_options import TrainOptions
from wsi_pipeline.models.checkpoint import save_checkpoint

OPTIONS = {
    "tile": TileOptions,
    "ingest": IngestOptions,
    "train": TrainOptions,
    "infer": InferOptions,
    "evaluate": LabelOptions,
    "aggregate": AggregateOptions,
}
GIVEN_BY_NAME = {
    "tile": {"places", "slides", "sheet", "recursive", "out"},
    "ingest": {"place", "out"},
    "train": {"stores", "out", "preset"},
    "infer": {"places", "slides", "stores", "sheet", "recursive", "model", "out"},
    "evaluate": {"results", "labels", "threshold", "compare", "by", "sheet"},
    "aggregate": {"results", "out"},
}
"""Parameters that the function itself has."""
ONLY_OF_THE_COMMAND = {"dry_run", "is_viewed", "preview", "watch", "mode", "help"}
"""A preview is printed, a browser opened, a watch ends with Ctrl+C; permissions of files are the
process's own in Python.
"""


def parameters(name: str) -> dict[str, click.Parameter]:
    command = wsi_command.get_command(click.Context(wsi_command), name)
    assert command is not None
    return {
        str(parameter.name): parameter
        for parameter in command.params
        if parameter.name not in GIVEN_BY_NAME[name] | ONLY_OF_THE_COMMAND
    }


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_function_has_the_options_of_its_command(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(OPTIONS[name])}
    assert fields - {"sheet"} == set(parameters(name)) - {"sheet"}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_defaults_are_those_of_the_command(name: str) -> None:
    command = wsi_command.get_command(click.Context(wsi_command), name)
    assert command is not None
    defaults = command.make_context(name, [], resilient_parsing=True).params
    wanted = {key: defaults[key] for key, found in parameters(name).items() if not found.required}
    given = {
        field.name: field.default
        for field in dataclasses.fields(OPTIONS[name])
        if field.name in wanted
    }
    assert given == wanted


def test_importing_it_loads_neither_torch_nor_dask() -> None:
    code = "import sys, wsi_pipeline; print({'torch', 'dask', 'zarr'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match=r"there is no option patchsize; there are .*patch_size"):
        wsi.tile("slides", "stores", patchsize=50)


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="--split random puts patients on both sides"):
        wsi.train("stores", "model", split="random")


def test_inference_takes_one_kind_of_places() -> None:
    with pytest.raises(ConfigError, match="give one of slides, stores and sheet"):
        wsi.infer("slides", "model", "results", stores="stores")


def test_the_patches_of_a_store_that_is_not_there_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        wsi.open_store(str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """From a slide to results, every path as text."""
    folder = tmp_path_factory.mktemp("api")
    slide = write_slide(folder / "slides" / "s.tiff", tissue(300, 200), mpp=0.5)
    (folder / "slides" / "broken.svs").write_bytes(b"not a slide")
    save_checkpoint(make_checkpoint(bias=2.0), folder / "model.safetensors")
    heard: list[str] = []
    listener = wsi.Listener(slide_ended=lambda outcome: heard.append(outcome.slide_id))
    tiled = wsi.tile(str(slide), str(folder / "stores"), mpp=0.5, workers=0, min_free=0)
    account = wsi.infer(
        str(folder / "slides"),
        str(folder / "model.safetensors"),
        str(folder / "results"),
        device="cpu",
        engine="torch",
        outputs="summary",
        workers=0,
        min_free=0,
        listener=listener,
    )
    return {"folder": folder, "tiled": tiled, "account": account, "heard": heard}


def test_a_slide_is_tiled(run: dict[str, Any]) -> None:
    assert str(run["tiled"]) == "1 slide: 1 ok"
    assert len(wsi.open_store(str(run["folder"] / "stores" / "s.patches.zarr"))) == 24  # 6 × 4


def test_an_account_prints_how_the_run_ended_and_what_failed(run: dict[str, Any]) -> None:
    first, second = str(run["account"]).splitlines()
    assert first == "2 slides: 1 ok, 1 failed"
    broken = run["folder"] / "slides" / "broken.svs"
    assert second.startswith(f"  failed: {broken}: ")


def test_the_listener_hears_of_every_slide(run: dict[str, Any]) -> None:
    assert sorted(run["heard"]) == ["broken", "s"]


def test_results_print_what_was_found(run: dict[str, Any]) -> None:
    (slide,) = wsi.open_results(str(run["folder"] / "results"))
    # Each of 24 patches of 25 µm is positive: 24 · 0.000625 mm².
    assert repr(slide) == "Slide(s: 24 of 24 patches positive, 0.015 mm²)"


def test_a_model_is_a_function_of_patches(run: dict[str, Any]) -> None:
    model = wsi.load_model(str(run["folder"] / "model.safetensors"), device="cpu", engine="torch")
    probability = model(np.zeros((2, 50, 50, 3), np.uint8))
    assert probability == pytest.approx([0.8808, 0.8808], abs=1e-4)  # 1 / (1 + exp(-2))


def test_a_model_prints_its_scale(run: dict[str, Any]) -> None:
    model = wsi.load_model(run["folder"] / "model.safetensors", device="cpu", engine="torch")
    assert repr(model) == "Predictor(wide_resnet_10_1: patches of 50 px at 0.5 µm/px, torch fp32)"


def test_a_slide_is_opened(run: dict[str, Any]) -> None:
    path = run["folder"] / "slides" / "s.tiff"
    slide = wsi.open_slide(str(path))
    assert repr(slide) == f"TiffReader({path}: 300 × 200 px at 0.5 µm/px, 1 levels)"
    assert slide.read(slide.levels[0], 0, 0, 30, 20).shape == (20, 30, 3)


def test_outputs_are_written_again_at_another_threshold(run: dict[str, Any]) -> None:
    out = run["folder"] / "again"
    wsi.aggregate(str(run["folder"] / "results"), str(out), threshold=0.9, outputs="summary")
    (slide,) = wsi.open_results(out)
    assert (slide.summary.positives, slide.summary.threshold) == (0, 0.9)


def test_a_network_is_trained_and_evaluated(tmp_path: Path) -> None:
    make_training_stores(tmp_path / "stores", patients=4, patches=12)
    stores = [tmp_path / "stores"]
    options: dict[str, Any] = {
        "epochs": 1,
        "arch": "wide_resnet_10_1",
        "device": "cpu",
        "threshold": 0.25,
    }
    trained = wsi.train(stores, tmp_path / "model", **options)
    assert "at threshold 0.250" in str(trained)
    assert "AUROC" in str(trained)
    wsi.infer(
        stores=stores,
        model=tmp_path / "model",
        out=tmp_path / "results",
        device="cpu",
        engine="torch",
        outputs="summary",
        workers=0,
        min_free=0,
    )
    evaluation = str(wsi.evaluate(tmp_path / "results"))
    assert "all slides" in evaluation
    assert "AUROC" in evaluation
