"""Tiles per second and 95th-percentile latency of `wsi serve`.

Compared with OpenSlide's own DeepZoomGenerator, called directly.

Both make the same JPEG tiles of the same slide in the same run, turn by turn. The server is asked
over the loopback by 8 clients, a process each, that take one tile after another from a common list;
DeepZoomGenerator is called by 8 threads of a process that does nothing else, encoding included,
with no HTTP. Clients, server and decoding processes share the cores that the direct calls have for
themselves.

    cold      a fresh server: no decoding process started, slide not opened, no tile in memory
    warm      a server at work: processes started, slide open, its file in the page cache (as for
              the direct calls); these tiles were never asked for
    repeated  the same tiles once more, now encoded in memory: panning back and forth, or a second
              viewer of the slide

The map of a million patches is drawn anew at 100 thresholds by the viewer's own scripts in headless
Chromium, without a GPU: painted, counted, and scaled onto a view of 1280 × 800 pixels.

    python benchmarks/serve.py [--side 16000] [--tiles 600] [--rounds 3] [--memory 10000]
"""

import argparse
import http.client
import io
import multiprocessing
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import openslide
from openslide.deepzoom import DeepZoomGenerator

from wsi_pipeline.runs.synthetic_slides import draw_phantom, write_pyramid
from wsi_pipeline.serve.decoding import Pyramid
from wsi_pipeline.slides.images import JPEG_QUALITY

CLIENTS = 8
TILE_PX = 256
Tile = tuple[int, int, int]
"""level, column, row"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--side", type=int, default=16_000, help="side of the synthetic slide in pixels"
    )
    parser.add_argument("--tiles", type=int, default=600, help="tiles per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--memory", type=int, default=10_000, help="tiles over which memory is watched; 0: not"
    )
    parser.add_argument(
        "--slide", type=Path, help="a slide of your own instead of the synthetic one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slides" / "slide.tiff"
        slide.parent.mkdir()
        if options.slide:
            slide = slide.with_suffix(options.slide.suffix)
            slide.symlink_to(options.slide.resolve())
        else:
            draw(slide, options.side)
        compare(slide, options.tiles, options.rounds)
        if options.memory:
            watch_memory(slide, options.memory)
    time_redraw()


def draw(path: Path, side: int) -> None:
    piece = draw_phantom(2000, 2000, seed=1).pixels
    copies = -(-side // 2000)
    write_pyramid(path, np.tile(piece, (copies, copies, 1))[:side, :side], 0.25, compression="jpeg")


def compare(slide: Path, count: int, rounds: int) -> None:
    with openslide.OpenSlide(slide) as opened:
        pyramid = Pyramid(opened.dimensions, TILE_PX)
    results: dict[str, list[list[float]]] = {"direct": [], "cold": [], "warm": [], "repeated": []}
    seconds: dict[str, list[float]] = {name: [] for name in results}
    for number in range(rounds):
        tiles = choose_tiles(pyramid, 2 * count, seed=number)
        record(results, seconds, "direct", call_directly(slide, tiles[count:]))
        with Server(slide.parent) as server:
            for name, part in (
                ("cold", tiles[:count]),
                ("warm", tiles[count:]),
                ("repeated", tiles[count:]),
            ):
                record(results, seconds, name, ask_server(server, slide.stem, part))
    print(
        f"{pyramid.size_l0[0]:,} × {pyramid.size_l0[1]:,} px, {count} tiles of {TILE_PX} px of"
        f" every level, {CLIENTS} clients, median of {rounds}"
    )
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    )
    direct = count / statistics.median(seconds["direct"])
    print(f"{'':<34}{'tiles/s':>9}{'of direct':>11}{'p95 ms':>9}")
    names = {
        "direct": "DeepZoomGenerator, called directly",
        "cold": "server, cold",
        "warm": "server, warm",
        "repeated": "server, repeated",
    }
    for name, text in names.items():
        rate = count / statistics.median(seconds[name])
        p95 = statistics.median(float(np.percentile(latencies, 95)) for latencies in results[name])
        print(f"{text:<34}{rate:>9.0f}{rate / direct:>11.2f}{1000 * p95:>9.1f}")


def record(
    results: dict[str, list[list[float]]],
    seconds: dict[str, list[float]],
    name: str,
    measured: tuple[float, list[float]],
) -> None:
    seconds[name].append(measured[0])
    results[name].append(measured[1])


def choose_tiles(pyramid: Pyramid, count: int, seed: int) -> list[Tile]:
    """Return different tiles, of every level in proportion to its size.

    Coarse ones come first, as when a viewer opens.
    """
    all_tiles = [
        (level, col, row)
        for level in range(pyramid.levels)
        for row in range(pyramid.tile_count(level)[1])
        for col in range(pyramid.tile_count(level)[0])
    ]
    if len(all_tiles) < count:
        raise SystemExit(
            f"the slide has {len(all_tiles)} tiles, {count} are needed; take a larger one"
        )
    return random.Random(seed).sample(all_tiles, count)


def call_directly(path: Path, tiles: Sequence[Tile]) -> tuple[float, list[float]]:
    """Return seconds for all, and for each tile, by OpenSlide's generator in 8 threads."""
    with openslide.OpenSlide(path) as slide:
        generator = DeepZoomGenerator(slide, TILE_PX, overlap=0)
        last = generator.level_count - 1

        def make(tile: Tile) -> float:
            started = time.perf_counter()
            level, col, row = tile
            generator.get_tile(last - level, (col, row)).save(
                io.BytesIO(), "JPEG", quality=JPEG_QUALITY
            )
            return time.perf_counter() - started

        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as threads:
            latencies = list(threads.map(make, tiles))
        return time.perf_counter() - started, latencies


class Server:
    """`wsi serve` in a process of its own."""

    def __init__(self, slides: Path, *options: str) -> None:
        command = [
            sys.executable,
            "-c",
            "from wsi_cli.main import wsi; wsi()",
            "serve",
            "--slides",
            str(slides),
            "--port",
            "0",
            *options,
        ]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        found = re.search(r"(http://\S+?)/\?token=(\S+)", self._process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start; run it by hand: wsi serve --slides …")
        self.url, self.token = found.groups()
        urllib.request.urlopen(f"{self.url}/healthz", timeout=60).close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def memory_mib(self) -> float:
        """Return the resident memory of the server and its decoding processes."""
        children = (
            Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        )
        return sum(resident_mib(process) for process in (str(self._process.pid), *children))


def resident_mib(process: str) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def ask_server(server: Server, slide_id: str, tiles: Sequence[Tile]) -> tuple[float, list[float]]:
    """Return seconds for all, and for each tile, by 8 clients.

    Each asks for the next tile when it has one.
    """
    context = multiprocessing.get_context("fork")
    taken, ready, answers = (
        context.Value("q", 0),
        context.Barrier(CLIENTS + 1),
        context.SimpleQueue(),
    )

    def work() -> None:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
        connection.connect()
        latencies = []
        ready.wait()
        while (number := take_next(taken)) < len(tiles):
            started = time.perf_counter()
            ask_tile(connection, server.token, slide_id, tiles[number])
            latencies.append(time.perf_counter() - started)
        answers.put((time.perf_counter(), latencies))

    clients = [context.Process(target=work) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    ready.wait()
    started = time.perf_counter()
    ends, latencies = zip(*[answers.get() for _ in clients], strict=True)
    for client in clients:
        client.join()
    return max(ends) - started, [seconds for part in latencies for seconds in part]


def take_next(taken: "Synchronized[int]") -> int:
    with taken.get_lock():
        taken.value += 1
        return taken.value - 1


def ask_tile(connection: http.client.HTTPConnection, token: str, slide_id: str, tile: Tile) -> None:
    level, col, row = tile
    path = f"/api/v1/slides/{slide_id}/tiles/{level}/{col}/{row}.jpg"
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200 or not content.startswith(b"\xff\xd8"):
        raise SystemExit(f"{path}: {answer.status} {content[:200]!r}")


def watch_memory(slide: Path, count: int) -> None:
    """Print resident memory while tiles are made, with a cache that is soon full."""
    with openslide.OpenSlide(slide) as opened:
        pyramid = Pyramid(opened.dimensions, TILE_PX)
    every = [
        (level, col, row)
        for level in range(2)
        for row in range(pyramid.tile_count(level)[1])
        for col in range(pyramid.tile_count(level)[0])
    ]
    step = count // 5
    with Server(slide.parent, "--cache-mb", "8") as server:
        print(f"memory of server and decoding processes over {count:,} tiles, cache of 8 MiB:")
        for part in range(5):
            tiles = [every[(part * step + number) % len(every)] for number in range(step)]
            ask_server(server, slide.stem, tiles)
            print(f"  after {(part + 1) * step:>6,} tiles {server.memory_mib():>8.0f} MiB")


REDRAW = """(side) => {
  const values = Float32Array.from({ length: side * side }, (_, i) => ((i * 7919) % 100003) / 1e5);
  const grid = { rows: side, cols: side, cells_xy_l0: [0, 0], origin_xy_l0: [0, 0], pitch_l0: 50,
    side_l0: 50, cell_area_mm2: 0.0004 };
  const colours = new Colours({ red: btoa("\\x7f".repeat(768)) }, []);
  const map = new MapLayer(values, grid, colours, { context_um: 0, min_region_mm2: 0 });
  const canvas = Object.assign(document.createElement("canvas"), { width: 1280, height: 800 });
  canvas.style = "width: 1280px; height: 800px";
  document.body.append(canvas);
  const display = { ...DEFAULT_DISPLAY, colormap: "red" };
  const slide = { size_l0: [side * 50, side * 50], mpp: 0.5 };
  const view = new SlideView(canvas, new Viewport(), display, { slide, map });
  view.viewport.fit([0, 0, side * 50, side * 50], 1280, 800);
  const times = [];
  for (let step = 0; step < 110; step++) {
    display.threshold = 0.2 + step * 0.005;
    const started = performance.now();
    view._draw();
    describeCount(map, display.threshold);
    canvas.getContext("2d").getImageData(640, 400, 1, 1); // waits until it is drawn
    times.push(performance.now() - started);
  }
  return times.slice(10).sort((one, other) => one - other);
}"""


def time_redraw() -> None:
    """Print how long the map of a million patches takes to be drawn at another threshold."""
    from playwright.sync_api import sync_playwright

    from wsi_pipeline.outputs.pages import VIEW_SCRIPTS, read_web_file

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium here: the map is not drawn")
        return
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        scripts = "\n".join(read_web_file(name) for name in VIEW_SCRIPTS)
        page.set_content(f"<body></body><script>{scripts}</script>")
        times = page.evaluate(REDRAW, 1000)
        browser.close()
    quick, middle, late = (times[int(share * len(times))] for share in (0.25, 0.5, 0.95))
    print(f"map of 1,000,000 patches at a new threshold, in ms, load {os.getloadavg()[0]:.1f}:")
    print(f"  lowest quarter {quick:.1f}, median {middle:.1f}, p95 {late:.1f}")


if __name__ == "__main__":
    main()
