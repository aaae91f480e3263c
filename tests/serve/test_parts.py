"""The parts of the server by themselves: tiles, cache, decoding processes, the catalogue."""

import io
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.builders import break_tile, paint, paint_coordinates, write_slide
from tests.served import read_level0, replace_probabilities
from wsi_pipeline.core.errors import ConfigError, SlideError
from wsi_pipeline.core.slide import OPTIONAL, SlideInfo
from wsi_pipeline.serve import catalogue as catalogue_module
from wsi_pipeline.serve.auth import TokenAuth
from wsi_pipeline.serve.catalogue import Catalogue, name_runs, stamp_file
from wsi_pipeline.serve.decoding import Busy, DecoderPool, DecodingError, Pyramid, TooSlow
from wsi_pipeline.serve.picture_routes import draw_tissue, shrink
from wsi_pipeline.serve.settings import MIB, Limits, ServeSettings
from wsi_pipeline.serve.slide_pixels import ENTRY_OVERHEAD_BYTES, TileCache
from wsi_pipeline.slides.images import (
    decode_sent,
    encode_jpeg,
    encode_png,
    pack_png,
    read_sent_size,
)

SIZES = st.tuples(st.integers(1, 200_000), st.integers(1, 200_000))


def png(pixels: np.ndarray) -> bytes:
    return encode_png(pixels)


# -- deep zoom
# --------------------------------------------------------------------------------------------------


def test_a_slide_of_1000_by_600_has_three_levels() -> None:
    pyramid = Pyramid((1000, 600), 256)
    assert pyramid.levels == 3
    assert [pyramid.tile_count(level) for level in range(3)] == [(4, 3), (2, 2), (1, 1)]
    assert pyramid.tile_box(0, 3, 2) == (768, 512, 232, 88)
    assert pyramid.tile_box(2, 0, 0) == (0, 0, 250, 150)


@given(SIZES)
def test_the_last_level_is_one_tile_and_the_one_before_is_not(size: tuple[int, int]) -> None:
    pyramid = Pyramid(size, 256)
    assert pyramid.tile_count(pyramid.levels - 1) == (1, 1)
    assert pyramid.levels == 1 or pyramid.tile_count(pyramid.levels - 2) != (1, 1)


@given(SIZES, st.data())
def test_tiles_cover_a_level_without_gap_or_overlap(
    size: tuple[int, int], data: st.DataObject
) -> None:
    pyramid = Pyramid(size, 256)
    level = data.draw(st.integers(0, pyramid.levels - 1))
    width, height = pyramid.level_size(level)
    cols, rows = pyramid.tile_count(level)
    assert sum(pyramid.tile_box(level, col, 0)[2] for col in range(cols)) == width
    assert sum(pyramid.tile_box(level, 0, row)[3] for row in range(rows)) == height
    assert not pyramid.has_tile(level, cols, 0)
    assert not pyramid.has_tile(level, 0, -1)


def test_levels_that_would_read_too_much_are_not_offered() -> None:
    # One 256-px tile of level 5 of a flat file reads (256 · 32)² = 67,108,864 px; of level 4, a
    # quarter of that.
    flat = Pyramid((100_000, 100_000), 256)
    assert flat.coarsest_level([1.0], 16_777_216) == 4
    assert flat.coarsest_level([1.0, 16.0], 16_777_216) == 8


# -- cache
# --------------------------------------------------------------------------------------------------


def test_the_cache_stays_within_its_bytes_and_drops_what_was_not_asked_for_longest() -> None:
    cache = TileCache(3 * (100 + ENTRY_OVERHEAD_BYTES))
    for name in "abc":
        cache.put(name, bytes(100))
    cache.get("a")
    cache.put("d", bytes(100))
    assert cache.used_bytes == 3 * (100 + ENTRY_OVERHEAD_BYTES)
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, True, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3000)), max_size=40))
def test_the_cache_counts_its_bytes_exactly(puts: list[tuple[int, int]]) -> None:
    cache = TileCache(5000)
    for key, size in puts:
        cache.put(key, bytes(size))
        kept = sum(len(content) + ENTRY_OVERHEAD_BYTES for content in cache._content.values())
        assert cache.used_bytes == kept <= 5000


# -- pictures
# --------------------------------------------------------------------------------------------------


def test_a_sent_image_is_measured_without_decoding_and_refused_when_too_large() -> None:
    content = png(paint(300, 200))
    assert read_sent_size(content[:60]) == (300, 200)
    with pytest.raises(SlideError, match="more than"):
        decode_sent(content, max_pixels=59_999)
    assert decode_sent(content, max_pixels=60_000).shape == (200, 300, 3)


def test_only_png_and_jpeg_are_taken() -> None:
    stream = io.BytesIO()
    Image.fromarray(paint(10, 10)).save(stream, "GIF")
    with pytest.raises(SlideError, match="neither PNG nor JPEG"):
        read_sent_size(stream.getvalue())


def test_clear_pixels_of_a_sent_image_are_white() -> None:
    assert decode_sent(png(np.zeros((4, 4, 4), dtype=np.uint8)), 16).min() == 255


def test_a_mask_is_clear_outside_tinted_inside_and_has_an_edge() -> None:
    mask = np.zeros((5, 5), dtype=np.bool_)
    mask[1:4, 1:4] = True
    assert draw_tissue(mask)[..., 3].tolist() == [
        [0] * 5,
        [0, 255, 255, 255, 0],
        [0, 255, 60, 255, 0],
        [0, 255, 255, 255, 0],
        [0] * 5,
    ]


def test_a_thumbnail_shrinks_to_the_side_that_is_asked_for() -> None:
    assert shrink(paint(1000, 500), 300).shape == (125, 250, 3)
    assert shrink(paint(40, 20), 300).shape == (20, 40, 3)


# -- decoding processes
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(1, 2048 * MIB, waiting=4)
    yield pool
    pool.close()


def request_for(slide: Path, **more: object) -> dict[str, object]:
    return {"path": str(slide), "stamp": list(stamp_file(slide) or ()), "slide_mpp": None} | more


def tile_request(slide: Path, level: int, col: int, row: int) -> dict[str, object]:
    return request_for(
        slide, do="tile", level=level, col=col, row=row, tile_px=256, region_px=16_000_000
    )


def test_a_tile_holds_the_pixels_of_its_place(pool: DecoderPool, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tiff", paint_coordinates(600, 500))
    with Image.open(io.BytesIO(pool.ask(tile_request(slide, 0, 1, 1)).payload)) as image:
        tile = np.asarray(image)
    assert tile.shape == (244, 256, 3)
    assert (
        np.abs(tile.astype(int) - read_level0(slide)[256:500, 256:512]).mean() < 4
    )  # it went through JPEG


def test_the_coarsest_tile_is_the_whole_slide(pool: DecoderPool, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tiff", paint(600, 500))
    with Image.open(io.BytesIO(pool.ask(tile_request(slide, 2, 0, 0)).payload)) as image:
        assert image.size == (150, 125)


def test_a_slide_is_described_without_anything_of_its_properties(
    pool: DecoderPool, tmp_path: Path
) -> None:
    slide = write_slide(tmp_path / "s.tiff", paint(600, 500))
    header = pool.ask(request_for(slide, do="describe")).header
    assert header["slide"]["size_l0"] == [600, 500]
    assert set(header) == {"slide"}
    named = {field.name for field in fields(SlideInfo)}
    assert set(header["slide"]) == named - set(OPTIONAL)  # it has no profile


def test_a_region_limit_is_checked_before_reading(pool: DecoderPool, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tiff", paint(600, 500))
    with pytest.raises(DecodingError, match="would read"):
        pool.ask(tile_request(slide, 1, 0, 0) | {"region_px": 1000})


def test_after_a_failed_read_the_slide_is_opened_anew_and_the_rest_is_read(
    pool: DecoderPool, tmp_path: Path
) -> None:
    slide = write_slide(tmp_path / "s.tiff", paint(1200, 600))
    break_tile(slide, page=0, tile=0)
    for _ in range(2):
        with pytest.raises(DecodingError):
            pool.ask(tile_request(slide, 0, 0, 0))
        assert len(pool.ask(tile_request(slide, 0, 3, 1)).payload) > 300


def test_a_decoding_process_that_dies_is_replaced(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tiff", paint(600, 500))
    pool = DecoderPool(1, 2048 * MIB, waiting=1)
    pool.ask(request_for(slide, do="describe"))
    decoder = pool._free.get()
    assert decoder is not None
    os.kill(decoder.process_id, signal.SIGKILL)
    pool._free.put(decoder)
    with pytest.raises(DecodingError, match="died"):
        pool.ask(request_for(slide, do="describe"))
    assert pool.ask(request_for(slide, do="describe")).header["slide"]["size_l0"] == [600, 500]
    assert pool.replaced == 1
    pool.close()


def test_a_decoding_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tiff", paint(600, 500))
    pool = DecoderPool(1, 2048 * MIB, waiting=1)
    pool.ask(request_for(slide, do="describe"))
    decoder = pool._free.get()
    assert decoder is not None
    os.kill(decoder.process_id, signal.SIGSTOP)
    pool._free.put(decoder)
    started = time.monotonic()
    with pytest.raises(TooSlow):
        pool.ask(request_for(slide, do="describe"), timeout_s=0.3)
    assert time.monotonic() - started < 5
    assert not Path(f"/proc/{decoder.process_id}").exists()
    pool.close()


def test_a_decoding_process_that_takes_in_nothing_is_ended(tmp_path: Path) -> None:
    pool = DecoderPool(1, 2048 * MIB, waiting=1)
    pool.ask({"do": "measure"}, png(paint(10, 10)))
    decoder = pool._free.get()
    assert decoder is not None
    os.kill(decoder.process_id, signal.SIGSTOP)
    pool._free.put(decoder)
    with pytest.raises(TooSlow):  # its end of the pipe takes some hundred kilobytes
        pool.ask({"do": "measure"}, bytes(8 * MIB), timeout_s=0.3)
    assert not Path(f"/proc/{decoder.process_id}").exists()
    pool.close()


def test_a_decoding_process_cannot_take_more_memory_than_it_may(tmp_path: Path) -> None:
    # 8,000 × 8,000 px need 256 MB as RGBA alone; the process may have 512 MiB, of which the
    # libraries take a good part.
    stream = io.BytesIO()
    Image.new("1", (8000, 8000)).save(stream, "PNG")
    pool = DecoderPool(1, 700 * MIB, waiting=1)
    with pytest.raises(DecodingError, match=r"Memory|died"):
        pool.ask({"do": "decode", "max_pixels": 10**9}, stream.getvalue())
    assert pool.ask({"do": "decode", "max_pixels": 100}, png(paint(10, 10))).header == {
        "height": 10,
        "width": 10,
    }
    pool.close()


def test_more_reads_than_may_wait_are_turned_away(tmp_path: Path) -> None:
    pool = DecoderPool(1, 2048 * MIB, waiting=1)
    taken = pool._free.get()  # the only process is at work
    with pytest.raises(Busy, match="every decoding process"):
        pool.ask({"do": "measure"}, b"", timeout_s=0.05)

    def wait() -> None:
        with pytest.raises(Busy):
            pool.ask({"do": "measure"}, b"", 1.0)

    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for thread in waiting:
        thread.start()
    time.sleep(0.2)
    with pytest.raises(Busy, match="too many"):
        pool.ask({"do": "measure"}, b"", timeout_s=1.0)
    for thread in waiting:
        thread.join()
    pool._free.put(taken)
    pool.close()


# -- what is served
# -------------------------------------------------------------------------------------------------


@pytest.fixture
def results(served_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(served_root, tmp_path / "served")
    return tmp_path / "served" / "results"


@pytest.fixture(autouse=True)
def look_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "REFRESH_S", 0.0)


def test_the_table_follows_the_folder(results: Path) -> None:
    catalogue = Catalogue([results], None)
    assert [entry.slide_id for entry in catalogue.entries()] == ["one", "two"]
    version = catalogue.entries()[0].version
    replace_probabilities(results, "one", np.full((10, 12), 0.9, dtype=np.float32))
    one = catalogue.find("one")
    assert one is not None
    assert one.version != version
    assert one.results["r0"].summary is not None
    assert one.results["r0"].summary.positives == 120
    (results / "run.json").unlink()  # else `two` is missed
    shutil.rmtree(results / "two")
    assert [entry.slide_id for entry in catalogue.entries()] == ["one"]


def test_what_did_not_change_is_not_read_again(results: Path) -> None:
    catalogue = Catalogue([results], None)
    before = catalogue.entries()[0].results["r0"]
    assert catalogue.entries()[0].results["r0"] is before


def test_damaged_results_stay_in_the_table_as_damaged(results: Path) -> None:
    (results / "one" / "summary.json").write_text("{}")
    entry = Catalogue([results], None).find("one")
    assert entry is not None
    assert entry.results["r0"].summary is None


def test_a_slide_without_results_is_in_the_table(results: Path) -> None:
    write_slide(results.parent / "slides" / "three.tiff", paint(600, 500))
    entry = Catalogue([results], results.parent / "slides").find("three")
    assert entry is not None
    assert entry.is_in_folder
    assert entry.results == {}


def test_a_results_folder_that_goes_away_empties_the_table(results: Path) -> None:
    catalogue = Catalogue([results], None)
    results.rename(results.with_name("elsewhere"))
    assert catalogue.entries() == []


def test_runs_of_one_name_are_told_apart() -> None:
    assert [
        run.name for run in name_runs([Path("/a/results"), Path("/b/results"), Path("/c/other")])
    ] == [
        "results",
        "results (2)",
        "other",
    ]


# -- settings
# --------------------------------------------------------------------------------------------------


def test_another_host_needs_a_token() -> None:
    with pytest.raises(ConfigError, match="a token is needed"):
        ServeSettings(results=(Path(),), host="0.0.0.0", token=None)
    assert ServeSettings(results=(Path(),), host="::1", token=None).is_loopback


def test_every_start_has_another_long_token_that_no_log_shows() -> None:
    one, two = ServeSettings(results=(Path(),)), ServeSettings(results=(Path(),))
    assert one.token is not None
    assert one.token != two.token
    assert len(one.token) >= 32
    assert one.token not in repr(one)


@pytest.mark.parametrize(
    "options",
    [
        {"allowed_hosts": ("*",)},
        {"cors_origins": ("*",)},
        {"port": 70_000},
        {"decoders": 0},
        {"token": ""},
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ServeSettings(results=(Path(),), **options)  # type: ignore[arg-type]


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="read_s"):
        Limits(read_s=0)


def test_a_ticket_opens_once() -> None:
    auth = TokenAuth(ServeSettings(results=(Path(),)))
    assert [
        auth.use_ticket("wrong"),
        auth.use_ticket(auth.ticket),
        auth.use_ticket(auth.ticket),
    ] == [False, True, False]


def test_jpeg_and_png_come_back() -> None:
    pixels = paint(20, 10)
    with Image.open(io.BytesIO(encode_jpeg(pixels))) as image:
        assert np.abs(np.asarray(image).astype(int) - pixels).max() < 6
    assert np.array_equal(decode_sent(encode_png(pixels), 200), pixels)
    assert np.array_equal(decode_sent(pack_png(pixels), 200), pixels)
