"""Nothing of a patient leaves a slide, and with --anonymous-ids no name of a slide or patient either: searched byte by byte."""

import csv
import json
import os
import re
import shutil
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

from tests.builders import make_checkpoint, tissue, write_model, write_png
from tests.commands import HERE, run
from tests.marked import BLUE, MARK, find_marks, is_marked, write_marked_slide
from tests.served import TOKEN, connect, run_server
from wsi_pipeline.core.pseudonyms import open_pseudonyms
from wsi_pipeline.serve.settings import ServeSettings

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
    """Names of all files that come and go below some folders, and the command lines of all our children, while it watches."""

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
    """Slides in a folder that is called like a patient, one of them broken; labels, masks, a table of scales, ready-cut patches."""
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
        slides = [slide["slide_id"] for slide in client.get("/api/v1/slides").json()["slides"]]
        values = {"level": "0", "col": "0", "row": "0", "job_id": "0"}
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


def run_chain(root: Path) -> Chain:
    out, folder = root / "out", root / "QZMARKfolder"
    anonymous = ("--anonymous-ids", root / "secret" / "key")
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=True, **NO_DASHBOARD) as cluster,
        Client(cluster, set_as_default=False) as client,
        Watcher((out, root / "tmp", Path("/dev/shm"))) as watcher,
    ):
        there = ("--scheduler", cluster.scheduler_address)
        labels = (
            "--labels",
            root / "QZMARKlabels",
            "--mask",
            root / "QZMARKmasks",
            "--mpp-csv",
            root / "QZMARKscales.csv",
        )
        lines = [
            output_of(
                "tile",
                folder,
                "--out",
                out / "stores",
                "--mpp",
                0.5,
                "--patient-regex",
                "^([^_.]+)",
                *labels,
                *anonymous,
                *there,
                exit_code=3,
            ),
            output_of(
                "ingest", root / "QZMARKpatches", "--mpp", 4, "--out", out / "ingested", *anonymous
            ),
            output_of(
                "train",
                out / "stores",
                "--out",
                out / "model",
                "--epochs",
                1,
                "--test-patients",
                PATIENTS[0],
                "--device",
                "cpu",
                *anonymous,
            ),
        ]
        model = out / "model" / "model.safetensors"
        engine = ("--engine", "torch", "--device", "cpu")
        infer = ("infer", "--model", model, *engine, "--outputs", "all,geojson-patches")
        lines += [
            output_of(
                *infer,
                "--slides",
                folder,
                "--results-dir",
                out / "results",
                "--keep-patches",
                out / "kept",
                *anonymous,
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
                "--slides",
                folder,
                "--results-dir",
                out / "results",
                "--dry-run",
                *anonymous,
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
    pseudonyms, out = open_pseudonyms(chain.key), chain.root / "out"
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
    name = open_pseudonyms(chain.key).name("QZMARKbroken_1")
    for folder in ("stores", "results"):
        with (chain.root / "out" / folder / "failures.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert [(row["slide_id"], row["state"]) for row in rows] == [(name, "failed")]
        assert ID.search(rows[0]["reason"])


def test_the_key_and_its_links_are_their_owners_alone(chain: Chain) -> None:
    assert chain.key.stat().st_mode & 0o777 == 0o600
    links = chain.key.with_name("key.links")
    assert links.stat().st_mode & 0o777 == 0o700
    assert (
        links / f"{open_pseudonyms(chain.key).name(SLIDES[0])}.svs"
    ).readlink() == chain.root / "QZMARKfolder" / f"{SLIDES[0]}.svs"


def test_a_second_run_finds_everything_done(chain: Chain) -> None:
    out, key = chain.root / "out", chain.key
    arguments = ("--mpp", 4, "--out", out / "ingested", "--anonymous-ids", key)
    assert "nothing to do" in output_of("ingest", chain.root / "QZMARKpatches", *arguments)
    labels = (
        "--labels",
        chain.root / "QZMARKlabels",
        "--mask",
        chain.root / "QZMARKmasks",
        "--mpp-csv",
        chain.root / "QZMARKscales.csv",
    )
    places = [chain.root / "QZMARKfolder" / f"{name}.svs" for name in SLIDES]
    again = output_of(
        *(
            "tile",
            *places,
            "--out",
            out / "stores",
            "--mpp",
            0.5,
            "--patient-regex",
            "^([^_.]+)",
            *labels,
        ),
        *("--anonymous-ids", key, "--workers", 0),
    )
    assert "nothing to do" in again


def test_without_pseudonyms_metadata_and_folders_stay_out_of_pages_events_and_answers(
    tmp_path: Path,
) -> None:
    """Names of files are slide ids then, as documented; everything else that a slide says of a patient stays in it."""
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
    where_paths_may_stand = {"zarr.json", "run.json"}
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
    line = ("tile", folder, "--mpp", 0.5, "--workers", 0)
    named = output_of(*line, "--out", tmp_path / "named", exit_code=3)
    hidden = output_of(
        *line, "--out", tmp_path / "hidden", "--anonymous-ids", tmp_path / "key", exit_code=3
    )
    assert all("4 slides: 1 ok, 3 failed" in printed for printed in (named, hidden))
    assert MARK.decode() not in hidden
    assert find_marks(tmp_path / "hidden") == []


def test_a_copy_under_another_key_has_other_names(tmp_path: Path) -> None:
    write_marked_slide(tmp_path / "slides" / "s1.svs", tissue(400, 300))
    for key in ("one", "two"):
        output_of(
            "tile",
            tmp_path / "slides",
            "--out",
            tmp_path / key,
            "--mpp",
            0.5,
            "--workers",
            0,
            "--anonymous-ids",
            tmp_path / f"{key}.key",
        )
    names = [
        sorted(path.name for path in (tmp_path / key).glob("*.zarr")) for key in ("one", "two")
    ]
    assert names[0] != names[1]
    shutil.rmtree(tmp_path / "two.key.links")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--anonymous-ids", "{0}/out/key"), "would lie among the products"),
        (
            ("--anonymous-ids", "{0}/open"),
            "others may read this key; make it yours alone: chmod 600",
        ),
        (("--anonymous-ids", "{0}/short"), "a key of 3 bytes can be guessed"),
        (("--anonymous-ids", "{0}/nowhere/key"), "no key could be made there"),
    ],
)
def test_a_key_that_protects_nobody_is_refused(
    arguments: tuple[str, ...], fault: str, tmp_path: Path
) -> None:
    write_marked_slide(tmp_path / "slides" / "s1.svs", tissue(400, 300))
    for name, content, mode in (("open", "k" * 40, 0o644), ("short", "abc", 0o600)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(mode)
    printed = output_of(
        "tile",
        tmp_path / "slides",
        "--out",
        tmp_path / "out",
        *(part.format(tmp_path) for part in arguments),
        exit_code=1,
    )
    assert fault in printed
    assert not (tmp_path / "out").exists()
