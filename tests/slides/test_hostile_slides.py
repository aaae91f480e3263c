"""Broken, lying and strangely named files: each comes to its own end, and its neighbours notice
nothing.
"""

import csv
import json
import random
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.builders import folder_bytes, write_model
from tests.commands import PLAIN, infer, run, tile
from tests.hostile_slides import (
    CASES,
    DAMAGED,
    FAILED,
    GOOD_PX,
    OK,
    PASSED_OVER,
    cut,
    file_of,
    tissue,
    write_aperio,
    write_cases,
    write_tiled,
)
from wsi_pipeline.core.errors import ConfigError, SlideError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.outcome import RunAccount, describe_failure, state_of
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.outputs import View, choose_formats
from wsi_pipeline.runs.batch import run_batch
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.stages.tile import TileJob, plan_patches
from wsi_pipeline.stages.tile_config import TileConfig

CONFIG = TileConfig(spec=PatchSpec(mpp=0.5))


def go_through(path: Path) -> tuple[str, str]:
    """State and line of one slide, by the parts that a run consists of."""
    try:
        with closing(open_slide(path)) as reader:
            table, _ = plan_patches(reader, CONFIG)
            source = SlidePatches(reader, table.grid, table.positions, table.block_size)
            blocks = [
                source.read_block(block) for block in range(-(-table.patches // table.block_size))
            ]
    except SlideError as error:
        return FAILED, describe_failure("s", str(path), error).message
    unreadable = sum(int((~block.readable).sum()) for block in blocks)
    line = f"{table.patches} patches" + (f", {unreadable} unreadable" if unreadable else "")
    return state_of(table.patches, unreadable).value, line if table.patches else "no tissue"


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.make is not CASES["name in NFC"].make]
)
def test_each_file_alone_comes_to_its_end(name: str, tmp_path: Path) -> None:
    case, path = CASES[name], file_of(name, tmp_path)
    case.make(path)
    if case.state == PASSED_OVER:
        with pytest.raises(ConfigError, match="no slide files"):
            find_slides([tmp_path])
        return
    state, line = go_through(path)
    assert state == case.state
    assert case.says in line
    assert "\n" not in line


class BothRuns(NamedTuple):
    """What one command said of every file together, and of the good ones alone."""

    stdout: str
    exit_code: int
    failures: dict[str, dict[str, str]]
    """By the file's path."""
    together: Path
    alone: Path
    folder: Path
    slide_ids: dict[str, str]
    """By the file's path."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, and two good slides among them, in a folder that nobody may write to."""
    folder = tmp_path_factory.mktemp("hostile") / "in"
    assert len(dict(write_cases(folder))) == len(CASES)
    for name, shade in (("good-a", 0), ("good-b", 9)):
        write_tiled(folder / f"{name}.tiff", tissue() - np.uint8(shade))
    folder.chmod(0o555)
    return folder


@pytest.fixture(scope="module", params=["tile", "infer"])
def runs(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> BothRuns:
    root = tmp_path_factory.mktemp("runs")
    good = [folder / "good-a.tiff", folder / "good-b.tiff"]
    if request.param == "tile":
        done = run("tile", folder, "--out", root / "together", "--mpp", 0.5, "--workers", 1)
        tile(good, root / "alone", CONFIG, workers=Workers(count=0))
    else:
        model = write_model(root / "model.safetensors")
        common = ["--model", model, *PLAIN, "--outputs", "csv,summary"]
        done = run(
            "infer", "--slides", folder, "--results-dir", root / "together", "--workers", 1, *common
        )
        infer(good, model, root / "alone", view=View(choose_formats(["csv", "summary"])))
    with (root / "together" / "failures.csv").open(newline="", errors="surrogateescape") as stream:
        failures = {row["path"]: row for row in csv.DictReader(stream)}
    ids = {str(slide.path): slide.slide_id for slide in find_slides([folder])}
    return BothRuns(
        done.stdout, done.exit_code, failures, root / "together", root / "alone", folder, ids
    )


@pytest.mark.system
def test_the_account_of_all_of_them_adds_up(runs: BothRuns) -> None:
    states = Counter(case.state for case in CASES.values() if case.state != PASSED_OVER)
    states["ok"] += 2
    total = sum(states.values())
    parts = [
        f"{states[state]} {said}"
        for state, said in (
            ("ok", "ok"),
            ("zero", "empty"),
            ("damaged", "damaged"),
            ("failed", "failed"),
        )
    ]
    line = f"{total} slides: {', '.join(parts)}"
    assert line in runs.stdout
    assert runs.exit_code == 3


@pytest.mark.system
def test_every_fault_is_named_with_its_reason_in_one_line(runs: BothRuns) -> None:
    expected = {
        str(file_of(name, runs.folder)): case
        for name, case in CASES.items()
        if case.state in (FAILED, DAMAGED)
    }
    assert set(runs.failures) == set(expected)
    for path, case in expected.items():
        row = runs.failures[path]
        assert row["state"] == case.state
        assert case.says.removeprefix("120 patches, ") in row["reason"]
        assert "\n" not in row["reason"]


@pytest.mark.system
def test_every_other_slide_has_its_product_and_the_failed_have_none(runs: BothRuns) -> None:
    suffix = ".patches.zarr" if any(runs.together.glob("*.zarr")) else ""
    for name, case in CASES.items():
        slide_id = runs.slide_ids.get(str(file_of(name, runs.folder)))
        if slide_id is None:
            assert case.state == PASSED_OVER
            continue
        product = runs.together / f"{slide_id}{suffix}"
        assert product.exists() == (case.state != FAILED)
        if case.state != FAILED:
            patches = json.loads((product / "manifest.json").read_text())["counts"]["patches"]
            assert patches == (
                0 if case.state == "zero" else int(re.findall(r"(\d+) patches", case.says)[0])
            )


@pytest.mark.system
def test_the_good_neighbours_are_the_same_to_the_byte(runs: BothRuns) -> None:
    for name in ("good-a", "good-b"):
        together, alone = (
            {
                path: content
                for path, content in folder_bytes(place).items()
                if path.startswith(name)
            }
            for place in (runs.together, runs.alone)
        )
        assert len(alone) > 3
        assert together == alone


@pytest.mark.system
def test_nothing_is_left_under_way_and_nothing_is_written_beside_the_slides(runs: BothRuns) -> None:
    written = {file_of(name, runs.folder) for name in CASES} | {
        runs.folder / f"good-{name}.tiff" for name in "ab"
    }
    assert set(runs.folder.iterdir()) == written
    assert [
        path
        for path in runs.together.rglob("*")
        if "staging" in path.name and path.is_dir() and any(path.iterdir())
    ] == []


def test_every_name_becomes_one_that_is_safe_and_its_own(folder: Path) -> None:
    ids = [slide.slide_id for slide in find_slides([folder])]
    assert len({slide_id.casefold() for slide_id in ids}) == len(ids)
    assert all(
        re.fullmatch(r"[\w.+() -]+", slide_id) and not slide_id.startswith("-") for slide_id in ids
    )
    assert all(len(slide_id.encode()) <= 140 for slide_id in ids)


def read_all(path: Path) -> np.ndarray:
    with closing(open_slide(path)) as reader:
        return reader.read(reader.levels[0], 0, 0, *GOOD_PX)


@pytest.mark.parametrize("write", [write_tiled, write_aperio], ids=["tags first", "tags last"])
def test_a_slide_cut_anywhere_is_never_ok_unless_its_pixels_are_whole(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    whole = write(tmp_path / "s.svs")
    pixels, size = read_all(whole), whole.stat().st_size
    chance = random.Random(8)
    ended: Counter[str] = Counter()
    for offset in [*(chance.randrange(size) for _ in range(100)), size]:
        path = cut(Path(shutil.copy(whole, tmp_path / "cut.svs")), offset)
        state, _ = go_through(path)
        ended[state] += 1
        assert state == FAILED or np.array_equal(read_all(path), pixels)
    assert ended[OK] >= 1
    assert ended[FAILED] >= 90


def test_the_sample_slide_cut_at_200_places_is_never_ok_unless_its_pixels_are_whole(
    shared_data: Path, tmp_path: Path
) -> None:
    whole = shared_data / "slides" / "CMU-1-Small-Region.svs"
    content, chance = whole.read_bytes(), random.Random(200)
    with closing(open_slide(whole)) as reader:
        pixels = reader.read(reader.levels[0], 0, 0, *reader.info.size_l0)
    failed = 0
    for offset in chance.sample(range(len(content)), 200):
        path = tmp_path / "cut.svs"
        path.write_bytes(content[:offset])
        try:
            reader = open_slide(path)
        except SlideError:
            failed += 1
            continue
        with closing(reader):
            assert np.array_equal(reader.read(reader.levels[0], 0, 0, *reader.info.size_l0), pixels)
    assert failed == 200  # its tags stand at the end


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("broken.svs", "not a slide"),
        ("openslide-python_unopenable.tiff", "cannot"),
        ("openslide-python_unreadable.svs", "hold no patch"),
    ],
)
def test_the_broken_files_at_hand_fail(name: str, fault: str, shared_data: Path) -> None:
    state, line = go_through(shared_data / "slides" / name)
    assert state == FAILED
    assert fault in line


class Disturbed:
    """A tiling whose slide something happens to after its patches were chosen."""

    def __init__(self, folder: Path) -> None:
        self.slide = write_tiled(folder / "s.tiff")
        self.job = TileJob(FoundSlide("s", self.slide), folder / "out", CONFIG)
        (folder / "out").mkdir()

    def run(self, happens: Callable[[Path], object]) -> RunAccount:
        job = self.job

        class Disturbing(TileJob):
            def run_block(self, plan, block):  # type: ignore[no-untyped-def]
                happens(job.slide.path)
                return super().run_block(plan, block)

        disturbing = Disturbing(job.slide, job.out, job.config)
        return run_batch([disturbing], Workers(count=0), Listener()).account


def replace_by_another(path: Path) -> None:
    other = write_tiled(path.with_suffix(".new"), tissue()[::-1])
    other.replace(path)


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(bytes(1000))


def rewrite(path: Path) -> None:
    write_tiled(path, tissue()[:, ::-1])


@pytest.mark.parametrize(
    "happens", [replace_by_another, grow, rewrite, Path.unlink, lambda path: cut(path, -3000)]
)
def test_a_slide_that_something_happens_to_while_it_is_read_is_not_kept(
    happens: Callable[[Path], object], tmp_path: Path
) -> None:
    disturbed = Disturbed(tmp_path)
    outcome = disturbed.run(happens).outcomes[0]
    assert outcome.state == FAILED
    assert re.search(
        r"s\.tiff: (changed while it was read|truncated|no such file)", outcome.message
    )
    assert not disturbed.job.target.exists()


def test_a_slide_that_is_still_being_copied_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    content = write_tiled(tmp_path / "whole.tiff").read_bytes()
    path = tmp_path / "slow.tiff"
    ended = threading.Event()

    def copy() -> None:
        with path.open("wb") as stream:
            for start in range(0, len(content), 2000):
                stream.write(content[start : start + 2000])
                stream.flush()
                ended.wait(0.05)

    path.touch()
    copying = threading.Thread(target=copy)
    copying.start()
    states = set()
    while copying.is_alive():
        states.add((go_through(path)[0], path.stat().st_size == len(content)))
    copying.join()
    assert (FAILED, False) in states
    assert (OK, False) not in states
    assert go_through(path)[0] == OK
