"""Annotations of slides: label files, and the corrections that are drawn in the viewer."""

import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from cachetools import LRUCache

from wsi_pipeline.core.choices import CORRECTIONS
from wsi_pipeline.core.errors import LabelError, WsiError
from wsi_pipeline.core.json_io import format_json
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.evaluation.truth import (
    Truth,
    find_label_file,
    label_beside,
    read_truth,
    truth_path,
)
from wsi_pipeline.labels.corrections import (
    Corrections,
    corrections_to_geojson,
    read_corrections,
)
from wsi_pipeline.serve.catalogue import SlideEntry, stamp_file
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.result_reader import LoadedResult
from wsi_pipeline.store.files import write_file
from wsi_pipeline.store.lock import wait_for_lock

KEPT_TRUTHS = 8
WAIT_S = 10.0
READ_ONLY = "corrections are drawn in `wsi view` and `wsi review`; this server only shows them"
CHANGED = "the regions were changed elsewhere meanwhile and are loaded again; repeat the step"


class TruthReader:
    """Reads what is known of slides; safe to share between threads. The last ones are kept."""

    def __init__(self) -> None:
        self._kept: LRUCache[Any, Truth | None] = LRUCache(KEPT_TRUTHS)
        self._lock = Lock()

    def read(self, entry: SlideEntry, loaded: LoadedResult, slides: Sequence[Path]) -> Truth | None:
        """Return the labels that the results were evaluated by, else those beside the slide.

        None where there are none. Raises LabelError or StoreError where a file cannot be read.
        """
        folder = loaded.result.folder
        path: Path | None = truth_path(folder.parent, folder.name)
        assert path is not None
        is_evaluated = path.exists()
        if not is_evaluated:
            path = find_label_file(entry.file, slides) if entry.file and entry.has_file else None
        if path is None:
            return None
        key = (path, stamp_file(path), loaded.result.digest)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = _read(path, loaded, is_evaluated)
            return self._kept[key]


def _read(path: Path, loaded: LoadedResult, is_evaluated: bool) -> Truth | None:
    table = loaded.table
    if is_evaluated:
        return read_truth(path, table.slide.fingerprint, table.grid)
    return label_beside(path, table.slide, table.grid, table.class_names)


@dataclass(frozen=True, slots=True)
class RegionFile:
    """File of regions that people drew on a slide; several threads and servers may write it."""

    path: Path
    slide: SlideInfo
    class_names: tuple[str, ...] = ()
    """Classes that have colours in the file."""

    def read(self) -> tuple[Corrections, str]:
        """Return the regions and their version. Raises Refusal."""
        try:
            return read_corrections(self.path, self.slide), _version(self.path)
        except LabelError as error:
            raise Refusal(422, tell_file(error, self.path)) from error

    def change(
        self, version: str | None, change: Callable[[Corrections], Corrections]
    ) -> tuple[Corrections, str]:
        """Write what `change` makes of the regions, and return it with its version.

        Raises Refusal where the file has another version; None is any.
        """
        with wait_for_lock(self.path, WAIT_S):
            before, present = self.read()
            if version not in (None, present):
                raise Refusal(409, CHANGED)
            try:
                after = change(before)
            except LabelError as error:
                raise Refusal(422, str(error)) from error
            if after != before:
                self._write(after)
            return after, _version(self.path)

    def _write(self, regions: Corrections) -> None:
        """Write the file aside and rename it; without a region there is no file."""
        if not regions:
            self.path.unlink(missing_ok=True)
            return
        value = corrections_to_geojson(regions, self.slide, self.class_names)
        write_file(self.path, (format_json(value) + "\n").encode())


def corrections_file(loaded: LoadedResult) -> RegionFile:
    """Return the file of a slide's corrections: outside of its results, which are replaced."""
    folder = loaded.result.folder
    path = folder.parent / CORRECTIONS / f"{folder.name}.geojson"
    return RegionFile(path, loaded.table.slide, loaded.table.class_names)


def _version(path: Path) -> str:
    """Return a text that changes with the content of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        return "none"


def tell_file(error: WsiError, path: Path) -> str:
    """Return the text of an error about a file, which it names without its folder."""
    return str(error).replace(str(path), path.name)


def training_lines(run_name: str) -> list[str]:
    """Return the commands that train with the corrections of a results folder."""
    labels = shlex.quote(f"{run_name}/{CORRECTIONS}")
    return [
        f"wsi tile SLIDES --out stores --labels {labels}",
        f"wsi label STORES --labels {labels}",
        "wsi train stores --out model",
    ]
