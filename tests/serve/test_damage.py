"""Damaged results and broken requests: each is refused by itself, its neighbours go on, and nobody
fills the log.
"""

import io
import json
import logging
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.builders import rewrite_manifest
from tests.served import TOKEN, connect, run_server, serve_all, wait_until
from tests.strangers import Change, edit_json, several, vouch
from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.serve import catalogue as catalogue_module
from wsi_pipeline.serve.catalogue import name_runs, stamp_file
from wsi_pipeline.slides.images import decode_sent, encode_jpeg, encode_png

GROUP = f"{PREDICTIONS}/zarr.json"
HALF = "\udc80"
"""What stands for a byte of a file's name that is no UTF-8."""


@pytest.fixture(scope="module")
def root(served_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damage") / "served"
    shutil.copytree(served_root, root)
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with run_server(serve_all(root)) as (url, _):
        yield url


@pytest.fixture
def client(url: str, root: Path, served_root: Path) -> Iterator[httpx.Client]:
    """The server's client; afterwards the results are as they were."""
    with connect(url) as client:
        yield client
    for run in ("results", "other"):
        shutil.rmtree(root / run)
        shutil.copytree(served_root / run, root / run)


@pytest.fixture(autouse=True)
def look_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "REFRESH_S", 0.0)


def damage(root: Path, change: Change, runs: tuple[str, ...] = ("results", "other")) -> None:
    """Change slide `one` in some runs, as somebody would who can write manifests."""
    for run in runs:
        change(root / run / "one")
        vouch(root / run / "one")


def flip_a_bit(product: Path) -> None:
    content = bytearray((product / "summary.json").read_bytes())
    content[5] ^= 1
    (product / "summary.json").write_bytes(content)


def note(*keys: str | int, value: object) -> Change:
    """Put a value into the attributes of predictions."""
    return edit_json(GROUP, "attributes", *keys, value=value)


def manifest(**entries: object) -> Change:
    """Put entries into the manifest."""
    return lambda product: rewrite_manifest(product, lambda value: value.update(entries))


def view(**entries: object) -> Change:
    """Put entries into the view that the manifest tells of."""
    return lambda product: rewrite_manifest(
        product, lambda value: value["recipe"]["view"].update(entries)
    )


def nest(levels: int) -> object:
    nested: object = 1
    for _ in range(levels):
        nested = {"a": nested}
    return nested


# -- damaged results
# ------------------------------------------------------------------------------------------------

PLACES = [
    "",
    "/summary",
    "/regions",
    "/regions?threshold=0.01",
    "/map.npy",
    "/map.npy?own=true",
    "/map.png",
    "/tissue.png",
    "/thumbnail.jpg",
    "/thumbnail.jpg?side=100",
    "/tiles/0/0/0.jpg",
    "/patches/0/0.png",
    "/report.html",
]


def test_a_slide_whose_summary_is_damaged_is_refused_and_not_failed_over(
    client: httpx.Client, root: Path
) -> None:
    for run in ("results", "other"):
        flip_a_bit(root / run / "one")
        (root / run / "one" / "manifest.json").touch()
    assert client.get("/api/v1/slides/one").status_code == 422
    assert client.get("/api/v1/slides/one/summary").status_code == 422
    assert client.get("/api/v1/slides/two").status_code == 200


@pytest.mark.parametrize(
    "change",
    [flip_a_bit, lambda product: shutil.rmtree(product / PREDICTIONS / "row")],
    ids=["summary", "predictions"],
)
def test_other_runs_of_a_slide_still_show_and_the_damaged_one_is_named(
    client: httpx.Client, root: Path, change: Change
) -> None:
    change(root / "results" / "one")
    (root / "results" / "one" / "manifest.json").touch()
    body = client.get("/api/v1/slides/one").json()
    assert [result["run_id"] for result in body["results"]] == ["r1"]
    assert body["damaged_runs"] == [{"run_id": "r0", "name": "results"}]
    assert client.get("/api/v1/slides/one/thumbnail.jpg").status_code == 200


ODD = {
    "a downsample by nothing": note("slide", "level_downsamples", value=["1/0"]),
    "downsamples that are a number": note("slide", "level_downsamples", value=1),
    "a path with a NUL": note("slide", "path", value="a\0b"),
    "a magnification that is a table": note("slide", "magnification", value={"a": 1}),
    "a slide that is a list": note("slide", value=[1]),
    "a model that is a text": note("model", value="none"),
    "a model that nests": note("model", "scores", value=nest(300)),
    "a recipe that is a list": manifest(recipe=[1]),
    "counts that are a text": manifest(counts="many"),
    "a view that is a text": lambda product: rewrite_manifest(
        product, lambda value: value["recipe"].update(view="nice")
    ),
    "a threshold that is a text": view(threshold="half"),
    "a threshold above 1": view(threshold=7),
    "a threshold of no model": view(threshold="model"),
    "a context that is a list": view(context_um=[1]),
    "a context that is a threshold's name": view(context_um="count"),
    "a context beyond memory": view(context_um=1e15),
    "a prevalence of everything": view(prevalence=1),
    "a site that is a text": view(site="here"),
    "a site of one slide": view(
        site={"slope": 1, "offset": 0, "errors": [0.1], "model_digest": "d", "answers": 9}
    ),
    "a smallest region that is a truth": view(min_region_mm2=True),
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD.keys())
def test_a_result_of_odd_attributes_is_listed_as_damaged_and_its_neighbours_show(
    client: httpx.Client, root: Path, change: Change
) -> None:
    damage(root, change)
    slides = {slide["slide_id"]: slide for slide in client.get("/api/v1/slides").json()["slides"]}
    assert slides["one"]["summaries"] == {"r0": None, "r1": None}
    assert all(slides["two"]["summaries"].values())
    answers = {place: client.get(f"/api/v1/slides/one{place}").status_code for place in PLACES}
    assert {place: status for place, status in answers.items() if status >= 500} == {}
    assert {answers[place] for place in ("", "/summary", "/map.npy", "/report.html")} == {422}


def test_a_prevalence_where_the_model_says_none_is_refused(
    client: httpx.Client, root: Path
) -> None:
    damage(root, view(prevalence=0.2))
    answers = {place: client.get(f"/api/v1/slides/one{place}").status_code for place in PLACES}
    assert {place: status for place, status in answers.items() if status >= 500} == {}
    assert {answers[place] for place in ("", "/map.npy", "/report.html")} == {422}


def test_texts_that_are_no_utf8_are_answered_in_ascii(client: httpx.Client, root: Path) -> None:
    texts = several(
        note("slide", "vendor", value=f"v{HALF}"),
        note("slide", "mpp_source", value=f"m{HALF}"),
        note("slide", "path", value=f"/nowhere/{HALF}.svs"),
        note("model", "architecture", value=f"a{HALF}"),
        note("model", f"key{HALF}", value=1),
        note("model", "class_names", value=["negative", f"p{HALF}"]),
        edit_json("summary.json", "positive_class", value=f"p{HALF}"),
    )
    damage(root, texts)
    answers = {place: client.get(f"/api/v1/slides/one{place}").status_code for place in PLACES}
    assert set(answers.values()) == {200}
    assert (
        client.get("/api/v1/slides").json()["slides"][0]["summaries"]["r0"]["positive_class"]
        == f"p{HALF}"
    )
    body = client.get("/api/v1/slides/one")
    assert body.content.isascii()
    assert body.json()["slide"]["vendor"] == f"v{HALF}"
    assert body.json()["results"][0]["positive_class"] == f"p{HALF}"


def test_a_folder_whose_name_is_no_utf8_is_listed_and_opens_by_the_name_that_it_is_listed_under(
    client: httpx.Client, root: Path
) -> None:
    (root / "results" / "two").rename(root / "results" / f"t{HALF}")
    listed = [slide["slide_id"] for slide in client.get("/api/v1/slides").json()["slides"]]
    assert listed == ["one", r"t\udc80", "two"]
    assert client.get(r"/api/v1/slides/t%5Cudc80/summary").status_code == 200
    assert client.get(r"/slides/t%5Cudc80").status_code == 200


def test_a_run_whose_name_is_no_utf8_has_a_name_that_pages_can_show(tmp_path: Path) -> None:
    assert [run.name for run in name_runs([tmp_path / f"r{HALF}"])] == [r"r\udc80"]


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800"])
def test_a_path_that_no_file_can_have_is_no_file(tmp_path: Path, name: str) -> None:
    assert stamp_file(tmp_path / name) is None


def test_a_recorded_path_too_long_for_any_file_stops_no_list(
    client: httpx.Client, root: Path
) -> None:
    damage(root, note("slide", "path", value="/" + "x" * 300))
    (root / "slides" / "one.tiff").rename(
        root / "slides" / "one.json"
    )  # so that only the recorded path is left
    try:
        assert client.get("/api/v1/slides").json()["slides"][0]["has_file"] is False
    finally:
        (root / "slides" / "one.json").rename(root / "slides" / "one.tiff")


def test_an_empty_thumbnail_is_refused_and_no_fault(client: httpx.Client, root: Path) -> None:
    def empty(product: Path) -> None:
        for name, shape in (("thumbnail", [0, 0, 3]), ("tissue", [0, 0])):
            place = f"{PREDICTIONS}/{name}/zarr.json"
            edit_json(place, "shape", value=shape)(product)
            edit_json(
                place,
                "chunk_grid",
                "configuration",
                "chunk_shape",
                value=[max(1, extent) for extent in shape],
            )(product)
            shutil.rmtree(product / PREDICTIONS / name / "c")

    damage(root, empty)
    for place in PLACES:
        assert client.get(f"/api/v1/slides/one{place}").status_code < 500, place
    assert client.get("/api/v1/slides/one/thumbnail.jpg").status_code == 422


# -- broken requests
# ------------------------------------------------------------------------------------------------


def has_trace(records: list[logging.LogRecord]) -> bool:
    return any(record.exc_info or record.levelno >= logging.ERROR for record in records)


def send_raw(url: str, head: str) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as stream:
        stream.sendall(
            f"POST /enter HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{head}".encode()
        )
        return b"".join(iter(lambda: stream.recv(65536), b""))


def test_a_form_of_too_many_fields_is_refused_without_a_trace(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        answer = httpx.post(
            f"{url}/enter",
            data={f"field{number}": "x" for number in range(6)},
            headers={"Origin": url},
        )
    assert answer.status_code == 400
    assert not has_trace(caplog.records)


@pytest.mark.parametrize("length", ["abc", "-5", "+5", "1" * 30, "\xb2"])
def test_a_length_that_is_none_is_refused_without_a_trace(
    url: str, caplog: pytest.LogCaptureFixture, length: str
) -> None:
    with caplog.at_level(logging.INFO):
        answer = send_raw(url, f"Content-Length: {length}\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 4")
    assert not has_trace(caplog.records)


@pytest.mark.parametrize("path", ["/enter", "/api/v1/jobs"])
def test_whoever_hangs_up_leaves_no_trace(
    url: str, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type:"
        " application/json\r\n"
    )
    with caplog.at_level(logging.INFO, "wsi_pipeline"):
        with socket.create_connection((host, int(port)), timeout=10) as stream:
            stream.sendall(f"{head}Content-Length: 100\r\n\r\ntoken=".encode())
        wait_until(lambda: caplog.records)
    assert httpx.get(f"{url}/healthz").status_code == 200
    assert not has_trace(caplog.records)


def test_what_a_request_says_in_halves_of_characters_is_answered(client: httpx.Client) -> None:
    content = json.dumps({"slide_id": "one", "x\ud800": 1}).encode()
    assert (
        client.post(
            "/api/v1/jobs", content=content, headers={"Content-Type": "application/json"}
        ).status_code
        == 422
    )


# -- pictures
# --------------------------------------------------------------------------------------------------


def encode_mode(mode: str, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (50, 50)).save(stream, form)
    return stream.getvalue()


def test_deeper_grey_than_8_bits_is_refused() -> None:
    with pytest.raises(
        SlideError, match=r"type 'I;16' are not 8-bit grey or RGB; convert it to 8-bit RGB"
    ):
        decode_sent(encode_mode("I;16"), 2500)


def test_deeper_grey_than_8_bits_has_no_probability(client: httpx.Client) -> None:
    answer = client.post("/api/v1/predict", files=[("images", ("a.png", encode_mode("I;16")))])
    assert answer.status_code == 422
    assert "8 bits per channel" in answer.json()["error"]


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *((mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((mode, "JPEG") for mode in ("L", "RGB", "CMYK")),
    ],
)
def test_pictures_of_8_bits_per_channel_are_taken(mode: str, form: str) -> None:
    assert decode_sent(encode_mode(mode, form), 2500).shape == (50, 50, 3)


def test_a_picture_of_no_pixels_or_too_many_in_a_row_cannot_be_encoded() -> None:
    nothing = np.zeros((0, 5, 3), dtype=np.uint8)
    with pytest.raises(SlideError, match="do not fit a PNG"):
        encode_png(nothing)
    for pixels in (nothing, np.zeros((1, 65_536, 3), dtype=np.uint8)):
        with pytest.raises(SlideError, match="do not fit a JPEG"):
            encode_jpeg(pixels)
