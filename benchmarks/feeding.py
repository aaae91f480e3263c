"""The patches that one interpreter can feed a GPU with: cut by NumPy, against tiles and an index.

Decoding is emulated: a decoder that sleeps, without the interpreter's lock, for as long as this
machine takes to decode the tile. Threads that sleep take no core, so that a machine with few shows
what the interpreter itself can do beside many: everything else is done, from the bytes of the file
to the queue before the device. The device computes nothing, and patches from tiles are cut on it.
Pixels of both ways are compared first, with real decoding. The slide's file is in the page cache.

    python benchmarks/feeding.py [SLIDE] [--threads 4 8 16 32] [--rounds 3] [--milliseconds 0.35]
"""

import argparse
import hashlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from slide_maker import make_slide
from tiling import describe_machine

from wsi_pipeline.core.buffers import PixelBuffers
from wsi_pipeline.core.geometry import PatchSpec, count_blocks
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.models.device_queue import Cuda, DeviceQueue, Slot
from wsi_pipeline.models.gathering import cut_patches
from wsi_pipeline.slides import jpeg_tiles
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.slides.tiff_reader import TiffReader
from wsi_pipeline.stages.tile import plan_patches
from wsi_pipeline.stages.tile_config import TileConfig

MPP = 0.25
PINNED_BUFFERS = 64
COMPARED_BLOCKS = 4
MOST_BYTES = 48 * 1024 * 1024
LEAST_BLOCKS = 6
"""Blocks that each thread reads."""

Way = Callable[[SlidePatches, int, PixelBuffers], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, nargs="*", default=[4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3, help="turns of both ways")
    parser.add_argument(
        "--milliseconds", type=float, help="that a tile takes to decode; measured by default"
    )
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        slide = options.slide or draw(Path(folder) / "synthetic.tiff")
        table, _ = plan_patches(TiffReader(slide, "s"), TileConfig(spec=PatchSpec(50, 50, MPP)))
        compare(slide, table)
        decode_s = (options.milliseconds or 1000 * measure_tile(open_source(slide, table))) / 1000
        print(f"{table.patches:,} patches; a tile takes {decode_s * 1000:.2f} ms to decode")
        print("\n| threads | cut by NumPy | tiles and an index | ratio |")
        print("| --- | --- | --- | --- |")
        for threads in options.threads:
            rates: dict[Way, list[float]] = {read_cut: [], read_tiles: []}
            for _ in range(options.rounds):
                for way, found in rates.items():
                    found.append(measure(slide, table, threads, way, decode_s))
            one, other = (statistics.median(found) for found in rates.values())
            print(f"| {threads} | {one:,.0f} | {other:,.0f} | {other / one:.1f} |", flush=True)


def draw(path: Path) -> Path:
    make_slide(path, 20_000, 20_000, tissue=1.0, tint=(1.0, 0.8, 1.0))
    return path


def measure_tile(source: SlidePatches) -> float:
    """Return the seconds that a core takes to read and decode one JPEG tile; other load is out."""
    started = time.thread_time()
    tiles = source.read_tiles(0, PixelBuffers())
    assert tiles is not None
    return (time.thread_time() - started) / len(tiles.tiles)


def read_cut(source: SlidePatches, block: int, buffers: PixelBuffers) -> object:
    """Read a block as it is stored, and copy it to where a GPU takes it from."""
    return buffers.copy(source.read_block(block).pixels)


def read_tiles(source: SlidePatches, block: int, buffers: PixelBuffers) -> object:
    """Read a block as the tiles under it."""
    tiles = source.read_tiles(block, buffers)
    assert tiles is not None
    return tiles


def compare(slide: Path, table: PatchTable) -> None:
    """Stop where patches cut from tiles are not those that are stored."""
    source, buffers = open_source(slide, table), PixelBuffers()
    digests = {}
    for name, read in (
        ("cut by NumPy", lambda block: source.read_block(block).pixels),
        ("gathered from tiles", lambda block: cut_patches(source.read_tiles(block, buffers))),  # type: ignore[arg-type]
    ):
        digest = hashlib.sha256()
        for block in range(COMPARED_BLOCKS):
            digest.update(np.ascontiguousarray(read(block)).data)
        digests[name] = digest.hexdigest()
    assert len(set(digests.values())) == 1, digests
    print(f"pixels of {COMPARED_BLOCKS} blocks are the same both ways: {digest.hexdigest()[:12]}")


def open_source(slide: Path, table: PatchTable) -> SlidePatches:
    reader = TiffReader(slide, "s", decode_threads=1)
    source = SlidePatches(reader, table.grid, table.positions, table.block_size)
    reader.layout_of(reader.levels[0])  # compares it with OpenSlide's
    return source


@contextmanager
def decoders_that_sleep(seconds: float) -> Iterator[None]:
    """Sleep in place of decoding; what is decoded is whatever was in memory."""
    real = simplejpeg.decode_jpeg

    def sleep(stream: bytes, *_: Any, buffer: Any, **__: Any) -> Any:
        simplejpeg.decode_jpeg_header(stream)
        time.sleep(seconds)
        return buffer

    jpeg_tiles.simplejpeg.decode_jpeg = sleep
    try:
        yield
    finally:
        jpeg_tiles.simplejpeg.decode_jpeg = real


class NoDevice(Cuda):
    """A device that does nothing."""

    def new_stream(self) -> Any:
        return None

    def new_event(self) -> Any:
        return None


class NoWork:
    """A block that is computed in no time."""

    def launch(self, slot: Slot) -> None:
        """Do nothing."""

    def fetch(self, slot: Slot) -> None:
        """Do nothing."""

    def shrink(self, error: RuntimeError) -> None:
        raise error


def measure(slide: Path, table: PatchTable, threads: int, read: Way, decode_s: float) -> float:
    """Return patches a second that threads bring to the queue before a device."""
    blocks = count_blocks(table.patches, table.block_size)
    sources = [open_source(slide, table) for _ in range(-(-LEAST_BLOCKS * threads // blocks))]
    work = iter([(source, block) for source in sources for block in range(blocks)])
    taking, queue, buffers = threading.Lock(), DeviceQueue(NoDevice()), PixelBuffers(PINNED_BUFFERS)
    for buffer in [buffers.take((MOST_BYTES,)) for _ in range(threads)]:
        buffer.fill(0)  # as pinned memory, which is there before

    def feed() -> None:
        while True:
            with taking:
                source, block = next(work, (None, 0))
            if source is None:
                return
            patches = read(source, block, buffers)
            queue.do(NoWork())
            del patches  # which the device has read by now

    crew = [threading.Thread(target=feed) for _ in range(threads)]
    with decoders_that_sleep(decode_s):
        started = time.perf_counter()
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        return len(sources) * table.patches / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
