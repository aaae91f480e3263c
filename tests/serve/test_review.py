"""Reviews over a real server: what is shown, what is written, and what is kept from whom."""

import io
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
from PIL import Image

from tests.commands import SUMMARY, infer, run
from tests.served import (
    TOKEN,
    connect,
    read_level0,
    replace_probabilities,
    run_server,
    wait_until,
)
from wsi_pipeline.counting.review_file import read_estimate, read_review, review_path
from wsi_pipeline.serve.settings import ServeSettings
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.slide_results import find_results, open_result

ONE = "/api/v1/reviews/r0/one"


@pytest.fixture
def root(served_root: Path, tmp_path: Path) -> Path:
    """Results of 120 patches on `one`, whose probabilities rise by row."""
    root = tmp_path / "served"
    shutil.copytree(served_root, root)
    probability = np.linspace(0.01, 0.99, 120, dtype=np.float32).reshape(10, 12)
    replace_probabilities(root / "results", "one", probability)
    return root


class Desk:
    """Reviewers at their servers."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root, self._stack = root, stack

    def open(self, reviewer: str | None = "ann", **others: Any) -> httpx.Client:
        settings = ServeSettings(
            results=(self.root / "results",),
            token=TOKEN,
            decoders=1,
            reviewer=reviewer,
            review_patches=10,
            **others,
        )
        url, _ = self._stack.enter_context(run_server(settings))
        return self._stack.enter_context(connect(url))

    @property
    def file(self) -> Path:
        return review_path(self.root / "results", "one")


@pytest.fixture
def desk(root: Path) -> Iterator[Desk]:
    with ExitStack() as stack:
        yield Desk(root, stack)


def answer(client: httpx.Client, place: dict[str, int], is_positive: bool) -> httpx.Response:
    return client.post(f"{ONE}/answers", json=place | {"is_positive": is_positive})


def answer_all(client: httpx.Client, first_row: int = 5) -> dict[str, Any]:
    """Call the patches from a row on positive, as long as there are any; return the last state."""
    body: dict[str, Any] = client.get(ONE).json()
    while body["upcoming"]:
        place = body["upcoming"][0]
        body = answer(client, place, place["row"] >= first_row).json()
    return body


def test_a_review_begins_without_a_file_and_without_the_models_probability(desk: Desk) -> None:
    client = desk.open()
    body = client.get(ONE).json()
    assert (body["answered"], body["asked"], len(body["upcoming"])) == (0, 10, 4)
    assert (body["reviewer"], body["estimate"], body["agreements"]) == ("ann", None, [])
    assert client.get(ONE).json() == body
    assert "probabilit" not in json.dumps(body)
    assert not desk.file.exists()


def test_an_answer_is_on_disk_when_it_is_confirmed(desk: Desk) -> None:
    client = desk.open()
    place = client.get(ONE).json()["upcoming"][0]
    body = answer(client, place, True).json()
    assert body["answered"] == 1
    assert body["upcoming"][0] != place
    calls = read_review(desk.file).calls_of("ann")
    assert calls == {place["row"] * 12 + place["col"]: True}


def test_the_last_answer_is_undone(desk: Desk) -> None:
    client = desk.open()
    place = client.get(ONE).json()["upcoming"][0]
    answer(client, place, True)
    body = client.delete(f"{ONE}/answers/last").json()
    assert (body["undone"], body["answered"], body["upcoming"][0]) == (place, 0, place)
    assert client.delete(f"{ONE}/answers/last").json()["undone"] is None


def test_the_estimate_is_that_of_the_file(desk: Desk) -> None:
    client = desk.open()
    body = answer_all(client)
    assert (body["answered"], body["upcoming"]) == (10, [])
    table = open_result(desk.root / "results" / "one").table
    found = read_estimate(desk.file, table.slide.fingerprint, table.grid)
    assert found is not None
    assert body["estimate"]["estimate"] == found.estimate
    assert (body["estimate"]["low"], body["estimate"]["high"]) == (found.low, found.high)
    assert (body["estimate"]["assessed"], body["estimate"]["reviewed"]) == (120, 10)
    assert body["estimate"]["needed"] > 0
    assert client.get(f"{ONE}/estimate").json() == {
        "estimate": body["estimate"],
        "agreements": [],
    }


def test_the_slides_summary_shows_the_review_at_once(desk: Desk) -> None:
    client = desk.open()
    before = client.get("/api/v1/slides/one/summary")
    assert before.json()["interval_source"] == "none"
    estimate = answer_all(client)["estimate"]
    wait_until(lambda: summary_of_one(client)["interval_source"] == "review")
    after = client.get("/api/v1/slides/one/summary")
    assert after.headers["etag"] != before.headers["etag"]
    assert after.json()["positives_estimate"] == estimate["estimate"]
    assert after.json()["positives"] == before.json()["positives"]
    (result,) = client.get("/api/v1/slides/one").json()["results"]
    assert "by a person's review" in result["interval"]
    listed = {each["slide_id"]: each for each in client.get("/api/v1/slides").json()["slides"]}
    assert listed["one"]["summaries"]["r0"]["interval_source"] == "review"


def summary_of_one(client: httpx.Client) -> dict[str, Any]:
    summary: dict[str, Any] = client.get("/api/v1/slides/one/summary").json()
    return summary


def test_more_patches_are_asked_for(desk: Desk) -> None:
    client = desk.open()
    answer_all(client)
    body = client.post(f"{ONE}/more", json={"patches": 15}).json()
    assert (body["asked"], len(body["upcoming"])) == (25, 4)
    assert answer_all(client)["answered"] == 25
    body = client.post(f"{ONE}/more", json={"patches": 1000}).json()
    assert (body["asked"], body["can_ask_more"]) == (120, False)
    body = answer_all(client)
    assert (body["answered"], body["estimate"]["low"], body["estimate"]["high"]) == (120, 60, 60)
    assert body["estimate"]["needed"] == 0


def test_the_second_reviewer_sees_the_same_patches_and_nobody_elses_answers(desk: Desk) -> None:
    ann, bob = desk.open("ann"), desk.open("bob")
    shown = [patch.number for patch in read_after(ann, desk).shown]
    body = bob.get(ONE).json()
    assert (body["answered"], body["asked"], body["can_ask_more"]) == (0, 10, False)
    assert (body["estimate"], body["agreements"]) == (None, [])
    assert "ann" not in json.dumps(body)
    body = answer_all(bob, first_row=4)
    assert list(read_review(desk.file).answers["bob"]) == shown
    assert body["estimate"] == ann.get(ONE).json()["estimate"]  # ann's, who began
    (agreement,) = body["agreements"]
    assert (agreement["one"], agreement["other"], agreement["shared"]) == ("ann", "bob", 10)
    assert ann.get(f"{ONE}/estimate").json()["agreements"] == [agreement]
    refused = bob.post(f"{ONE}/more", json={"patches": 5})
    assert (refused.status_code, "only ann" in refused.json()["error"]) == (409, True)


def read_after(client: httpx.Client, desk: Desk) -> Any:
    answer_all(client)
    return read_review(desk.file)


def test_two_tabs_lose_no_answer_and_overwrite_none(desk: Desk) -> None:
    client = desk.open()
    one, other = client.get(ONE).json()["upcoming"][:2]
    assert answer(client, one, True).status_code == 200
    assert answer(client, one, True).status_code == 200  # the same from the other tab
    refused = answer(client, one, False)
    assert refused.status_code == 409
    assert "undo that first" in refused.json()["error"]
    assert answer(client, other, False).json()["answered"] == 2


def test_answers_at_the_same_time_are_all_written(desk: Desk) -> None:
    clients = [desk.open("ann"), desk.open("ann")]  # two servers, as of two terminals
    places = clients[0].get(ONE).json()["upcoming"]
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda index=index, place=place: statuses.append(
                answer(clients[index % 2], place, True).status_code
            )
        )
        for index, place in enumerate(places)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 4
    assert len(read_review(desk.file).answers["ann"]) == 4


def test_a_patch_that_was_not_drawn_is_refused(desk: Desk) -> None:
    client = desk.open()
    shown = {(place["row"], place["col"]) for place in _all_shown(client, desk)}
    row, col = next(place for place in np.ndindex(10, 12) if place not in shown)
    assert answer(client, {"row": row, "col": col}, True).status_code == 409
    assert answer(client, {"row": 10, "col": 0}, True).status_code == 404
    assert client.post(f"{ONE}/answers", json={"row": 0, "col": 0}).status_code == 422


def _all_shown(client: httpx.Client, desk: Desk) -> list[dict[str, int]]:
    answer(client, client.get(ONE).json()["upcoming"][0], True)
    review = read_review(desk.file)
    places = map(review.place_of, (patch.number for patch in review.shown))
    return [{"row": row, "col": col} for row, col in places]


def test_a_review_of_another_slide_is_one_line_on_the_page(desk: Desk) -> None:
    client = desk.open()
    answer(client, client.get(ONE).json()["upcoming"][0], True)
    shutil.copy(desk.file, review_path(desk.root / "results", "two"))
    refused = client.get("/api/v1/reviews/r0/two")
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("reviews/two.json: is a review of another slide")
    assert str(desk.root) not in refused.text


def test_the_patch_is_outlined_in_the_middle_of_its_neighbours(desk: Desk) -> None:
    client = desk.open()
    sent = client.get(f"{ONE}/patches/4/5.jpg")
    assert sent.headers["content-type"] == "image/jpeg"
    image = np.asarray(Image.open(io.BytesIO(sent.content))).astype(int)
    assert image.shape == (250, 250, 3)  # five patches of 50 level-0 pixels
    scan = read_level0(desk.root / "slides" / "one.tiff").astype(int)
    middle = scan[200:250, 250:300]  # row 4, column 5
    assert np.abs(image[105:145, 105:145] - middle[5:45, 5:45]).mean() < 8
    assert np.abs(image[5:90, 5:245] - scan[105:190, 155:395]).mean() < 8
    assert image[97:99, 110:140].mean() < 60  # the line above it


def test_beyond_the_slide_it_is_white(desk: Desk) -> None:
    sent = desk.open().get(f"{ONE}/patches/0/0.jpg")
    image = np.asarray(Image.open(io.BytesIO(sent.content))).astype(int)
    assert image.shape == (250, 250, 3)
    assert image[:90].min() > 245
    assert image[:, :90].min() > 245


def infer_here(root: Path) -> None:
    """Infer the slides again, so that the results name these files and no others."""
    infer(root / "slides", root / "other.safetensors", root / "results", force=True)


def test_a_slide_that_is_gone_is_said_in_one_line(desk: Desk) -> None:
    infer_here(desk.root)
    shutil.rmtree(desk.root / "slides")
    sent = desk.open().get(f"{ONE}/patches/0/0.jpg")
    assert sent.status_code == 404
    assert sent.json()["error"].startswith("the slide's file is not here")
    assert sent.json()["error"].endswith("or give its patch store with --stores")


def test_a_slide_that_is_gone_is_shown_from_its_store(desk: Desk) -> None:
    root = desk.root
    infer_here(root)
    tiled = run(
        *("tile", root / "slides" / "one.tiff", "-o", root / "stores", "--workers", 0),
        *("--mpp", 0.5, "--min-tissue", 0),
    )
    assert tiled.exit_code == 0, tiled.output
    scan = read_level0(root / "slides" / "one.tiff").astype(int)
    shutil.rmtree(root / "slides")
    sent = desk.open(stores=(root / "stores",)).get(f"{ONE}/patches/4/5.jpg")
    assert sent.status_code == 200
    image = np.asarray(Image.open(io.BytesIO(sent.content))).astype(int)
    assert image.shape == (750, 750, 3)  # three image pixels for one of the patches
    middle = scan[200:250, 250:300].repeat(3, axis=0).repeat(3, axis=1)
    assert np.abs(image[310:440, 310:440] - middle[10:140, 10:140]).mean() < 8


def test_without_a_reviewer_nothing_can_be_reviewed(desk: Desk) -> None:
    client = desk.open(None)
    assert client.get("/api/v1/slides").json()["can_review"] is False
    assert client.get(ONE).status_code == 404
    assert client.get("/review/r0/one").status_code == 404
    assert 'id="review"' not in client.get("/slides/one").text


def test_only_slides_and_runs_of_the_tables_have_a_page(desk: Desk) -> None:
    client = desk.open()
    assert client.get("/review/r0/one").status_code == 200
    assert client.get("/review/r1/one").status_code == 404
    assert client.get("/review/r0/three").status_code == 404
    assert 'id="review"' in client.get("/slides/one").text
    assert client.get("/api/v1/slides").json()["can_review"] is True


def test_the_page_needs_the_token(desk: Desk) -> None:
    client = desk.open()
    for path in ("/review/r0/one", ONE):
        assert httpx.get(str(client.base_url.join(path))).status_code == 401


def test_a_page_of_another_origin_cannot_answer(desk: Desk) -> None:
    client = desk.open()
    place = client.get(ONE).json()["upcoming"][0]
    refused = client.post(
        f"{ONE}/answers",
        json=place | {"is_positive": True},
        headers={"origin": "https://elsewhere.example"},
    )
    assert refused.status_code == 403
    assert not desk.file.exists()


def test_runs_aggregation_and_cleaning_leave_reviews_alone(desk: Desk) -> None:
    client = desk.open()
    answer_all(client)
    before, results = desk.file.read_bytes(), desk.root / "results"
    model = desk.root / "other.safetensors"
    infer(desk.root / "slides", model, results, view=SUMMARY, force=True)
    assert run("aggregate", results, "--threshold", 0.3, "--outputs", "summary").exit_code == 0
    assert run("clean", results).exit_code == 0
    assert desk.file.read_bytes() == before
    assert [folder.name for folder in find_results([results])] == ["one", "two"]
    client = desk.open("ann")
    assert client.get(ONE).json()["answered"] == 10  # of the first model's strata


TRAINING = f"{ONE}/training"


def test_answers_for_training_never_enter_a_count(desk: Desk) -> None:
    """Probabilities rise by row: the most probable patch is the last, and is a hard negative."""
    client = desk.open()
    before = client.get("/api/v1/slides/one/summary").json()
    first = client.get(TRAINING).json()["upcoming"]
    assert [each["queue"] for each in first] == ["top", "unsure", "top", "unsure"]
    assert (first[0]["row"], first[0]["col"]) == (9, 11)
    for each, is_positive in zip(first[:2], (False, True), strict=True):
        place = {"row": each["row"], "col": each["col"]}
        sent = place | {"is_positive": is_positive, "seconds": 30}
        body = client.post(f"{TRAINING}/answers", json=sent).json()
    assert (body["called"], body["positives"], body["hard_negatives"]) == (2, 1, 1)
    assert body["seconds"] == 60
    assert not desk.file.exists()
    assert client.get(ONE).json()["answered"] == 0
    assert client.get("/api/v1/slides/one/summary").json() == before
    body = client.delete(f"{TRAINING}/answers/last").json()
    assert (body["called"], body["undone"]) == (1, {key: first[1][key] for key in ("row", "col")})


def test_only_patches_that_are_asked_about_are_taken_for_training(desk: Desk) -> None:
    client = desk.open()
    sent = {"row": 0, "col": 0, "is_positive": True, "seconds": 1}
    assert client.post(f"{TRAINING}/answers", json=sent).status_code == 409
    assert client.post(f"{TRAINING}/answers", json=sent | {"seconds": -1}).status_code == 422
    with ExitStack() as stack:
        settings = ServeSettings(results=(desk.root / "results",), token=TOKEN, decoders=1)
        url, _ = stack.enter_context(run_server(settings))
        assert stack.enter_context(connect(url)).get(TRAINING).status_code == 404


def test_answers_for_training_label_a_store_and_those_of_the_count_overrule(desk: Desk) -> None:
    infer_here(desk.root)
    client = desk.open()
    for _ in range(6):
        each = client.get(TRAINING).json()["upcoming"][0]
        sent = {"row": each["row"], "col": each["col"], "is_positive": False, "seconds": 2}
        assert client.post(f"{TRAINING}/answers", json=sent).status_code == 200
    tiled = run(
        *("tile", desk.root / "slides" / "one.tiff", "-o", desk.root / "stores", "--workers", 0),
        *("--mpp", 0.5, "--min-tissue", 0),
    )
    assert tiled.exit_code == 0, tiled.output
    told = run("label", desk.root / "stores", "--reviews", desk.root / "results")
    assert told.exit_code == 0, told.output
    store = PatchStore(desk.root / "stores" / "one.patches.zarr")
    assert np.bincount(store.labels + 1).tolist() == [114, 6]
    assert store.attributes["labels"]["review"]["hard_negatives"] == 3
    body = client.get(ONE).json()
    while body["upcoming"]:
        place = body["upcoming"][0]
        body = answer(client, place, True).json()
    assert run("label", desk.root / "stores", "--reviews", desk.root / "results").exit_code == 0
    labels = PatchStore(desk.root / "stores" / "one.patches.zarr").labels
    assert np.count_nonzero(labels == 1) == 10
