"""REST over a real server on a real socket: what is answered, what is refused, and what never gets
out.
"""

import hashlib
import io
import json
import logging
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.builders import (
    break_tile,
    make_checkpoint,
    paint,
    tissue,
    write_model,
    write_png,
    write_slide,
)
from tests.commands import HERE, infer, run, tile
from tests.served import (
    ALLOWED,
    TOKEN,
    connect,
    read_level0,
    replace_probabilities,
    run_server,
    serve_all,
    wait_until,
)
from wsi_pipeline.core.calibration import Calibration, ModelTerms, Terms
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.models.choice import ExternalModelTerms
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs.heatmap import Aggregation
from wsi_pipeline.runs.infer import infer_slides
from wsi_pipeline.scheduling import Workers, open_workers
from wsi_pipeline.serve import catalogue as catalogue_module
from wsi_pipeline.serve import job_queue
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.job_queue import InferenceJob, JobQueue, JobState
from wsi_pipeline.serve.services import Services
from wsi_pipeline.serve.settings import Limits, ServeSettings
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.images import encode_png
from wsi_pipeline.stages.aggregate import aggregate_slide
from wsi_pipeline.stages.export_model import export_model
from wsi_pipeline.stages.tile_config import TileConfig
from wsi_pipeline.store.slide_results import open_result

LIMITS = Limits(
    upload_bytes=300_000,
    decoded_px=400_000,
    grid_patches=200,
    images=8,
    regions=50,
    body_s=1.0,
    region_px=200_000,
)


@pytest.fixture(scope="module")
def root(served_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("api") / "served"
    shutil.copytree(served_root, root)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[tuple[str, Services]]:
    with run_server(serve_all(root, limits=LIMITS)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: tuple[str, Services]) -> Iterator[httpx.Client]:
    with connect(server[0]) as client:
        yield client


@pytest.fixture(autouse=True)
def look_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "REFRESH_S", 0.0)


def files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{number}.png", image)) for number, image in enumerate(images)]


# -- what is answered
# -----------------------------------------------------------------------------------------------


def test_the_list_names_every_slide_with_its_figures_in_every_run(client: httpx.Client) -> None:
    body = client.get("/api/v1/slides").json()
    assert [run["name"] for run in body["runs"]] == ["results", "other"]
    assert [slide["slide_id"] for slide in body["slides"]] == ["one", "two"]
    assert {run: summary["patches"] for run, summary in body["slides"][0]["summaries"].items()} == {
        "r0": 120,
        "r1": 120,
    }


def test_the_summary_is_that_of_the_file(client: httpx.Client, root: Path) -> None:
    assert client.get("/api/v1/slides/one/summary").json() == json.loads(
        (root / "results" / "one" / "summary.json").read_text()
    )


def test_each_run_has_its_own_summary(client: httpx.Client) -> None:
    one, other = (
        client.get("/api/v1/slides/one/summary", params={"run": run}).json() for run in ("r0", "r1")
    )
    assert one["model_digest"] != other["model_digest"]


def test_the_map_is_the_stored_one(client: httpx.Client, root: Path) -> None:
    answer = client.get("/api/v1/slides/one/map.npy")
    values = np.load(io.BytesIO(answer.content), allow_pickle=False)
    predictions = open_result(root / "results" / "one")
    positions = predictions.table.positions
    assert values.dtype == np.float32
    assert values.shape == (10, 12)
    assert np.array_equal(values[positions[:, 0], positions[:, 1]], predictions.probability)


def test_the_map_as_png_is_clear_where_nothing_was_assessed_and_below_a_threshold(
    root: Path, client: httpx.Client
) -> None:
    probability = np.full((10, 12), 0.2, dtype=np.float32)
    probability[0, :3] = [np.nan, 0.9, 0.6]
    replace_probabilities(root / "results", "two", probability)
    drawn, above = (
        np.asarray(
            Image.open(io.BytesIO(client.get("/api/v1/slides/two/map.png", params=params).content))
        )
        for params in ({}, {"threshold": 0.7})
    )
    assert drawn.shape == (10, 12, 4)
    assert (drawn[..., 3] == 0).sum() == 1
    assert (above[..., 3] > 0).sum() == 1
    # Less green: 0.9 is towards the red end, 0.2 towards the pale one.
    assert above[0, 1, 1] < drawn[1, 1, 1]


def test_regions_are_counted_by_hand_and_come_strongest_first(
    root: Path, client: httpx.Client
) -> None:
    probability = np.full((10, 12), 0.1, dtype=np.float32)
    probability[1:3, 1:3] = 0.6  # four cells: 4 · 0.6 = 2.4
    probability[6, 5:8] = 0.9  # three cells: 3 · 0.9 = 2.7, so the stronger one
    probability[9, 11] = 0.95
    replace_probabilities(root / "results", "two", probability)
    body = client.get("/api/v1/slides/two/regions", params={"threshold": 0.5}).json()
    assert body["found"] == 3
    assert [region["patches"] for region in body["regions"]] == [3, 4, 1]
    strongest = body["regions"][0]
    assert strongest["area_mm2"] == pytest.approx(3 * 0.025**2)
    assert strongest["bounds_l0"] == [250, 300, 400, 350]
    assert client.get("/api/v1/slides/two/regions", params={"threshold": 0.92}).json()["found"] == 1
    assert (
        client.get(
            "/api/v1/slides/two/regions", params={"threshold": 0.5, "min_area_mm2": 0.002}
        ).json()["found"]
        == 1
    )
    assert (
        len(
            client.get("/api/v1/slides/two/regions", params={"threshold": 0.5, "limit": 1}).json()[
                "regions"
            ]
        )
        == 1
    )


def test_regions_are_those_that_the_summary_counts_unless_another_size_is_asked_for(
    root: Path, client: httpx.Client
) -> None:
    probability = np.full((10, 12), 0.1, dtype=np.float32)
    probability[1:3, 1:3] = 0.6
    probability[9, 11] = 0.95
    replace_probabilities(
        root / "results", "two", probability, min_region_mm2=0.0012
    )  # two cells are 0.00125 mm²
    body = client.get("/api/v1/slides/two/regions").json()
    summary = client.get("/api/v1/slides/two/summary").json()
    assert body["found"] == summary["positive_regions"] == 1
    assert sum(region["patches"] for region in body["regions"]) == summary["positives"] == 4
    assert body["min_area_mm2"] == summary["min_region_mm2"] == 0.0012
    assert client.get("/api/v1/slides/two/regions", params={"min_area_mm2": 0}).json()["found"] == 2


def test_the_map_has_its_context_and_each_patch_alone_where_asked_for(
    root: Path, client: httpx.Client
) -> None:
    probability = np.full((10, 12), 0.1, dtype=np.float32)
    probability[5, 5] = 0.9
    replace_probabilities(root / "results", "two", probability, context_um=25.0)
    shown, alone = (
        np.load(io.BytesIO(client.get("/api/v1/slides/two/map.npy", params=params).content))
        for params in ({}, {"own": True})
    )
    assert alone == pytest.approx(probability, rel=1e-6)
    assert shown[5, 5] < 0.3 < alone[5, 5]


def test_the_tissue_mask_is_the_one_that_the_patches_were_chosen_by(
    served_root: Path, tmp_path: Path
) -> None:
    # A slide full of tissue, of which the user's mask takes the left half.
    mask = np.zeros((500, 600), dtype=np.uint8)
    mask[:, :300] = 255
    write_png(tmp_path / "masks" / "one.png", mask)
    slide = served_root / "slides" / "one.tiff"
    tile(
        [slide],
        tmp_path / "stores",
        TileConfig(PatchSpec(50, 50, 0.5)),
        mask=tmp_path / "masks",
        workers=HERE,
    )
    infer(tmp_path / "stores", served_root / "results.safetensors", tmp_path / "results")
    with (
        run_server(ServeSettings(results=(tmp_path / "results",), token=TOKEN, decoders=1)) as (
            url,
            _,
        ),
        connect(url) as client,
    ):
        assert client.get("/api/v1/slides/one/summary").json()["patches"] == 60
        with Image.open(io.BytesIO(client.get("/api/v1/slides/one/tissue.png").content)) as image:
            shown = np.asarray(image)[..., 3] > 0
    # A pixel is 16 × 16 of the slide's; the centre of column 18 lies at 296, left of 300, that of
    # row 31 below the slide's end.
    assert shown.shape == (32, 38)
    assert shown[:31, :19].all()
    assert not shown[:, 19:].any()


def test_results_that_hold_no_mask_have_none_to_show(root: Path, client: httpx.Client) -> None:
    assert client.get("/api/v1/slides/one").json()["results"][0]["has_tissue"]
    replace_probabilities(
        root / "results", "two", np.full((10, 12), 0.1, dtype=np.float32), has_tissue=False
    )  # as of ingested patches
    assert not client.get("/api/v1/slides/two").json()["results"][0]["has_tissue"]
    assert client.get("/api/v1/slides/two/tissue.png").status_code == 404


def test_a_tile_is_the_slide_at_its_place(client: httpx.Client, root: Path) -> None:
    with Image.open(io.BytesIO(client.get("/api/v1/slides/one/tiles/0/2/1.jpg").content)) as image:
        tile = np.asarray(image).astype(int)
    assert np.abs(tile - read_level0(root / "slides" / "one.tiff")[256:500, 512:600]).mean() < 8


def test_a_patch_is_pixel_by_pixel_that_of_the_slide(client: httpx.Client, root: Path) -> None:
    with Image.open(io.BytesIO(client.get("/api/v1/slides/one/patches/3/4.png").content)) as image:
        assert np.array_equal(
            np.asarray(image), read_level0(root / "slides" / "one.tiff")[150:200, 200:250]
        )


def test_tissue_and_thumbnail_are_pictures_of_one_shape(client: httpx.Client) -> None:
    sizes = []
    for name in ("tissue.png", "thumbnail.jpg"):
        with Image.open(io.BytesIO(client.get(f"/api/v1/slides/one/{name}").content)) as image:
            sizes.append(image.size)
    assert sizes[0] == sizes[1]


def test_the_report_comes_as_a_file_that_may_call_nowhere(client: httpx.Client) -> None:
    answer = client.get("/api/v1/slides/one/report.html")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "connect-src" not in answer.headers["content-security-policy"]
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_what_did_not_change_is_answered_with_304(client: httpx.Client, root: Path) -> None:
    for name in (
        "one",
        "one/summary",
        "one/regions",
        "one/map.npy",
        "one/map.png",
        "one/tiles/0/0/0.jpg",
    ):
        tag = client.get(f"/api/v1/slides/{name}").headers["etag"]
        assert (
            client.get(f"/api/v1/slides/{name}", headers={"If-None-Match": tag}).status_code == 304
        )
    before = client.get("/api/v1/slides/two/summary").headers["etag"]
    replace_probabilities(root / "results", "two", np.full((10, 12), 0.77, dtype=np.float32))
    after = client.get("/api/v1/slides/two/summary", headers={"If-None-Match": before})
    assert after.status_code == 200
    assert after.json()["positives"] == 120


def test_metrics_count_requests_by_route_and_name_no_slide(client: httpx.Client) -> None:
    client.get("/api/v1/slides/one/summary")
    text = client.get("/metrics").text
    assert 'wsi_requests_total{method="GET",route="show_summary",status="200"}' in text
    assert '"one"' not in text
    assert "/one" not in text


def test_the_api_describes_itself_without_a_network(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert "://" not in page.text.replace("http://www.w3.org", "")
    assert client.get("/static/docs/swagger-ui-bundle.js").status_code == 200
    assert "/api/v1/predict" in client.get("/openapi.json").json()["paths"]


# -- predictions
# --------------------------------------------------------------------------------------------------


def test_a_sent_patch_has_the_probability_that_infer_gave_it(
    client: httpx.Client, root: Path
) -> None:
    predictions = open_result(root / "results" / "one")
    pixels = read_level0(root / "slides" / "one.tiff")
    chosen = [0, 17, 63, 119]
    patches = []
    for row, col in predictions.table.positions[chosen]:
        patches.append(encode_png(pixels[row * 50 : row * 50 + 50, col * 50 : col * 50 + 50]))
    body = client.post("/api/v1/predict", files=files(*patches)).json()
    assert [image["probability"] for image in body["images"]] == pytest.approx(
        predictions.probability[chosen].tolist(), abs=1e-6
    )
    assert body["threshold"] == 0.5
    assert body["model"]["digest"] == predictions.model_digest


def test_a_sent_patch_is_judged_alone(tmp_path: Path) -> None:
    terms = ModelTerms(Terms(count=0.9, context_um=100), Terms(Calibration(0.5), count=0.7))
    model = write_model(tmp_path / "m.safetensors", make_checkpoint(bias=2.0, terms=terms))
    with (
        run_server(
            ServeSettings(
                results=(), slides=tmp_path, model=model, token=TOKEN, device="cpu", decoders=1
            )
        ) as (url, _),
        connect(url) as client,
    ):
        body = client.post("/api/v1/predict", files=files(encode_png(paint(50, 50)))).json()
    assert (body["threshold"], body["context_um"]) == (0.7, 0)
    (image,) = body["images"]
    assert image["probability"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    assert image["positives"] == 1


def test_a_larger_image_is_cut_on_the_grid_of_infer(client: httpx.Client, root: Path) -> None:
    pixels = read_level0(root / "slides" / "one.tiff")
    predictions = open_result(root / "results" / "one")
    wanted = np.full((10, 12), np.nan)
    wanted[tuple(predictions.table.positions.T)] = predictions.probability
    image = client.post(
        "/api/v1/predict", files=files(encode_png(pixels[:240, :260])), data={"mpp": 0.5}
    ).json()["images"][0]
    assert (image["grid"]["rows"], image["grid"]["cols"], image["grid"]["pitch_l0"]) == (4, 5, 50)
    assert np.array(image["probabilities"]) == pytest.approx(wanted[:4, :5], abs=1e-6)
    assert image["positives"] == int((wanted[:4, :5] >= 0.5).sum())


def test_a_finer_image_is_reduced_to_the_models_scale(client: httpx.Client) -> None:
    image = client.post(
        "/api/v1/predict", files=files(encode_png(paint(250, 100))), data={"mpp": 0.25}
    ).json()["images"][0]
    assert (image["grid"]["rows"], image["grid"]["cols"], image["grid"]["pitch_l0"]) == (1, 2, 100)


@pytest.mark.parametrize(
    ("images", "fields", "status"),
    [
        ([b"no image"], {}, 415),
        ([encode_png(paint(60, 60))], {}, 422),  # not a patch, and no scale
        ([encode_png(paint(60, 60))], {"mpp": 0.9}, 422),  # coarser than the model
        ([encode_png(paint(30, 30))], {"mpp": 0.5}, 422),  # less than one patch
        ([encode_png(paint(60, 60))], {"mpp": "nan"}, 422),
        ([encode_png(paint(60, 60))], {"mpp": -1}, 422),
        ([encode_png(paint(50, 50))[:-30]], {}, 422),  # cut short
        ([encode_png(paint(50, 50))] * 9, {}, 413),  # more images than allowed
    ],
)
def test_what_the_model_cannot_take_is_refused_with_a_reason(
    client: httpx.Client, images: list[bytes], fields: dict[str, object], status: int
) -> None:
    answer = client.post("/api/v1/predict", files=files(*images), data=fields)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "id"}


# -- limits
# --------------------------------------------------------------------------------------------------


def test_an_oversize_upload_is_refused_by_its_length(client: httpx.Client) -> None:
    assert client.post("/api/v1/predict", files=files(bytes(400_000))).status_code == 413


def test_an_oversize_upload_without_a_length_is_refused_while_it_comes(
    server: tuple[str, Services],
) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    pieces = [head, *[bytes(60_000)] * 20]
    with connect(server[0]) as client:
        answer = client.post(
            "/api/v1/predict",
            content=iter(pieces),
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )
    assert answer.status_code == 413


def test_a_body_that_does_not_come_is_given_up(server: tuple[str, Services]) -> None:
    host, port = server[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as stream:
        stream.sendall(
            f"POST /api/v1/jobs HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
            'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"'.encode()
        )
        started = time.monotonic()
        assert stream.recv(100).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 5


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be a very large one, with as much compressed nothing as fits."""
    stream = io.BytesIO()
    Image.new("1", (8, 8)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def test_a_bomb_is_refused_by_its_header(
    client: httpx.Client, server: tuple[str, Services]
) -> None:
    asked = []
    service = server[1].predictions
    assert service is not None
    original = service._pool.ask
    service._pool.ask = lambda header, *rest: asked.append(header["do"]) or original(header, *rest)  # type: ignore[method-assign, func-returns-value]
    try:
        assert client.post(
            "/api/v1/predict", files=files(bomb(60_000, 60_000)), data={"mpp": 0.5}
        ).status_code in (413, 415)
        assert (
            client.post(
                "/api/v1/predict", files=files(bomb(700, 700)), data={"mpp": 0.5}
            ).status_code
            == 413
        )
    finally:
        service._pool.ask = original  # type: ignore[method-assign]
    assert set(asked) == {"measure"}


def test_images_of_too_many_patches_are_refused(client: httpx.Client) -> None:
    # 610 × 610 px at the model's scale would be 144 cells; two of them are more than 200 patches.
    image = encode_png(paint(610, 610))
    assert client.post("/api/v1/predict", files=files(image), data={"mpp": 0.5}).status_code == 200
    small = encode_png(paint(400, 400))
    assert (
        client.post("/api/v1/predict", files=files(*[small] * 4), data={"mpp": 0.5}).status_code
        == 413
    )  # 4 · 64 = 256


@pytest.mark.parametrize(
    "tile",
    [
        "0/-1/0",
        "0/0/-1",
        "-1/0/0",
        "0/3/0",
        "0/0/2",
        "9/0/0",
        "0/99999999999999999999/0",
        "0/x/0",
        "0/0/1.5",
    ],
)
def test_a_tile_that_is_not_there_is_refused_before_the_slide_is_touched(
    client: httpx.Client, tile: str, server: tuple[str, Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.get("/api/v1/slides/one")
    monkeypatch.setattr(
        server[1].pixels._pool, "ask", lambda *_, **__: pytest.fail("the slide was touched")
    )
    assert client.get(f"/api/v1/slides/one/tiles/{tile}.jpg").status_code in (404, 422)


def test_a_level_that_would_read_too_much_is_neither_offered_nor_read(tmp_path: Path) -> None:
    from wsi_pipeline.slides.images import write_grey

    (tmp_path / "slides").mkdir()
    write_grey(
        tmp_path / "slides" / "flat.png", np.zeros((900, 1200), dtype=np.uint8)
    )  # one level only
    settings = ServeSettings(
        results=(),
        slides=tmp_path / "slides",
        token=TOKEN,
        slide_mpp=0.5,
        decoders=1,
        limits=Limits(region_px=300_000),
    )
    with run_server(settings) as (url, _), connect(url) as client:
        assert (
            client.get("/api/v1/slides/flat").json()["tiles"]["coarsest"] == 1
        )  # (256 · 2)² = 262,144
        assert client.get("/api/v1/slides/flat/tiles/1/0/0.jpg").status_code == 200
        assert client.get("/api/v1/slides/flat/tiles/2/0/0.jpg").status_code == 404


def test_more_regions_than_allowed_are_refused(client: httpx.Client) -> None:
    assert client.get("/api/v1/slides/one/regions", params={"limit": 51}).status_code == 413


def test_more_predictions_at_once_than_allowed_are_turned_away(
    client: httpx.Client, server: tuple[str, Services]
) -> None:
    service = server[1].predictions
    assert service is not None
    for _ in range(LIMITS.predictions):
        service._places.acquire()
    try:
        answer = client.post("/api/v1/predict", files=files(encode_png(paint(50, 50))))
    finally:
        for _ in range(LIMITS.predictions):
            service._places.release()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"


def test_a_head_that_does_not_end_is_given_up(server: tuple[str, Services]) -> None:
    host, port = server[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as stream:
        stream.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 70_000)
        assert stream.recv(100).startswith(b"HTTP/1.1 400")


def test_a_form_longer_than_any_token_is_refused(server: tuple[str, Services]) -> None:
    headers = {"Origin": server[0], "Content-Type": "application/x-www-form-urlencoded"}
    assert (
        httpx.post(
            f"{server[0]}/enter", content=b"token=" + b"x" * 5000, headers=headers
        ).status_code
        == 413
    )
    assert (
        httpx.post(f"{server[0]}/enter", content=iter([b"token=x"]), headers=headers).status_code
        == 413
    )  # of no stated length


# -- models of others
# -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo(served_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "model"
    export_model(served_root / "results.safetensors", ["torchscript"], folder)
    return folder


def test_a_model_of_others_is_served_where_it_is_trusted(
    zoo: Path, root: Path, tmp_path: Path
) -> None:
    script = (zoo / "torchscript_model.pt").read_bytes()
    terms = ExternalModelTerms("sha256:" + hashlib.sha256(script).hexdigest())
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copyfile(root / "slides" / "one.tiff", slides / "one.tiff")
    (tmp_path / "results").mkdir()
    settings = ServeSettings(
        results=(tmp_path / "results",),
        slides=slides,
        model=zoo,
        terms=terms,
        token=TOKEN,
        device="cpu",
        workers=HERE,
        decoders=1,
    )
    predictions = open_result(root / "results" / "one")
    row, col = predictions.table.positions[5]
    patch = read_level0(root / "slides" / "one.tiff")[
        row * 50 : row * 50 + 50, col * 50 : col * 50 + 50
    ]
    with run_server(settings) as (url, _), connect(url) as client:
        assert "seen_patients" not in client.get("/api/v1/model").json()
        body = client.post("/api/v1/predict", files=files(encode_png(patch))).json()
        assert body["images"][0]["probability"] == pytest.approx(
            float(predictions.probability[5]), abs=1e-6
        )
        place = (
            f"/api/v1/jobs/{client.post('/api/v1/jobs', json={'slide_id': 'one'}).json()['job_id']}"
        )
        wait_until(lambda: client.get(place).json()["state"] == "done", 60)
        assert "seen_patients" not in client.get("/api/v1/slides/one").text


@pytest.mark.parametrize(
    ("trust", "fault"),
    [
        ((), "add --trust-model sha256:"),
        (("--trust-model", "sha256:" + "0" * 64), "not the one given"),
    ],
    ids=["without a word", "another digest"],
)
def test_a_model_of_others_is_not_served_untrusted(
    zoo: Path, root: Path, trust: tuple[str, ...], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "wsi_pipeline.serve.server.log_to_stderr", lambda: None
    )  # it would go on writing there after the test
    result = run(
        "serve", "--slides", str(root / "slides"), "--model", str(zoo), "--port", "0", *trust
    )
    assert result.exit_code == 1
    assert fault in result.stderr


# -- who may ask
# --------------------------------------------------------------------------------------------------

TRAVERSAL = [
    "..",
    "%2e%2e",
    "..%2f..%2fetc%2fpasswd",
    "%2fetc%2fpasswd",
    "..%5c..",
    "one%00",
    "one%2f..%2ftwo",
    "results",
    "%ff",
    "a" * 300,
]
PLACES = [
    "/api/v1/slides/{}",
    "/api/v1/slides/{}/summary",
    "/api/v1/slides/{}/regions",
    "/api/v1/slides/{}/map.npy",
    "/api/v1/slides/{}/map.png",
    "/api/v1/slides/{}/tissue.png",
    "/api/v1/slides/{}/thumbnail.jpg",
    "/api/v1/slides/{}/tiles/0/0/0.jpg",
    "/api/v1/slides/{}/patches/0/0.png",
    "/api/v1/slides/{}/report.html",
    "/api/v1/slides/one/summary?run={}",
    "/api/v1/slides/one/map.npy?run={}",
    "/api/v1/slides/one/patches/0/0.png?run={}",
    "/api/v1/jobs/{}",
    "/slides/{}",
    "/static/{}",
    "/static/docs/{}",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_name_in_any_place_becomes_a_path(
    client: httpx.Client, server: tuple[str, Services], place: str
) -> None:
    host, port = server[0].removeprefix("http://").split(":")
    for name in TRAVERSAL:
        with socket.create_connection(
            (host, int(port)), timeout=10
        ) as stream:  # httpx would tidy the path up
            request = (
                f"GET {place.format(name)} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer"
                f" {TOKEN}\r\nConnection: close\r\n\r\n"
            )
            stream.sendall(request.encode())
            answer = b"".join(iter(lambda stream=stream: stream.recv(65536), b""))  # type: ignore[misc]
        assert int(answer.split(b" ", 2)[1]) in (404, 405, 422), name
        assert b"root:" not in answer


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil", "[::2]"]
)
def test_another_host_name_is_refused(server: tuple[str, Services], host: str) -> None:
    with connect(server[0], Host=host) as client:
        assert client.get("/api/v1/slides").status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:1", "[::1]:8765"])
def test_names_of_this_machine_are_taken(server: tuple[str, Services], host: str) -> None:
    with connect(server[0], Host=host) as client:
        assert client.get("/api/v1/slides").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/slides",
        "/api/v1/slides/one/tiles/0/0/0.jpg",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/nothing",
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": "wsi_1=x; ="},
    ],
)
def test_nothing_is_shown_without_the_token(
    server: tuple[str, Services], path: str, headers: dict[str, str]
) -> None:
    answer = httpx.get(server[0] + path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_health_needs_no_token_and_says_nothing_else(server: tuple[str, Services]) -> None:
    assert httpx.get(server[0] + "/healthz").json() == {"status": "ok"}


def test_a_browser_is_led_to_the_form_and_in_with_the_token(server: tuple[str, Services]) -> None:
    with httpx.Client(
        base_url=server[0], headers={"Accept": "text/html", "Origin": server[0]}
    ) as browser:
        assert browser.get("/").headers["location"] == "./enter"
        assert browser.get("/slides/one").headers["location"] == "./../enter"
        assert browser.post("/enter", data={"token": "wrong"}).status_code == 401
        entered = browser.post("/enter", data={"token": TOKEN})
        assert entered.status_code == 303
        assert {"HttpOnly", "SameSite=Strict"} <= set(entered.headers["set-cookie"].split("; "))
        assert browser.get("/").status_code == 200


def test_the_token_in_an_address_is_taken_once_and_the_address_cleaned(
    server: tuple[str, Services],
) -> None:
    answer = httpx.get(server[0] + "/slides/one", params={"token": TOKEN, "a": "b"})
    assert (answer.status_code, answer.headers["location"]) == (303, "./../slides/one?a=b")
    elsewhere = httpx.get(f"{server[0]}//evil.example/\\x?token={TOKEN}")
    assert elsewhere.headers["location"].startswith("./../../evil.example/")
    assert "\\" not in elsewhere.headers["location"]


def test_pages_of_other_origins_change_nothing(server: tuple[str, Services]) -> None:
    cookie = {"Cookie": f"wsi_{server[1].settings.port}={TOKEN}"}
    body = {"slide_id": "nobody"}
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {}):
        assert (
            httpx.post(server[0] + "/api/v1/jobs", json=body, headers=cookie | headers).status_code
            == 403
        )
    own = httpx.post(server[0] + "/api/v1/jobs", json=body, headers=cookie | {"Origin": server[0]})
    assert own.status_code == 404  # let through; there is no such slide


def test_no_other_origin_is_allowed_unless_asked_for(
    server: tuple[str, Services], root: Path
) -> None:
    headers = ALLOWED | {"Origin": "http://other.example"}
    assert (
        "access-control-allow-origin"
        not in httpx.get(server[0] + "/api/v1/slides", headers=headers).headers
    )
    settings = ServeSettings(
        results=(root / "results",), token=TOKEN, cors_origins=("http://other.example",), decoders=1
    )
    with run_server(settings) as (url, _):
        assert (
            httpx.get(url + "/api/v1/slides", headers=headers).headers[
                "access-control-allow-origin"
            ]
            == "http://other.example"
        )
        asked = {"Origin": "http://other.example", "Access-Control-Request-Method": "POST"}
        assert httpx.options(url + "/api/v1/jobs", headers=asked).status_code == 200
        assert (
            httpx.options(
                url + "/api/v1/jobs", headers=asked | {"Origin": "http://evil.example"}
            ).status_code
            == 400
        )


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/enter",
        "/healthz",
        "/api/v1/slides",
        "/api/v1/slides/one/map.png",
        "/static/viewer.js",
        "/nothing",
    ],
)
def test_every_answer_carries_the_safety_headers(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert "server" not in headers


# -- what never gets out
# --------------------------------------------------------------------------------------------


def test_no_answer_holds_a_path_of_this_machine(client: httpx.Client, root: Path) -> None:
    for path in (
        "",
        "/one",
        "/one/summary",
        "/one/regions",
        "/one/report.html",
        "/nobody",
        "/one/tiles/99/0/0.jpg",
    ):
        answer = client.get(f"/api/v1/slides{path}")
        assert str(root) not in answer.text
        assert ".tiff" not in answer.text


def test_errors_carry_an_id_that_the_log_explains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slide = write_slide(tmp_path / "slides" / "s.tiff", paint(1200, 600))
    break_tile(slide, page=0, tile=0)
    settings = ServeSettings(results=(), slides=tmp_path / "slides", token=TOKEN, decoders=1)
    with (
        caplog.at_level(logging.INFO, "wsi_pipeline"),
        run_server(settings) as (url, _),
        connect(url) as client,
    ):
        answer = client.get("/api/v1/slides/s/tiles/0/0/0.jpg")
        assert client.get("/api/v1/slides/s/tiles/0/3/1.jpg").status_code == 200
    assert answer.status_code == 422
    assert str(tmp_path) not in answer.text
    assert any(
        answer.json()["id"] in record.message and "s.tiff" in record.message
        for record in caplog.records
    )
    assert not any(TOKEN in record.getMessage() for record in caplog.records)


def test_another_file_in_a_slides_place_is_not_shown_under_its_map(
    tmp_path: Path, served_root: Path
) -> None:
    shutil.copytree(served_root / "results", tmp_path / "results")
    write_slide(tmp_path / "slides" / "one.tiff", tissue(600, 500, seed=9))
    settings = ServeSettings(
        results=(tmp_path / "results",), slides=tmp_path / "slides", token=TOKEN, decoders=1
    )
    with run_server(settings) as (url, _), connect(url) as client:
        body = client.get("/api/v1/slides/one").json()
        assert body["tiles"] is None
        assert "not the one that was inferred" in body["tiles_note"]
        assert client.get("/api/v1/slides/one/tiles/0/0/0.jpg").status_code == 404
        shutil.copyfile(served_root / "slides" / "one.tiff", tmp_path / "slides" / "one.tiff")
        assert client.get("/api/v1/slides/one/tiles/0/0/0.jpg").status_code == 200


def test_neither_label_nor_macro_image_nor_raw_metadata_is_served(
    shared_data: Path, tmp_path: Path
) -> None:
    import openslide

    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copyfile(shared_data / "slides" / "CMU-1-Small-Region.svs", slides / "s.svs")
    with openslide.OpenSlide(slides / "s.svs") as slide:
        assert {"label", "macro"} & set(slide.associated_images)
        secret = slide.properties["aperio.ScanScope ID"]
    settings = ServeSettings(results=(), slides=slides, token=TOKEN, decoders=1)
    with run_server(settings) as (url, _), connect(url) as client:
        routes = client.get("/openapi.json").json()["paths"]
        assert not [
            route
            for route in routes
            if "label" in route or "macro" in route or "associated" in route or "propert" in route
        ]
        for name in ("", "/s", "/s/thumbnail.jpg"):
            content = client.get(f"/api/v1/slides{name}").content
            assert secret.encode() not in content
            assert b"aperio." not in content
        with Image.open(io.BytesIO(client.get("/api/v1/slides/s/thumbnail.jpg").content)) as image:
            assert image.size[0] / image.size[1] == pytest.approx(2220 / 2967, abs=0.01)


# -- jobs
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def add_slide(root: Path) -> Iterator[Callable[[str, NDArray[np.uint8]], Path]]:
    """Writes a slide into the folder; it goes after the test, with its results."""
    added: list[Path] = []

    def add(name: str, pixels: NDArray[np.uint8]) -> Path:
        added.append(write_slide(root / "slides" / f"{name}.tiff", pixels))
        return added[-1]

    yield add
    for path in added:
        path.unlink()
        shutil.rmtree(root / "results" / path.stem, ignore_errors=True)


def test_a_job_infers_a_slide_of_the_folder(
    client: httpx.Client, add_slide: Callable[[str, NDArray[np.uint8]], Path]
) -> None:
    add_slide("three", tissue(600, 500, seed=3))
    started = client.post("/api/v1/jobs", json={"slide_id": "three"})
    assert started.status_code == 202
    place = f"/api/v1/jobs/{started.json()['job_id']}"
    wait_until(lambda: client.get(place).json()["state"] in ("done", "failed"), 60)
    job = client.get(place).json()
    assert (job["state"], job["patches_done"], job["patches_total"]) == ("done", 120, 120)
    assert client.get("/api/v1/slides/three/summary").json()["patches"] == 120
    assert client.delete(place).json()["state"] == "done"


def test_a_job_keeps_the_threshold_that_the_results_show(
    client: httpx.Client, add_slide: Callable[[str, NDArray[np.uint8]], Path], root: Path
) -> None:
    add_slide("seven", tissue(600, 500, seed=7))
    for threshold, source in ((None, "count"), (0.25, "user")):
        if threshold is not None:
            view = View(("summary",), Aggregation(threshold=threshold))
            folder = root / "results" / "seven"
            assert aggregate_slide(folder, folder, view).state == "ok"
        place = start_job(client, "seven")
        wait_for_end(client, place)
        summary = client.get("/api/v1/slides/seven/summary").json()
        assert summary["threshold_source"] == source
    assert summary["threshold"] == 0.25


def test_a_job_that_fails_says_so_by_an_id(client: httpx.Client, root: Path) -> None:
    (root / "slides" / "broken.svs").write_text("nothing")
    place = (
        f"/api/v1/jobs/{client.post('/api/v1/jobs', json={'slide_id': 'broken'}).json()['job_id']}"
    )
    wait_until(lambda: client.get(place).json()["state"] == "failed", 60)
    assert str(root) not in client.get(place).text
    (root / "slides" / "broken.svs").unlink()


def wait_for_end(client: httpx.Client, place: str) -> None:
    wait_until(lambda: client.get(place).json()["state"] in ("done", "failed"), 60)


def start_job(client: httpx.Client, slide_id: str) -> str:
    """Start a job and return its place."""
    answer = client.post("/api/v1/jobs", json={"slide_id": slide_id}).json()
    return f"/api/v1/jobs/{answer['job_id']}"


def test_a_running_job_is_cancelled_and_the_next_one_goes_on(
    add_slide: Callable[[str, NDArray[np.uint8]], Path],
    server: tuple[str, Services],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = server[1].jobs
    assert jobs is not None
    add_slide("four", tissue(2000, 1500, seed=4))
    blocks: list[int] = []

    original = InferenceJob.progress

    def progress(job: InferenceJob, line: str, done: float, total: float | None) -> None:
        if done:
            blocks.append(int(done))
            if len(blocks) == 1:
                jobs.cancel(job)
        original(job, line, done, total)

    monkeypatch.setattr(InferenceJob, "progress", progress)
    with connect(server[0]) as client:
        place = start_job(client, "four")
        wait_until(lambda: client.get(place).json()["state"] == "cancelled", 60)
        assert len(blocks) == 1  # 40 × 30 cells are two blocks; the second was never begun
        assert client.get("/api/v1/slides/four/summary").status_code == 404
        again = start_job(client, "four")
        wait_until(lambda: client.get(again).json()["state"] == "done", 60)
        assert client.get(again).json()["patches_total"] == 1200 - blocks[0]


@pytest.mark.parametrize(
    "fault",
    [
        KeyError("a key"),
        MemoryError(),
        RecursionError("too deep"),
        SystemExit(2),
        KeyboardInterrupt(),
        None,
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_whatever_ends_a_job_the_next_one_runs(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, fault: BaseException | None
) -> None:
    """None: the run returns without having said how the slide ended."""

    def break_off(*_: Any, **__: Any) -> None:
        if fault is not None:
            raise fault

    with monkeypatch.context() as patch:
        patch.setattr(job_queue, "infer_slides", break_off)
        place = start_job(client, "one")
        wait_for_end(client, place)
    assert client.get(place).json()["state"] == "failed"
    place = start_job(client, "one")
    wait_for_end(client, place)
    assert client.get(place).json()["state"] == "done"


def test_a_fault_after_a_job_leaves_the_next_one_to_run(
    client: httpx.Client, server: tuple[str, Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("no more threads")

    jobs = server[1].jobs
    assert jobs is not None
    monkeypatch.setattr(jobs, "on_end", fail)
    monkeypatch.setattr(jobs._workers, "close", fail)
    for _ in range(2):
        place = start_job(client, "one")
        wait_for_end(client, place)
        assert client.get(place).json()["state"] == "done"


def test_a_request_for_a_job_names_a_slide_of_the_folder_and_nothing_else(
    client: httpx.Client,
) -> None:
    assert client.post("/api/v1/jobs", json={"slide_id": "nobody"}).status_code == 404
    assert client.post("/api/v1/jobs", json={"slide_id": "../slides/one"}).status_code == 404
    assert client.post("/api/v1/jobs", json={"slide_id": "one", "path": "/etc"}).status_code == 422


def test_jobs_wait_their_turn_once_each_and_up_to_a_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(job_queue, "infer_slides", lambda *_, **__: may_end.wait(20))
    queue = JobQueue(
        tmp_path / "m", tmp_path, InferOptions(workers=0), capacity=2, on_end=lambda: None
    )
    running, waiting = (queue.submit(FoundSlide(name, tmp_path / name)) for name in ("a", "b"))
    wait_until(lambda: running.state is JobState.RUNNING)
    with pytest.raises(Refusal, match="2 jobs are waiting"):
        queue.submit(FoundSlide("c", tmp_path / "c"))
    queue.cancel(waiting)
    assert waiting.state is JobState.CANCELLED
    with pytest.raises(Refusal, match="under way already"):
        queue.submit(FoundSlide("a", tmp_path / "a"))
    queue.submit(FoundSlide("b", tmp_path / "b"))
    may_end.set()
    queue.close()


@pytest.mark.system
def test_jobs_share_workers_until_one_breaks_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two slides are inferred by one worker; after a job that raised, another is started."""
    opened: list[int] = []

    def count(workers: Workers) -> Any:
        opened.append(workers.processes)
        return open_workers(workers)

    def break_off(*arguments: Any, **others: Any) -> Any:
        if arguments[0][0].slide_id == "b":
            raise RuntimeError("broken off")
        return infer_slides(*arguments, **others)

    monkeypatch.setattr("wsi_pipeline.scheduling.run.open_workers", count)
    monkeypatch.setattr(job_queue, "infer_slides", break_off)
    slides = {name: write_slide(tmp_path / f"{name}.tiff", tissue(200, 200)) for name in "acbd"}
    model = write_model(tmp_path / "m.safetensors")
    options = InferOptions(workers=1, device="cpu", engine="torch", precision="fp32")
    queue = JobQueue(model, tmp_path / "results", options, capacity=9, on_end=lambda: None)
    jobs = [queue.submit(FoundSlide(name, path)) for name, path in slides.items()]
    wait_until(lambda: all(job.state in job_queue.ENDED for job in jobs), 120)
    queue.close()
    assert [str(job.state) for job in jobs] == ["done", "done", "failed", "done"]
    assert opened == [1, 1]
