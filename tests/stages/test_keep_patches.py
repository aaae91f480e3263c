"""`wsi infer --keep-patches`: the stores of `wsi tile`, results of a plain run, no work twice."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import (
    break_tile,
    folder_bytes,
    make_checkpoint,
    tissue,
    write_model,
    write_slide,
)
from tests.commands import HERE, PLAIN, SUMMARY, infer, run, tile
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.outcome import RunAccount, SlideState
from wsi_pipeline.outputs import View, choose_formats
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.stages import infer as inference
from wsi_pipeline.stages import tile as tiling
from wsi_pipeline.stages.predict import predict_block
from wsi_pipeline.stages.tile_config import TileConfig
from wsi_pipeline.store.files import HOST
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.slide_results import open_result

WITH_TABLE = View(choose_formats(["csv", "gallery", "summary"]))
SIDE = 25
TILING = TileConfig(spec=PatchSpec(SIDE, SIDE, 0.5))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 45 × 48 = 2,160 patches of 25 px in three blocks, a model, a store and results."""
    folder = tmp_path_factory.mktemp("made")
    write_slide(folder / "slides" / "s.tiff", tissue(1200, 1125))
    write_model(folder / "m.safetensors", make_checkpoint(side_px=SIDE))
    tile([folder / "slides"], folder / "tiled", TILING, workers=HERE)
    infer_kept(folder, folder / "plain")
    return folder


def infer_kept(
    made: Path, results: Path, keep: Path | None = None, slides: Path | None = None, **options: Any
) -> RunAccount:
    """Infer and keep the patches; the outputs are a summary, a table and a gallery by default."""
    return infer(
        slides or made / "slides",
        made / "m.safetensors",
        results,
        keep_patches=keep,
        **{"view": WITH_TABLE} | options,
    )


def test_the_store_is_that_of_tile_and_the_results_those_of_a_plain_run(
    made: Path, tmp_path: Path
) -> None:
    assert infer_kept(made, tmp_path / "results", tmp_path / "kept").exit_code == 0
    for name in ("s.patches.zarr", "s.mask.png"):
        kept, tiled = tmp_path / "kept" / name, made / "tiled" / name
        assert (
            folder_bytes(kept) == folder_bytes(tiled)
            if kept.is_dir()
            else kept.read_bytes() == tiled.read_bytes()
        )
    assert folder_bytes(tmp_path / "results" / "s") == folder_bytes(made / "plain" / "s")
    again = tile([made / "slides"], tmp_path / "kept", TILING, workers=HERE)
    assert again.outcomes[0].is_resumed_whole
    assert not (tmp_path / "kept" / ".wsi").exists()


def count_calls(place: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let a function note the arguments of its calls."""
    real = getattr(place, name)
    calls: list[Any] = []

    def noted(*arguments: Any) -> Any:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(place, name, noted)
    return calls


def test_pixels_are_read_once(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(SlidePatches, "read_block", monkeypatch)
    infer_kept(made, tmp_path / "results", tmp_path / "kept", view=SUMMARY)
    assert [block for _, block in calls] == [0, 1, 2]


def test_a_finished_store_is_read_instead_of_the_slide(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder_times(made / "tiled")

    def refuse(*arguments: object) -> None:
        raise AssertionError("the slide's patches were read")

    monkeypatch.setattr(SlidePatches, "_read_in_order", refuse)
    account = infer_kept(made, tmp_path / "results", made / "tiled", view=SUMMARY)
    assert account.exit_code == 0
    ours, plain = (
        open_result(folder / "s").probability for folder in (tmp_path / "results", made / "plain")
    )
    assert np.array_equal(ours, plain)
    assert folder_times(made / "tiled") == before


def test_a_store_whose_preview_was_not_drawn_any_more_gets_it(made: Path, tmp_path: Path) -> None:
    infer_kept(made, tmp_path / "results", tmp_path / "kept")
    (tmp_path / "kept" / "s.mask.png").unlink()
    assert infer_kept(made, tmp_path / "results", tmp_path / "kept").exit_code == 0
    assert (tmp_path / "kept" / "s.mask.png").read_bytes() == (
        made / "tiled" / "s.mask.png"
    ).read_bytes()


@pytest.fixture
def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_a_dead_run_left_beside_a_finished_store_goes(
    made: Path, tmp_path: Path, dead_process: int
) -> None:
    kept = tmp_path / "kept"
    infer_kept(made, tmp_path / "results", kept)
    whole = sorted(kept.rglob("*"))
    (kept / ".wsi" / "locks").mkdir(parents=True)
    (kept / ".wsi" / "locks" / "s.patches.zarr.lock").write_text(f"process {dead_process} on here")
    (kept / ".wsi" / "staging").mkdir()
    (kept / f".s.mask.png.{HOST}.{dead_process}").write_bytes(b"half")
    assert infer_kept(made, tmp_path / "results", kept).exit_code == 0
    assert sorted(kept.rglob("*")) == whole


def test_the_lock_of_a_living_writer_beside_a_finished_store_stays(
    made: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    infer_kept(made, tmp_path / "results", kept)
    with hold_lock(kept / "s.patches.zarr"):
        assert infer_kept(made, tmp_path / "results", kept).exit_code == 0
        assert (kept / ".wsi" / "locks" / "s.patches.zarr.lock").exists()


def folder_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_results_that_are_there_only_lack_their_patches(made: Path, tmp_path: Path) -> None:
    infer_kept(made, tmp_path / "results")
    account = infer_kept(made, tmp_path / "results", tmp_path / "kept")
    assert (account.exit_code, account.outcomes[0].is_resumed_whole) == (0, False)
    assert folder_bytes(tmp_path / "kept" / "s.patches.zarr") == folder_bytes(
        made / "tiled" / "s.patches.zarr"
    )
    assert infer_kept(made, tmp_path / "results", tmp_path / "kept").outcomes[0].is_resumed_whole


@pytest.mark.system
@pytest.mark.parametrize(
    ("function", "number"),
    [("write_patch_block", 1), ("write_prediction_block", 2), ("predict_block", 3)],
)
def test_a_run_killed_inside_a_slide_goes_on(
    function: str, number: int, made: Path, tmp_path: Path
) -> None:
    """The real command dies before a store's first block, between pixels and predictions of one,
    or between two blocks.
    """
    code = f"""
import os
from wsi_pipeline.stages import infer, predict
from wsi_cli.main import wsi

place = infer if {function!r} == "predict_block" else predict
real, calls = getattr(place, {function!r}), []

def die(*arguments):
    calls.append(1)
    if len(calls) == {number}:
        os._exit(9)
    return real(*arguments)

setattr(place, {function!r}, die)
wsi()
"""
    places = [
        "--slides",
        made / "slides",
        "--model",
        made / "m.safetensors",
        "--results-dir",
        tmp_path / "results",
    ]
    arguments = [
        *map(str, ["infer", *places, "--keep-patches", tmp_path / "kept", *PLAIN]),
        "--workers",
        "0",
        "--outputs",
        "csv,gallery,summary",
    ]
    killed = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, check=False, env=os.environ
    )
    assert killed.returncode == 9, killed.stderr
    assert not (tmp_path / "kept" / "s.patches.zarr").exists()
    done = len(list((tmp_path / "results" / ".wsi" / "staging").glob("*/blocks/*.json")))
    assert done == number - 1
    assert infer_kept(made, tmp_path / "results", tmp_path / "kept").exit_code == 0
    assert folder_bytes(tmp_path / "kept" / "s.patches.zarr") == folder_bytes(
        made / "tiled" / "s.patches.zarr"
    )
    assert folder_bytes(tmp_path / "results" / "s") == folder_bytes(made / "plain" / "s")


def test_unreadable_patches_are_the_same_with_and_without_a_store(
    made: Path, tmp_path: Path
) -> None:
    slide = write_slide(tmp_path / "slides" / "s.tiff", tissue(600, 600))
    break_tile(slide, page=0, tile=0)
    account = infer_kept(made, tmp_path / "results", tmp_path / "kept", tmp_path / "slides")
    infer_kept(made, tmp_path / "plain", slides=tmp_path / "slides")
    assert account.outcomes[0].state is SlideState.DAMAGED
    assert folder_bytes(tmp_path / "results" / "s") == folder_bytes(tmp_path / "plain" / "s")


def test_a_slide_without_a_readable_patch_leaves_nothing(made: Path, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slides" / "s.tiff", tissue(200, 200))
    break_tile(slide, page=0, tile=0)
    account = infer_kept(made, tmp_path / "results", tmp_path / "kept", tmp_path / "slides")
    assert account.exit_code == 4
    assert not list((tmp_path / "kept").rglob("staging/*"))
    assert not list((tmp_path / "results").rglob("staging/*"))


def test_a_store_of_another_recipe_is_named_and_force_replaces_it(
    made: Path, tmp_path: Path
) -> None:
    tile(
        [made / "slides"],
        tmp_path / "kept",
        replace(TILING, spec=PatchSpec(40, 40, 0.5)),
        workers=HERE,
    )
    account = infer_kept(made, tmp_path / "results", tmp_path / "kept")
    assert "was made from another patch.side_px" in account.outcomes[0].message
    assert infer_kept(made, tmp_path / "results", tmp_path / "kept", force=True).exit_code == 0
    assert folder_bytes(tmp_path / "kept" / "s.patches.zarr") == folder_bytes(
        made / "tiled" / "s.patches.zarr"
    )


def test_stores_are_no_slides_to_keep_patches_of(made: Path, tmp_path: Path) -> None:
    places = [
        "--stores",
        made / "tiled",
        "--model",
        made / "m.safetensors",
        "-o",
        tmp_path / "r",
        "--keep-patches",
        tmp_path / "k",
    ]
    assert run("infer", *places).exit_code == 2


# --- stores and predictions of an older chunking


def use_blocks_of(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut slides into blocks of another size, as older versions did."""
    monkeypatch.setattr(tiling, "choose_block_size", lambda patches, side_px: size)


def check_results(made: Path, results: Path, block_size: int) -> None:
    """Results that hold the probabilities of the plain run, in blocks of a size."""
    ours, plain = open_result(results / "s"), open_result(made / "plain" / "s")
    assert ours.table.block_size == block_size
    assert np.array_equal(ours.table.positions, plain.table.positions)
    np.testing.assert_allclose(ours.probability, plain.probability, atol=1e-6)


@pytest.mark.parametrize("size", [700, 1100, 2160, 4096])
def test_a_store_of_other_blocks_is_read_and_predicted_in_its_own(
    size: int, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        use_blocks_of(size, patched)
        tile([made / "slides"], tmp_path / "kept", TILING, workers=HERE)
    before = folder_times(tmp_path / "kept")
    assert infer_kept(made, tmp_path / "along", tmp_path / "kept", view=SUMMARY).exit_code == 0
    assert infer(tmp_path / "kept", made / "m.safetensors", tmp_path / "apart").exit_code == 0
    for results in ("along", "apart"):
        check_results(made, tmp_path / results, size)
    assert folder_times(tmp_path / "kept") == before


def break_off(
    made: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: Path | None = None,
    size: int = 700,
) -> None:
    """Interrupt a run of blocks of a size before its second block."""
    with monkeypatch.context() as patched:
        use_blocks_of(size, patched)
        real, calls = predict_block, []

        def predict(*arguments: Any) -> object:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*arguments)

        patched.setattr(inference, "predict_block", predict)
        with pytest.raises(KeyboardInterrupt):
            infer_kept(made, folder, keep)


def test_predictions_begun_in_other_blocks_go_on_in_these(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(made, tmp_path / "results", monkeypatch)
    assert infer_kept(made, tmp_path / "results", view=SUMMARY).exit_code == 0
    check_results(made, tmp_path / "results", 700)


def test_a_store_begun_in_other_blocks_goes_on_in_these(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(made, tmp_path / "results", monkeypatch, tmp_path / "kept")
    assert infer_kept(made, tmp_path / "results", tmp_path / "kept").exit_code == 0
    check_results(made, tmp_path / "results", 700)
    kept, tiled = (
        PatchStore(folder / "s.patches.zarr") for folder in (tmp_path / "kept", made / "tiled")
    )
    assert kept.block_size == 700
    everything = np.arange(tiled.table.patches)
    assert np.array_equal(kept.read_patches(everything), tiled.read_patches(everything))


def test_predictions_begun_in_other_blocks_than_the_stores_are_begun_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(made, tmp_path / "results", monkeypatch)
    assert infer_kept(made, tmp_path / "results", tmp_path / "kept").exit_code == 0
    for name in ("kept/s.patches.zarr", "results/s"):
        apart = made / name.replace("kept", "tiled").replace("results", "plain")
        assert folder_bytes(tmp_path / name) == folder_bytes(apart)


def test_blocks_that_were_predicted_before_are_only_stored(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(made, tmp_path / "results", monkeypatch, size=1024)
    predict = count_calls(inference, "predict_block", monkeypatch)
    store = count_calls(inference, "store_block", monkeypatch)
    assert infer_kept(made, tmp_path / "results", tmp_path / "kept").exit_code == 0
    assert ([call[4] for call in predict], [call[3] for call in store]) == ([1, 2], [0])
    for name in ("kept/s.patches.zarr", "results/s"):
        apart = made / name.replace("kept", "tiled").replace("results", "plain")
        assert folder_bytes(tmp_path / name) == folder_bytes(apart)
