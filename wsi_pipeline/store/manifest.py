"""What a product says of itself: `manifest.json`, with the size and checksum of every file, and its own.

Sizes are compared at every opening, checksums of a file before it is used, and of every file by
`wsi verify` and before training.

A product's files are its own: regular, in its own folders, never links to somewhere else.
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from wsi_pipeline.core.choices import MANIFEST
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.json_io import parse_json, read_bounded, read_json
from wsi_pipeline.core.recipe import TOOL, recipe_digest, tool_version
from wsi_pipeline.store.files import file_checksum

MANIFEST_FORMAT = 3
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
"""About a hundred bytes for each file of a product."""
SEAL = b',\n "checksum": "'
"""Between what a manifest says and the checksum of what it says, which comes last."""
END = b"\n}"


class NewerFormat(ValueError):
    """A manifest of a version of wsi that is to come."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a product consists of and what it was made from."""

    kind: str
    recipe: Mapping[str, Any]
    counts: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]
    """Relative path → size in bytes, checksum."""

    @property
    def digest(self) -> str:
        """Name of the recipe."""
        return recipe_digest(self.recipe)

    @property
    def content_digest(self) -> str:
        """Name of the content: of every file's checksum."""
        return recipe_digest({name: list(entry) for name, entry in self.files.items()})


def read_manifest(product: Path) -> Manifest:
    """The manifest of a product, every file present with its recorded size. Raises StoreError naming the first fault."""
    manifest = read_claims(product)
    for name in manifest.files:
        if (fault := _size_fault(product, manifest, name)) is not None:
            raise StoreError(f"{product}: {name} {fault}; make it again with --force")
    return manifest


def read_claims(product: Path) -> Manifest:
    """The manifest of a product, whatever has become of its files.

    Raises StoreError where it is not as it was written, or names files that are not the product's
    own.
    """
    try:
        manifest = manifest_from_json(read_bounded(product / MANIFEST, MAX_MANIFEST_BYTES))
    except FileNotFoundError as error:
        raise StoreError(
            f"{product}: not a finished product of wsi (no {MANIFEST}); make it again"
        ) from error
    except NewerFormat as error:
        raise StoreError(
            f"{product}: has a {error}, of another version of wsi, and this one reads"
            f" {MANIFEST_FORMAT}; update wsi, or make it again"
        ) from error
    except OSError as error:
        raise StoreError(
            f"{product}: its {MANIFEST} cannot be read ({error.strerror or error}); mend that and"
            " run the same line again"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{product}: its {MANIFEST} is damaged or of another version of wsi ({error}); make it"
            " again with --force"
        ) from error
    check_contained(product, manifest.files)
    return manifest


def _size_fault(product: Path, manifest: Manifest, name: str) -> str | None:
    """What a look at a file's size shows to be wrong with it; None where nothing is."""
    size = manifest.files[name][0]
    if (found := size_of_own(product / name)) is None:
        return "is missing"
    return None if found == size else f"has {found} bytes instead of {size}"


def find_kind(folder: Path) -> str | None:
    """What kind of product a folder is by its manifest; None where it is none of ours, or one that cannot tell any more."""
    try:
        value = read_json(folder / MANIFEST, MAX_MANIFEST_BYTES)
        kind = value["kind"]
        return (
            kind
            if isinstance(kind, str) and isinstance(value["files"], dict) and "recipe" in value
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_damaged_manifest(product: Path) -> bool:
    """Whether a manifest is no JSON any more: nobody's kind can be told by it."""
    try:
        read_json(product / MANIFEST, MAX_MANIFEST_BYTES)
    except (OSError, ValueError):
        return True
    return False


def find_damage(product: Path) -> list[str]:
    """Every file whose content is not what the manifest says, by size and checksum; empty where the product is whole."""
    return list(find_faults(product, read_manifest(product)))


def find_faults(
    product: Path, manifest: Manifest, on_file: Callable[[int], None] = lambda size: None
) -> dict[str, str]:
    """Every file of a product that is not as it was written → what is wrong with it; `on_file` is told the size of each that was read."""
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
    """Compare the checksums of some of a product's files before they are used. Raises StoreError naming the damaged ones."""
    named = {name: manifest.files.get(name) for name in names}
    faults = {
        name: "is no part of it" if entry is None else _content_fault(product / name, entry[1])
        for name, entry in named.items()
    }
    damaged = [f"{name} {fault}" for name, fault in faults.items() if fault is not None]
    if damaged:
        raise StoreError(
            f"{product}: damaged: {', '.join(damaged[:3])}{' …' if len(damaged) > 3 else ''}; make"
            " it again with --force"
        )


def check_whole(product: Path) -> Manifest:
    """The manifest, after every checksum was compared. Raises StoreError naming the damaged files."""
    manifest = read_manifest(product)
    check_files(product, manifest, manifest.files)
    return manifest


def is_product(path: Path) -> bool:
    """Whether a folder claims to be a finished product; one that may not be looked into, such as a colleague's, may be."""
    try:
        return stat.S_ISREG(os.stat(path / MANIFEST).st_mode)  # noqa: PTH116 - Path.is_file says no more from Python 3.14 on
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def manifest_to_json(manifest: Manifest) -> bytes:
    """The manifest as it is written."""
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
    """The manifest that was written. Raises ValueError, KeyError, TypeError or AttributeError where it is not as it was."""
    value = parse_json(content)
    if value["format"] != MANIFEST_FORMAT:
        if isinstance(value["format"], int) and value["format"] > MANIFEST_FORMAT:
            raise NewerFormat(f"manifest of format {value['format']}")
        raise ValueError(f"manifest format {value['format']}")
    if content != seal(content.rpartition(SEAL)[0] + END):
        raise ValueError("its checksum does not fit")
    files = {str(name): (int(size), str(digest)) for name, (size, digest) in value["files"].items()}
    manifest = Manifest(
        kind=value["kind"], recipe=value["recipe"], counts=value["counts"], files=files
    )
    if not (
        isinstance(manifest.kind, str)
        and isinstance(manifest.recipe, dict)
        and isinstance(manifest.counts, dict)
    ):
        raise TypeError("it says neither what the product is nor what it was made from")
    return manifest


def seal(body: bytes) -> bytes:
    """A JSON object of one line per entry, with the checksum of what it says as its last entry."""
    said = body.removesuffix(END)
    return said + SEAL + xxhash.xxh3_128(said).hexdigest().encode() + b'"' + END


def check_contained(product: Path, names: Iterable[str]) -> None:
    """Raise StoreError where a file named in a manifest lies outside its product, or is reached through a link in it."""
    folders: set[PurePosixPath] = set()
    for name in names:
        path = PurePosixPath(name)
        if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
            raise StoreError(
                f"{product}: names a file outside the product, {name[:80]!r}; do not use it"
            )
        folders.update(path.parents)
    for folder in sorted(folders, key=lambda path: len(path.parts)):
        if folder.parts and (product / folder).is_symlink():
            raise StoreError(
                f"{product}: {folder} is a link to somewhere else; copy the product whole, with its"
                " own files"
            )


def size_of_own(path: Path) -> int | None:
    """Bytes of a regular file that is no link; None where there is none."""
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
