"""The options of `wsi train`: each reaches the configuration, contradictions are refused, and a
killed command goes on.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from wsi_cli.options import options_of, preset_option

from tests.builders import folder_bytes, make_training_stores, write_model
from tests.commands import run
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.training_options import PRESETS, FitOptions, TrainOptions, apply_preset
from wsi_pipeline.training.config import TrainConfig, read_config, read_split

pytestmark = pytest.mark.usefixtures("plots_left_out")

CHANGED: dict[str, Any] = {
    "--arch": "wide_resnet",
    "--dropout": 0.1,
    "--head": "dense20",
    "--no-batch-norm": None,
    "--logits": 2,
    "--init": "he",
    "--download-weights": None,
    "--batch-size": 7,
    "--optimizer": "sgd",
    "--lr": 0.5,
    "--head-lr": 0.1,
    "--schedule": "cosine",
    "--step-epochs": 3,
    "--gamma": 0.5,
    "--momentum": 0.8,
    "--weight-decay": 0.2,
    "--l1": 0.1,
    "--label-smoothing": 0.1,
    "--class-weights": None,
    "--sampling": "class",
    "--clip-norm": 1.0,
    "--ema": 0.9,
    "--no-augment": None,
    "--no-flips": None,
    "--no-turns": None,
    "--affine": 1.0,
    "--brightness": 0.3,
    "--contrast": 0.3,
    "--hed": 0.1,
    "--seed": 4,
    "--cache": "stores",
    "--precision": "bf16",
    "--compile": None,
    "--device": "cpu",
}


def parse(*arguments: object) -> dict[str, Any]:
    """The options of a command that has the training options and no others."""
    seen: dict[str, Any] = {}

    def command(**options: Any) -> None:
        seen.update(options)

    result = CliRunner().invoke(
        click.command()(options_of(FitOptions)(command)),
        [str(argument) for argument in arguments],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    return seen


def test_without_options_training_has_its_defaults() -> None:
    assert read_config(TrainOptions(**parse())) == TrainConfig()


@pytest.mark.parametrize("option", CHANGED)
def test_every_option_reaches_the_configuration(option: str) -> None:
    value = CHANGED[option]
    options = parse(option) if value is None else parse(option, value)
    assert read_config(TrainOptions(**options)) != TrainConfig()


def test_every_option_of_the_configuration_is_tried() -> None:
    def nothing(**options: Any) -> None: ...

    command = click.command()(options_of(FitOptions)(nothing))
    others = {
        "--sheet",
        "--force",
        "--split-file",
        "--val-patients",
        "--val-fraction",
        "--test-patients",
        "--split",
        "--i-know-this-leaks",
        "--weights",
    }
    names = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    positive = {"--augment", "--batch-norm", "--flips", "--turns"}
    assert names - others - positive == {*CHANGED}


def parse_train(*arguments: object) -> TrainOptions:
    """The options of `wsi train`, presets among them."""
    seen: dict[str, Any] = {}

    def command(**options: Any) -> None:
        seen.update(options)

    made = click.command()(preset_option(options_of(TrainOptions)(command)))
    result = CliRunner().invoke(made, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return TrainOptions(**seen)


def test_a_preset_sets_what_is_not_given_and_leaves_what_is() -> None:
    options = parse_train("--preset", "article-cnn", "--epochs", 3, "--batch-norm")
    assert (options.arch, options.optimizer, options.schedule) == ("idc_cnn", "sgd", "constant")
    assert (options.epochs, options.batch_norm, options.augment) == (3, True, False)


def test_an_option_given_at_its_default_value_overrules_the_preset() -> None:
    assert parse_train("--lr", 2e-3, "--preset", "article-cnn").lr == 2e-3


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_only_options_of_training_and_is_valid(name: str) -> None:
    assert parse_train("--preset", name) == TrainOptions(**apply_preset(name, {}))


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of article-cnn, article-wideresnet"):
        apply_preset("article", {})


def test_patience_without_a_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match="--patience needs a metric"):
        TrainOptions(patience=3)
    assert TrainOptions(patience=3, stop_on="auroc").patience == 3


def test_a_file_of_weights_reaches_the_configuration(tmp_path: Path) -> None:
    options = parse("--weights", write_model(tmp_path / "model.safetensors"))
    assert read_config(TrainOptions(**options)).pretrained == "file"


def test_a_split_file_names_all_three_sides(tmp_path: Path) -> None:
    for side, text in (("train", "a\n"), ("val", "b\n"), ("test", "c\n")):
        (tmp_path / f"cases_{side}.txt").write_text(text)
    choice = read_split(TrainOptions(**parse("--split-file", tmp_path)))
    assert (
        choice.train_patients,
        choice.val_patients,
        choice.test_patients,
        choice.ignores_absent,
    ) == (("a",), ("b",), ("c",), True)


@pytest.mark.parametrize("options", [["--split", "random"], ["--i-know-this-leaks"]])
def test_a_leak_must_be_asked_for_twice(options: list[str], tmp_path: Path) -> None:
    result = run(
        "train",
        make_training_stores(tmp_path / "stores", 2, 6),
        "--out",
        tmp_path / "model",
        *options,
    )
    assert result.exit_code == 2
    assert "needs --i-know-this-leaks" in result.stderr


def test_a_leaky_run_says_so_at_both_ends(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    options = [
        "--split",
        "random",
        "--i-know-this-leaks",
        "--arch",
        "wide_resnet_10_1",
        "--epochs",
        1,
        "--device",
        "cpu",
    ]
    result = run("train", stores, "--out", tmp_path / "model", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("LEAKY") == 2


def test_folds_report_mean_and_spread(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores", patients=4, patches=12)
    options = ["--folds", 2, "--arch", "wide_resnet_10_1", "--epochs", 1, "--device", "cpu"]
    result = run("train", stores, "--out", tmp_path / "folds", *options)
    assert result.exit_code == 0, result.output
    auroc = json.loads((tmp_path / "folds" / "summary" / "folds.json").read_text())["figures"][
        "auroc"
    ]
    assert f"{auroc['mean']:.3f} ± {auroc['standard_deviation']:.3f}" in result.stdout


def test_the_threshold_rule_is_applied_and_recorded(tmp_path: Path) -> None:
    from wsi_pipeline.models.checkpoint import load_checkpoint

    stores = make_training_stores(tmp_path / "stores")
    options = [
        "--threshold",
        "0.25",
        "--val-patients",
        "p1",
        "--arch",
        "wide_resnet_10_1",
        "--epochs",
        1,
        "--device",
        "cpu",
    ]
    assert run("train", stores, "--out", tmp_path / "model", *options).exit_code == 0
    checkpoint = load_checkpoint(tmp_path / "model" / "model.safetensors")
    assert (checkpoint.terms.on_grid.count, checkpoint.terms.on_grid.detect) == (0.25, 0.25)
    assert "set to 0.25 by hand" in checkpoint.threshold_source


def test_an_unknown_threshold_rule_is_one_line(tmp_path: Path) -> None:
    result = run(
        "train",
        make_training_stores(tmp_path / "stores", 2, 6),
        "--out",
        tmp_path / "model",
        "--threshold",
        "best",
    )
    assert result.exit_code == 1
    taken, fault = result.stderr.splitlines()
    assert taken.startswith("taking ")
    assert fault.startswith("wsi: ")


def test_lr_find_suggests_a_rate(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    options = [
        "--val-patients",
        "p1",
        "--arch",
        "wide_resnet_10_1",
        "--steps",
        60,
        "--batch-size",
        16,
        "--device",
        "cpu",
    ]
    result = run("lr-find", stores, "--out", tmp_path / "sweep", *options)
    assert result.exit_code == 0, result.output
    assert "falls fastest at a learning rate of" in result.stdout
    assert (tmp_path / "sweep" / "lr_find.png").is_file()


@pytest.mark.system
@pytest.mark.parametrize(
    "signal_number",
    [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)],
)
def test_a_killed_command_goes_on_and_ends_in_the_same_bytes(
    signal_number: signal.Signals, tmp_path: Path
) -> None:
    stores = make_training_stores(tmp_path / "stores", patients=3, patches=40)
    options = [
        "--val-patients",
        "p1",
        "--arch",
        "wide_resnet_10_1",
        "--epochs",
        6,
        "--device",
        "cpu",
        "--batch-size",
        16,
    ]
    line = [
        sys.executable,
        "-c",
        "from wsi_cli.main import wsi; wsi()",
        "train",
        str(stores),
        *map(str, options),
    ]
    killed = subprocess.Popen(
        [*line, "--out", str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a background job ignores it
    )
    wait_for_state(killed, tmp_path)
    killed.send_signal(signal_number)
    killed.communicate()
    assert not (tmp_path / "killed").exists()
    again = subprocess.run(
        [*line, "--out", str(tmp_path / "killed")], capture_output=True, text=True, check=True
    )
    assert "continuing after epoch" in again.stdout
    # In a process of its own too: another number of threads gives other last bits.
    subprocess.run([*line, "--out", str(tmp_path / "quiet")], capture_output=True, check=True)
    assert folder_bytes(tmp_path / "killed") == folder_bytes(tmp_path / "quiet")


def wait_for_state(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Until the first epoch's state is on disk."""
    for _ in range(1200):
        with contextlib.suppress(FileNotFoundError):  # a folder that goes while it is looked into
            if list(folder.rglob("state.safetensors")):
                return
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError("no state was ever written")
