"""Runs and engines: which one made a result is known, two never meet in one slide, and a wrong one
is found before any slide.
"""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import (
    folder_bytes,
    make_checkpoint,
    make_patches,
    make_store,
    make_table,
    write_model,
)
from tests.commands import HERE, PLAIN, infer, run
from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.errors import EnvironmentFault, ModelError
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.models.choice import EngineRequest, EngineSetting, ModelChoice
from wsi_pipeline.models.engines import ENGINES
from wsi_pipeline.models.engines.engine import Run
from wsi_pipeline.models.loading import load_model, read_model
from wsi_pipeline.models.model import Model, SelfTest, make_self_test
from wsi_pipeline.models.opening import open_choice, resolve_engine
from wsi_pipeline.runs.infer import list_stores, read_tiling
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.stages.infer import InferJob
from wsi_pipeline.stages.plan import SlidePlan
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.slide_results import open_result

SIDE = 22


@pytest.fixture
def model(tmp_path: Path) -> Path:
    checkpoint = make_checkpoint(side_px=SIDE)
    return write_model(
        tmp_path / "m.safetensors", replace(checkpoint, self_test=make_self_test(checkpoint))
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    table = make_table([(k // 10, k % 10) for k in range(90)], side_px=SIDE, block_size=16)
    return make_store(tmp_path / "stores" / "s.patches.zarr", table, make_patches(90, SIDE))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_results_say_what_computed_them(
    precision: str, store: Path, model: Path, tmp_path: Path
) -> None:
    infer(store, model, tmp_path / "r", engine="openvino", precision=precision)
    parameters = json.loads((tmp_path / "r" / "run.json").read_text())["parameters"]
    made_by = {name: parameters[name] for name in ("engine", "precision", "device")}
    assert made_by == {"engine": "openvino", "precision": precision, "device": "cpu"}
    assert read_manifest(tmp_path / "r" / "s").recipe["engine"] == made_by
    assert open_result(tmp_path / "r" / "s").attributes["engine"] == made_by
    assert parameters["batch_size"] == "auto"


def test_a_slide_of_another_engine_is_neither_taken_nor_mixed(
    store: Path, model: Path, tmp_path: Path
) -> None:
    infer(store, model, tmp_path / "r", engine="torch")
    before = folder_bytes(tmp_path / "r" / "s")
    account = infer(store, model, tmp_path / "r", engine="openvino")
    message = account.outcomes[0].message
    assert "s: was computed by torch fp32 (cpu), this run computes by openvino " in message
    assert (
        "run with --engine torch --precision fp32, with --force to replace it, or into another"
        " folder" in message
    )
    assert folder_bytes(tmp_path / "r" / "s") == before
    assert infer(store, model, tmp_path / "r", engine="torch").outcomes[0].is_resumed_whole
    assert infer(store, model, tmp_path / "r", engine="openvino", force=True).exit_code == 0
    assert read_manifest(tmp_path / "r" / "s").recipe["engine"]["engine"] == "openvino"


@pytest.mark.system
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_any_number_of_workers_gives_the_same_bytes(
    engine: str, store: Path, model: Path, tmp_path: Path
) -> None:
    for name, workers in (("one", HERE), ("two", Workers(count=2))):
        assert infer(store, model, tmp_path / name, engine=engine, workers=workers).exit_code == 0
    assert folder_bytes(tmp_path / "one" / "s") == folder_bytes(tmp_path / "two" / "s")


def test_engines_agree_on_a_slide(store: Path, model: Path, tmp_path: Path) -> None:
    for engine in ("torch", "openvino"):
        infer(store, model, tmp_path / engine, engine=engine)
    one, other = (
        open_result(tmp_path / engine / "s").probability for engine in ("torch", "openvino")
    )
    assert np.abs(one - other).max() < 1e-4


def test_a_model_that_gives_other_answers_is_refused_before_any_slide(
    store: Path, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(side_px=SIDE)
    made = make_self_test(checkpoint)
    lying = write_model(
        tmp_path / "m.safetensors",
        replace(checkpoint, self_test=SelfTest(made.pixels, made.probability - 0.05)),
    )
    done = run("infer", "--stores", store, "--model", lying, "-o", tmp_path / "r", *PLAIN)
    assert done.exit_code == 1
    assert "gives probabilities that differ by 0.05" in done.output
    assert "at most 0.0001 is allowed" in done.output
    assert not (tmp_path / "r").exists()


def test_a_worker_checks_the_answers_itself(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = resolve_engine(model, EngineRequest(device="cpu", engine="torch", batch_size=9)).choice
    plain = ENGINES["torch"].load

    def load(model: Model, setting: EngineSetting, batch_size: int) -> Run:
        run = plain(model, setting, batch_size)
        return lambda pixels: run(pixels) + 0.1  # as if this machine computed something else

    monkeypatch.setitem(ENGINES, "torch", replace(ENGINES["torch"], load=load))
    with pytest.raises(ModelError, match="its stored self-test"):
        open_choice(replace(choice, batch_size=10))


def test_a_worker_without_the_device_does_not_choose_another(model: Path) -> None:
    resolved = resolve_engine(model, EngineRequest(device="cpu", engine="torch"))
    elsewhere = replace(resolved.choice, setting=replace(resolved.choice.setting, device="cuda"))
    if torch.cuda.is_available():
        assert open_choice(elsewhere)[0].setting.device == "cuda"
    else:
        with pytest.raises(EnvironmentFault, match="no usable GPU"):
            open_choice(elsewhere)


def test_a_slide_is_prepared_without_its_engine(
    store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is not there, and an engine that cannot be loaded, matter to blocks alone."""
    facts, setting = read_model(model), EngineSetting("torch", "bf16", "cuda")
    choice = ModelChoice(model, facts.digest, setting)

    def refuse(*given: object) -> Run:
        raise AssertionError("a model was loaded")

    monkeypatch.setitem(ENGINES, "torch", replace(ENGINES["torch"], load=refuse))
    monkeypatch.setattr(torch.cuda, "is_available", refuse)
    slide, tiling = list_stores([store])[0], read_tiling(InferOptions(), facts)
    job = InferJob(slide, tmp_path / "r", choice, tiling, is_store=True)
    with job.hold():
        plan = job.prepare()
        assert plan.blocks == tuple(range(6))
        assert read_staged_engine(plan) == setting.to_json()
        with pytest.raises(AssertionError, match="a model was loaded"):
            job.run_block(plan, 0)


def read_staged_engine(plan: SlidePlan) -> object:
    attributes = json.loads((plan.staging.product / PREDICTIONS / "zarr.json").read_text())
    return attributes["attributes"]["engine"]


def test_a_model_that_changed_since_the_run_began_is_refused_when_a_slide_is_prepared(
    store: Path, model: Path, tmp_path: Path
) -> None:
    tiling = read_tiling(InferOptions(), read_model(model))
    choice = ModelChoice(model, "0" * 64, EngineSetting())
    job = InferJob(list_stores([store])[0], tmp_path / "r", choice, tiling, is_store=True)
    with job.hold(), pytest.raises(ModelError, match="has changed since the run began"):
        job.prepare()


def test_a_card_describes_its_model_as_the_loaded_model_does(model: Path) -> None:
    assert read_model(model).to_json() == load_model(model).to_json()
    assert read_model(model).is_ensemble is load_model(model).is_ensemble is False


def test_threads_of_a_worker_share_one_model(model: Path) -> None:
    choice = resolve_engine(model, EngineRequest(device="cpu", engine="torch", batch_size=3)).choice
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(id(open_choice(choice)[0]))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*found}) == 1


def test_the_choice_is_printed(store: Path, model: Path, tmp_path: Path) -> None:
    done = run(
        "infer",
        "--stores",
        str(store),
        "--model",
        str(model),
        "--results-dir",
        str(tmp_path / "r"),
        "--device",
        "cpu",
        "--workers",
        "0",
    )
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if line.startswith("engine ")]
    assert len(lines) == 1
    assert lines[0].startswith("engine openvino ")
    assert lines[0].endswith("of its stored self-test")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--compile", "--engine", "openvino"], "--compile is --engine torch-compile"),
        (["--batch-size", "0"], "0 is not in the range x>=1"),
        (["--batch-size", "many"], "'many' is not a valid integer"),
        (["--engine", "tensorrt"], "'tensorrt' is not one of"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: list[str], fault: str, store: Path, model: Path, tmp_path: Path
) -> None:
    done = run("infer", "--stores", store, "--model", model, "-o", tmp_path / "r", *options)
    assert done.exit_code == 2
    assert fault in done.output
