"""Known labels and corrections over a real server: what is shown, written and refused."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.commands import SUMMARY, infer, run
from tests.served import TOKEN, connect, replace_probabilities, run_server
from wsi_pipeline.labels.geojson import read_geojson
from wsi_pipeline.serve.settings import ServeSettings
from wsi_pipeline.store.patches import PatchStore

TRUTH = "/api/v1/slides/one/truth"
CORRECTIONS = "/api/v1/slides/one/corrections"


@pytest.fixture
def root(served_root: Path, tmp_path: Path) -> Path:
    """Results of 12 × 10 patches of 50 px on `one`; rows 5 to 9 are positive."""
    root = tmp_path / "served"
    shutil.copytree(served_root, root)
    probability = np.full((10, 12), 0.1, dtype=np.float32)
    probability[5:] = 0.9
    replace_probabilities(root / "results", "one", probability)
    return root


@pytest.fixture
def client(root: Path) -> Iterator[httpx.Client]:
    with ExitStack() as stack:
        yield open_client(root, stack)


def open_client(root: Path, stack: ExitStack, reviewer: str | None = "ann") -> httpx.Client:
    settings = ServeSettings(
        results=(root / "results",),
        slides=root / "slides",
        token=TOKEN,
        decoders=1,
        reviewer=reviewer,
    )
    url, _ = stack.enter_context(run_server(settings))
    return stack.enter_context(connect(url))


def box(x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}


def write_labels(path: Path, **regions: dict[str, Any]) -> None:
    """A QuPath file with a region per class."""
    features = [
        {
            "type": "Feature",
            "geometry": geometry,
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, geometry in regions.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def labels_of(body: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(body["labels"]), dtype=np.int8).reshape(10, 12)


def test_without_labels_nothing_is_known(client: httpx.Client) -> None:
    body = client.get(TRUTH).json()
    assert (body["labels"], body["source"], body["note"]) == ("", "", "")


def test_the_label_file_beside_a_slide_is_shown(client: httpx.Client, root: Path) -> None:
    write_labels(
        root / "slides" / "one.geojson", positive=box(0, 0, 100, 100), negative=box(100, 0, 200, 50)
    )
    body = client.get(TRUTH).json()
    wanted = np.full((10, 12), -1)
    wanted[:2, :2], wanted[0, 2:4] = 1, 0
    assert (labels_of(body) == wanted).all()
    assert body["source"] == "one.geojson"
    (ring,) = body["positive"][0]
    assert sorted(map(tuple, ring[:4])) == [(0, 0), (0, 100), (100, 0), (100, 100)]
    assert client.get("/api/v1/slides/two/truth").json()["labels"] == ""


def test_a_label_file_that_cannot_be_read_is_a_note_without_folders(
    client: httpx.Client, root: Path
) -> None:
    write_labels(root / "slides" / "one.geojson", Stroma=box(0, 0, 100, 100))
    body = client.get(TRUTH).json()
    assert body["labels"] == ""
    assert body["note"].startswith("one.geojson: class 'Stroma' is unknown")
    assert str(root) not in body["note"]


def test_the_labels_of_an_evaluation_come_first(client: httpx.Client, root: Path) -> None:
    replace_probabilities(root / "results", "two", np.full((10, 12), 0.1, dtype=np.float32))
    labels = root / "labels"
    labels.mkdir()
    write_labels(labels / "one.geojson", Tumour=box(0, 250, 600, 500), Stroma=box(0, 0, 600, 250))
    write_labels(root / "slides" / "one.geojson", positive=box(0, 0, 600, 500))
    told = run(
        *("evaluate", root / "results", "--labels", labels),
        *("--map", "Tumour=positive", "--map", "Stroma=negative"),
    )
    assert told.exit_code == 0, told.output
    body = client.get(TRUTH).json()
    assert (labels_of(body)[5:] == 1).all()
    assert (labels_of(body)[:5] == 0).all()
    assert body["source"] == "one.geojson"


def test_the_truth_of_other_patches_is_not_shown(client: httpx.Client, root: Path) -> None:
    truth = root / "results" / "truth" / "one.json"
    truth.parent.mkdir()
    truth.write_text('{"kind": "wsi truth", "format_version": 1, "fingerprint": "x"}')
    assert client.get(TRUTH).json()["labels"] == ""
    truth.write_text("{")
    body = client.get(TRUTH).json()
    assert body["note"].startswith("truth/one.json: damaged")


def post(client: httpx.Client, **step: Any) -> httpx.Response:
    version = client.get(CORRECTIONS).json()["version"]
    return client.post(CORRECTIONS, json={"version": version, **step})


def draw(client: httpx.Client, name: str, geometry: dict[str, Any]) -> dict[str, Any]:
    answer = post(client, action="draw", class_name=name, geometry=geometry)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_correction_is_on_disk_when_it_is_confirmed(client: httpx.Client, root: Path) -> None:
    """A square of 100 px of 0.5 µm is 0.0025 mm²."""
    body = draw(client, "positive", box(0, 0, 100, 100))
    assert [each["area_mm2"] for each in body["regions"]] == [pytest.approx(0.0025)]
    path = root / "results" / "corrections" / "one.geojson"
    (region,) = read_geojson(path, True).regions
    assert (region.class_name, region.geometry.area) == ("positive", 10_000)
    assert client.get(CORRECTIONS).json() == body


def test_regions_are_relabelled_erased_and_taken_back(client: httpx.Client, root: Path) -> None:
    before = draw(client, "positive", box(0, 0, 100, 100))
    body = post(client, action="relabel", number=0, class_name="negative").json()
    assert [each["class_name"] for each in body["regions"]] == ["negative"]
    body = post(client, action="erase", geometry=box(50, 0, 100, 100)).json()
    assert [each["area_mm2"] for each in body["regions"]] == [pytest.approx(0.00125)]
    regions = [
        {
            "class_name": each["class_name"],
            "geometry": {"type": "MultiPolygon", "coordinates": each["outline"]},
        }
        for each in before["regions"]
    ]
    restored = client.put(CORRECTIONS, json={"version": body["version"], "regions": regions}).json()
    assert restored["regions"] == before["regions"]
    assert post(client, action="remove", number=0).json()["regions"] == []
    assert not (root / "results" / "corrections" / "one.geojson").exists()


def test_a_step_from_an_old_page_overwrites_nothing(client: httpx.Client) -> None:
    draw(client, "positive", box(0, 0, 100, 100))
    step = {"version": "none", "action": "draw", "class_name": "positive"}
    refused = client.post(CORRECTIONS, json=step | {"geometry": box(200, 200, 300, 300)})
    assert refused.status_code == 409
    assert "changed elsewhere" in refused.json()["error"]
    assert len(client.get(CORRECTIONS).json()["regions"]) == 1


def test_steps_at_the_same_time_are_written_one_after_the_other(client: httpx.Client) -> None:
    statuses: list[int] = []

    def step(x: int) -> None:
        while True:
            answer = post(
                client,
                action="draw",
                class_name="positive",
                geometry=box(x, 0, x + 40, 40),
            )
            statuses.append(answer.status_code)
            if answer.status_code != 409:
                return

    threads = [threading.Thread(target=step, args=(100 * each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.count(200) == 4
    assert len(client.get(CORRECTIONS).json()["regions"]) == 4


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"action": "draw", "class_name": "stroma", "geometry": box(0, 0, 9, 9)}, "is unknown"),
        ({"action": "draw", "geometry": box(0, 0, 9, 9)}, "is unknown"),
        ({"action": "draw", "class_name": "positive"}, "geometry of type"),
        ({"action": "erase", "geometry": {"type": "Point"}}, "geometry of type 'Point'"),
        ({"action": "remove", "number": 3}, "there is no region 3"),
        ({"action": "delete everything"}, "action"),
        ({"action": "remove", "number": -5}, "number"),
        ({"action": "remove", "number": 0, "path": "/etc/passwd"}, "path"),
        ({"action": "draw", "class_name": "x" * 201}, "class_name"),
    ],
)
def test_what_is_no_correction_is_refused_and_writes_nothing(
    client: httpx.Client, root: Path, step: dict[str, Any], words: str
) -> None:
    refused = post(client, **step)
    assert refused.status_code == 422
    assert words in refused.json()["error"]
    assert not (root / "results" / "corrections" / "one.geojson").exists()


@pytest.mark.parametrize(
    "content", [b"", b"[", b"[" * 100_000, b'{"version": NaN}', b"\xff\xfe", b"null"]
)
def test_bodies_that_are_no_json_are_refused(client: httpx.Client, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    refused = client.post(CORRECTIONS, content=content, headers=headers)
    assert refused.status_code in (400, 422)
    assert refused.json()["error"]


def test_a_file_that_somebody_spoilt_is_said_and_left_alone(
    client: httpx.Client, root: Path
) -> None:
    path = root / "results" / "corrections" / "one.geojson"
    path.parent.mkdir()
    path.write_text("{}")
    refused = client.get(CORRECTIONS)
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("one.geojson: not GeoJSON")
    assert path.read_text() == "{}"


def test_only_a_person_at_their_own_server_corrects(root: Path) -> None:
    with ExitStack() as stack:
        client = open_client(root, stack, None)
        assert client.get(CORRECTIONS).json()["can_write"] is False
        step = {"version": "none", "action": "draw", "class_name": "positive"}
        refused = client.post(CORRECTIONS, json=step | {"geometry": box(0, 0, 9, 9)})
        assert refused.status_code == 403
        assert client.put(CORRECTIONS, json={"version": "none", "regions": []}).status_code == 403


def test_a_page_of_another_origin_cannot_correct(client: httpx.Client, root: Path) -> None:
    step = {"version": "none", "action": "draw", "class_name": "positive"}
    body = step | {"geometry": box(0, 0, 9, 9)}
    elsewhere = {"origin": "https://elsewhere.example"}
    assert client.post(CORRECTIONS, json=body, headers=elsewhere).status_code == 403
    bare = httpx.post(str(client.base_url.join(CORRECTIONS)), json=body)
    assert bare.status_code == 401
    assert not (root / "results" / "corrections").exists()


def test_runs_aggregation_and_cleaning_leave_corrections_alone(
    client: httpx.Client, root: Path
) -> None:
    draw(client, "positive", box(0, 0, 100, 100))
    results = root / "results"
    path = results / "corrections" / "one.geojson"
    before = path.read_bytes()
    infer(root / "slides", root / "other.safetensors", results, view=SUMMARY, force=True)
    assert run("aggregate", results, "--threshold", 0.3, "--outputs", "summary").exit_code == 0
    assert run("clean", results).exit_code == 0
    assert path.read_bytes() == before


def test_corrections_label_a_store(client: httpx.Client, root: Path) -> None:
    """Four patches of 50 px positive; two columns of them, ten rows, negative."""
    draw(client, "positive", box(0, 0, 100, 100))
    body = draw(client, "negative", box(200, 0, 300, 500))
    assert body["lines"][0] == "wsi tile SLIDES --out stores --labels results/corrections"
    told = run(
        *("tile", root / "slides" / "one.tiff", "-o", root / "stores", "--workers", 0),
        *("--mpp", 0.5, "--min-tissue", 0, "--labels", root / "results" / "corrections"),
    )
    assert told.exit_code == 0, told.output
    store = PatchStore(root / "stores" / "one.patches.zarr")
    assert np.bincount(store.labels + 1).tolist() == [96, 20, 4]
    post(client, action="remove", number=0)
    told = run("label", root / "stores", "--labels", root / "results" / "corrections")
    assert told.exit_code == 0, told.output
    labels = PatchStore(root / "stores" / "one.patches.zarr").labels
    assert np.bincount(labels + 1, minlength=3).tolist() == [100, 20, 0]
