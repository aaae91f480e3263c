"""The commands as a user types them: what they print, where it goes, how they end."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from wsi_cli.main import COMMANDS, wsi
from wsi_cli.options import PARSERS

from cli.main import printable
from tests.builders import (
    PINK,
    SMALL,
    make_training_stores,
    paint,
    write_model,
    write_png,
    write_slide,
)
from tests.commands import PLAIN, run
from wsi_pipeline.store.patches import PatchStore

HERE_AND_PLAIN = (*PLAIN, "--workers", 0)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    write_slide(tmp_path / "slides" / "one.tiff", paint(300, 200))
    return tmp_path / "slides"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_defaults(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_no_marks_of_its_own_layout(command: str) -> None:
    assert "\\b" not in run(*command.split(), "--help").output


@pytest.mark.parametrize("width", [60, 80, 140])
def test_examples_in_help_stand_on_lines_of_their_own(width: int) -> None:
    lines = [line.strip() for line in run("--help", terminal_width=width).output.splitlines()]
    assert "wsi view                          slides with heatmaps in the browser" in lines
    assert "wsi infer --slides dir/           run the model over slides, into ./results" in lines
    ingest = [
        line.strip() for line in run("ingest", "--help", terminal_width=width).output.splitlines()
    ]
    assert "folders  <class>/<image>; --patient-regex says where the patient stands" in ingest


@pytest.mark.parametrize("command", ["tile", "infer", "ingest"])
def test_help_states_units(command: str) -> None:
    assert "µm" in run(command, "--help").output


def test_help_shows_the_scale_of_40x() -> None:
    output = " ".join(run("tile", "--help").output.replace("│", " ").split())
    assert "0.25 is what scanners call 40x" in output
    assert "[default: 0.25]" in output


@pytest.mark.parametrize("command", ["tile", "infer", "train"])
def test_options_stand_in_panels_those_of_the_input_first(command: str) -> None:
    output = run(command, "--help").output
    panels = [line.split()[1] for line in output.splitlines() if line.startswith("╭─")]
    assert panels[0] == "Input"
    assert {"Compute", "Output", "Operation"} <= {*panels}
    assert len({*panels}) == len(panels)


def test_every_option_of_the_three_longest_commands_has_a_panel() -> None:
    with click.Context(wsi) as context:
        for name in ("tile", "infer", "train"):
            command = wsi.get_command(context, name)
            assert command is not None
            options = [one for one in command.params if isinstance(one, click.Option)]
            assert [one.name for one in options if not getattr(one, "panel", None)] == []


def test_version() -> None:
    assert run("--version").output.startswith("wsi, version ")


def test_tile_writes_a_store_and_a_line_that_adds_up(slides: Path, tmp_path: Path) -> None:
    result = run("tile", slides, "--out", tmp_path / "out", "--mpp", 0.5, "--workers", 0)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"1 slide: 1 ok  →  {tmp_path / 'out'}"
    assert "one: ok: 24 patches" in result.stderr
    assert PatchStore(tmp_path / "out" / "one.patches.zarr").table.patches == 24


def test_every_option_of_tile_has_an_effect(slides: Path, tmp_path: Path) -> None:
    def tile(name: str, *options: object) -> PatchStore:
        assert run("tile", slides, "-o", tmp_path / name, "--workers", 0, *options).exit_code == 0
        return PatchStore(tmp_path / name / "one.patches.zarr")

    assert tile("mpp", "--mpp", 1.0).table.patches == 6
    assert tile("size", "--mpp", 0.5, "--patch-size", 100).grid.spec.side_px == 100
    assert tile("stride", "--mpp", 0.5, "--stride", 25).table.patches == 11 * 7
    assert tile("slide-mpp", "--mpp", 1.0, "--slide-mpp", 1.0).table.patches == 24
    assert tile("upsample", "--mpp", 0.25, "--allow-upsample").table.patches == 96
    assert tile("names", "--mpp", 0.5, "--class-names", "benign", "tumour").table.class_names == (
        "benign",
        "tumour",
    )


def test_labels_reach_the_store(slides: Path, tmp_path: Path) -> None:
    mask = np.zeros((200, 300), dtype=np.uint8)
    mask[:100], mask[100:] = 1, 2
    write_png(tmp_path / "labels" / "one_labels.png", mask)
    values = ("--negative-value", 1, "--positive-value", 2)
    result = run(
        "tile",
        slides,
        "-o",
        tmp_path / "out",
        "--mpp",
        0.5,
        "--workers",
        0,
        "--labels",
        tmp_path / "labels",
        *values,
    )
    assert "24 patches, 24 labelled" in result.stderr
    assert (
        PatchStore(tmp_path / "out" / "one.patches.zarr").table.labels.tolist()
        == [0] * 12 + [1] * 12
    )


def test_min_tissue_decides_what_is_kept(tmp_path: Path) -> None:
    pixels = paint(400, 400, (255, 255, 255))
    pixels[:, :200] = PINK
    write_slide(tmp_path / "s.tiff", pixels, mpp=4.0)
    patches = {}
    for share in (0, 0.9):
        run(
            "tile",
            tmp_path / "s.tiff",
            "-o",
            tmp_path / str(share),
            "--mpp",
            4,
            "--workers",
            0,
            "--min-tissue",
            share,
        )
        patches[share] = PatchStore(tmp_path / str(share) / "s.patches.zarr").table.patches
    assert patches == {0: 64, 0.9: 32}


def test_a_finer_scale_than_the_scan_is_refused_with_both_numbers(
    slides: Path, tmp_path: Path
) -> None:
    result = run("tile", slides, "-o", tmp_path / "out", "--workers", 0)
    assert result.exit_code == 4
    assert "scanned at 0.5 µm/px, patches at 0.25 µm/px" in result.stderr


def test_a_second_run_says_that_nothing_is_to_do(slides: Path, tmp_path: Path) -> None:
    run("tile", slides, "-o", tmp_path / "out", "--mpp", 0.5, "--workers", 0)
    result = run("tile", slides, "-o", tmp_path / "out", "--mpp", 0.5, "--workers", 0)
    assert "nothing to do" in result.stdout
    assert "(already done)" in result.stderr


def test_force_makes_it_anew(slides: Path, tmp_path: Path) -> None:
    run("tile", slides, "-o", tmp_path / "out", "--mpp", 0.5, "--workers", 0)
    assert run("tile", slides, "-o", tmp_path / "out", "--mpp", 1.0, "--workers", 0).exit_code == 4
    assert (
        run(
            "tile", slides, "-o", tmp_path / "out", "--mpp", 1.0, "--workers", 0, "--force"
        ).exit_code
        == 0
    )


def test_failures_are_named_on_stderr_and_the_traceback_is_in_the_log(
    slides: Path, tmp_path: Path
) -> None:
    (slides / "broken.svs").write_text("nothing")
    result = run("tile", slides, "-o", tmp_path / "out", "--mpp", 0.5, "--workers", 0)
    assert result.exit_code == 3
    assert f"failed: {slides / 'broken.svs'}: " in result.stderr
    assert "Traceback" not in result.output
    assert "Traceback" in (tmp_path / "out" / "wsi.log").read_text()


def test_infer_view_and_evaluate(slides: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.safetensors")
    result = run(
        "infer", "--slides", slides, "--model", model, "-o", tmp_path / "results", *HERE_AND_PLAIN
    )
    assert result.exit_code == 0
    assert (
        "patches of 50 px at 0.5 µm/px, positive counted from probability 0.500 on" in result.stdout
    )
    shown = run("view", tmp_path / "results", "--no-open")
    assert shown.output.strip() == f"→  {tmp_path / 'results' / 'index.html'}"
    mask = np.full((200, 300), 100, dtype=np.uint8)
    mask[:, :150] = 200
    scored = run(
        "evaluate", tmp_path / "results", "--labels", write_png(tmp_path / "one_labels.png", mask)
    )
    assert scored.exit_code == 0
    assert scored.output.splitlines()[1].split()[:3] == ["one", "24", "0"]


def test_infer_takes_the_peers_option_names(slides: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.safetensors")
    assert (
        run(
            "infer",
            "--wsi-dir",
            slides,
            "-m",
            model,
            "-o",
            tmp_path / "results",
            *PLAIN,
            "--num-workers",
            0,
        ).exit_code
        == 0
    )


def test_infer_takes_either_slides_or_stores(slides: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.safetensors")
    assert run("infer", "--model", model, "-o", tmp_path / "r").exit_code == 2
    assert (
        run(
            "infer", "--slides", slides, "--stores", slides, "--model", model, "-o", tmp_path / "r"
        ).exit_code
        == 2
    )


def test_infer_from_stores(slides: Path, tmp_path: Path) -> None:
    run("tile", slides, "-o", tmp_path / "stores", "--mpp", 0.5, "--workers", 0)
    model = write_model(tmp_path / "m.safetensors")
    result = run(
        "infer",
        "--stores",
        tmp_path / "stores",
        "--model",
        model,
        "-o",
        tmp_path / "results",
        *HERE_AND_PLAIN,
    )
    assert result.exit_code == 0
    assert (tmp_path / "results" / "one" / "summary.json").is_file()


def test_a_missing_model_is_exit_code_1_and_one_line(slides: Path, tmp_path: Path) -> None:
    result = run(
        "infer", "--slides", slides, "--model", tmp_path / "no.safetensors", "-o", tmp_path / "r"
    )
    assert result.exit_code == 1
    line = f"wsi: {tmp_path / 'no.safetensors'}: no such model file; train one with `wsi train`\n"
    assert result.stderr.endswith(line)
    assert len(result.stderr.splitlines()) == 2  # the other says what was taken


def test_usage_errors_are_exit_code_2() -> None:
    assert run("tile").exit_code == 2
    assert run("nonsense").exit_code == 2


def test_more_bytes_than_there_are_numbers_for_are_a_usage_error(
    slides: Path, tmp_path: Path
) -> None:
    result = run("tile", slides, "-o", tmp_path / "out", "--min-free", "9" * 400 + "GB")
    assert result.exit_code == 2
    assert "is more than any disk has" in result.stderr


def test_an_internal_error_is_one_line_unless_debugging(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("wsi_pipeline.slides.selection.find_slides", fail)
    result = run("tile", slides, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "internal error: ZeroDivisionError" in result.stderr
    assert "Traceback" not in result.output
    assert isinstance(
        run("--debug", "tile", slides, "-o", tmp_path / "out").exception, ZeroDivisionError
    )


def test_train_prints_its_figures(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    patients = tmp_path / "val.txt"
    patients.write_text("p1\n\n")
    options = (
        "--arch",
        SMALL,
        "--epochs",
        2,
        "--batch-size",
        16,
        "--val-patients",
        patients,
        "--test-patients",
        "p3",
        "--device",
        "cpu",
    )
    result = run("train", stores, "--out", tmp_path / "model", *options)
    assert result.exit_code == 0, result.output
    assert "training: 2 patients, 48 patches: 24 negative, 24 positive" in result.stdout
    assert "validation: 1 patients, 24 patches: 12 negative, 12 positive" in result.stdout
    assert "held out: 1 patients, 24 patches: 12 negative, 12 positive" in result.stdout
    assert "epoch   2 of 2" in result.stdout
    assert "AUROC 1.000" in result.stdout
    assert "nothing to do" in run("train", stores, "--out", tmp_path / "model", *options).stdout


def test_ingest_needs_a_scale(tmp_path: Path) -> None:
    assert run("ingest", tmp_path, "--out", tmp_path / "out").exit_code == 2


def test_ingest_names_what_it_left_out(tmp_path: Path) -> None:
    write_png(tmp_path / "in" / "7_idx5_x1_y1_class0.png", paint(50, 50))
    write_png(tmp_path / "in" / "7_idx5_x51_y1_class0.png", paint(31, 50))
    result = run("ingest", tmp_path / "in", "--mpp", 4, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "1 patches of 50×50 in 1 stores, 1 files left out" in result.stdout
    assert "left out: 7_idx5_x51_y1_class0.png: 31 × 50 px" in result.stdout


def test_info_shows_scale_and_its_source(slides: Path) -> None:
    output = run("info", slides / "one.tiff").output
    assert "300 × 200 px, 0.15 × 0.10 mm" in output
    assert "0.5 µm/px (from: TIFF tag)" in output


def test_info_of_no_slide_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_text("x")
    result = run("info", tmp_path / "a.svs")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)


def test_names_cannot_move_the_cursor(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slides" / "evil\x1b[2J\nname.tiff", paint(20, 20))
    result = run("tile", slide, "-o", tmp_path / "out", "--workers", 0)
    assert "\x1b" not in result.output
    assert printable("a\x1b\n\udcff") == "a\\x1b\\n\\udcff"


def test_run_json_says_what_was_done(slides: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.safetensors")
    run(
        "infer",
        "--slides",
        slides,
        "--model",
        model,
        "-o",
        tmp_path / "results",
        *HERE_AND_PLAIN,
        "--batch-size",
        7,
    )
    record = json.loads((tmp_path / "results" / "run.json").read_text())
    assert record["parameters"]["batch_size"] == 7
    spec = {"side_px": 50, "stride_px": 50, "mpp": 0.5, "icc": "raw"}
    assert record["parameters"]["tiling"]["spec"] == spec
    assert set(record["seconds"]) == {"total", "read", "compute", "write"}
    assert len(record["model"]["digest"]) == 64
    assert record["tool"]["tool"] == "wsi-pipeline"


def test_view_makes_no_page_where_there_are_no_results(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    result = run("view", tmp_path, "--no-open")
    assert result.exit_code == 1
    assert "holds no results" in result.stderr
    assert (tmp_path / "index.html").read_text() == "mine"


def test_a_long_list_of_patients_is_no_file_name(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores", patients=2)
    result = run(
        "train",
        stores,
        "--out",
        tmp_path / "model",
        "--val-patients",
        ",".join(f"patient{k}" for k in range(100)),
    )
    assert result.exit_code == 1
    assert "patients without a labelled patch" in result.stderr


@pytest.mark.parametrize("text", ["p0\np1\n", "\ufeffp0,,\r\np1;;\r\n", "p0\tp1"])
def test_a_list_of_patients_is_read_as_spreadsheets_save_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(text)
    assert PARSERS["patients"]["callback"](None, None, str(tmp_path / "list")) == ("p0", "p1")


def test_a_list_that_is_no_text_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xff\xfe\x00")
    stores = make_training_stores(tmp_path / "stores", patients=2)
    assert (
        run(
            "train", stores, "--out", tmp_path / "model", "--val-patients", tmp_path / "list"
        ).exit_code
        == 2
    )


def test_a_sheet_gives_train_its_split(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    for name in ("p0", "p1", "p2", "p3"):
        (tmp_path / f"{name}.svs").touch()
    sheet = tmp_path / "sheet.csv"
    sheet.write_text(
        "wsi,patient_id,split\np0.svs,p0,train\np1.svs,p1,val\np2.svs,p2,train\np3.svs,p3,test\n"
    )
    result = run(
        "train",
        stores,
        "--out",
        tmp_path / "model",
        "--sheet",
        sheet,
        "--arch",
        SMALL,
        "--epochs",
        1,
        "--device",
        "cpu",
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "model" / "split.json").read_text()) == {
        "train": ["p0", "p2"], "val": ["p1"], "test": ["p3"], "is_leaky": False,
    }  # fmt: skip


def test_an_output_folder_that_is_a_file_is_the_machines_fault(
    slides: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = run("tile", slides, "--out", tmp_path / "file" / "out", "--mpp", 0.5, "--workers", 0)
    assert result.exit_code == 5
    assert "cannot be made" in result.stderr


def make_link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "thesis.doc")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, make_link], ids=["folder", "pipe", "link"])
def test_a_log_that_cannot_be_written_stops_no_run(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    write_slide(tmp_path / "slides" / "good.tiff", paint(200, 200))
    (tmp_path / "slides" / "bad.svs").write_text("nothing")
    (tmp_path / "out").mkdir()
    (tmp_path / "thesis.doc").write_text("years of work")
    make(tmp_path / "out" / "wsi.log")
    done = run("tile", tmp_path / "slides", "--out", tmp_path / "out", "--mpp", 0.5, "--workers", 0)
    assert (done.exit_code, "2 slides: 1 ok, 1 failed" in done.output) == (
        3,
        True,
    )
    assert (tmp_path / "thesis.doc").read_text() == "years of work"
