"""Finished slides are found by a process of its own, without a network; its end ends nothing."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.builders import make_checkpoint, tissue, write_model, write_slide
from tests.commands import infer
from wsi_pipeline.core.choices import AUTO
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.core.outcome import SlideOutcome
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.loading import read_model
from wsi_pipeline.runs import done
from wsi_pipeline.runs.done import find_done
from wsi_pipeline.runs.infer import choose_unsettled, make_jobs, read_tiling
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.stages.infer import InferJob


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides, of which two are finished."""
    folder = tmp_path_factory.mktemp("done")
    write_model(folder / "m.safetensors", make_checkpoint())
    for seed, name in enumerate("abc"):
        write_slide(folder / "slides" / f"{name}.tiff", tissue(200, 200, seed=seed))
    slides = [folder / "slides" / f"{name}.tiff" for name in "ac"]
    assert infer(slides, folder / "m.safetensors", folder / "results").exit_code == 0
    return folder


def list_jobs(made: Path, **changes: object) -> Sequence[InferJob]:
    options = InferOptions(**{"outputs": "summary", **changes})  # type: ignore[arg-type]
    model = made / "m.safetensors"
    facts = read_model(model)
    choice = choose_unsettled(facts, model, options)
    slides = find_slides([made / "slides"])
    return make_jobs(slides, choice, read_tiling(options, facts), made / "results", options)


def names(found: dict[int, SlideOutcome]) -> dict[int, str]:
    return {number: outcome.slide_id for number, outcome in found.items()}


def test_finished_slides_are_found_by_their_number(made: Path) -> None:
    found = find_done(list_jobs(made), here=True)
    assert names(found) == {0: "a", 2: "c"}
    assert all(outcome.is_resumed_whole for outcome in found.values())


def test_a_process_of_its_own_finds_the_same(made: Path) -> None:
    jobs = list_jobs(made)
    assert find_done(jobs, here=False) == find_done(jobs, here=True)


def test_force_and_other_outputs_leave_work(made: Path) -> None:
    assert find_done(list_jobs(made, force=True), here=True) == {}
    assert find_done(list_jobs(made, outputs="csv"), here=True) == {}


@pytest.mark.parametrize(("engine", "found"), [(AUTO, 2), ("torch", 2), ("openvino", 0)])
def test_auto_takes_what_any_engine_finished(engine: str, found: int, made: Path) -> None:
    """The results are of torch in fp32, as a named torch would compute them too."""
    assert EngineSetting() == EngineSetting("torch", "fp32", "cpu")
    assert len(find_done(list_jobs(made, engine=engine), here=True)) == found


def test_modules_of_the_users_folder_are_not_imported(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the user's own json')")
    monkeypatch.chdir(tmp_path)
    assert names(find_done(list_jobs(made), here=False)) == {0: "a", 2: "c"}


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.abort()",
        "print('nonsense')",
        "print('INFO: none')",
        "import time; time.sleep(60)",
    ],
)
def test_a_look_that_ends_badly_finds_nothing_and_says_so(
    code: str, made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(done, "CODE", code)
    monkeypatch.setattr(done, "PATIENCE_S", 0.5)
    monkeypatch.setattr(done, "PATIENCE_PER_SLIDE_S", 0.0)
    assert find_done(list_jobs(made), here=False) == {}
    assert "finished slides were not looked for" in caplog.text


def test_a_slide_that_cannot_be_opened_any_more_is_left_to_the_run(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs = list_jobs(made)
    (made / "slides" / "a.tiff").rename(tmp_path / "a.tiff")
    try:
        assert names(find_done(jobs, here=True)) == {2: "c"}
    finally:
        (tmp_path / "a.tiff").rename(made / "slides" / "a.tiff")


@pytest.mark.parametrize("said", ["INFO: loaded", "(process:1): GLib-DEBUG", "L", ""])
def test_what_a_library_prints_is_no_part_of_the_answer(
    said: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(done, "CODE", f"print({said!r}, flush=True); {done.CODE}; print('end')")
    assert names(find_done(list_jobs(made), here=False)) == {0: "a", 2: "c"}


@pytest.mark.parametrize("here", [True, False])
def test_a_slide_over_which_anything_breaks_is_left_to_the_run(
    here: bool, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
from wsi_pipeline.stages.infer import InferJob
found = InferJob.find_done
def broken(job):
    if job.slide.slide_id == "a":
        raise IndexError("odd")
    return found(job)
InferJob.find_done = broken
"""
    monkeypatch.setattr(done, "CODE", f"{code}{done.CODE}")
    if here:
        monkeypatch.setattr(InferJob, "find_done", InferJob.find_done)
        exec(code, {})
    assert names(find_done(list_jobs(made), here=here)) == {2: "c"}
