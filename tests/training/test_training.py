"""Whole training runs: their files, their repetition, and resuming a killed one."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import folder_bytes, make_checkpoint, make_training_stores, write_model
from tests.conftest import leave_plots_out
from wsi_pipeline.core.errors import ConfigError, EnvironmentFault, ModelError, StoreError
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.models.outlines import NetworkOptions
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.augment import NO_AUGMENTATION, Augmentation
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import LabelledPatches, load_labelled, read_pixels
from wsi_pipeline.training.fit import FitJob, choose_precision
from wsi_pipeline.training.loop import Epoch, FitHistory, unpack_history
from wsi_pipeline.training.optimise import Optimisation, Schedule
from wsi_pipeline.training.ranks import run_fit
from wsi_pipeline.training.run import Trained, train
from wsi_pipeline.training.split import PatientSplit, SplitChoice, read_split_file
from wsi_pipeline.training.state import SavedState

pytestmark = pytest.mark.usefixtures("plots_left_out")

QUICK = TrainConfig(
    architecture="wide_resnet_10_1", epochs=2, batch_size=16, device="cpu", precision="fp32"
)
FIXED = SplitChoice(val_patients=("p1",))
HELD_OUT = SplitChoice(val_patients=("p1",), test_patients=("p3",))


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_stores(tmp_path_factory.mktemp("training") / "stores")


@pytest.fixture(scope="session")
def finished(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    """A finished run that tests only read: its folder, and the result."""
    out = tmp_path_factory.mktemp("finished") / "model"
    with pytest.MonkeyPatch.context() as patch:
        leave_plots_out(patch)
        return out, train([stores], out, QUICK, HELD_OUT)


class Stopped(Exception):
    """Raised by a test to stop a run between epochs."""


def stop_after(epoch: int) -> Listener:
    def on_epoch(done: Epoch) -> None:
        if done.epoch == epoch:
            raise Stopped

    return Listener(epoch_ended=on_epoch)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"batch_size": 0}, {"patience": 0}, {"seed": -1}, {"stop_on": "luck"},
        {"sampling": "best"}, {"precision": "int4"}, {"cache": "disk"}, {"devices": 0},
        {"devices": 4, "batch_size": 7},
    ],
)  # fmt: skip
def test_impossible_parameters_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        TrainConfig(**wrong)  # type: ignore[arg-type]


def test_a_network_learns_dark_from_bright(stores: Path, tmp_path: Path) -> None:
    trained = train(
        [stores],
        tmp_path / "model",
        replace(QUICK, architecture="idc_cnn"),
        SplitChoice(val_fraction=0.5),
    )
    assert trained.metrics is not None
    assert trained.metrics.scores.auroc == 1.0
    assert trained.metrics.scores.f1 == 1.0


def test_a_run_leaves_a_checkpoint_and_a_report(finished: tuple[Path, Trained]) -> None:
    model, _ = finished
    assert {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()} == {
        "model.safetensors", "history.csv", "metrics.json", "split.json", "validation.csv",
        "report.html", "manifest.json", "tensorboard/events.out.tfevents.0.wsi",
    }  # fmt: skip
    split = json.loads((model / "split.json").read_text())
    assert split == {"train": ["p0", "p2"], "val": ["p1"], "test": ["p3"], "is_leaky": False}
    assert len((model / "history.csv").read_text().splitlines()) == 3


def test_the_split_json_of_a_run_repeats_its_split(finished: tuple[Path, Trained]) -> None:
    assert read_split_file(finished[0] / "split.json") == PatientSplit(
        ("p0", "p2"), ("p1",), ("p3",)
    )


def test_tensorboard_reads_the_events(finished: tuple[Path, Trained]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, _ = finished
    events = EventAccumulator(str(model / "tensorboard"))
    events.Reload()
    rows = (model / "history.csv").read_text().splitlines()
    losses = [float(row.split(",")[rows[0].split(",").index("val_loss")]) for row in rows[1:]]
    assert [event.value for event in events.Scalars("loss/validation")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("auroc/validation")] == [1, 2]


def test_the_checkpoint_knows_its_terms_of_use(
    finished: tuple[Path, Trained], stores: Path
) -> None:
    checkpoint = load_checkpoint(finished[1].model)
    assert checkpoint.spec.mpp == 0.5
    assert checkpoint.training["split"] == {"train": ["p0", "p2"], "val": ["p1"], "test": ["p3"]}
    assert finished[1].metrics is not None
    assert checkpoint.terms.on_grid.count == finished[1].metrics.scores.threshold
    assert "on 1 validation patients, 24 patches" in checkpoint.threshold_source
    patches = load_labelled([stores / f"p{k}.patches.zarr" for k in (0, 2)])
    pixels = read_pixels(patches, np.arange(len(patches)))
    assert checkpoint.normalisation.mean == pytest.approx(
        (pixels.reshape(-1, 3) / 255).mean(axis=0), abs=1e-6
    )


def test_the_checkpoint_gives_the_probabilities_that_were_evaluated(
    finished: tuple[Path, Trained], stores: Path
) -> None:
    """Weights, normalisation and calibration of the file, against what training wrote."""
    checkpoint = load_checkpoint(finished[1].model)
    patches = load_labelled([stores / "p1.patches.zarr"])
    probability = Predictor(checkpoint)(read_pixels(patches, np.arange(len(patches))))
    written = [
        float(row.split(",")[-1])
        for row in (finished[0] / "validation.csv").read_text().splitlines()[1:]
    ]
    assert probability == pytest.approx(written, abs=1e-5)


def test_the_same_seed_gives_the_same_folder(
    finished: tuple[Path, Trained], stores: Path, tmp_path: Path
) -> None:
    train([stores], tmp_path / "again", QUICK, HELD_OUT)
    assert folder_bytes(tmp_path / "again") == folder_bytes(finished[0])


def test_training_again_does_nothing(finished: tuple[Path, Trained], stores: Path) -> None:
    epochs: list[object] = []
    again = train(
        [stores], finished[0], QUICK, HELD_OUT, listener=Listener(epoch_ended=epochs.append)
    )
    assert (again.model, again.metrics, epochs) == (finished[1].model, None, [])


def test_other_parameters_do_not_overwrite_a_model(
    finished: tuple[Path, Trained], stores: Path
) -> None:
    with pytest.raises(StoreError, match=r"another parameters\.seed; use --force"):
        train([stores], finished[0], replace(QUICK, seed=1), HELD_OUT)


def test_training_stops_when_it_no_longer_gets_better(stores: Path, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=30, patience=2, stop_on="auroc")
    train([stores], tmp_path / "model", config, FIXED)
    history = (tmp_path / "model" / "history.csv").read_text().splitlines()[1:]
    best = max(index for index, row in enumerate(history) if row.endswith("True"))
    assert len(history) - 1 - best == 2


@pytest.mark.parametrize(("stop_on", "kept"), [("last", 3), ("loss", 1)])
def test_the_last_epoch_is_kept_unless_a_metric_chooses(stop_on: str, kept: int) -> None:
    """Losses of 0.2, 0.4, 0.3: the first epoch is the best by loss."""
    history = FitHistory(Normalisation((0.5,) * 3, (0.5,) * 3))
    for number, loss in enumerate((0.2, 0.4, 0.3), start=1):
        is_best = stop_on == "loss" and number == 1
        history.epochs.append(Epoch(number, 1e-3, loss, loss, 1, 1, 1, 1, 0, is_best))
    assert history.kept_epoch == kept


@pytest.mark.parametrize(("stop_on", "is_finished"), [("last", False), ("loss", True)])
def test_patience_counts_only_where_epochs_are_compared(stop_on: str, is_finished: bool) -> None:
    history = FitHistory(Normalisation((0.5,) * 3, (0.5,) * 3))
    for number in (1, 2, 3):
        is_best = stop_on == "loss" and number == 1
        history.epochs.append(Epoch(number, 1e-3, 0.1, 0.1, 1, 1, 1, 1, 0, is_best))
    config = replace(QUICK, epochs=9, patience=2, stop_on=stop_on)
    assert history.is_finished(config) is is_finished


def test_no_epoch_is_called_best_where_the_last_is_kept(finished: tuple[Path, Trained]) -> None:
    rows = (finished[0] / "history.csv").read_text().splitlines()[1:]
    assert [row.rsplit(",", 1)[1] for row in rows] == ["False", "False"]
    report = (finished[0] / "report.html").read_text()
    assert "2, the last is kept" in report
    assert "Context, calibration and thresholds were chosen on these validation patients" in report


def test_the_report_names_the_best_epoch_where_it_is_chosen(stores: Path, tmp_path: Path) -> None:
    trained = train([stores], tmp_path / "model", replace(QUICK, epochs=1, stop_on="loss"), FIXED)
    report = (tmp_path / "model" / "report.html").read_text()
    assert "1, the best is 1 by loss" in report
    assert "Epoch, context, calibration and thresholds were chosen" in report
    chosen = "epoch, context, calibration and thresholds were chosen on these patients"
    assert chosen in str(trained)


@pytest.mark.parametrize(
    ("schedule", "batch_norm", "warnings"),
    [("constant", False, 1), ("constant", True, 0), ("one-cycle", False, 0)],
)
def test_a_constant_rate_without_batch_normalisation_is_warned_of(
    schedule: str, batch_norm: bool, warnings: int, patches: LabelledPatches
) -> None:
    config = replace(QUICK, architecture="idc_cnn", network=NetworkOptions(batch_norm=batch_norm))
    said: list[str] = []
    job = FitJob(
        replace(config, epochs=1, schedule=Schedule(schedule)), patches, FIXED.divide(patches, 0)
    )
    run_fit(job, Listener(say=said.append))
    assert len([line for line in said if "give --schedule one-cycle or --batch-norm" in line]) == (
        warnings
    )


@pytest.mark.parametrize(("unit", "precision"), [("amx_bf16", "bf16"), (None, "fp32")])
def test_auto_is_bf16_on_a_cpu_with_units_for_it(
    unit: str | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_pipeline.training.fit.find_bf16_unit", lambda: unit)
    assert choose_precision("auto", torch.device("cpu")) == precision


def test_a_run_does_not_resume_in_another_precision(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(QUICK, precision="auto")
    monkeypatch.setattr("wsi_pipeline.training.fit.find_bf16_unit", lambda: "amx_bf16")
    with pytest.raises(Stopped):
        train([stores], tmp_path / "model", config, FIXED, listener=stop_after(1))
    monkeypatch.setattr("wsi_pipeline.training.fit.find_bf16_unit", lambda: None)
    with pytest.raises(ConfigError, match="started in bf16 and would continue in fp32"):
        train([stores], tmp_path / "model", config, FIXED)


def test_validation_logits_are_of_fp32_whatever_training_is_in(
    stores: Path, tmp_path: Path
) -> None:
    """bf16 has 8 bits: of logits computed in it, the lower 16 bits are 0."""
    train([stores], tmp_path / "model", replace(QUICK, precision="bf16", epochs=1), FIXED)
    rows = (tmp_path / "model" / "validation.csv").read_text().splitlines()
    column = rows[0].split(",").index("logit")
    logits = np.array([row.split(",")[column] for row in rows[1:]], dtype=np.float32)
    assert np.count_nonzero(logits.view(np.uint32) & 0xFFFF) > len(logits) / 2


VARIANTS: dict[str, TrainConfig] = {
    "sgd": replace(QUICK, optimisation=Optimisation("sgd", learning_rate=0.01)),
    "adam": replace(QUICK, optimisation=Optimisation("adam")),
    "rmsprop": replace(QUICK, optimisation=Optimisation("rmsprop")),
    "adagrad": replace(QUICK, optimisation=Optimisation("adagrad")),
    "rate": replace(QUICK, optimisation=Optimisation(learning_rate=1e-3)),
    "head rate": replace(QUICK, optimisation=Optimisation(head_learning_rate=1e-2)),
    "momentum": replace(QUICK, optimisation=Optimisation(momentum=0.5)),
    "weight decay": replace(QUICK, optimisation=Optimisation(weight_decay=0.5)),
    "l1": replace(QUICK, optimisation=Optimisation(l1=1e-2)),
    "clipping": replace(QUICK, optimisation=Optimisation("sgd", clip_norm=1e-3)),
    "label smoothing": replace(QUICK, optimisation=Optimisation(label_smoothing=0.2)),
    "averaged weights": replace(QUICK, optimisation=Optimisation(ema=0.9)),
    "xavier": replace(QUICK, optimisation=Optimisation(initialisation="xavier")),
    "he": replace(QUICK, optimisation=Optimisation(initialisation="he")),
    "constant": replace(QUICK, schedule=Schedule("constant")),
    "cosine": replace(QUICK, schedule=Schedule("cosine")),
    "by class": replace(QUICK, sampling="class"),
    "by patient": replace(QUICK, sampling="patient"),
    "no augmentation": replace(QUICK, augmentation=NO_AUGMENTATION),
    "stains": replace(QUICK, augmentation=Augmentation(hed=0.1)),
    "affine": replace(QUICK, augmentation=Augmentation(affine=1.0)),
    "dropout": replace(QUICK, network=NetworkOptions(dropout=0.3)),
    "two logits": replace(QUICK, network=NetworkOptions(logits=2)),
    "bf16": replace(QUICK, precision="bf16"),
    "from the stores": replace(QUICK, cache="stores"),
    "seed": replace(QUICK, seed=5),
}


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> LabelledPatches:
    """Of three patients to train on and one to choose by, 6 patches each: an epoch is two steps."""
    return load_labelled(
        find_stores([make_training_stores(tmp_path_factory.mktemp("few") / "stores", patches=6)])
    )


def fit_once(patches: LabelledPatches, config: TrainConfig) -> bytes:
    """The weights that one epoch comes to."""
    division = FIXED.divide(patches, config.seed)
    job = FitJob(replace(config, epochs=1), patches, division)
    weights = run_fit(job, Listener()).kept_weights
    return b"".join(weights[name].numpy().tobytes() for name in sorted(weights))


@pytest.fixture(scope="session")
def plain_weights(patches: LabelledPatches) -> bytes:
    return fit_once(patches, QUICK)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_changes_the_weights(
    name: str, patches: LabelledPatches, plain_weights: bytes
) -> None:
    assert fit_once(patches, VARIANTS[name]) != plain_weights


def test_the_same_parameters_give_the_same_weights(
    patches: LabelledPatches, plain_weights: bytes
) -> None:
    assert fit_once(patches, QUICK) == plain_weights


def test_class_weights_change_the_weights_where_classes_differ_in_number(tmp_path: Path) -> None:
    patches = load_labelled(find_stores([make_training_stores(tmp_path / "stores", patches=7)]))
    weighted = replace(QUICK, optimisation=Optimisation(class_weights=True))
    assert fit_once(patches, weighted) != fit_once(patches, QUICK)


@pytest.fixture(scope="session")
def quiet_runs(
    stores: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[TrainConfig], Path]:
    """Folders of undisturbed runs, one per configuration."""
    folder = tmp_path_factory.mktemp("quiet")

    @cache
    def run(config: TrainConfig) -> Path:
        out = folder / str(abs(hash(config))) / "model"
        train([stores], out, config, FIXED)
        return out

    return run


@pytest.mark.parametrize(
    "config",
    [
        QUICK,
        replace(
            QUICK,
            optimisation=Optimisation("sgd", ema=0.9, clip_norm=1.0),
            schedule=Schedule("constant"),
            sampling="class",
            stop_on="auroc",
        ),
        pytest.param(
            replace(
                QUICK,
                network=NetworkOptions(dropout=0.3),
                augmentation=Augmentation(affine=1, hed=0.1),
                cache="stores",
                precision="bf16",
            ),
            marks=pytest.mark.system,  # a CPU without bf16 units takes 20 s for it
        ),
    ],
    ids=["plain", "averaged", "from the stores"],
)
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stopped_run_ends_in_the_same_bytes(
    config: TrainConfig,
    epoch: int,
    stores: Path,
    quiet_runs: Callable[[TrainConfig], Path],
    tmp_path: Path,
) -> None:
    config = replace(config, epochs=3)
    quiet = quiet_runs(config)
    with pytest.raises(Stopped):
        train([stores], tmp_path / "stopped", config, FIXED, listener=stop_after(epoch))
    assert not (tmp_path / "stopped").exists()
    done: list[int] = []
    said: list[str] = []
    listener = Listener(say=said.append, epoch_ended=lambda one: done.append(one.epoch))
    train([stores], tmp_path / "stopped", config, FIXED, listener=listener)
    resumed = [line for line in said if line.startswith("continuing")]
    assert resumed == [f"continuing after epoch {epoch}, where this run was stopped"]
    assert done == list(range(epoch + 1, 4))
    assert folder_bytes(tmp_path / "stopped") == folder_bytes(quiet)


def test_not_resuming_starts_again(stores: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train([stores], tmp_path / "model", QUICK, FIXED, listener=stop_after(1))
    done: list[int] = []
    train(
        [stores],
        tmp_path / "model",
        QUICK,
        FIXED,
        resume=False,
        listener=Listener(epoch_ended=lambda one: done.append(one.epoch)),
    )
    assert done == [1, 2]


def test_a_damaged_state_is_refused_with_the_remedy(stores: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train([stores], tmp_path / "model", QUICK, FIXED, listener=stop_after(1))
    (state,) = tmp_path.rglob("state.safetensors")
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(ModelError, match=r"damaged .*start again with --force"):
        train([stores], tmp_path / "model", QUICK, FIXED)
    assert train([stores], tmp_path / "model", QUICK, FIXED, force=True).metrics is not None


def test_nothing_of_a_finished_run_is_left_in_staging(finished: tuple[Path, Trained]) -> None:
    assert list(finished[0].parent.rglob("state.safetensors")) == []


def test_a_random_split_marks_model_and_report(stores: Path, tmp_path: Path) -> None:
    trained = train(
        [stores], tmp_path / "model", QUICK, SplitChoice(val_fraction=0.25, is_random=True)
    )
    checkpoint = load_checkpoint(trained.model)
    assert checkpoint.is_leaky
    assert checkpoint.training["split"]["patients_on_both_sides"] == ["p0", "p1", "p2", "p3"]
    assert "patients on both sides" in checkpoint.threshold_source
    assert "inflated" in (tmp_path / "model" / "report.html").read_text()
    assert json.loads((tmp_path / "model" / "split.json").read_text())["is_leaky"] is True


def test_training_may_start_from_the_weights_of_another_model(stores: Path, tmp_path: Path) -> None:
    first = train([stores], tmp_path / "first", QUICK, FIXED)
    frozen = replace(
        QUICK, epochs=1, optimisation=Optimisation("sgd", learning_rate=1e-12), pretrained="file"
    )
    second = train([stores], tmp_path / "second", frozen, FIXED, pretrained=first.model)
    one, other = load_checkpoint(first.model).weights, load_checkpoint(second.model).weights
    name = next(name for name in one if name.endswith(("conv.weight", "conv1.weight")))
    assert torch.allclose(one[name], other[name], atol=1e-6)
    assert len(load_checkpoint(second.model).training["parameters"]["pretrained"]) == 64


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (replace(QUICK, architecture="resnet_of_dreams"), "no such architecture"),
        (replace(QUICK, architecture="timm:no_such_network"), "no_such_network"),
        (replace(QUICK, network=NetworkOptions(batch_norm=False)), "leave --no-batch-norm out"),
        (replace(QUICK, precision="fp16"), "only GPUs"),
    ],
)
def test_what_cannot_be_trained_is_said_before_training_starts(
    config: TrainConfig, fault: str, stores: Path, tmp_path: Path
) -> None:
    started: list[object] = []
    listener = Listener(say=started.append)
    with pytest.raises((ModelError, EnvironmentFault), match=fault):
        train([stores], tmp_path / "model", config, FIXED, listener=listener)
    assert (started, (tmp_path / "model").exists()) == ([], False)


def test_weights_of_another_architecture_are_refused_before_training_starts(
    stores: Path, tmp_path: Path
) -> None:
    other = write_model(
        tmp_path / "idc" / "model.safetensors", make_checkpoint(architecture="idc_cnn")
    )
    started: list[object] = []
    listener = Listener(say=started.append)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        train(
            [stores],
            tmp_path / "model",
            replace(QUICK, pretrained="file"),
            FIXED,
            pretrained=other,
            listener=listener,
        )
    assert started == []


@pytest.mark.system
def test_two_processes_train_one_network(stores: Path, tmp_path: Path) -> None:
    """By DDP, like several GPUs: gradients are averaged, as in a step on the whole batch."""
    done: list[int] = []
    listener = Listener(epoch_ended=lambda one: done.append(one.epoch))
    config = replace(
        QUICK,
        architecture="idc_cnn",
        devices=2,
        augmentation=NO_AUGMENTATION,
        network=NetworkOptions(dropout=0.0, batch_norm=False),
    )
    double = train([stores], tmp_path / "double", config, FIXED, listener=listener)
    single = train([stores], tmp_path / "single", replace(config, devices=1), FIXED)
    assert done == [1, 2]
    one, other = load_checkpoint(double.model).weights, load_checkpoint(single.model).weights
    for name in one:
        assert torch.allclose(one[name], other[name], atol=2e-4), name


def test_a_state_that_an_earlier_version_saved_is_read() -> None:
    history = {"mean": [0.5] * 3, "std": [0.25] * 3, "history": []}
    tensors = {"best.weight": torch.ones(2), "best_logits": torch.zeros(3)}
    found = unpack_history(SavedState(tensors, history))
    assert (list(found.kept_weights), found.kept_logits.tolist()) == (["weight"], [0, 0, 0])
