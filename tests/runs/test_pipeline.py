"""Whole runs: every slide has one outcome, nothing is done twice, nothing depends on how it was
done.
"""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import (
    PINK,
    break_tile,
    folder_bytes,
    make_checkpoint,
    make_store,
    make_table,
    paint,
    tissue,
    write_model,
    write_png,
    write_slide,
)
from tests.commands import HERE, PLAIN, infer, spawn, tile
from wsi_pipeline.core.calibration import Calibration, ModelTerms, Terms
from wsi_pipeline.core.errors import LabelError, ModelError, StoreError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.outcome import SlideState, SlideSummary
from wsi_pipeline.evaluation import evaluate_results
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.outputs import View, choose_formats
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.stages.tile_config import TileConfig
from wsi_pipeline.store.manifest import find_damage
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.slide_results import open_result

PICTURES = View(choose_formats(["csv", "heatmap", "summary"]))
OUTPUTS = ("--outputs", "csv,heatmap,summary")
OVERLAY, HEATMAP = View(formats=("summary", "overlay")), View(formats=("summary", "heatmap"))
MPP_HALF = TileConfig(spec=PatchSpec(mpp=0.5))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Of a context of four patches, so that every probability depends on its neighbours'."""
    terms = ModelTerms(Terms(Calibration(0.8, 0.1), context_um=100))
    return write_model(tmp_path / "model" / "model.safetensors", make_checkpoint(terms=terms))


def test_a_store_holds_the_pixels_of_the_slide(tmp_path: Path) -> None:
    pixels = tissue(600, 500)
    account = tile(
        [write_slide(tmp_path / "s.tiff", pixels)], tmp_path / "out", MPP_HALF, workers=HERE
    )
    store = PatchStore(tmp_path / "out" / "s.patches.zarr")
    assert account.outcomes[0].patches == store.table.patches == 120
    block = store.read_block(0)
    for index, (row, col) in enumerate(store.positions.tolist()):
        assert np.array_equal(
            block.pixels[index], pixels[row * 50 : row * 50 + 50, col * 50 : col * 50 + 50]
        )


def test_broken_slides_do_not_stop_the_others(tmp_path: Path, model: Path) -> None:
    slides = tmp_path / "slides"
    write_slide(slides / "good.tiff", tissue(300, 300))
    write_slide(slides / "glass.tiff", paint(300, 300, (243, 243, 243)))
    (slides / "notes.txt").write_text("not a slide")
    (slides / "empty.svs").touch()
    write_slide(slides / "bad.tiff", tissue(512, 512))
    break_tile(slides / "bad.tiff", page=0, tile=0)
    account = infer(slides, model, tmp_path / "results")
    states = {outcome.slide_id: outcome.state.value for outcome in account.outcomes}
    assert states == {
        "bad": "damaged",
        "empty": "failed",
        "glass": "zero",
        "good": "ok",
    }
    assert account.exit_code == 3
    assert account.closing_line == "in 4 = ok 1 + zero 1 + damaged 1 + failed 1"
    with (tmp_path / "results" / "failures.csv").open(newline="") as stream:
        assert {row["slide_id"]: row["state"] for row in csv.DictReader(stream)} == {
            "bad": "damaged",
            "empty": "failed",
        }
    assert not (tmp_path / "results" / "empty").exists()


def test_unreadable_patches_are_nan(tmp_path: Path, model: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", tissue(512, 512))
    break_tile(tmp_path / "slides" / "s.tiff", page=0, tile=0)
    infer(tmp_path / "slides", model, tmp_path / "results")
    predictions = open_result(tmp_path / "results" / "s")
    under_it = (predictions.table.positions < 6).all(axis=1)  # 6 · 50 = 300 > 256
    assert np.array_equal(np.isnan(predictions.probability), under_it)


def test_a_slide_of_which_nothing_can_be_read_has_failed(tmp_path: Path, model: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", tissue(200, 200))
    break_tile(tmp_path / "slides" / "s.tiff", page=0, tile=0)
    account = infer(tmp_path / "slides", model, tmp_path / "results")
    assert account.exit_code == 4
    assert not (tmp_path / "results" / "s").exists()


def test_running_again_does_no_work(tmp_path: Path, model: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", tissue(300, 300))
    infer(tmp_path / "slides", model, tmp_path / "results")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "s").rglob("*")}
    account = infer(tmp_path / "slides", model, tmp_path / "results")
    assert all(outcome.is_resumed_whole for outcome in account.outcomes)
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "s").rglob("*")
    } == before
    assert json.loads((tmp_path / "results" / "run.json").read_text())["patches_predicted"] == 0


def test_another_model_does_not_mix_in(tmp_path: Path, model: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", tissue(300, 300))
    infer(tmp_path / "slides", model, tmp_path / "results")
    before = folder_bytes(tmp_path / "results" / "s")
    other = write_model(tmp_path / "other.safetensors", make_checkpoint(seed=1))
    account = infer(tmp_path / "slides", other, tmp_path / "results")
    assert "made from another model; use --force" in account.outcomes[0].message
    assert folder_bytes(tmp_path / "results" / "s") == before


def test_force_makes_it_anew(tmp_path: Path, model: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", tissue(300, 300))
    infer(tmp_path / "slides", model, tmp_path / "results")
    other = write_model(tmp_path / "other.safetensors", make_checkpoint(seed=1))
    account = infer(tmp_path / "slides", other, tmp_path / "results", force=True)
    assert account.exit_code == 0
    assert open_result(tmp_path / "results" / "s").model_digest == load_checkpoint(other).digest


def test_a_changed_slide_is_not_taken_for_the_old_one(tmp_path: Path, model: Path) -> None:
    slide = write_slide(tmp_path / "slides" / "s.tiff", tissue(300, 300))
    infer(tmp_path / "slides", model, tmp_path / "results")
    write_slide(slide, tissue(300, 300, seed=5))
    account = infer(tmp_path / "slides", model, tmp_path / "results")
    assert "made from another source.slide" in account.outcomes[0].message


@pytest.mark.system
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bytes(
    workers: int, tmp_path: Path, model: Path
) -> None:
    for number in range(3):
        write_slide(
            tmp_path / "slides" / f"s{number}.tiff", tissue(900, 800 + 100 * number, seed=number)
        )
    infer(tmp_path / "slides", model, tmp_path / "plain")
    infer(tmp_path / "slides", model, tmp_path / "dask", workers=Workers(count=workers, threads=2))
    for number in range(3):
        assert folder_bytes(tmp_path / "plain" / f"s{number}") == folder_bytes(
            tmp_path / "dask" / f"s{number}"
        )
    assert (tmp_path / "plain" / "slides.csv").read_bytes() == (
        tmp_path / "dask" / "slides.csv"
    ).read_bytes()


def test_a_slide_and_its_store_give_the_same_probabilities(tmp_path: Path, model: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", tissue(1500, 1300))
    infer(tmp_path / "slides", model, tmp_path / "direct")
    tile([tmp_path / "slides"], tmp_path / "stores", MPP_HALF, workers=HERE)
    infer(tmp_path / "stores", model, tmp_path / "stored")
    direct, stored = (open_result(tmp_path / name / "s") for name in ("direct", "stored"))
    assert np.array_equal(direct.table.positions, stored.table.positions)
    assert np.array_equal(direct.probability, stored.probability)


def test_a_store_of_another_scale_is_refused_with_both_numbers(tmp_path: Path, model: Path) -> None:
    make_store(tmp_path / "s.patches.zarr", make_table([(0, 0)], mpp=4.0))
    account = infer(tmp_path / "s.patches.zarr", model, tmp_path / "results")
    assert "at 4 µm/px, the model was trained at 0.5 µm/px" in account.outcomes[0].message


def test_a_store_within_five_percent_is_taken(tmp_path: Path, model: Path) -> None:
    make_store(tmp_path / "s.patches.zarr", make_table([(0, 0)], mpp=0.52))
    account = infer(tmp_path / "s.patches.zarr", model, tmp_path / "results")
    assert account.exit_code == 0


def test_a_broken_model_is_refused_before_any_slide(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", tissue(300, 300))
    (tmp_path / "m.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError):
        infer(tmp_path / "slides", tmp_path / "m.safetensors", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_products_verify(tmp_path: Path, model: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", tissue(300, 300))
    infer(tmp_path / "slides", model, tmp_path / "results", view=View())
    assert find_damage(tmp_path / "results" / "s") == []


def test_only_the_allow_list_leaves_a_slide(tmp_path: Path, model: Path) -> None:
    import tifffile

    path = tmp_path / "slides" / "s.tiff"
    path.parent.mkdir()
    with tifffile.TiffWriter(path) as writer:
        options: dict[str, Any] = {
            "tile": (256, 256),
            "photometric": "rgb",
            "resolution": (20_000, 20_000),
            "resolutionunit": "CENTIMETER",
        }
        writer.write(
            tissue(512, 512), description="SECRET Jane Doe", software="SECRET software", **options
        )
    account = infer(tmp_path / "slides", model, tmp_path / "results", view=View())
    assert account.exit_code == 0
    tile([path], tmp_path / "stores", MPP_HALF, workers=HERE)
    for folder in ("results", "stores"):
        assert not [
            name
            for name, content in folder_bytes(tmp_path / folder).items()
            if b"SECRET" in content or b"Jane" in content
        ]


def wait_for_blocks(results: Path, process: subprocess.Popen[bytes], blocks: int) -> None:
    deadline = time.monotonic() + 120
    while (
        not list(results.glob(".wsi/staging/*/prepared"))
        or len(list(results.glob(".wsi/staging/*/blocks/*.json"))) < blocks
    ):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def quiet_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a slide of 2,070 patches in three blocks, a model, and the results of a run
    that nobody disturbed.
    """
    folder = tmp_path_factory.mktemp("quiet")
    write_slide(folder / "slides" / "s.tiff", tissue(2300, 2250))
    infer(
        folder / "slides", write_model(folder / "m.safetensors"), folder / "results", view=PICTURES
    )
    return folder


@pytest.mark.system
@pytest.mark.parametrize(
    ("signal_number", "exit_code", "workers", "after_blocks"),
    # Two workers do the first blocks together: killed after one of them, the run might end before
    # it notices.
    [
        (signal.SIGKILL, -9, 0, 1),
        (signal.SIGKILL, -9, 2, 0),
        (signal.SIGTERM, 143, 0, 1),
        (signal.SIGINT, 130, 2, 0),
    ],
)
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    signal_number: signal.Signals,
    exit_code: int,
    workers: int,
    after_blocks: int,
    tmp_path: Path,
    quiet_run: Path,
) -> None:
    places = (
        "--slides",
        quiet_run / "slides",
        "--model",
        quiet_run / "m.safetensors",
        "--results-dir",
        tmp_path / "killed",
    )
    arguments = ("infer", *places, *PLAIN, *OUTPUTS, "--workers", workers)
    process = spawn(*arguments)
    wait_for_blocks(tmp_path / "killed", process, after_blocks)
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert b"Traceback" not in errors
    assert not (tmp_path / "killed" / "s").exists()
    again = spawn(*arguments)
    again.communicate(timeout=120)
    assert again.returncode == 0
    assert (
        json.loads((tmp_path / "killed" / "run.json").read_text())["patches_predicted"]
        <= 2070 - 1024 * after_blocks
    )
    assert folder_bytes(tmp_path / "killed" / "s") == folder_bytes(quiet_run / "results" / "s")
    assert (tmp_path / "killed" / "slides.csv").read_bytes() == (
        quiet_run / "results" / "slides.csv"
    ).read_bytes()


@pytest.mark.system
def test_two_runs_into_one_folder_do_not_disturb_each_other(
    tmp_path: Path, quiet_run: Path
) -> None:
    places = (
        "--slides",
        quiet_run / "slides",
        "--model",
        quiet_run / "m.safetensors",
        "--results-dir",
        tmp_path / "results",
    )
    arguments = ("infer", *places, *PLAIN, *OUTPUTS, "--workers", 0)
    first = spawn(*arguments)
    wait_for_blocks(tmp_path / "results", first, 1)
    first.send_signal(signal.SIGSTOP)
    second = spawn(*arguments)
    _, errors = second.communicate(timeout=120)
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (0, 5)
    assert b"is being written by process" in errors


def evaluate_setup(tmp_path: Path) -> Path:
    """Two slides of 2 × 2 patches, left half dark; a model that calls everything positive with
    probability 0.73.
    """
    for name in ("a_mosaic", "b"):
        write_slide(tmp_path / "slides" / f"{name}.tiff", tissue(100, 100, seed=len(name)), mpp=8.0)
    model = write_model(tmp_path / "m.safetensors", make_checkpoint(mpp=8.0, bias=1.0))
    infer(tmp_path / "slides", model, tmp_path / "results")
    return tmp_path / "results"


def test_evaluation_by_hand(tmp_path: Path) -> None:
    results = evaluate_setup(tmp_path)
    mask = np.full((100, 100), 200, dtype=np.uint8)
    mask[:, 50:] = 100
    mask[50:, 50:] = 0
    write_png(tmp_path / "labels" / "a_labels.png", mask)
    evaluation = evaluate_results(results, [tmp_path / "labels"])
    assert evaluation.unlabelled == ("b",)
    only = evaluation.slides[0]
    assert (only.name, only.labelled, only.not_assessed) == ("a_mosaic", 3, 0)
    scores = only.scores
    assert (
        scores.true_positives,
        scores.false_positives,
        scores.true_negatives,
        scores.false_negatives,
    ) == (2, 1, 0, 0)
    assert scores.f1 == pytest.approx(0.8)
    assert evaluation.pooled.scores == scores
    with (results / "evaluation.csv").open(newline="") as stream:
        assert [row["slide_id"] for row in csv.DictReader(stream)] == ["a_mosaic", "all slides"]


def test_labels_of_stores_are_used_without_being_asked_for(tmp_path: Path) -> None:
    make_store(
        tmp_path / "s.patches.zarr",
        make_table([(0, 0), (0, 1), (1, 0)], labels=[0, 1, -1]),
        unreadable=[1],
    )
    model = write_model(tmp_path / "m.safetensors", make_checkpoint(bias=1.0))
    infer(tmp_path / "s.patches.zarr", model, tmp_path / "results")
    only = evaluate_results(tmp_path / "results").slides[0]
    assert (only.labelled, only.not_assessed, only.scores.patches) == (2, 1, 1)


def test_evaluation_without_labels_says_so(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="name label files with --labels"):
        evaluate_results(evaluate_setup(tmp_path))


def test_evaluation_of_an_empty_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    with pytest.raises(StoreError, match="holds no finished slide"):
        evaluate_results(tmp_path / "results")


def test_a_state_is_kept_when_a_damaged_slide_is_found_done(tmp_path: Path, model: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", tissue(512, 512))
    break_tile(tmp_path / "slides" / "s.tiff", page=0, tile=0)
    for _ in range(2):
        account = infer(tmp_path / "slides", model, tmp_path / "results")
        assert account.outcomes[0].state is SlideState.DAMAGED


def test_a_slide_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_pipeline.stages import infer as inference
    from wsi_pipeline.stages.predict import predict_block

    slide = write_slide(tmp_path / "slides" / "s.tiff", tissue(300, 300))
    predict = predict_block

    def predict_and_rewrite(*arguments: object) -> object:
        report = predict(*arguments)  # type: ignore[arg-type]
        write_slide(slide, tissue(300, 300, seed=9))
        return report

    monkeypatch.setattr(inference, "predict_block", predict_and_rewrite)
    account = infer(tmp_path / "slides", model, tmp_path / "results")
    assert "changed while it was read" in account.outcomes[0].message
    assert not (tmp_path / "results" / "s").exists()


def test_tissue_that_no_patch_takes_in_is_not_a_slide_without_tissue(tmp_path: Path) -> None:
    pixels = paint(800, 400, (255, 255, 255))
    pixels[180:220] = PINK  # a core 80 µm thick, of patches of 400 µm
    write_slide(tmp_path / "slides" / "core.tiff", pixels, mpp=2.0)
    config = TileConfig(spec=PatchSpec(mpp=8.0))
    account = tile([tmp_path / "slides"], tmp_path / "out", config, workers=HERE)
    assert account.outcomes[0].state is SlideState.FAILED
    assert (
        "no patch of 400 µm lies in it by 50% or more; lower --min-tissue"
        in account.outcomes[0].message
    )


def test_labels_of_other_classes_than_the_models_are_refused(tmp_path: Path, model: Path) -> None:
    from dataclasses import replace

    table = replace(make_table([(0, 0)], labels=[1]), class_names=("tumour", "benign"))
    make_store(tmp_path / "s.patches.zarr", table)
    account = infer(tmp_path / "s.patches.zarr", model, tmp_path / "results")
    assert (
        "its labels mean tumour and benign, the model tells negative from positive"
        in account.outcomes[0].message
    )


def test_one_damaged_result_does_not_stop_the_tables(tmp_path: Path, model: Path) -> None:
    write_slide(tmp_path / "slides" / "a.tiff", tissue(100, 100))
    infer(tmp_path / "slides", model, tmp_path / "results", view=OVERLAY)
    (tmp_path / "results" / "a" / "overlay.png").unlink()
    write_slide(tmp_path / "other" / "b.tiff", tissue(100, 100))
    account = infer(tmp_path / "other", model, tmp_path / "results", view=OVERLAY)
    assert account.exit_code == 0
    with (tmp_path / "results" / "slides.csv").open(newline="") as stream:
        assert [row["slide_id"] for row in csv.DictReader(stream)] == ["b"]
    assert "overlay.png is missing" in (tmp_path / "results" / "failures.csv").read_text()
    assert "overlay.png is missing" in (tmp_path / "results" / "index.html").read_text()


def test_a_slide_whose_results_cannot_be_read_back_has_failed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_slide(tmp_path / "slides" / f"{name}.tiff", tissue(100, 100))

    def fail(folder: Path) -> SlideSummary:
        if folder.name == "a":
            raise StoreError(f"{folder}: its manifest.json cannot be read (Input/output error)")
        return read_summary(folder)

    monkeypatch.setattr("wsi_pipeline.outputs.run_files.read_summary", fail)
    account = infer(tmp_path / "slides", model, tmp_path / "results")
    assert account.closing_line == "in 2 = ok 1 + zero 0 + damaged 0 + failed 1"
    with (tmp_path / "results" / "failures.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["slide_id"], row["path"], row["state"]) == (
        "a",
        str(tmp_path / "slides" / "a.tiff"),
        "failed",
    )
    assert "Input/output error" in row["reason"]
    assert (
        json.loads((tmp_path / "results" / "run.json").read_text())["account"]
        == account.closing_line
    )


def test_a_store_made_anew_is_inferred_anew(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "s.patches.zarr"
    make_store(path, make_table([(0, 0), (0, 1)]), unreadable=[0])
    infer(path, model, tmp_path / "results")
    make_store(path, make_table([(0, 0), (0, 1)]))
    account = infer(path, model, tmp_path / "results")
    assert "made from another source.store" in account.outcomes[0].message


def test_a_full_disk_is_the_machines_fault(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_pipeline.outputs import WRITERS

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    write_slide(tmp_path / "slides" / "s.tiff", tissue(100, 100))
    monkeypatch.setitem(WRITERS, "heatmap", fail)
    account = infer(tmp_path / "slides", model, tmp_path / "results", view=HEATMAP)
    assert account.exit_code == 5
    assert "No space left on device; fix that" in account.outcomes[0].message
    monkeypatch.undo()
    assert infer(tmp_path / "slides", model, tmp_path / "results", view=HEATMAP).exit_code == 0


def test_failed_slides_are_let_go(tmp_path: Path, model: Path) -> None:
    import gc

    from wsi_pipeline.slides.openslide_reader import OpenSlideReader

    for number in range(5):
        write_slide(
            tmp_path / "slides" / f"{number}.tiff", tissue(60, 60), mpp=2.0
        )  # too coarse for the model
    account = infer(tmp_path / "slides", model, tmp_path / "results")
    gc.collect()
    readers = [entry for entry in gc.get_objects() if type(entry) is OpenSlideReader]
    mine = [reader for reader in readers if reader.info.path.startswith(str(tmp_path))]
    assert account.exit_code == 4
    assert all(reader._handle is None for reader in mine)


@pytest.mark.system
@pytest.mark.parametrize("place", ["flush_tree", "_publish"])
def test_a_kill_while_a_slide_is_committed_loses_nothing(
    place: str, tmp_path: Path, quiet_run: Path
) -> None:
    """The real command, killed inside the commit of its first slide."""
    code = f"""
import os
from wsi_pipeline.store import commit
from wsi_cli.main import wsi

real = commit.{place}

def die(folder, *others):
    if "summary.json" in os.listdir(folder):  # the outputs are written: this is the commit
        os.kill(os.getpid(), 9)
    return real(folder, *others)

commit.{place} = die
wsi()
"""
    places = [
        "--slides",
        quiet_run / "slides",
        "--model",
        quiet_run / "m.safetensors",
        "--results-dir",
        tmp_path / "killed",
    ]
    arguments = ["infer", *map(str, places), *PLAIN, *OUTPUTS, "--workers", "0"]
    killed = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, check=False
    )
    assert killed.returncode == -9
    assert not (tmp_path / "killed" / "s").exists()
    again = spawn(*arguments)
    told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["patches_predicted"] == 0
    assert folder_bytes(tmp_path / "killed" / "s") == folder_bytes(quiet_run / "results" / "s")


def test_a_kill_while_a_store_is_finished_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_pipeline.store.commit import Staging

    write_slide(tmp_path / "s.tiff", tissue(300, 300))
    tile([tmp_path / "s.tiff"], tmp_path / "quiet", MPP_HALF, workers=HERE)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Staging, "commit", stop)
    with pytest.raises(KeyboardInterrupt):
        tile([tmp_path / "s.tiff"], tmp_path / "killed", MPP_HALF, workers=HERE)
    monkeypatch.undo()
    assert tile([tmp_path / "s.tiff"], tmp_path / "killed", MPP_HALF, workers=HERE).exit_code == 0
    assert folder_bytes(tmp_path / "killed" / "s.patches.zarr") == folder_bytes(
        tmp_path / "quiet" / "s.patches.zarr"
    )
