"""Nothing of a patient leaves a slide, and on a folder of `wsi pseudonymize` no name either.

Both are searched for byte by byte.
"""

import csv
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster

from tests.builders import SMALL, make_checkpoint, tissue, write_model, write_png
from tests.commands import HERE, run
from tests.marked import BLUE, MARK, find_marks, is_marked, write_marked_slide
from tests.served import TOKEN, connect, run_server
from wsi_pipeline.runs.pseudonym_key import Pseudonyms, open_key
from wsi_pipeline.serve.settings import ServeSettings
from wsi_pipeline.store.patches import PatchStore

SLIDES = ("QZMARKanna_1", "QZMARKberta_1", "QZMARKcarla_1")
PATIENTS = tuple(name.split("_")[0] for name in SLIDES)
pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
]  # a minute of work, on a machine that may have other things to do
NO_DASHBOARD: dict[str, Any] = {
    "dashboard_address": "127.0.0.1:0",
    "scheduler_kwargs": {"dashboard": False},
}
ID = re.compile(r"anon-[0-9a-f]{16}")


def output_of(*arguments: object, exit_code: int = 0) -> str:
    """A command's whole output."""
    answer = run(*arguments)
    assert answer.exit_code == exit_code, answer.output
    return answer.stdout + answer.stderr


@dataclass
class Watcher:
    """Names of all files that come and go below some folders, and the command lines of all our
    children, while it watches.
    """

    folders: tuple[Path, ...]
    seen: set[str] = field(default_factory=set)
    _end: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watcher":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            for folder in self.folders:
                for _, folders, files in os.walk(folder):
                    self.seen.update(folders, files)
            for child in psutil.Process().children(recursive=True):
                try:
                    self.seen.update(child.cmdline())
                except psutil.Error:
                    continue


@dataclass(frozen=True)
class Chain:
    """Everything that one project left behind."""

    root: Path
    output: str
    """Of all commands."""
    temporary: set[str]
    scheduler: str
    """Every task, transition and event that the scheduler knew of."""
    answers: dict[str, bytes]
    """Path → everything that the server answered, headers too."""

    @property
    def key(self) -> Path:
        return self.root / "secret" / "key"

    @property
    def links(self) -> Path:
        return self.root / "links"

    @property
    def pseudonyms(self) -> Pseudonyms:
        return open_key(self.key, self.links)


def draw_labels(path: Path) -> None:
    """The left half is positive, the right half negative."""
    boxes = {"positive": (0, 200), "negative": (200, 400)}
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[x0, 0], [x1, 0], [x1, 300], [x0, 300], [x0, 0]]],
            },
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, (x0, x1) in boxes.items()
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def make_inputs(root: Path) -> None:
    """Slides in a folder that is called like a patient, one of them broken; labels, masks, a table
    of scales, ready-cut patches.
    """
    folder = root / "QZMARKfolder"
    for seed, name in enumerate(SLIDES):
        write_marked_slide(folder / f"{name}.svs", tissue(400, 300, seed))
        draw_labels(root / "QZMARKlabels" / f"{name}.geojson")
    whole = (folder / f"{SLIDES[0]}.svs").read_bytes()
    (folder / "QZMARKbroken_1.svs").write_bytes(whole[: len(whole) // 2])
    for name in (*SLIDES, "QZMARKbroken_1"):
        write_png(root / "QZMARKmasks" / f"{name}_mask.png", np.full((30, 40), 255, dtype=np.uint8))
    (root / "QZMARKscales.csv").write_text(
        "wsi,mpp\n" + "".join(f"{name}.svs,0.5\n" for name in SLIDES)
    )
    patches = root / "QZMARKpatches"
    for index in range(6):
        write_png(
            patches / f"QZMARK{index % 2}_idx5_x{1 + 50 * index}_y1_class{index % 2}.png",
            tissue(50, 50, seed=index),
        )
    write_png(patches / "QZMARK0_idx5_x1_y101_class0.png", tissue(40, 50))
    (patches / "QZMARK0_idx5_x51_y101_class0.png").write_bytes(b"no picture")


def list_tasks(client: Client) -> str:
    """All that the scheduler remembers."""

    def tell(dask_scheduler: Any) -> str:
        topics = {
            topic: list(kept.events) for topic, kept in dask_scheduler._broker._topics.items()
        }
        return repr((list(dask_scheduler.tasks), list(dask_scheduler.transition_log), topics))

    told: str = client.run_on_scheduler(tell)
    workers = client.run(
        lambda dask_worker: repr((list(dask_worker.state.tasks), list(dask_worker.state.log)))
    )
    return told + repr(workers)


def crawl(url: str) -> dict[str, bytes]:
    """Everything that GET answers: pages, and every route of the API for every slide and run."""
    with connect(url) as client:
        paths = ["/", "/metrics", "/api/v1/nothing", "/api/v1/slides/nothing", f"/?token={TOKEN}"]
        listed = client.get("/api/v1/slides").json()
        slides, run_id = [row["slide_id"] for row in listed["slides"]], listed["runs"][0]["run_id"]
        values = {"level": "0", "col": "0", "row": "0", "job_id": "0", "run_id": run_id}
        for template, methods in client.get("/openapi.json").json()["paths"].items():
            if "get" in methods:
                paths += [
                    template.replace("{slide_id}", slide).format(**values)
                    for slide in (slides if "{slide_id}" in template else [""])
                ]
        return {path: _whole(client.get(path)) for path in dict.fromkeys(paths)}


def _whole(answer: httpx.Response) -> bytes:
    return repr((answer.status_code, answer.headers.raw)).encode() + b"\r\n\r\n" + answer.content


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    root = tmp_path_factory.mktemp("chain")
    make_inputs(root)
    for name in ("secret", "tmp", "out"):
        (root / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(root / "tmp"))
        patch.chdir(root / "out")
        yield run_chain(root)


def pseudonymize_slides(root: Path) -> tuple[object, ...]:
    """The command that links the slides, their labels, masks and scales."""
    return (
        *("pseudonymize", root / "QZMARKfolder", "--patient-regex", "^([^_.]+)"),
        *("--labels", root / "QZMARKlabels", "--mask", root / "QZMARKmasks"),
        *("--mpp-csv", root / "QZMARKscales.csv"),
        *("--out", root / "links", "--key", root / "secret" / "key"),
    )


def pseudonymize_patches(root: Path) -> tuple[object, ...]:
    """The command that links the ready-cut patches."""
    return (
        *("pseudonymize", root / "QZMARKpatches", "--layout", "idc"),
        *("--out", root / "patches", "--key", root / "secret" / "key"),
    )


def tile_line(root: Path) -> tuple[object, ...]:
    """The command that tiles the links."""
    links = root / "links"
    return (
        *("tile", "--sheet", links / "slides.csv", "--mask", links / "masks"),
        *("--out", root / "out" / "stores", "--mpp", 0.5),
    )


def ingest_line(root: Path) -> tuple[object, ...]:
    """The command that takes in the links to patches."""
    return ("ingest", root / "patches", "--mpp", 4, "--out", root / "out" / "ingested")


def run_chain(root: Path) -> Chain:
    out = root / "out"
    links, key = root / "links", root / "secret" / "key"
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=True, **NO_DASHBOARD) as cluster,
        Client(cluster, set_as_default=False) as client,
        Watcher((out, root / "tmp", Path("/dev/shm"))) as watcher,
    ):
        there = ("--scheduler", cluster.scheduler_address)
        lines = [
            output_of(*pseudonymize_slides(root)),
            output_of(*pseudonymize_patches(root)),
            output_of(*tile_line(root), *there, exit_code=3),
            output_of(*ingest_line(root)),
            output_of(
                "train",
                out / "stores",
                "--out",
                out / "model",
                "--arch",
                SMALL,
                "--epochs",
                1,
                "--test-patients",
                open_key(key, links).name(PATIENTS[0]),
                "--device",
                "cpu",
            ),
        ]
        model = out / "model" / "model.safetensors"
        engine = ("--engine", "torch", "--device", "cpu")
        infer = ("infer", "--model", model, *engine, "--outputs", "all,geojson-patches")
        lines += [
            output_of(
                *infer,
                "--sheet",
                links / "slides.csv",
                "--results-dir",
                out / "results",
                "--keep-patches",
                out / "kept",
                *there,
                exit_code=3,
            ),
            output_of(
                "infer",
                "--model",
                model,
                *engine,
                "--outputs",
                "summary",
                "--stores",
                out / "stores",
                "--results-dir",
                out / "judged",
                *there,
            ),
            output_of(
                "infer",
                "--model",
                model,
                *engine,
                "--sheet",
                links / "slides.csv",
                "--results-dir",
                out / "results",
                "--dry-run",
                exit_code=3,
            ),
            output_of(
                "aggregate",
                out / "results",
                "--threshold",
                0.4,
                "--outputs",
                "summary,csv",
                "--out",
                out / "again",
            ),
            output_of("evaluate", out / "judged"),
            output_of("export", model, "--to", "torchscript", "--out", out / "exported"),
            output_of("store", "info", out / "stores", out / "ingested"),
            output_of(
                "store", "export", out / "ingested", "--to", "webdataset", "--out", out / "tars"
            ),
            output_of("label", out / "stores", "--export", out / "regions"),
            output_of("model", "info", model),
            output_of("status", out / "results"),
            output_of("status", out / "results", "--json"),
            output_of("view", out / "judged", "--no-open"),
        ]
        tasks = list_tasks(client)
    with run_server(
        ServeSettings(
            results=(out / "results",), token=TOKEN, device="cpu", workers=HERE, decoders=1
        )
    ) as (url, _):
        answers = crawl(url)
    return Chain(root, "\n".join(lines), watcher.seen, tasks, answers)


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    """Otherwise the tests below would be happy with anything."""
    slide = write_marked_slide(tmp_path / "s.svs", tissue(400, 300))
    import openslide

    with openslide.OpenSlide(slide) as opened:
        assert {"label", "macro", "thumbnail"} <= set(opened.associated_images)
        assert len([name for name, value in opened.properties.items() if "QZMARK" in value]) > 10
        opened.associated_images["label"].convert("RGB").save(tmp_path / "label.jpg", quality=50)
        opened.associated_images["label"].convert("RGB").save(tmp_path / "label.png")
    assert is_marked((tmp_path / "label.jpg").read_bytes())
    assert is_marked((tmp_path / "label.png").read_bytes())
    assert BLUE == (0, 0, 255)
    assert MARK not in (tmp_path / "label.png").read_bytes()
    assert len(find_marks(tmp_path)) == 3


def test_no_mark_is_in_any_product_log_or_name(chain: Chain) -> None:
    assert find_marks(chain.root / "out") == []


def test_no_mark_is_in_what_commands_print(chain: Chain) -> None:
    assert [line for line in chain.output.splitlines() if "QZMARK" in line] == []


def test_no_mark_is_in_temporary_names_or_command_lines(chain: Chain) -> None:
    assert {name for name in chain.temporary if "QZMARK" in name} == set()
    assert any(name.startswith("anon-") for name in chain.temporary)


def test_no_mark_is_in_task_keys_and_the_schedulers_memory(chain: Chain) -> None:
    assert "QZMARK" not in chain.scheduler
    assert "anon-" not in chain.scheduler
    assert chain.scheduler.count("block-") > 8


def test_no_mark_is_in_what_the_server_answers(chain: Chain) -> None:
    assert [
        path
        for path, answer in chain.answers.items()
        if is_marked(answer.partition(b"\r\n\r\n")[2]) or MARK in answer
    ] == []
    assert sum(answer.startswith(b"(200") for answer in chain.answers.values()) > 30


def test_a_slide_and_its_patient_are_called_the_same_in_every_run(chain: Chain) -> None:
    pseudonyms, out = chain.pseudonyms, chain.root / "out"
    for slide, patient in zip(SLIDES, PATIENTS, strict=True):
        name = pseudonyms.name(slide)
        assert (out / "stores" / f"{name}.patches.zarr").is_dir()
        assert (out / "results" / name / "summary.json").is_file()
        assert (out / "kept" / f"{name}.patches.zarr").is_dir()
        attributes = json.loads(
            (out / "stores" / f"{name}.patches.zarr" / "zarr.json").read_bytes()
        )["attributes"]
        assert (attributes["slide"]["slide_id"], attributes["patient_id"]) == (
            name,
            pseudonyms.name(patient),
        )
    assert json.loads((out / "model" / "split.json").read_bytes())["test"] == [
        pseudonyms.name(PATIENTS[0])
    ]
    with (out / "ingested" / "left_out.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 2


def test_failures_are_told_by_pseudonym_and_reason(chain: Chain) -> None:
    name = chain.pseudonyms.name("QZMARKbroken_1")
    for folder in ("stores", "results"):
        with (chain.root / "out" / folder / "failures.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert [(row["slide_id"], row["state"]) for row in rows] == [(name, "failed")]
        assert ID.search(rows[0]["reason"])


def test_stores_record_the_path_of_the_link(chain: Chain) -> None:
    name = chain.pseudonyms.name(SLIDES[0])
    store = chain.root / "out" / "stores" / f"{name}.patches.zarr"
    attributes = json.loads((store / "zarr.json").read_bytes())["attributes"]
    assert attributes["slide"]["path"] == str(chain.links / f"{name}.svs")


def test_scales_labels_and_masks_reach_the_stores(chain: Chain) -> None:
    """The masks say that all of a slide is tissue, the labels that each patch has a class."""
    name = chain.pseudonyms.name(SLIDES[0])
    store = PatchStore(chain.root / "out" / "stores" / f"{name}.patches.zarr")
    assert store.table.slide.mpp_source == "user (slides.csv)"
    assert len(store.table.positions) == 6 * 8
    assert set(np.asarray(store.table.labels).tolist()) == {0, 1}


def test_the_key_and_its_links_are_their_owners_alone(chain: Chain) -> None:
    assert chain.key.stat().st_mode & 0o777 == 0o600
    assert chain.links.stat().st_mode & 0o777 == 0o700
    assert (chain.links / "mapping.csv").stat().st_mode & 0o777 == 0o600
    link = chain.links / f"{chain.pseudonyms.name(SLIDES[0])}.svs"
    assert link.readlink() == chain.root / "QZMARKfolder" / f"{SLIDES[0]}.svs"


def test_a_second_run_finds_everything_done(chain: Chain) -> None:
    output_of(*pseudonymize_slides(chain.root))
    output_of(*pseudonymize_patches(chain.root))
    assert "nothing to do" in output_of(*ingest_line(chain.root))
    again = output_of(*tile_line(chain.root), "--workers", 0, exit_code=3)
    assert "3 slides were already done by an earlier run" in again


def test_without_pseudonyms_metadata_and_folders_stay_out_of_pages_events_and_answers(
    tmp_path: Path,
) -> None:
    """Names of files are slide ids then, as documented; everything else that a slide says of a
    patient stays in it.
    """
    write_marked_slide(tmp_path / "QZFOLDER" / "s1.svs", tissue(400, 300))
    model, results = (
        write_model(tmp_path / "m.safetensors", make_checkpoint()),
        tmp_path / "results",
    )
    infer = (
        "infer",
        "--slides",
        tmp_path / "QZFOLDER",
        "--model",
        model,
        "--results-dir",
        results,
        "--engine",
        "torch",
        "--workers",
        0,
    )
    printed = output_of(*infer, "--device", "cpu", "--outputs", "summary,report,dicom")
    output_of(
        "tile", tmp_path / "QZFOLDER", "--out", tmp_path / "stores", "--mpp", 0.5, "--workers", 0
    )
    assert find_marks(results) == find_marks(tmp_path / "stores") == []
    assert "QZ" not in printed.replace(str(tmp_path), "")
    where_paths_may_stand = {"zarr.json", "run.json", "run.yaml"}
    named = {
        Path(found.removeprefix("name ")).name for found in find_marks(results, mark=b"QZFOLDER")
    }
    assert named <= where_paths_may_stand
    with run_server(
        ServeSettings(results=(results,), token=TOKEN, device="cpu", workers=HERE, decoders=1)
    ) as (url, _):
        answers = crawl(url)
    assert [
        path
        for path, answer in answers.items()
        if b"QZFOLDER" in answer or is_marked(answer.partition(b"\r\n\r\n")[2])
    ] == []


def test_a_link_that_leads_to_itself_is_one_failed_slide_whose_name_nobody_tells(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "QZMARKfolder"
    write_marked_slide(folder / "QZMARKanna_1.svs", tissue(400, 300))
    (folder / "QZMARKloop.svs").symlink_to(folder / "QZMARKloop.svs")
    (folder / "QZMARKround.svs").symlink_to(folder / "QZMARKabout.svs")
    (folder / "QZMARKabout.svs").symlink_to(folder / "QZMARKround.svs")
    line = ("tile", "--mpp", 0.5, "--workers", 0)
    named = output_of(*line, folder, "--out", tmp_path / "named", exit_code=3)
    links = tmp_path / "links"
    output_of("pseudonymize", folder, "--out", links, "--key", tmp_path / "key")
    hidden = output_of(*line, links, "--out", tmp_path / "hidden", exit_code=3)
    hidden += output_of(
        *line, "--sheet", links / "slides.csv", "--out", tmp_path / "hidden", exit_code=3
    )
    ending = "4 slides: 1 ok, 3 failed"
    assert named.count(ending) == 1
    assert hidden.count(ending) == 2
    assert MARK.decode() not in hidden
    assert find_marks(tmp_path / "hidden") == []


def break_slides(folder: Path) -> None:
    """Slides that each library refuses, in each way that makes it name a file."""
    whole = write_marked_slide(folder / "QZMARKanna_1.svs", tissue(400, 300)).read_bytes()
    for suffix in (".svs", ".tif", ".ndpi", ".scn", ".bif", ".svslide", ".png", ".jpg", ".dcm"):
        (folder / f"QZMARKnone{suffix}").write_bytes(b"")
        (folder / f"QZMARKhalf{suffix}").write_bytes(whole[: len(whole) // 2])
        (folder / f"QZMARKgone{suffix}").symlink_to(folder / f"QZMARKnowhere{suffix}")
    (folder / "QZMARKdicom.dcm").write_bytes(bytes(128) + b"DICM" + bytes(64))
    for name, entries in (
        ("QZMARKbare", None),
        ("QZMARKempty", {}),
        ("QZMARKini", {"Slidedat.ini": "[GENERAL]\nSLIDE_ID = QZMARKid\n"}),
        ("QZMARKdir", {"Slidedat.ini/x": ""}),
    ):
        (folder / f"{name}.mrxs").write_bytes(b"x")
        if entries is not None:
            (folder / name).mkdir()
        for entry, text in (entries or {}).items():
            (folder / name / entry).parent.mkdir(exist_ok=True)
            (folder / name / entry).write_text(text)
    (folder / "QZMARKsecret.svs").write_bytes(whole)
    (folder / "QZMARKsecret.svs").chmod(0)


@pytest.mark.parametrize("reader", ["auto", "tiff", "openslide", "image"])
def test_no_library_tells_where_the_link_of_a_broken_slide_leads(
    reader: str, tmp_path: Path
) -> None:
    break_slides(tmp_path / "QZMARKfolder")
    links, out, model = tmp_path / "links", tmp_path / "out", tmp_path / "m.safetensors"
    write_model(model, make_checkpoint())
    output_of("pseudonymize", tmp_path / "QZMARKfolder", "--out", links, "--key", tmp_path / "key")
    sheet = ("--sheet", links / "slides.csv", "--workers", 0)
    printed = run("tile", *sheet, "--out", out / "stores", "--mpp", 0.5, "--reader", reader)
    shown = [printed]
    if reader == "auto":
        engine = ("--engine", "torch", "--device", "cpu", "--outputs", "summary")
        infer = ("infer", *sheet, "--model", model, "--results-dir", out / "results", *engine)
        shown += [run(*infer), run(*infer, "--dry-run")]
        shown += [run("info", link) for link in sorted(links.glob("anon-*"))]
    assert [line for each in shown for line in each.output.splitlines() if "QZMARK" in line] == []
    assert find_marks(out) == []
    with (out / "stores" / "failures.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) > 20
    assert all(ID.search(row["reason"]) for row in rows)
