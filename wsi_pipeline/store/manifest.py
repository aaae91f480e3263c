"""The manifest of a product: `manifest.json`, with size and checksum of every file and of itself.

Sizes are compared at every opening, checksums of a file before it is used, and of every file by
`wsi verify` and before training. A product's files are regular files in its own folders, not links.
"""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from wsi_pipeline.core.choices import MANIFEST, PREDICTIONS, ZARR_JSON
from wsi_pipeline.core.errors import MAKE_AGAIN, StoreError, damage_error
from wsi_pipeline.core.json_io import parse_json, read_bounded, read_json
from wsi_pipeline.core.recipe import TOOL, recipe_digest, tool_version
from wsi_pipeline.store.files import file_checksum

MANIFEST_FORMAT = 3
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
"""Each file of a product takes about a hundred bytes."""
SEAL = b',\n "checksum": "'
"""Separator of a manifest's content and the checksum of that content, which comes last."""
END = b"\n}"


class NewerFormat(ValueError):
    """The manifest is of a newer version of wsi."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a product and the recipe that they were made by."""

    kind: str
    recipe: Mapping[str, Any]
    counts: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]
    """Relative path → size in bytes, checksum."""

    @property
    def content_digest(self) -> str:
        """Digest of the content: of every file's checksum."""
        return recipe_digest({name: list(entry) for name, entry in self.files.items()})


def read_manifest(product: Path) -> Manifest:
    """Return a product's manifest after comparing the sizes of its files. Raises StoreError."""
    manifest = read_claims(product)
    for name in manifest.files:
        if (fault := _size_fault(product, manifest, name)) is not None:
            raise damage_error(product, f"{name} {fault}")
    return manifest


def read_claims(product: Path) -> Manifest:
    """Return the manifest of a product without looking at its files.

    Raises StoreError where the manifest was changed, or names files outside the product.
    """
    try:
        manifest = manifest_from_json(read_bounded(product / MANIFEST, MAX_MANIFEST_BYTES))
    except FileNotFoundError as error:
        raise StoreError(f"{product}: {_describe_missing(product)}") from error
    except NewerFormat as error:
        what = f"has a {error}, this wsi reads {MANIFEST_FORMAT}"
        raise StoreError(f"{product}: {what}; update wsi") from error
    except OSError as error:
        what = f"its {MANIFEST} cannot be read ({error.strerror or error})"
        raise StoreError(f"{product}: {what}; fix that and run the same line again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"its {MANIFEST} is damaged or of another version of wsi ({error})"
        raise StoreError(f"{product}: {what}; {MAKE_AGAIN}") from error
    check_contained(product, manifest.files)
    return manifest


def _describe_missing(product: Path) -> str:
    """Return what is wrong with a product that has no manifest, and what to do."""
    if not os.path.lexists(product):
        return "is not there; run the command that makes it, or give another path"
    if os.path.lexists(product / PREDICTIONS) or os.path.lexists(product / ZARR_JSON):
        again = "move it away and run the command that made it again"
        return f"its {MANIFEST} is missing, so nothing says that it is whole; {again}"
    what = f"not a finished product of wsi (no {MANIFEST})"
    return f"{what}; run the command that makes it, or give another path"


def _size_fault(product: Path, manifest: Manifest, name: str) -> str | None:
    """Return the fault that a file's size shows, or None."""
    size = manifest.files[name][0]
    if (found := size_of_own(product / name)) is None:
        return "is missing"
    return None if found == size else f"has {found} bytes instead of {size}"


def find_kind(folder: Path) -> str | None:
    """Return the kind of product in a folder's manifest; None without a readable manifest."""
    try:
        value = read_json(folder / MANIFEST, MAX_MANIFEST_BYTES)
        kind = value["kind"]
        is_manifest = isinstance(value["files"], dict) and "recipe" in value
        return kind if isinstance(kind, str) and is_manifest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_damaged_manifest(product: Path) -> bool:
    """Return True where a manifest is not JSON, so that it cannot tell the product's kind."""
    try:
        read_json(product / MANIFEST, MAX_MANIFEST_BYTES)
    except (OSError, ValueError):
        return True
    return False


def find_damage(product: Path) -> list[str]:
    """Return the files that differ from the manifest in size or checksum."""
    return list(find_faults(product, read_manifest(product)))


def find_faults(
    product: Path, manifest: Manifest, on_file: Callable[[int], None] = lambda size: None
) -> dict[str, str]:
    """Return the fault of every file of a product that differs from its manifest.

    `on_file` is called with the size of each file that was read.
    """
    faults: dict[str, str] = {}
    for name, (size, digest) in manifest.files.items():
        fault = _size_fault(product, manifest, name) or _content_fault(product / name, digest)
        if fault is not None:
            faults[name] = fault
        on_file(size)
    return faults


def _content_fault(path: Path, digest: str) -> str | None:
    try:
        return None if file_checksum(path) == digest else "has another content than was written"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def check_files(product: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Compare the checksums of some files before use. Raises StoreError naming damaged ones."""
    damaged = []
    for name in names:
        entry = manifest.files.get(name)
        fault = _content_fault(product / name, entry[1]) if entry else "is not part of it"
        damaged += [f"{name} {fault}"] if fault else []
    if damaged:
        more = " …" if len(damaged) > 3 else ""
        raise damage_error(product, f"{', '.join(damaged[:3])}{more}")


def check_whole(product: Path) -> Manifest:
    """Compare every checksum and return the manifest. Raises StoreError naming damaged files."""
    manifest = read_manifest(product)
    check_files(product, manifest, manifest.files)
    return manifest


def is_product(path: Path) -> bool:
    """Return True where a folder has a manifest, or may have one: a folder of another user."""
    try:
        return stat.S_ISREG(os.stat(path / MANIFEST).st_mode)  # noqa: PTH116 - Path.is_file hides the error
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def manifest_to_json(manifest: Manifest) -> bytes:
    """Return the manifest as it is written."""
    value = {
        "format": MANIFEST_FORMAT,
        "tool": f"{TOOL} {tool_version()}",
        "kind": manifest.kind,
        "recipe": manifest.recipe,
        "counts": manifest.counts,
        "files": {name: list(entry) for name, entry in manifest.files.items()},
    }
    return seal(json.dumps(value, indent=1, allow_nan=False).encode())


def manifest_from_json(content: bytes) -> Manifest:
    """Return the manifest that `manifest_to_json` wrote.

    Raises ValueError, KeyError, TypeError or AttributeError where it was changed.
    """
    value = parse_json(content)
    if value["format"] != MANIFEST_FORMAT:
        if isinstance(value["format"], int) and value["format"] > MANIFEST_FORMAT:
            raise NewerFormat(f"manifest of format {value['format']}")
        raise ValueError(f"manifest format {value['format']}")
    if content != seal(content.rpartition(SEAL)[0] + END):
        raise ValueError("its checksum does not fit")
    files = {str(name): (int(size), str(digest)) for name, (size, digest) in value["files"].items()}
    kind, recipe, counts = value["kind"], value["recipe"], value["counts"]
    if not (isinstance(kind, str) and isinstance(recipe, dict) and isinstance(counts, dict)):
        raise TypeError("its kind, recipe or counts are missing")
    return Manifest(kind, recipe, counts, files)


def seal(body: bytes) -> bytes:
    """Return a JSON object, a line per entry, with the checksum of its content as last entry."""
    said = body.removesuffix(END)
    return said + SEAL + xxhash.xxh3_128(said).hexdigest().encode() + b'"' + END


def check_contained(product: Path, names: Iterable[str]) -> None:
    """Raise StoreError where a named file lies outside the product or behind a link in it."""
    folders: set[PurePosixPath] = set()
    for name in names:
        path = PurePosixPath(name)
        if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
            shown = repr(name[:80])
            raise StoreError(f"{product}: names a file outside the product, {shown}; do not use it")
        folders.update(path.parents)
    for folder in sorted(folders, key=lambda path: len(path.parts)):
        if folder.parts and _is_link(product / folder):
            raise StoreError(f"{product}: {folder} is a link; copy the product with its files")


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no file has such a name
            return False
        raise


def size_of_own(path: Path) -> int | None:
    """Return the size of a regular file that is not a link, in bytes, or None."""
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
