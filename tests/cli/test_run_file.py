"""Run files: --config and --print-config of every command, and run.yaml beside products."""

from pathlib import Path

import pytest
from wsi_cli.main import COMMANDS

from tests.builders import paint, write_model, write_slide
from tests.commands import PLAIN, run

SINGLE = [
    *([name] for name in COMMANDS if name not in ("model", "store")),
    *(["model", "info"], ["model", "check"], ["store", "info"], ["store", "export"]),
]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("command", SINGLE, ids="-".join)
def test_every_command_prints_its_settings(command: list[str]) -> None:
    done = run(*command, "--print-config")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"# Settings of `wsi {' '.join(command)}`")


@pytest.mark.parametrize("command", SINGLE, ids="-".join)
def test_printed_settings_are_taken_back(command: list[str], tmp_path: Path) -> None:
    printed = run(*command, "--print-config").stdout
    again = run(*command, "--config", write(tmp_path / "run.yaml", printed), "--print-config")
    assert again.stdout == printed


def test_a_setting_is_taken_from_the_file(tmp_path: Path) -> None:
    config = write(tmp_path / "run.yaml", "patch-size: 64")
    assert "patch-size: 64\n" in run("tile", "--config", config, "--print-config").stdout


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config = write(tmp_path / "run.yaml", "patch-size: 64")
    printed = run("tile", "--config", config, "--patch-size", 32, "--print-config").stdout
    assert "patch-size: 32\n" in printed


def test_the_environment_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSI_TILE_PATCH_SIZE", "40")
    config = write(tmp_path / "run.yaml", "patch-size: 64")
    assert "patch-size: 40\n" in run("tile", "--config", config, "--print-config").stdout


def test_the_file_wins_over_a_preset(tmp_path: Path) -> None:
    config = write(tmp_path / "run.yaml", "preset: article-cnn", "epochs: 3")
    printed = run("train", "--config", config, "--print-config").stdout
    assert "epochs: 3\n" in printed
    assert "batch-size: 128\n" in printed


def test_a_preset_is_printed_as_a_file() -> None:
    printed = run("train", "--preset", "article-cnn", "--print-config").stdout
    assert "optimizer: sgd\n" in printed
    assert "preset" not in printed


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("patchsize: 64", "there is no setting 'patchsize'; did you mean patch-size?"),
        ("xyzzy: 1", "there is no setting 'xyzzy'; --print-config lists what there is"),
        ("config: run.yaml", "there is no setting 'config'; did you mean slurm-config?"),
        ("stride: 5\nstride: 50", "stride is set twice"),
        ("patch_size: 5\npatch-size: 50", "patch-size is set twice"),
        ("patch-size: [1, 2]", "patch-size: must be one word, not a list"),
        ("patch-size: {a: 1}", "patch-size: must be one word"),
        ("drop: [[pen]]", "drop: must be a list of words"),
        ("class-names: one", "class-names: must be a list of words"),
        ("just words", "must hold lines such as 'out: results'"),
        ("a: [", "cannot be read as YAML"),
        ("patch-size: many", "Invalid value for '--patch-size'"),
        ("force: maybe", "Invalid value for '--force'"),
    ],
)
def test_wrong_files_are_refused_by_the_entry(tmp_path: Path, line: str, said: str) -> None:
    done = run("tile", "--config", write(tmp_path / "run.yaml", line), "--print-config")
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_a_wrong_option_is_refused_though_settings_are_only_printed() -> None:
    assert run("tile", "--patch-size", 0, "--print-config").exit_code == 2


def test_words_stay_as_they_are_typed(tmp_path: Path) -> None:
    """YAML reads 012 as ten and no as false."""
    config = write(tmp_path / "run.yaml", "val-patients: 012", "test-patients: no")
    printed = run("train", "--config", config, "--print-config").stdout
    assert "val-patients: 012\n" in printed
    assert "test-patients: no\n" in printed


@pytest.mark.parametrize("word", ["null", "~"])
def test_a_word_that_yaml_takes_for_nothing_is_printed_in_quotes(tmp_path: Path, word: str) -> None:
    printed = run("infer", "--positive-class", word, "--print-config").stdout
    assert f"positive-class: '{word}'\n" in printed
    again = run("infer", "--config", write(tmp_path / "run.yaml", printed), "--print-config")
    assert again.stdout == printed
    bare = write(tmp_path / "bare.yaml", f"positive-class: {word}")
    assert "# positive-class:\n" in run("infer", "--config", bare, "--print-config").stdout


def test_lists_and_flags_are_taken(tmp_path: Path) -> None:
    config = write(tmp_path / "run.yaml", "drop: [pen, blur]", "force: true", "mask:")
    printed = run("tile", "--config", config, "--print-config").stdout
    assert "drop:\n- pen\n- blur\n" in printed
    assert "force: true\n" in printed
    assert "# mask:\n" in printed


def test_a_product_is_repeated_from_its_run_file(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides" / "one.tiff", paint(300, 200))
    stores = tmp_path / "stores"
    line = ["tile", tmp_path / "slides", "--out", stores, "--mpp", 0.5, "--min-tissue", 0]
    assert run(*line, "--workers", 0).exit_code == 0
    again = run("tile", "--config", stores / "run.yaml", "--workers", 0)
    assert again.exit_code == 0, again.output
    assert "nothing to do" in again.output
    other = tmp_path / "other"
    assert run("tile", "--config", stores / "run.yaml", "--out", other).exit_code == 0
    one, two = ((folder / "one.mask.png").read_bytes() for folder in (stores, other))
    assert one == two


def test_results_hold_their_run_file_too(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "one.tiff", paint(300, 200))
    model, out = write_model(tmp_path / "m.safetensors"), tmp_path / "results"
    assert run("infer", slide, "--model", model, "--out", out, *PLAIN).exit_code == 0
    assert f"model: {model}\n" in (out / "run.yaml").read_text()


def test_a_refused_run_leaves_the_earlier_file(tmp_path: Path) -> None:
    out = tmp_path / "stores"
    out.mkdir()
    before = write(out / "run.yaml", "mpp: 1").read_bytes()
    assert run("tile", tmp_path / "nothing.tiff", "--out", out).exit_code != 0
    assert (out / "run.yaml").read_bytes() == before
