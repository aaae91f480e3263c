"""Parts of a slide: estimates by `--sample`, areas that are drawn, and what goes on from them."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import (
    break_tile,
    draw_regions,
    folder_bytes,
    make_checkpoint,
    make_store,
    make_table,
    tissue,
    write_model,
    write_slide,
)
from tests.commands import PLAIN, plain_options, run, spawn
from wsi_pipeline.core.calibration import ModelTerms, Terms
from wsi_pipeline.core.outcome import SlideOutcome, describe_interval
from wsi_pipeline.outputs.results import Slide, open_results
from wsi_pipeline.runs.dry_run import preview_run
from wsi_pipeline.runs.infer import infer_slides
from wsi_pipeline.slides import tiff_reader
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.slides.tiff_tiles import decode_tile
from wsi_pipeline.stages import infer as stage
from wsi_pipeline.stages.predict import predict_block
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.predictions import Predictions
from wsi_pipeline.store.slide_results import open_result

QUICK = (*PLAIN, "--outputs", "summary", "--workers", 0)
ONE_PATCH_UM = 25.0
"""50 px at 0.5 µm/px: the context of the model is one patch, which reaches four."""
SAMPLE = ("--sample", 20)
BOX = (0, 0, 200, 100)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """1,500 × 1,500 px of tissue at 0.5 µm/px, 30 × 30 patches, brighter from left to right."""
    pixels = tissue(1500, 1500).astype(np.int16) + np.linspace(-60, 20, 1500)[None, :, None]
    picture = np.clip(pixels, 0, 255).astype(np.uint8)
    return write_slide(tmp_path / "slides" / "one.tiff", picture)


@pytest.fixture
def pale(tmp_path: Path) -> Path:
    """600 × 400 px, whose right half is empty glass: 8 rows and 6 columns of patches."""
    pixels = tissue(600, 400)
    pixels[:, 300:] = 245
    return write_slide(tmp_path / "slides" / "one.tiff", pixels)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    own = Terms(context_um=ONE_PATCH_UM)
    terms = ModelTerms(on_grid=own)
    return write_model(tmp_path / "m.safetensors", make_checkpoint(terms=terms))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A model without context."""
    return write_model(tmp_path / "m.safetensors", make_checkpoint())


def infer(slides: Path, model: Path, out: Path, *options: object) -> Predictions:
    done = run("infer", slides, "--model", model, "--out", out, *QUICK, *options)
    assert done.exit_code == 0, done.output
    return open_result(out / "one")


def count_predicted(out: Path) -> int:
    predicted = json.loads((out / "run.json").read_text())["patches_predicted"]
    assert isinstance(predicted, int)
    return predicted


def read_summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "one" / "summary.json").read_text())
    return found


def only(out: Path) -> Slide:
    (found,) = open_results(out)
    return found


# An estimate


def test_an_estimate_says_of_how_many_patches_it_is(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    found = read_summary(tmp_path / "out")
    assert (found["patches"], found["slide_patches"]) == (20, 900)
    assert found["interval_source"] == "estimate"
    assert found["positives_low"] <= found["positives_estimate"] <= found["positives_high"]


def test_without_context_only_the_drawn_patches_are_computed(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    assert infer(slide, plain, tmp_path / "out", *SAMPLE).table.patches == 20


def test_a_patch_counts_with_the_probability_that_the_whole_slide_gives_it(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    whole = infer(slide, model, tmp_path / "whole")
    part = infer(slide, model, tmp_path / "part", "--sample", 4)
    places = {(row, col): n for n, (row, col) in enumerate(whole.table.positions.tolist())}
    index = [places[row, col] for row, col in part.table.positions.tolist()]
    counted = part.table.is_counted
    assert 4 <= counted.sum() < len(counted) < 900
    assert part.logit.tobytes() == whole.logit[index].tobytes()
    assert part.probability[counted].tobytes() == whole.probability[index][counted].tobytes()
    assert np.isnan(part.probability[~counted]).all()


def test_the_same_seed_draws_the_same_patches_and_another_others(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    drawn = [
        infer(slide, plain, tmp_path / f"{number}", *SAMPLE, "--seed", seed).table.positions
        for number, seed in enumerate((1, 1, 2))
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


@pytest.mark.system
def test_the_whole_run_goes_on_from_an_estimate_and_computes_nothing_twice(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    infer(slide, model, tmp_path / "whole")
    infer(slide, model, tmp_path / "out", "--sample", 4)
    first = count_predicted(tmp_path / "out")
    infer(slide, model, tmp_path / "out")
    assert 0 < first < 900
    assert first + count_predicted(tmp_path / "out") == 900
    assert folder_bytes(tmp_path / "out" / "one") == folder_bytes(tmp_path / "whole" / "one")


def test_a_larger_sample_goes_on_from_a_smaller_one(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    before = {tuple(place) for place in only(tmp_path / "out").predictions.table.positions.tolist()}
    found = infer(slide, plain, tmp_path / "out", "--sample", 300)
    shared = sum(tuple(place) in before for place in found.table.positions.tolist())
    assert count_predicted(tmp_path / "out") == found.table.patches - shared


def test_a_whole_result_stays_where_a_sample_is_asked_for(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    infer(slide, plain, tmp_path / "out")
    before = folder_bytes(tmp_path / "out" / "one")
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    assert folder_bytes(tmp_path / "out" / "one") == before


def test_a_slide_of_fewer_patches_than_the_sample_is_no_estimate(
    pale: Path, plain: Path, tmp_path: Path
) -> None:
    infer(pale, plain, tmp_path / "out", "--sample", 48)
    assert read_summary(tmp_path / "out")["slide_patches"] is None


def test_where_context_makes_a_sample_most_of_the_slide_all_of_it_is_computed(
    pale: Path, model: Path, tmp_path: Path
) -> None:
    assert infer(pale, model, tmp_path / "out", "--sample", 20).table.sample is None


def test_every_output_of_an_estimate_says_that_it_is_one(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet

    out = tmp_path / "out"
    words = ("--model", plain, "--out", out, *PLAIN, "--workers", 0, *SAMPLE)
    done = run("infer", slide, *words)
    wanted = "estimate by 20 of 900 patches"
    assert wanted in done.output
    found = only(out)
    assert wanted in (found.folder / "report.html").read_text()
    metadata = pyarrow.parquet.read_schema(found.folder / "patches.parquet").metadata
    assert json.loads(metadata[b"wsi"])["slide_patches"] == 900
    assert {path.name for path in found.folder.iterdir()} == {
        *("manifest.json", "predictions.zarr", "summary.json", "patches.parquet"),
        *("heatmap.png", "overlay.png", "report.html"),
    }


def test_the_table_of_patches_holds_those_that_count(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet

    infer(slide, model, tmp_path / "out", "--sample", 4, "--outputs", "parquet")
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "one" / "patches.parquet")
    assert rows.num_rows == read_summary(tmp_path / "out")["patches"]
    assert rows["probability"].null_count == 0


def test_unreadable_patches_of_a_sample_are_neither_positive_nor_negative(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    for tile in range(3):
        break_tile(slide, 0, tile)
    done = run("infer", slide, "--model", plain, "--out", tmp_path / "out", *QUICK, "--sample", 400)
    assert done.exit_code == 3
    found, predictions = read_summary(tmp_path / "out"), open_result(tmp_path / "out" / "one")
    assert found["unreadable"] == np.isnan(predictions.logit).sum() > 0
    area = (found["patches"] - found["unreadable"]) * 0.025**2
    assert found["assessed_mm2"] == pytest.approx(area)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("aggregate", "--min-region-mm2", 0.01), "of which no region is known"),
        (("aggregate", "--context", 500), "which has no context of 500 µm"),
        (
            ("evaluate",),
            "is an estimate of a sample of the slide; run `wsi infer`",
        ),
    ],
)
def test_what_needs_the_whole_slide_is_refused(
    command: tuple[object, ...], said: str, slide: Path, plain: Path, tmp_path: Path
) -> None:
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    done = run(command[0], tmp_path / "out", *command[1:])
    assert done.exit_code != 0
    assert said in " ".join(done.output.split())


def test_another_threshold_counts_the_sample_anew(slide: Path, plain: Path, tmp_path: Path) -> None:
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    assert run("aggregate", tmp_path / "out", "--threshold", 0).exit_code == 0
    found = read_summary(tmp_path / "out")
    assert (found["positives"], found["positives_estimate"]) == (20, 900)


def test_aggregation_says_what_an_estimate_cannot_have(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    done = run("aggregate", tmp_path / "out", "--outputs", "geojson,heatmap")
    assert "; an estimate has no geojson" in " ".join(done.output.split())


def test_aggregation_to_all_outputs_makes_those_of_an_estimate(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    assert "an estimate has no" not in run("aggregate", tmp_path / "out").output


def test_a_dry_run_counts_the_patches_that_an_estimate_lacks(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    options = plain_options()
    preview = preview_run(find_slides([slide]), plain, tmp_path / "out", options)
    assert [(each.patches, each.missing_patches) for each in preview.slides] == [(900, 880)]


def test_a_sample_of_stores_is_refused(plain: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "a.patches.zarr", make_table([(0, 0)]))
    words = ("--model", plain, "--out", tmp_path / "out", *QUICK, *SAMPLE)
    done = run("infer", "--stores", tmp_path / "a.patches.zarr", *words)
    assert "these are patch stores, which are read whole" in " ".join(done.output.split())


def test_a_format_that_needs_the_whole_slide_is_refused_by_name(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    words = ("--model", plain, "--out", tmp_path / "out", *PLAIN, "--workers", 0, *SAMPLE)
    done = run("infer", slide, *words, "--outputs", "png,geojson")
    assert done.exit_code != 0
    assert "--outputs geojson: needs the whole slide" in " ".join(done.output.split())


def test_a_sample_is_not_kept_as_a_store(slide: Path, plain: Path, tmp_path: Path) -> None:
    words = ("--model", plain, "--out", tmp_path / "out", *QUICK, *SAMPLE)
    done = run("infer", slide, *words, "--keep-patches", tmp_path / "stores")
    assert (done.exit_code, "give one of them" in " ".join(done.output.split())) == (2, True)


def test_a_smaller_sample_of_the_same_seed_leaves_a_larger_one(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    infer(slide, plain, tmp_path / "out", "--sample", 100)
    before = folder_bytes(tmp_path / "out" / "one")
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    assert folder_bytes(tmp_path / "out" / "one") == before


def test_a_sample_leaves_what_an_interrupted_run_has_of_the_whole(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,156 patches in two blocks, the first of 1,024 done."""
    slide = write_slide(tmp_path / "slides" / "one.tiff", tissue(1700, 1700))
    words = ("infer", slide, "--model", plain, "--out", tmp_path / "out", *QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "predict_block", interrupt_after(1, predict_block))
        assert run(*words).exit_code == 130
    assert run(*words, *SAMPLE).exit_code == 0
    assert run(*words).exit_code == 0
    drawn_elsewhere = 1156 - 1024 - count_predicted(tmp_path / "out")
    assert 0 <= drawn_elsewhere <= 20
    assert not list((tmp_path / "out" / ".wsi").glob("staging/*"))


def interrupt_after(calls: int, do: Callable[..., Any]) -> Callable[..., Any]:
    """The function, interrupted when it has been called so often."""
    left = iter(range(calls))

    def call(*given: Any, **more: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return do(*given, **more)

    return call


def test_an_estimate_cut_by_otsu_goes_on_to_the_whole(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    infer(slide, plain, tmp_path / "out", *SAMPLE, "--tissue", "otsu")
    infer(slide, plain, tmp_path / "out")
    assert count_predicted(tmp_path / "out") == 880


def test_an_estimate_is_refused_by_what_differs(slide: Path, plain: Path, tmp_path: Path) -> None:
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    words = ("--model", plain, "--out", tmp_path / "out", *QUICK, "--min-tissue", 0)
    said = " ".join(run("infer", slide, *words).output.split())
    assert "was made from another source.tissue.min_tissue; use --force" in said


def test_unreadable_patches_count_in_no_estimate_of_the_whole(slide: Path, tmp_path: Path) -> None:
    """Every patch is positive: as many of 900 as of the sample could be read."""
    model = write_model(tmp_path / "m.safetensors", make_checkpoint(bias=9.0))
    for tile in range(3):
        break_tile(slide, 0, tile)
    run("infer", slide, "--model", model, "--out", tmp_path / "out", *QUICK, "--sample", 400)
    found = read_summary(tmp_path / "out")
    readable = found["positives"]
    assert readable == found["patches"] - found["unreadable"] < found["patches"]
    assert found["positives_estimate"] == pytest.approx(900 * readable / found["patches"])
    assert "to 100.0%)" in describe_interval(only(tmp_path / "out").summary)


def test_the_pages_of_slides_say_of_how_many_patches_an_estimate_is(
    slide: Path, plain: Path, tmp_path: Path
) -> None:
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    assert ">20 of 900 (estimate)<" in (tmp_path / "out" / "index.html").read_text()


def test_where_a_sample_is_the_whole_slide_areas_can_be_added(
    pale: Path, plain: Path, tmp_path: Path
) -> None:
    infer(pale, plain, tmp_path / "out", "--sample", 48)
    draw(tmp_path / "out", (400, 0, 200, 100))
    assert "8 patches lie in drawn areas alone" in extend(pale, plain, tmp_path / "out").message


@pytest.mark.system
def test_killed_on_the_way_from_an_estimate_to_the_whole(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    infer(slide, model, tmp_path / "whole")
    words = ("infer", slide, "--model", model, "--out", tmp_path / "out", *QUICK)
    assert run(*words, "--sample", 4).exit_code == 0
    delays = np.random.default_rng(0).uniform(0.5, 6, 6)
    for delay in delays.tolist():
        process = spawn(*words)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        open_result(tmp_path / "out" / "one")
    assert run(*words).exit_code == 0
    assert folder_bytes(tmp_path / "out" / "one") == folder_bytes(tmp_path / "whole" / "one")


@pytest.mark.system
def test_reading_costs_at_most_twice_the_share_of_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16,384 patches, 50 px each on tiles of 256 px, 2,000 are drawn."""
    slide = write_slide(tmp_path / "slides" / "one.tiff", tissue(6400, 6400), 0.25)
    model = write_model(tmp_path / "m.safetensors", make_checkpoint(mpp=0.25))
    decoded = 0

    def count(*given: Any, **more: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return decode_tile(*given, **more)

    monkeypatch.setattr(tiff_reader, "decode_tile", count)

    def measure(*options: object) -> int:
        before = decoded
        words = ("--model", model, "--out", tmp_path / "out", *QUICK)
        assert run("infer", slide, *words, *options).exit_code == 0
        return decoded - before

    planning = measure("--dry-run")
    part = measure("--sample", 2000) - planning
    drawn = count_predicted(tmp_path / "out")
    whole = measure("--force") - planning
    assert 1500 < drawn < 2500
    assert part / whole <= 2 * drawn / 16_384


# Drawn areas


def draw(out: Path, *boxes: tuple[int, int, int, int]) -> Path:
    """The file of drawn areas, boxes of x, y, width and height in level-0 pixels."""
    path = out / "drawn" / "one.geojson"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_regions(path, {f"area {n}": (x, y, x + w, y + h) for n, (x, y, w, h) in enumerate(boxes)})
    return path


def extend(slide: Path, model: Path, out: Path) -> SlideOutcome:
    """The outcome of a run that adds the drawn areas to what is there."""
    account = infer_slides(find_slides([slide]), model, out, plain_options(), extends=True)
    return account.outcomes[0]


def cells(out: Path) -> set[tuple[int, int]]:
    positions = open_result(out / "one").table.positions
    return {(int(row), int(col)) for row, col in positions}


GLASS = {(row, col) for row in range(2) for col in range(8, 12)}
"""Patches of a box of 200 × 100 px from x = 400 on, beyond the tissue of `pale`."""


def test_areas_are_added_to_the_tissue_and_only_they_are_computed(
    pale: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    infer(pale, model, out)
    before = cells(out)
    draw(out, (400, 0, 200, 100))
    assert "8 patches lie in drawn areas alone" in extend(pale, model, out).message
    assert (cells(out), count_predicted(out)) == (before | GLASS, 8)


def test_raw_probabilities_that_were_there_keep_their_bytes(
    pale: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = infer(pale, model, out)
    values = dict(zip(map(tuple, before.table.positions.tolist()), before.logit, strict=True))
    draw(out, (400, 0, 200, 100))
    extend(pale, model, out)
    after = open_result(out / "one")
    found = dict(zip(map(tuple, after.table.positions.tolist()), after.logit, strict=True))
    assert all(found[place].tobytes() == logit.tobytes() for place, logit in values.items())


def test_without_results_areas_are_all_that_is_assessed(
    pale: Path, model: Path, tmp_path: Path
) -> None:
    draw(tmp_path / "out", BOX)
    extend(pale, model, tmp_path / "out")
    assert cells(tmp_path / "out") == {(row, col) for row in range(2) for col in range(4)}
    assert "only inside one.geojson was assessed" in extend(pale, model, tmp_path / "out").message


@pytest.mark.parametrize("first", ["areas", "whole"])
def test_the_way_to_tissue_and_areas_changes_no_byte(
    first: str, pale: Path, model: Path, tmp_path: Path
) -> None:
    out, at_once = tmp_path / "out", tmp_path / "at once"
    draw(at_once, (400, 0, 200, 100))
    infer(pale, model, at_once)
    if first == "whole":
        infer(pale, model, out)
    draw(out, (400, 0, 200, 100))
    extend(pale, model, out)
    infer(pale, model, out)
    assert folder_bytes(out / "one") == folder_bytes(at_once / "one")


def test_an_area_that_is_removed_takes_its_patches_along(
    pale: Path, model: Path, tmp_path: Path
) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain"
    infer(pale, model, plain)
    infer(pale, model, out)
    draw(out, (400, 0, 200, 100))
    extend(pale, model, out)
    draw(out).unlink()
    extend(pale, model, out)
    assert folder_bytes(out / "one") == folder_bytes(plain / "one")


def test_areas_are_added_to_what_otsu_cut(pale: Path, plain: Path, tmp_path: Path) -> None:
    infer(pale, plain, tmp_path / "out", "--tissue", "otsu")
    draw(tmp_path / "out", (400, 0, 200, 100))
    infer(pale, plain, tmp_path / "out")
    assert count_predicted(tmp_path / "out") == 8


def test_kept_patches_have_no_areas_and_the_next_run_adds_them(
    pale: Path, plain: Path, tmp_path: Path
) -> None:
    out, kept = tmp_path / "out", ("--keep-patches", tmp_path / "kept")
    draw(out, (400, 0, 200, 100))
    words = ("--model", plain, "--out", out, *QUICK, *kept)
    done = run("infer", pale, *words)
    assert "its drawn areas are left out" in " ".join(done.output.split())
    assert open_result(out / "one").table.patches == 48
    infer(pale, plain, out)
    assert count_predicted(out) == 8


def test_patches_are_kept_beside_results_with_areas(
    pale: Path, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    draw(out, (400, 0, 200, 100))
    infer(pale, plain, out)
    before = folder_bytes(out / "one")
    infer(pale, plain, out, "--keep-patches", tmp_path / "kept")
    assert folder_bytes(out / "one") == before
    assert PatchStore(tmp_path / "kept" / "one.patches.zarr").table.patches == 48


def test_an_estimate_leaves_areas_out(slide: Path, plain: Path, tmp_path: Path) -> None:
    draw(tmp_path / "out", BOX)
    assert infer(slide, plain, tmp_path / "out", *SAMPLE).table.patches == 20


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((0, 0, 9, 9), "no patch of 25 µm lies in its areas by 50%"),
        ((900, 0, 100, 100), "lie beyond the slide of 600 × 400 px"),
    ],
)
def test_areas_that_hold_no_patch_are_refused_and_the_results_stay(
    box: tuple[int, int, int, int], said: str, pale: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    infer(pale, model, out)
    before = folder_bytes(out / "one")
    draw(out, box)
    outcome = extend(pale, model, out)
    assert f"drawn/one.geojson: {said}" in outcome.message.replace("1 of 1 regions ", "")
    assert folder_bytes(out / "one") == before


def test_no_area_is_added_to_an_estimate(slide: Path, plain: Path, tmp_path: Path) -> None:
    infer(slide, plain, tmp_path / "out", *SAMPLE)
    draw(tmp_path / "out", BOX)
    said = extend(slide, plain, tmp_path / "out").message
    assert "is an estimate of a sample, to which no area can be added" in said


def test_no_area_is_added_to_results_of_another_model(
    pale: Path, model: Path, tmp_path: Path
) -> None:
    infer(pale, model, tmp_path / "out")
    draw(tmp_path / "out", BOX)
    other = write_model(tmp_path / "other.safetensors", make_checkpoint(seed=1))
    assert "was made from another model" in extend(pale, other, tmp_path / "out").message


def test_without_a_drawn_area_there_is_nothing_to_assess(
    pale: Path, model: Path, tmp_path: Path
) -> None:
    assert "no area is drawn on it" in extend(pale, model, tmp_path / "out").message
