"""Slides on slow shares: `--stage` copies the next one to a local disk and leaves nothing there."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.builders import make_checkpoint, tissue, write_model, write_slide
from tests.commands import PLAIN, plain_options, run, spawn
from wsi_pipeline.core.errors import ConfigError, SlideError
from wsi_pipeline.core.options import TileOptions
from wsi_pipeline.runs.copied_job import CopiedJob
from wsi_pipeline.runs.disk_space import DiskSpace
from wsi_pipeline.runs.local_copies import FILES, LocalCopies, NoRoom, name_copy
from wsi_pipeline.runs.tile import read_tiling
from wsi_pipeline.scheduling import NotYet, Workers
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.slide_files import find_files
from wsi_pipeline.stages.tile import TileJob

REAL = ("idc_8863_mosaic.tiff", "idc_8865_mosaic.tiff")
ENOUGH, NEVER = DiskSpace(0), DiskSpace(10**18)
QUICK = ("--workers", 0, "--outputs", "summary,csv", *PLAIN)
OF_A_RUN = {"events.jsonl", "run.json", "run.yaml", "wsi.log", "index.html"}
"""Files with times, and with the options of the run."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_model(folder / "model.safetensors", make_checkpoint(mpp=4.0))


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for number, name in enumerate(("one", "two", "three")):
        write_slide(tmp_path / "in" / f"{name}.tiff", tissue(900, 600, number), mpp=4.0)
    return tmp_path / "in"


def read_products(results: Path) -> dict[str, bytes]:
    """Every file by name, but for those of the run itself."""
    files = (path for path in results.rglob("*") if path.is_file() and path.name not in OF_A_RUN)
    return {str(path.relative_to(results)): path.read_bytes() for path in files}


def list_left(disk: Path) -> list[str]:
    return sorted(str(path.relative_to(disk)) for path in disk.rglob("*"))


def make_job(slide: Path, out: Path, disk: Path, space: DiskSpace = ENOUGH) -> CopiedJob:
    """The job of tiling a slide that is copied to a disk."""
    disk.mkdir(exist_ok=True)
    tiling = read_tiling(TileOptions(mpp=4.0))
    job = TileJob(FoundSlide(slide.stem, slide), out, tiling)
    return CopiedJob(job, LocalCopies(disk, space))


@pytest.mark.system
def test_real_slides_come_out_the_same_byte_for_byte(
    shared_data: Path, model: Path, tmp_path: Path
) -> None:
    slides = [shared_data / "slides" / name for name in REAL]
    for name, stage in (("plain", ()), ("staged", ("--stage", tmp_path / "disk"))):
        kept = ("--keep-patches", tmp_path / name / "kept")
        ended = run(
            *("infer", *slides, "-m", model, "-o", tmp_path / name / "results"),
            *(*QUICK, *kept, *stage),
        )
        assert ended.exit_code == 0, ended.output
    plain, staged = read_products(tmp_path / "plain"), read_products(tmp_path / "staged")
    assert plain == staged
    assert list_left(tmp_path / "disk") == []


def test_stores_come_out_the_same_byte_for_byte(slides: Path, tmp_path: Path) -> None:
    for name, stage in (("plain", ()), ("staged", ("--stage", tmp_path / "disk"))):
        where = ("tile", slides, "-o", tmp_path / name, "--mpp", 4, "--workers", 0)
        assert run(*where, *stage).exit_code == 0
    assert read_products(tmp_path / "plain") == read_products(tmp_path / "staged")
    assert list_left(tmp_path / "disk") == []


def test_pixels_are_those_of_the_copy(slides: Path, tmp_path: Path) -> None:
    job = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk")
    with job.hold():
        plan = job.prepare()
        stamp = (slides / "one.tiff").stat()
        (slides / "one.tiff").write_bytes(bytes(stamp.st_size))  # no slide any more
        os.utime(slides / "one.tiff", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        outcome = job.finish(plan, [job.run_block(plan, block) for block in plan.blocks])
    assert (outcome.path, outcome.patches) == (str(slides / "one.tiff"), 216)


def test_a_slide_that_changes_while_it_is_copied_is_not_used(slides: Path, tmp_path: Path) -> None:
    job = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk")
    with job.hold():
        with (slides / "one.tiff").open("ab") as stream:
            stream.write(b"more")
        with pytest.raises(SlideError, match=r"one\.tiff: changed while it was copied; run the"):
            job.prepare()
    assert list_left(tmp_path / "disk") == []


def test_a_slide_that_changes_after_it_was_copied_is_not_used(slides: Path, tmp_path: Path) -> None:
    job = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk")
    with job.hold():
        plan = job.prepare()
        reports = [job.run_block(plan, block) for block in plan.blocks]
        os.utime(slides / "one.tiff", (1, 1))
        with pytest.raises(SlideError, match=r"one\.tiff: changed while it was read"):
            job.finish(plan, reports)


def test_errors_name_the_slide_and_not_its_copy(slides: Path, model: Path, tmp_path: Path) -> None:
    (slides / "broken.tiff").write_bytes((slides / "one.tiff").read_bytes()[:5000])
    where = ("infer", slides / "broken.tiff", "-m", model, "-o", tmp_path / "results")
    plain = run(*where, *QUICK)
    assert (plain.exit_code, f"{slides}/broken.tiff: " in plain.output) == (4, True)
    assert run(*where, *QUICK, "--stage", tmp_path / "disk").output == plain.output


def test_a_slide_without_room_is_read_where_it_is(
    slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk", NEVER)
    with job.hold():
        plan = job.prepare()
        outcome = job.finish(plan, [job.run_block(plan, block) for block in plan.blocks])
        assert list_left(tmp_path / "disk") == [] or not list((tmp_path / "disk").rglob("*.cop*"))
    assert outcome.patches == 216
    assert "do not fit into" in caplog.text


def test_a_slide_waits_for_the_room_of_another(slides: Path, tmp_path: Path) -> None:
    job = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk", NEVER)
    job.copies.held.add("another")
    with pytest.raises(NotYet), job.hold():
        pass


def test_what_others_still_have_to_copy_is_no_room(slides: Path, tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    with (slides / "two.tiff").open("ab") as stream:
        stream.truncate(free // 2)  # sparse: it takes no space
    space = DiskSpace(free * 4 // 10)
    first = make_job(slides / "two.tiff", tmp_path / "stores", tmp_path / "disk", space)
    second = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk")
    second.copies.space = DiskSpace(free * 6 // 10)
    with first.hold(), second.hold():
        assert (first.folder, second.folder) == (slides, None)


def test_a_finished_slide_is_not_copied(slides: Path, tmp_path: Path) -> None:
    job = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk")
    with job.hold():
        plan = job.prepare()
        job.finish(plan, [job.run_block(plan, block) for block in plan.blocks])
    again = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk")
    with again.hold():
        assert again.folder is None
        assert again.prepare().is_finished


def leave_behind(slide: Path, disk: Path) -> Path:
    """Leave a whole copy of a slide, as a killed run does; return its folder."""
    copies = LocalCopies(disk, ENOUGH)
    found = FoundSlide(slide.stem, slide)
    name = name_copy(found)
    with copies.hold(found):
        copies.fill(name, slide)
        shutil.copytree(copies.place(name, "copy"), disk / "aside")
    target = copies.place(name, "copy")
    target.parent.mkdir(parents=True, exist_ok=True)
    return (disk / "aside").rename(target)


def cut(copy: Path, slide: Path) -> None:
    with (copy / FILES / slide.name).open("r+b") as stream:
        stream.truncate(100)


def change(copy: Path, slide: Path) -> None:
    os.utime(slide, (1, 1))


def forget(copy: Path, slide: Path) -> None:
    (copy / "copy.json").unlink()


@pytest.mark.parametrize(
    ("harm", "is_taken"), [(None, True), (cut, False), (change, False), (forget, False)]
)
def test_only_a_whole_copy_of_the_same_slide_is_found_again(
    harm: Callable[[Path, Path], None] | None, is_taken: bool, slides: Path, tmp_path: Path
) -> None:
    slide, disk = slides / "one.tiff", tmp_path / "disk"
    disk.mkdir()
    old = leave_behind(slide, disk)
    if harm is not None:
        harm(old, slide)
    job = make_job(slide, tmp_path / "stores", disk)
    with job.hold():
        name = name_copy(job.slide)
        assert job.copies.place(name, "copy").exists() == is_taken
        assert job.copies.place(name, "copying").exists() == (not is_taken)
        assert not old.exists()


def test_a_run_removes_what_killed_runs_left(slides: Path, model: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for name in ("one", "two"):
        old = leave_behind(slides / f"{name}.tiff", disk)
    old.rename(old.with_suffix(".copying"))
    where = ("infer", slides / "three.tiff", "-m", model, "-o", tmp_path / "results", *QUICK)
    assert run(*where, "--stage", disk).exit_code == 0
    assert list_left(disk) == []


def test_what_another_run_holds_is_not_touched(
    slides: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    copies, found = LocalCopies(disk, ENOUGH), FoundSlide("one", slides / "one.tiff")
    with copies.hold(found):
        copies.fill(name_copy(found), found.path)
        where = ("infer", slides, "-m", model, "-o", tmp_path / "results", *QUICK)
        assert run(*where, "--stage", disk).exit_code == 0
        assert copies.place(name_copy(found), "copy").is_dir()
    assert "one.tiff: another run holds its copy; it is read where it is" in caplog.text
    assert list_left(disk) == []


def test_files_of_the_user_are_not_touched(slides: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / ".wsi" / "staging").mkdir(parents=True)
    mine = tmp_path / "disk" / ".wsi" / "staging" / "one.0123456789abcdef.copy"
    mine.write_text("mine")
    where = ("infer", slides / "one.tiff", "-m", model, "-o", tmp_path / "results", *QUICK)
    assert run(*where, "--stage", tmp_path / "disk").exit_code == 0
    assert mine.read_text() == "mine"


def test_a_dry_run_copies_nothing(slides: Path, model: Path, tmp_path: Path) -> None:
    where = ("infer", slides, "-m", model, "-o", tmp_path / "results", *QUICK)
    assert run(*where, "--stage", tmp_path / "disk", "--dry-run").exit_code == 0
    assert not (tmp_path / "disk").exists()


def test_workers_elsewhere_are_refused(tmp_path: Path) -> None:
    options = plain_options(stage=tmp_path)
    with pytest.raises(ConfigError, match="leave it out, or run the command on each machine"):
        LocalCopies.choose(options, Workers(scheduler="tcp://host:8786"), [])


def test_stores_are_refused(slides: Path, model: Path, tmp_path: Path) -> None:
    assert run("tile", slides, "-o", tmp_path / "stores", "--mpp", 4, "--workers", 0).exit_code == 0
    where = ("infer", "--stores", tmp_path / "stores", "-m", model, "-o", tmp_path / "results")
    ended = run(*where, *QUICK, "--stage", tmp_path / "disk")
    assert (ended.exit_code, "leave --stage out" in ended.output) == (1, True)


def test_a_folder_that_cannot_be_made_is_the_machines_fault(
    slides: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    where = ("infer", slides, "-m", model, "-o", tmp_path / "results", *QUICK)
    ended = run(*where, "--stage", tmp_path / "file" / "disk")
    assert (ended.exit_code, "name a folder that you may write to" in ended.output) == (5, True)


def test_the_run_file_repeats_the_run(slides: Path, model: Path, tmp_path: Path) -> None:
    where = ("infer", slides, "-m", model, "-o", tmp_path / "results", *QUICK)
    assert run(*where, "--stage", tmp_path / "disk").exit_code == 0
    text = (tmp_path / "results" / "run.yaml").read_text()
    assert f"\nstage: {tmp_path / 'disk'}\n" in text
    again = run("infer", "--config", tmp_path / "results" / "run.yaml")
    assert (again.exit_code, "nothing to do" in again.output) == (0, True)


def test_a_series_of_dicom_is_copied_whole(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "slides" / "openslide-python_boxes_dcm"
    files = find_files(folder / "boxes_0.dcm")
    assert (files.is_whole, set(files.stamps)) == (True, {p.name for p in folder.iterdir()})
    copies = LocalCopies(tmp_path, ENOUGH)
    found = FoundSlide("boxes", folder / "boxes_0.dcm")
    with copies.hold(found):
        copies.fill(name_copy(found), found.path)
        copy = copies.place(name_copy(found), "copy") / FILES / "boxes_0.dcm"
        one, other = open_slide(found.path), open_slide(copy)
        assert (one.info.fingerprint, one.levels) == (other.info.fingerprint, other.levels)


def test_a_mirax_slide_is_copied_with_its_folder(tmp_path: Path) -> None:
    for name in ("a.mrxs", "a/Slidedat.ini", "a/Data0000.dat", "b/other.dat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files = find_files(tmp_path / "a.mrxs")
    assert [*files.stamps] == ["a.mrxs", "a/Data0000.dat", "a/Slidedat.ini"]
    assert (files.is_whole, files.own, files.bytes) == (True, "a.mrxs", 6 + 14 + 14)


def test_a_kind_that_names_other_files_is_read_where_it_is(tmp_path: Path) -> None:
    for name in ("a.vms", "a(1,0).jpg", "b.jpg"):
        (tmp_path / name).write_text(name)
    files = find_files(tmp_path / "a.vms")
    assert ([*files.stamps], files.is_whole) == (["a.vms", "a(1,0).jpg"], False)


def test_a_link_is_copied_as_its_file(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "link.tiff").symlink_to(slides / "one.tiff")
    job = make_job(tmp_path / "link.tiff", tmp_path / "stores", tmp_path / "disk")
    with job.hold():
        job.prepare()
        copy = job.copies.place(name_copy(job.slide), "copy") / FILES / "link.tiff"
        assert not copy.is_symlink()
        assert copy.stat().st_size == (slides / "one.tiff").stat().st_size


@pytest.mark.parametrize("files", [1, 2])
def test_a_copy_of_many_files_stays_for_stragglers_until_the_run_ends(
    files: int, slides: Path, tmp_path: Path
) -> None:
    shutil.copy(slides / "one.tiff", tmp_path / "a.mrxs")
    if files == 2:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "Data0000.dat").write_text("data")
    job = make_job(tmp_path / "a.mrxs", tmp_path / "stores", tmp_path / "disk")
    copies = job.copies
    with copies.hold(job.slide):
        copies.fill(name_copy(job.slide), job.slide.path)
    left = [path for path in list_left(tmp_path / "disk") if path.endswith("a.mrxs")]
    assert len(left) == files - 1
    copies.clean()
    assert list_left(tmp_path / "disk") == []


def test_room_is_free_also_where_a_worker_has_the_copy_open(slides: Path, tmp_path: Path) -> None:
    job = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk")
    with ExitStack() as opened:
        with job.hold():
            plan = job.prepare()
            copy = job.copies.place(name_copy(job.slide), "copy") / FILES / "one.tiff"
            stream = opened.enter_context(copy.open("rb"))
            job.finish(plan, [job.run_block(plan, block) for block in plan.blocks])
        assert os.fstat(stream.fileno()).st_size == 0


def test_a_copy_that_a_worker_may_still_read_is_not_cut(slides: Path, tmp_path: Path) -> None:
    job = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk")
    with ExitStack() as opened:
        with job.hold():
            job.prepare()
            copy = job.copies.place(name_copy(job.slide), "copy") / FILES / "one.tiff"
            stream = opened.enter_context(copy.open("rb"))
        assert list_left(tmp_path / "disk") == []
        assert stream.read() == (slides / "one.tiff").read_bytes()


def test_a_finished_step_that_is_tried_again_reads_the_slide_itself(
    slides: Path, tmp_path: Path
) -> None:
    job = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk")
    with job.hold():
        plan = job.prepare()
        reports = [job.run_block(plan, block) for block in plan.blocks]
        job.finish(plan, reports)
        with job._reading() as again:
            assert again.slide.copy is None


def test_a_worker_does_not_bring_back_a_copy_that_was_removed(
    shared_data: Path, tmp_path: Path
) -> None:
    path = shared_data / "slides" / "openslide-python_boxes_dcm" / "boxes_0.dcm"
    copies, found = LocalCopies(tmp_path, ENOUGH), FoundSlide("boxes", path)
    name = name_copy(found)
    with copies.hold(found):
        record = copies.place(name, "copying") / "copy.json"
        content = record.read_text()
        shutil.rmtree(record.parent)
        record.parent.mkdir()
        record.write_text(content)  # read before the run was interrupted
        with pytest.raises(NoRoom):
            copies.fill(name, path)
        assert [entry.name for entry in record.parent.iterdir()] == ["copy.json"]


def test_the_fault_of_a_full_disk_is_not_the_slides(slides: Path, tmp_path: Path) -> None:
    job = make_job(slides / "one.tiff", tmp_path / "stores", tmp_path / "disk")
    with job.hold():
        job.copies.space = NEVER  # another program has filled it meanwhile
        assert job.prepare().patches == 216
        assert not list((tmp_path / "disk").rglob("*.copy"))


# --- processes


@pytest.fixture
def heavy(slides: Path) -> Path:
    """Slides whose copies take a moment."""
    for path in slides.iterdir():
        with path.open("ab") as stream:
            stream.truncate(200_000_000)
    return slides


def stage(slides: Path, model: Path, results: Path, disk: Path) -> tuple[object, ...]:
    outputs = ("--outputs", "summary,csv", *PLAIN)
    return ("infer", slides, "-m", model, "-o", results, *outputs, "--stage", disk)


def end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a run; return its exit code."""
    process.communicate(timeout=300)
    return process.returncode


@pytest.mark.system
def test_killed_at_any_moment_and_run_again(heavy: Path, model: Path, tmp_path: Path) -> None:
    plain, results, disk = (tmp_path / name for name in ("plain", "results", "disk"))
    assert run("infer", heavy, "-m", model, "-o", plain, *QUICK).exit_code == 0
    moments = random.Random(7)
    for _ in range(12):
        process = spawn(*stage(heavy, model, results, disk))
        while not disk.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 3))
        process.send_signal(moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
        process.communicate()
    assert end(spawn(*stage(heavy, model, results, disk))) == 0
    assert list_left(disk) == []
    assert read_products(results) == read_products(plain)


@pytest.mark.system
def test_two_runs_share_a_disk(heavy: Path, model: Path, tmp_path: Path) -> None:
    disk, places = tmp_path / "disk", [tmp_path / "one", tmp_path / "two"]
    runs = [spawn(*stage(heavy, model, place, disk)) for place in places]
    assert [end(process) for process in runs] == [0, 0]
    assert read_products(places[0]) == read_products(places[1])
    assert list_left(disk) == []


@pytest.mark.system
def test_the_next_slide_is_copied_while_one_runs(heavy: Path, model: Path, tmp_path: Path) -> None:
    disk, most = tmp_path / "disk", 0
    process = spawn(*stage(heavy, model, tmp_path / "results", disk))
    while process.poll() is None:
        most = max(most, len(list(disk.glob(".wsi/staging/*.cop*"))))
        time.sleep(0.01)
    assert (end(process), most) == (0, 2)
