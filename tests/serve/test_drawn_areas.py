"""Jobs with a region over a real server: what is computed, kept, written and refused."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.builders import folder_bytes, make_checkpoint, tissue, write_model, write_slide
from tests.commands import infer, spawn
from tests.serve.test_annotations import box
from tests.served import TOKEN, connect, make_run, run_server, serve_all, wait_until
from wsi_pipeline.core.choices import DRAWN
from wsi_pipeline.labels.geojson import read_geojson
from wsi_pipeline.serve import catalogue, job_queue
from wsi_pipeline.serve.services import Services
from wsi_pipeline.serve.settings import Limits, ServeSettings
from wsi_pipeline.store.slide_results import open_result

FOUR = box(400, 100, 500, 200)
"""On bare glass: rows 2 and 3, columns 8 and 9 of the patches of 50 px."""
OTHER_FOUR = box(500, 300, 600, 400)
AS_SERVED: dict[str, Any] = {"engine": "auto", "precision": "auto"}


def make_half(root: Path) -> Path:
    """`half`: tissue on the left 300 px of 600, 60 patches inferred; `bare`: the same, not yet."""
    pixels = tissue(600, 500)
    pixels[:, 300:] = 245
    write_slide(root / "slides" / "half.tiff", pixels)
    make_run(root, ())
    write_slide(root / "slides" / "bare.tiff", pixels)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_half(tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(catalogue, "REFRESH_S", 0.0)
    root = tmp_path / "served"
    shutil.copytree(made, root)
    return root


@pytest.fixture
def running(root: Path) -> Iterator[tuple[str, Services]]:
    with run_server(serve_all(root, ("results",), limits=Limits(jobs=2))) as running:
        yield running


@pytest.fixture
def client(running: tuple[str, Services]) -> Iterator[httpx.Client]:
    with connect(running[0]) as client:
        yield client


def drawn_path(root: Path, slide_id: str = "half") -> Path:
    return root / "results" / DRAWN / f"{slide_id}.geojson"


def areas_on_disk(path: Path) -> list[float]:
    """The areas in px² of what is drawn, as QuPath would read it."""
    return [each.geometry.area for each in read_geojson(path, True).regions]


def ask(client: httpx.Client, region: Any, slide_id: str = "half", **more: Any) -> httpx.Response:
    return client.post("/api/v1/jobs", json={"slide_id": slide_id, "region": region, **more})


def run_job(client: httpx.Client, region: Any, slide_id: str = "half") -> dict[str, Any]:
    """Run a job to its end and return it."""
    answer = ask(client, region, slide_id)
    assert answer.status_code == 202, answer.text
    place = f"/api/v1/jobs/{answer.json()['job_id']}"
    wait_until(lambda: client.get(place).json()["state"] in job_queue.ENDED, 60)
    job: dict[str, Any] = client.get(place).json()
    return job


def own_map(root: Path, slide_id: str = "half") -> NDArray[np.float32]:
    """Probability of each patch alone, (rows, cols); NaN where nothing was assessed."""
    predictions = open_result(root / "results" / slide_id)
    values = np.full((10, 12), np.nan, dtype=np.float32)
    values[tuple(predictions.table.positions.T)] = predictions.alone
    return values


def drawn(client: httpx.Client, slide_id: str = "half") -> dict[str, Any]:
    body: dict[str, Any] = client.get(f"/api/v1/slides/{slide_id}/drawn").json()
    return body


def test_a_job_with_a_region_computes_its_patches_and_keeps_all_others(
    client: httpx.Client, root: Path
) -> None:
    before = own_map(root)
    job = run_job(client, FOUR)
    assert (job["state"], job["patches_done"], job["patches_total"]) == ("done", 64, 64)
    after = own_map(root)
    is_new = np.isnan(before) & ~np.isnan(after)
    assert np.argwhere(is_new).tolist() == [[2, 8], [2, 9], [3, 8], [3, 9]]
    assert after[~is_new].tobytes() == before[~is_new].tobytes()
    assert client.get("/api/v1/slides/half/summary").json()["patches"] == 64


def test_areas_join_those_before_one_by_one(client: httpx.Client, root: Path) -> None:
    run_job(client, FOUR)
    job = run_job(client, OTHER_FOUR)
    assert job["state"] == "done"
    assert areas_on_disk(drawn_path(root)) == [10_000, 10_000]
    assert np.count_nonzero(~np.isnan(own_map(root))) == 68


def test_the_same_area_again_is_neither_written_nor_computed_twice(
    client: httpx.Client, root: Path
) -> None:
    run_job(client, FOUR)
    before = folder_bytes(root / "results" / "half")
    job = run_job(client, FOUR)
    assert (job["state"], job["patches_done"]) == ("done", 0)
    assert areas_on_disk(drawn_path(root)) == [10_000]
    assert folder_bytes(root / "results" / "half") == before


def test_on_a_slide_without_results_the_area_is_assessed_alone(
    client: httpx.Client, root: Path
) -> None:
    job = run_job(client, box(250, 0, 350, 100), "bare")
    assert (job["state"], job["patches_done"]) == ("done", 4)
    places = np.argwhere(~np.isnan(own_map(root, "bare"))).tolist()
    assert places == [[0, 5], [0, 6], [1, 5], [1, 6]]


@pytest.mark.parametrize("slide_id", ["half", "bare"])
def test_a_run_afterwards_gives_what_a_run_of_both_at_once_gives(
    client: httpx.Client, root: Path, slide_id: str
) -> None:
    run_job(client, FOUR, slide_id)
    model, fresh = root / "results.safetensors", root / "fresh"
    shutil.copytree(root / "results" / DRAWN, fresh / DRAWN)
    slide = root / "slides" / f"{slide_id}.tiff"
    assert infer(slide, model, root / "results", **AS_SERVED).exit_code == 0
    assert infer(slide, model, fresh, **AS_SERVED).exit_code == 0
    one, other = (open_result(each / slide_id) for each in (root / "results", fresh))
    assert len(other.table.positions) == 64
    assert one.table.positions.tolist() == other.table.positions.tolist()
    assert one.alone.tobytes() == other.alone.tobytes()
    again = folder_bytes(root / "results" / slide_id)
    assert infer(slide, model, root / "results", **AS_SERVED).exit_code == 0
    assert folder_bytes(root / "results" / slide_id) == again


NAN = float("nan")


def polygon(corners: int, step: int) -> dict[str, Any]:
    """Corners on a circle, each so many steps from the one before."""
    turn = 2 * np.pi * step / corners * np.arange(corners)
    ring = np.stack([300 + 200 * np.cos(turn), 250 + 200 * np.sin(turn)], axis=1)
    return {"type": "Polygon", "coordinates": [ring.tolist()]}


HOSTILE = {
    "nan": ({"type": "Polygon", "coordinates": [[[0, 0], [NAN, 9], [9, 9]]]}, "not finite"),
    "infinite": ({"type": "Polygon", "coordinates": [[[0, 0], [1e400, 9], [9, 9]]]}, "not finite"),
    "huge": ({"type": "Polygon", "coordinates": [[[0, 0], [10**400, 9], [9, 9]]]}, "beyond"),
    "empty": ({}, "geometry of type"),
    "no ring": ({"type": "Polygon", "coordinates": []}, "not a list of 1"),
    "a line": ({"type": "Polygon", "coordinates": [[[0, 0], [9, 9], [18, 18]]]}, "no area"),
    "a point": ({"type": "Point", "coordinates": [5, 5]}, "geometry of type 'Point'"),
    "a feature": ({"type": "Feature", "geometry": FOUR}, "geometry of type 'Feature'"),
    "three numbers": ({"type": "Polygon", "coordinates": [[[0, 0, 0]] * 4]}, "pair of numbers"),
    "text": ({"type": "Polygon", "coordinates": [[["0", "0"]] * 4]}, "pair of numbers"),
    "too long to be read": ({"type": "Polygon", "coordinates": [[[1, 1]] * 100_001]}, "100,000"),
    "many corners": (polygon(3000, 1), "more than 2,000 corners"),
    "a scribble": (polygon(300, 137), "crosses itself more than 1,000 times"),
    "of a larger slide": (box(0, 0, 5000, 5000), "beyond the slide of 600 × 500 px"),
    "beside the slide": (box(610, 0, 650, 50), "beyond the slide of 600 × 500 px"),
    "no patch": (box(410, 110, 415, 115), "no patch of 25 µm lies in it by 50%"),
    "no table": ([1, 2], "region"),
    "a number": (7, "region"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_region_is_refused_and_leaves_everything_as_it_is(
    client: httpx.Client, root: Path, name: str
) -> None:
    region, words = HOSTILE[name]
    content = json.dumps({"slide_id": "half", "region": region}).encode()
    answer = client.post(
        "/api/v1/jobs", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert words in answer.json()["error"]
    assert str(root) not in answer.text
    assert not (root / "results" / DRAWN).exists()
    assert client.get("/api/v1/jobs").json() == []


def test_a_line_that_crosses_itself_encloses_both_its_sides(
    client: httpx.Client, root: Path
) -> None:
    """A bow tie of 100 × 100 px: two triangles of 100 × 50 / 2 px² each."""
    bow = {"type": "Polygon", "coordinates": [[[400, 100], [500, 200], [500, 100], [400, 200]]]}
    assert run_job(client, bow)["state"] == "done"
    assert areas_on_disk(drawn_path(root)) == [5000]


def test_what_lies_beyond_the_edge_is_cut_off(client: httpx.Client, root: Path) -> None:
    assert run_job(client, box(500, 400, 630, 530))["state"] == "done"
    assert areas_on_disk(drawn_path(root)) == [10_000]


def test_a_region_of_another_slide_or_with_force_is_refused(
    client: httpx.Client, root: Path
) -> None:
    assert ask(client, FOUR, "nobody").status_code == 404
    assert ask(client, FOUR, "../slides/half").status_code == 404
    refused = ask(client, FOUR, force=True)
    assert refused.status_code == 422
    assert "force replaces all results" in refused.json()["error"]
    assert not (root / "results" / DRAWN).exists()


def test_an_area_joins_no_results_of_another_model(root: Path) -> None:
    settings = serve_all(root, ("results",))
    other = write_model(root / "other.safetensors", make_checkpoint(seed=9))
    with run_server(replace(settings, model=other)) as (url, _), connect(url) as client:
        refused = ask(client, FOUR)
    assert refused.status_code == 409
    assert "results are of another model" in refused.json()["error"]
    assert not (root / "results" / DRAWN).exists()


def test_where_the_queue_refuses_nothing_is_written(
    client: httpx.Client, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(job_queue, "infer_slides", lambda *_, **__: may_end.wait(20))
    assert ask(client, FOUR).status_code == 202
    before = drawn_path(root).read_bytes()
    assert ask(client, OTHER_FOUR).status_code == 409
    assert client.post("/api/v1/jobs", json={"slide_id": "bare"}).status_code == 202
    full = ask(client, OTHER_FOUR)
    assert full.status_code == 429
    assert "2 jobs are waiting" in full.json()["error"]
    assert drawn_path(root).read_bytes() == before
    may_end.set()


@pytest.mark.parametrize("fault", [KeyError("a key"), MemoryError(), SystemExit(2), None])
def test_a_job_that_fails_takes_its_own_area_back_and_no_other(
    client: httpx.Client,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException | None,
) -> None:
    def break_off(*_: Any, **__: Any) -> None:
        if fault is not None:
            raise fault

    run_job(client, FOUR)
    before = drawn_path(root).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(job_queue, "infer_slides", break_off)
        assert run_job(client, OTHER_FOUR)["state"] == "failed"
        assert run_job(client, FOUR)["state"] == "failed"
    assert drawn_path(root).read_bytes() == before


def test_an_area_on_a_slide_that_cannot_be_read_is_refused(
    client: httpx.Client, root: Path
) -> None:
    (root / "slides" / "broken.tiff").write_bytes(b"II*\0" + bytes(100))
    refused = ask(client, FOUR, "broken")
    assert refused.status_code in (404, 422)
    assert not drawn_path(root, "broken").exists()


def test_where_areas_cannot_be_written_there_is_no_job(client: httpx.Client, root: Path) -> None:
    (root / "results" / DRAWN).write_text("no folder")
    assert ask(client, FOUR).status_code in (422, 500, 503)
    assert client.get("/api/v1/jobs").json() == []
    (root / "results" / DRAWN).unlink()
    assert run_job(client, FOUR)["state"] == "done"


def test_a_file_that_somebody_spoilt_is_said_and_left_alone(
    client: httpx.Client, root: Path
) -> None:
    path = drawn_path(root)
    path.parent.mkdir()
    path.write_text("{}")
    for refused in (client.get("/api/v1/slides/half/drawn"), ask(client, FOUR)):
        assert refused.status_code == 422
        assert refused.json()["error"].startswith("half.geojson: not GeoJSON")
    assert path.read_text() == "{}"
    assert client.get("/api/v1/jobs").json() == []


def test_drawn_areas_are_shown_and_removed(client: httpx.Client, root: Path) -> None:
    """100 px of 0.5 µm squared are 0.0025 mm²."""
    body = drawn(client)
    assert body == {"version": "none", "run_id": "r0", "can_write": True, "areas": []}
    run_job(client, FOUR)
    body = drawn(client)
    assert [each["area_mm2"] for each in body["areas"]] == [pytest.approx(0.0025)]
    assert sorted(map(tuple, body["areas"][0]["outline"][0][0][:4])) == [
        (400, 100),
        (400, 200),
        (500, 100),
        (500, 200),
    ]
    place = "/api/v1/slides/half/drawn/0"
    assert client.delete(place, params={"version": "none"}).status_code == 409
    assert client.delete(place).status_code == 422
    assert client.delete(f"{place}7", params={"version": body["version"]}).status_code == 422
    left = client.delete(place, params={"version": body["version"]})
    assert left.json() == {"version": "none", "run_id": "r0", "can_write": True, "areas": []}
    assert not drawn_path(root).exists()
    assert np.count_nonzero(~np.isnan(own_map(root))) == 64  # until the next run
    infer(root / "slides" / "half.tiff", root / "results.safetensors", root / "results", force=True)
    assert np.count_nonzero(~np.isnan(own_map(root))) == 60


def test_an_area_stays_while_a_job_runs(
    client: httpx.Client, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(job_queue, "infer_slides", lambda *_, **__: may_end.wait(20))
    assert ask(client, FOUR).status_code == 202
    version = drawn(client)["version"]
    refused = client.delete("/api/v1/slides/half/drawn/0", params={"version": version})
    assert refused.status_code == 409
    assert "cancel it first" in refused.json()["error"]
    may_end.set()


def test_a_server_without_jobs_shows_areas_and_changes_none(root: Path) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(
            connect(stack.enter_context(run_server(serve_all(root, ("results",))))[0])
        )
        run_job(client, FOUR)
    settings = ServeSettings(
        results=(root / "results",), slides=root / "slides", token=TOKEN, decoders=1
    )
    before = drawn_path(root).read_bytes()
    with run_server(settings) as (url, _), connect(url) as client:
        body = drawn(client)
        assert (body["can_write"], len(body["areas"])) == (False, 1)
        assert ask(client, OTHER_FOUR).status_code == 404
        place = "/api/v1/slides/half/drawn/0"
        assert client.delete(place, params={"version": body["version"]}).status_code == 404
    assert drawn_path(root).read_bytes() == before


def test_areas_need_the_token_and_the_servers_own_pages(client: httpx.Client, root: Path) -> None:
    body = {"slide_id": "half", "region": FOUR}
    elsewhere = {"origin": "https://elsewhere.example"}
    assert client.post("/api/v1/jobs", json=body, headers=elsewhere).status_code == 403
    for path in ("/api/v1/jobs", "/api/v1/slides/half/drawn"):
        assert httpx.get(str(client.base_url.join(path))).status_code == 401
    bare = httpx.delete(str(client.base_url.join("/api/v1/slides/half/drawn/0?version=none")))
    assert bare.status_code == 401
    assert not (root / "results" / DRAWN).exists()


@pytest.mark.system
def test_after_a_server_was_killed_in_a_job_the_same_area_goes_on(root: Path) -> None:
    line = ("serve", "--results", root / "results", "--slides", root / "slides", "--port", 0)
    model = ("--model", root / "results.safetensors", "--device", "cpu", "--workers", 0)
    before = folder_bytes(root / "results" / "half")
    server = spawn(*line, *model)
    assert server.stdout is not None
    told = server.stdout.readline().decode().split()[-1]
    address, _, token = told.partition("/?token=")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        assert ask(client, FOUR).status_code == 202
    server.kill()
    server.communicate()
    assert areas_on_disk(drawn_path(root)) == [10_000]
    assert folder_bytes(root / "results" / "half") == before
    with run_server(serve_all(root, ("results",))) as (url, _), connect(url) as client:
        assert client.get("/api/v1/jobs").json() == []
        assert len(drawn(client)["areas"]) == 1
        assert run_job(client, FOUR)["state"] == "done"
    assert areas_on_disk(drawn_path(root)) == [10_000]
    assert np.count_nonzero(~np.isnan(own_map(root))) == 64
