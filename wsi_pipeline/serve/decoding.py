"""The process that touches foreign pixels: it reads slides and decodes images under limits, and knows no network.

Run as `python -P -m wsi_pipeline.serve.decoding BYTES`; requests come on stdin, answers go to
stdout, as frames.
"""

import os
import resource
import sys
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wsi_pipeline.core.errors import SlideError, WsiError
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.serve.decoders import BrokenFrame, Message, pack_message, read_message
from wsi_pipeline.serve.pyramid import Pyramid
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.base import SlideReader, choose_level
from wsi_pipeline.slides.image_io import decode_sent, encode_jpeg, encode_png, read_sent_size
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.slides.scaling import ScaledView
from wsi_pipeline.slides.thumbnail import read_thumbnail

OPEN_SLIDES = 8
OPEN_FILES = 256
THUMBNAIL_PX = 1024


class SlidePool:
    """Slides that stay open; one whose reading failed, or whose file changed, is opened anew."""

    def __init__(self, capacity: int = OPEN_SLIDES) -> None:
        self._capacity = capacity
        self._open: OrderedDict[tuple[Any, ...], SlideReader] = OrderedDict()

    def take(self, request: dict[str, Any]) -> SlideReader:
        """The open slide of a request. Raises SlideError."""
        key = (request["path"], request.get("slide_mpp"), *request["mark"])
        reader = self._open.pop(key, None) or open_slide(
            Path(request["path"]), slide_mpp=request.get("slide_mpp")
        )
        self._open[key] = reader
        while len(self._open) > self._capacity:
            self._open.popitem(last=False)[1].close()
        return reader

    def drop(self, path: str) -> None:
        """Close every handle on a file."""
        for key in [key for key in self._open if key[0] == path]:
            self._open.pop(key).close()


def describe(reader: SlideReader, request: dict[str, Any]) -> Message:
    """The facts of a slide that may leave it: nothing of a patient, no label, no macro image."""
    return Message({"slide": reader.info.to_json()})


def read_tile(reader: SlideReader, request: dict[str, Any]) -> Message:
    """One tile of the pyramid as JPEG."""
    pyramid = Pyramid(reader.info.size_l0, request["tile_px"])
    level, col, row = request["level"], request["col"], request["row"]
    x, y, width, height = pyramid.tile_box(level, col, row)
    downsample = Fraction(2**level)
    source = choose_level(reader.levels, downsample)
    read_px = width * height * (downsample / source.downsample) ** 2
    if read_px > request["region_px"]:
        raise SlideError(f"tile: would read {int(read_px):,} px; ask for a finer level")
    return Message(
        {}, encode_jpeg(ScaledView(reader, source, downsample, (0, 0)).read(x, y, width, height))
    )


def read_overview(reader: SlideReader, request: dict[str, Any]) -> Message:
    """The whole scanned area as one small JPEG."""
    _, _, width_l0, height_l0 = reader.info.bounds_l0
    thumbnail = read_thumbnail(
        reader, reader.info.mpp * max(width_l0, height_l0) / THUMBNAIL_PX
    ).thumbnail
    return Message({}, encode_jpeg(thumbnail.pixels))


def read_patch(reader: SlideReader, request: dict[str, Any]) -> Message:
    """One patch as PNG, pixel by pixel what the model saw."""
    grid = Grid.from_json(request["grid"])
    positions = np.array([[request["row"], request["col"]]], dtype=np.int32)
    block = SlidePatches(reader, grid, positions, block_size=1).read_block(0)
    if not block.readable[0]:
        raise SlideError("patch: cannot be decoded; the file is damaged there")
    return Message({}, encode_png(block.pixels[0]))


SLIDE_REQUESTS: dict[str, Callable[[SlideReader, dict[str, Any]], Message]] = {
    "describe": describe,
    "tile": read_tile,
    "overview": read_overview,
    "patch": read_patch,
}


def decode_upload(request: dict[str, Any], payload: bytes) -> Message:
    """What a stranger sent, as raw RGB."""
    pixels = decode_sent(payload, request["max_pixels"])
    return Message({"height": pixels.shape[0], "width": pixels.shape[1]}, pixels.tobytes())


def measure_upload(request: dict[str, Any], payload: bytes) -> Message:
    """Its size by its header."""
    width, height = read_sent_size(payload)
    return Message({"height": height, "width": width})


UPLOAD_REQUESTS: dict[str, Callable[[dict[str, Any], bytes], Message]] = {
    "decode": decode_upload,
    "measure": measure_upload,
}


def answer(request: Message, pool: SlidePool) -> Message:
    """The answer to one request; what cannot be done is an answer too."""
    header = request.header
    try:
        if work := SLIDE_REQUESTS.get(header["do"]):
            return work(pool.take(header), header)
        return UPLOAD_REQUESTS[header["do"]](header, request.payload)
    except (WsiError, OSError, MemoryError, ValueError, ArithmeticError) as error:
        if "path" in header:
            pool.drop(header["path"])
        return Message(
            {
                "error": f"{type(error).__name__}: {error}",
                "is_memory": isinstance(error, MemoryError),
            }
        )


def confine(memory_bytes: int) -> None:
    """Give up what decoding does not need: memory above the limit, many files, writing files, core dumps with pixels in them."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))


def serve_requests(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the other side hangs up; after running out of memory, end, so that a fresh process takes over."""

    def read_exactly(count: int) -> bytes:
        content = requests.read(count)
        if len(content) != count:
            raise BrokenFrame("the server hung up")
        return content

    pool = SlidePool()
    while True:
        try:
            request = read_message(read_exactly)
        except BrokenFrame:
            return
        reply = answer(request, pool)
        answers.write(pack_message(reply))
        answers.flush()
        if reply.header.get("is_memory"):
            return


def main() -> None:
    """Talk over the pipes that this process was started with."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not fall among the frames
    confine(int(sys.argv[1]))
    serve_requests(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
