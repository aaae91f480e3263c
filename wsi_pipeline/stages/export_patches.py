"""Export of patches as files that other programs read: a folder of PNGs, or WebDataset tars.

An export is a product like any other.
"""

import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np

from wsi_pipeline.core.choices import STORE_SUFFIX
from wsi_pipeline.core.errors import StoreError, machine_fault
from wsi_pipeline.core.json_io import format_json
from wsi_pipeline.store.commit import Staging, find_finished
from wsi_pipeline.store.files import make_folder
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.patches import PatchStore

KIND = "wsi store export"
TAR_PATCHES = 10_000
"""Patches per tar."""
UNKNOWN = "unknown"
MAX_NAME_BYTES = 255


class ExportedPatch(NamedTuple):
    """One patch to be exported."""

    name: str
    """Store, row and column."""
    class_name: str
    """As the name of a folder."""
    png: bytes
    row: int
    col: int
    label: int


def export_stores(
    stores: Sequence[PatchStore], form: str, out: Path, force: bool = False
) -> dict[str, int]:
    """Commit `out` with the readable patches of every store; return how many of each, by its name.

    Raises StoreError where a store is damaged, two have the same name, or two classes would share a
    folder.
    """
    name, count = Counter(store.path.name for store in stores).most_common(1)[0]
    if count > 1:
        raise StoreError(f"{name}: {count} stores have this name; export them apart")
    if form == "png":
        _check_folders(stores)
    digests = {store.path.name: store.manifest.content_digest for store in stores}
    staging = Staging(out, {"to": form, "stores": digests})
    with hold_lock(out):
        if manifest := find_finished(staging, KIND, force, [store.path for store in stores]):
            return dict(manifest.counts["patches"])
        staging.begin()
        try:
            counts = {store.path.name: EXPORTS[form](store, staging.product) for store in stores}
            os.sync()  # at once, because file by file takes all day
            staging.commit(KIND, {"patches": counts})
        finally:
            staging.discard()
    return counts


def _check_folders(stores: Sequence[PatchStore]) -> None:
    """Raise StoreError where two classes would share a folder, or a name is too long for one."""
    owners = {UNKNOWN: "unlabelled patches"}
    for store in stores:
        for name in store.class_names:
            folder = _folder_name(name)
            at, remedy = f"{store.path}: its class {name[:80]!r}", "give it another name"
            if (owner := owners.setdefault(folder.casefold(), name)) != name:
                raise StoreError(f"{at} would share a folder with {owner[:80]!r}; {remedy}")
            if len(os.fsencode(folder)) > MAX_NAME_BYTES:
                raise StoreError(f"{at} has too long a name for a folder; {remedy}")


def export_png(store: PatchStore, out: Path) -> int:
    """Write readable patches as `<out>/<class>/<slide>_r<row>_c<col>.png`; return how many."""
    count = 0
    for patch in _patches(store):
        make_folder(out / patch.class_name)
        _write(out / patch.class_name / f"{patch.name}.png", patch.png)
        count += 1
    return count


def export_webdataset(store: PatchStore, out: Path) -> int:
    """Write `<out>/<slide>-<number>.tar` of 10,000 patches each; return how many patches.

    A patch is `<key>.png`, `.cls` and `.json`. Tars hold no dates or owners: the same
    store gives the same bytes.
    """
    make_folder(out)
    count, patches = 0, _patches(store)
    while pending := list(islice(patches, TAR_PATCHES)):
        _write_tar(store, out, count // TAR_PATCHES, pending)
        count += len(pending)
    return count


Export = Callable[[PatchStore, Path], int]
EXPORTS: dict[str, Export] = {"png": export_png, "webdataset": export_webdataset}


def _patches(store: PatchStore) -> Iterator[ExportedPatch]:
    name = store.path.name.removesuffix(STORE_SUFFIX)
    for block in range(store.blocks):
        first = block * store.block_size
        pixels, readable = store.read_block(block)[:2]
        for index in np.flatnonzero(readable).tolist():
            row, col = store.positions[first + index].tolist()
            label = int(store.labels[first + index])
            folder = _folder_name(store.class_names[label]) if label >= 0 else UNKNOWN
            png = bytes(imagecodecs.png_encode(pixels[index]))
            yield ExportedPatch(f"{name}_r{row:05d}_c{col:05d}", folder, png, row, col, label)


def _folder_name(class_name: str) -> str:
    """Return a class's name as the name of a folder, which never leads out of the output."""
    name = class_name.replace("/", "_").replace("\0", "_")
    return f"_{name}" if name in ("", ".", "..") else name


def _write_tar(store: PatchStore, out: Path, number: int, patches: list[ExportedPatch]) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for patch in patches:
            described = {
                "slide_id": store.slide.slide_id,
                "patient_id": store.table.patient_id,
                "row": patch.row,
                "col": patch.col,
                "mpp": store.grid.spec.mpp,
                "class": patch.class_name,
            }
            cls, text = str(patch.label).encode(), format_json(described).encode()
            for suffix, content in (("png", patch.png), ("cls", cls), ("json", text)):
                entry = tarfile.TarInfo(f"{patch.name}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    name = store.path.name.removesuffix(STORE_SUFFIX)
    _write(out / f"{name}-{number:06d}.tar", stream.getvalue())


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise machine_fault(path, error) or StoreError(
            f"{path}: cannot be written ({error}); check the disk"
        ) from error
