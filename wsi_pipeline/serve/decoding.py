"""Reading slides and decoding uploads in limited child processes.

The server asks a `DecoderPool`. Run as `python -P -m wsi_pipeline.serve.decoding`, this module is
the child process: it reads slides and decodes images under limits, and knows no network.
"""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError, WsiError
from wsi_pipeline.core.geometry import Grid, positions_to_boxes_l0
from wsi_pipeline.core.limits import LimitedProcess, Message, answer_requests
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.base import Level, SlideReader, choose_level
from wsi_pipeline.slides.images import decode_sent, encode_jpeg, encode_png, read_sent_size
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.slides.scaling import ScaledView, read_thumbnail

OPEN_SLIDES = 8
THUMBNAIL_PX = 1024
SURROUNDINGS_PX = 1000
"""Longest side of a patch with its surroundings."""


class DecodingError(WsiError):
    """A slide or an image could not be read.

    The message may hold a path, so it goes to the log and never to a client.
    """


class TooSlow(DecodingError):
    """The time limit passed; the process was ended."""


class Busy(WsiError):
    """Too much is waiting already; ask again later."""


class DecoderPool:
    """Decoding processes, started when first needed and replaced when they die or are ended."""

    def __init__(self, processes: int, memory_bytes: int, waiting: int) -> None:
        self._memory_bytes = memory_bytes
        self._free: queue.LifoQueue[LimitedProcess | None] = queue.LifoQueue()
        for _ in range(processes):
            self._free.put(None)
        self._places = threading.BoundedSemaphore(processes + waiting)
        self._is_closed = False
        self.replaced = 0
        """Processes that died or were ended, since the start."""

    def ask(self, header: dict[str, Any], payload: bytes = b"", timeout_s: float = 20.0) -> Message:
        """Return the answer to a request.

        Raises DecodingError where there is none, Busy where too many wait already.
        """
        if not self._places.acquire(blocking=False):
            raise Busy("too many reads are waiting; try again in a moment")
        try:
            return self._ask(Message(header, payload), timeout_s)
        finally:
            self._places.release()

    def _ask(self, message: Message, timeout_s: float) -> Message:
        try:
            decoder = self._free.get(timeout=timeout_s)
        except queue.Empty as error:
            raise Busy("every decoding process is busy; try again in a moment") from error
        is_usable = False
        try:
            decoder = decoder or LimitedProcess(__name__, self._memory_bytes)
            reply = decoder.ask(message, timeout_s)
            is_usable = "is_memory" not in reply.header
        except TimeoutError as error:
            raise TooSlow("decoding: took longer than the limit; the process was ended") from error
        except ConnectionError as error:
            raise DecodingError(f"decoding: the process died over it ({error})") from error
        finally:
            if decoder is not None and (self._is_closed or not is_usable):
                self.replaced += not is_usable
                decoder.end()
                decoder = None
            self._free.put(decoder)
        if "error" in reply.header:
            raise DecodingError(str(reply.header["error"]))
        return reply

    def close(self) -> None:
        """End every process; one at work is ended when it comes back."""
        self._is_closed = True
        with suppress(queue.Empty):
            while True:
                if (decoder := self._free.get_nowait()) is not None:
                    decoder.end()


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The tiles of one slide for deep zoom; integer arithmetic.

    Level 0 is the scan, level k the scan reduced 2ᵏ times.
    """

    size_l0: tuple[int, int]
    tile_px: int

    @property
    def levels(self) -> int:
        """Number of levels; the last one is a single tile."""
        return 1 + (-(-max(self.size_l0) // self.tile_px) - 1).bit_length()

    def level_size(self, level: int) -> tuple[int, int]:
        """Return (width, height) of a level in its own pixels, rounded up."""
        width, height = self.size_l0
        return -(-width // 2**level), -(-height // 2**level)

    def tile_count(self, level: int) -> tuple[int, int]:
        """Return (columns, rows) of tiles on a level."""
        width, height = self.level_size(level)
        return -(-width // self.tile_px), -(-height // self.tile_px)

    def has_tile(self, level: int, col: int, row: int) -> bool:
        """Return True if there is such a tile."""
        if not 0 <= level < self.levels:
            return False
        cols, rows = self.tile_count(level)
        return 0 <= col < cols and 0 <= row < rows

    def tile_box(self, level: int, col: int, row: int) -> tuple[int, int, int, int]:
        """Return (x, y, width, height) of a tile in its level's pixels.

        Tiles at the right and bottom edge are smaller.
        """
        width, height = self.level_size(level)
        x, y = col * self.tile_px, row * self.tile_px
        return x, y, min(self.tile_px, width - x), min(self.tile_px, height - y)

    def coarsest_level(self, downsamples: list[float], region_px: int) -> int:
        """Return the coarsest level whose tiles can each be made of at most `region_px` pixels.

        `downsamples` are those of the file's own levels.
        """
        coarsest = 0
        for level in range(1, self.levels):
            source = max((own for own in downsamples if own <= 2**level), default=1.0)
            if (self.tile_px * 2**level / source) ** 2 <= region_px:
                coarsest = level
        return coarsest


class OpenSlides(LRUCache[tuple[Any, ...], SlideReader]):
    """Slides that stay open; one whose file changed, or could not be read, is opened again."""

    def popitem(self) -> tuple[tuple[Any, ...], SlideReader]:
        """Close the slide that was not asked for longest."""
        key, reader = super().popitem()
        reader.close()
        return key, reader

    def take(self, request: dict[str, Any]) -> SlideReader:
        """Return the open slide of a request. Raises SlideError."""
        key = (request["path"], request.get("slide_mpp"), *request["stamp"])
        if key not in self:
            self[key] = open_slide(Path(request["path"]), slide_mpp=request.get("slide_mpp"))
        return self[key]

    def drop(self, path: str) -> None:
        """Close every handle on a file."""
        for key in [key for key in self if key[0] == path]:
            self.pop(key).close()


def describe(reader: SlideReader, request: dict[str, Any]) -> Message:
    """Return the facts of a slide that may leave it: nothing of a patient, no label, no macro."""
    return Message({"slide": reader.info.to_json()})


def read_tile(reader: SlideReader, request: dict[str, Any]) -> Message:
    """Return one tile of the pyramid as JPEG."""
    pyramid = Pyramid(reader.info.size_l0, request["tile_px"])
    box = pyramid.tile_box(request["level"], request["col"], request["row"])
    downsample = Fraction(2 ** request["level"])
    source = choose_level(reader.levels, downsample)
    read_px = box[2] * box[3] * (downsample / source.downsample) ** 2
    if read_px > request["region_px"]:
        raise SlideError(f"tile: would read {int(read_px):,} px; ask for a finer level")
    return Message({}, encode_jpeg(ScaledView(reader, source, downsample, (0, 0)).read(*box)))


def read_overview(reader: SlideReader, request: dict[str, Any]) -> Message:
    """Return the whole scanned area as one small JPEG."""
    mpp = reader.info.mpp * max(reader.info.bounds_l0[2:]) / THUMBNAIL_PX
    return Message({}, encode_jpeg(read_thumbnail(reader, mpp).thumbnail.pixels))


def read_patch(reader: SlideReader, request: dict[str, Any]) -> Message:
    """Return one patch as PNG, pixel by pixel as the model saw it."""
    grid = Grid.from_json(request["grid"])
    positions = np.array([[request["row"], request["col"]]], dtype=np.int32)
    block = SlidePatches(reader, grid, positions, block_size=1).read_block(0)
    if not block.readable[0]:
        raise SlideError("patch: cannot be decoded; the file is damaged there")
    return Message({}, encode_png(block.pixels[0]))


def read_surroundings(reader: SlideReader, request: dict[str, Any]) -> Message:
    """Return a patch, outlined, with the two patches on each side of it as JPEG.

    The image is white beyond the slide, at level 0 where that fits within SURROUNDINGS_PX, and has
    fewer neighbours where those would take too many pixels to read.
    """
    grid = Grid.from_json(request["grid"])
    position = np.array([[request["row"], request["col"]]], dtype=np.int32)
    x, y, side_l0, _ = positions_to_boxes_l0(position, grid)[0].tolist()
    around_l0 = 2 * side_l0
    while True:
        whole_l0 = side_l0 + 2 * around_l0
        downsample = max(Fraction(1), Fraction(-(-whole_l0 // SURROUNDINGS_PX)))
        source = choose_level(reader.levels, downsample)
        if (whole_l0 / source.downsample) ** 2 <= request["region_px"]:
            break
        if around_l0 == 0:
            raise SlideError("patch: covers more pixels than one read may take")
        around_l0 //= 2
    corner = (x - around_l0, y - around_l0)
    pixels = _read_with_margin(reader, source, downsample, corner, whole_l0)
    start, stop = int(around_l0 / downsample), -(-(around_l0 + side_l0) // downsample)
    outline_patch(pixels, start, start, int(stop) - start)
    return Message({}, encode_jpeg(pixels))


def _read_with_margin(
    reader: SlideReader,
    source: Level,
    downsample: Fraction,
    corner_xy_l0: tuple[int, int],
    side_l0: int,
) -> NDArray[np.uint8]:
    """Return a square of the slide, white where it reaches beyond the scan."""
    side = int(side_l0 / downsample)
    pixels = np.full((side, side, 3), 255, dtype=np.uint8)
    (width_l0, height_l0), (x, y) = reader.info.size_l0, corner_xy_l0
    left, top = (max(0, -(place // int(downsample))) for place in (x, y))
    origin = (x + left * int(downsample), y + top * int(downsample))
    width = min(side - left, int((width_l0 - origin[0]) / downsample))
    height = min(side - top, int((height_l0 - origin[1]) / downsample))
    if width > 0 and height > 0:
        view = ScaledView(reader, source, downsample, origin)
        pixels[top : top + height, left : left + width] = view.read(0, 0, width, height)
    return pixels


def outline_patch(pixels: NDArray[np.uint8], x: int, y: int, side: int) -> None:
    """Draw a square's outline around (not over) its pixels: black, with white on both sides."""
    for gap, color in ((1, 255), (2, 0), (3, 0), (4, 255)):
        top, left = max(y - gap, 0), max(x - gap, 0)
        bottom, right = y + side + gap - 1, x + side + gap - 1
        for line in (top, bottom):
            pixels[line : line + 1, left : right + 1] = color
        for line in (left, right):
            pixels[top : bottom + 1, line : line + 1] = color


def decode_upload(payload: bytes, request: dict[str, Any]) -> Message:
    """Return an uploaded image as raw RGB."""
    pixels = decode_sent(payload, request["max_pixels"])
    return Message({"height": pixels.shape[0], "width": pixels.shape[1]}, pixels.tobytes())


def measure_upload(payload: bytes, request: dict[str, Any]) -> Message:
    """Return the size of an uploaded image by its header."""
    width, height = read_sent_size(payload)
    return Message({"height": height, "width": width})


SLIDE_REQUESTS: dict[str, Callable[[SlideReader, dict[str, Any]], Message]] = {
    "describe": describe,
    "tile": read_tile,
    "overview": read_overview,
    "patch": read_patch,
    "surroundings": read_surroundings,
}
UPLOAD_REQUESTS = {"decode": decode_upload, "measure": measure_upload}


def answer(request: Message, slides: OpenSlides) -> Message:
    """Return the answer to one request; an error is an answer too."""
    header = request.header
    try:
        if work := SLIDE_REQUESTS.get(header["do"]):
            return work(slides.take(header), header)
        return UPLOAD_REQUESTS[header["do"]](request.payload, header)
    except (WsiError, OSError, MemoryError, ValueError, ArithmeticError) as error:
        if "path" in header:
            slides.drop(header["path"])
        is_memory = {"is_memory": True} if isinstance(error, MemoryError) else {}
        return Message({"error": f"{type(error).__name__}: {error}"} | is_memory)


if __name__ == "__main__":
    open_slides = OpenSlides(OPEN_SLIDES)
    answer_requests(lambda request: answer(request, open_slides))
