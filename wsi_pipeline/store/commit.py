"""The commit rule: a product is written aside, described by a manifest, flushed, and renamed into place once.

A product is complete if and only if its final name exists and its manifest verifies. Beside every product lies a hidden folder
`.wsi` with the staging of products under way and the locks of their writers:

    <out>/<name>/                       the product, with manifest.json
    <out>/.wsi/staging/<name>.<recipe>/ product/ (becomes <out>/<name>) and blocks/ (one small file per finished block)
    <out>/.wsi/locks/<name>.lock        held by `flock` while somebody writes the product

Staging is named by its recipe, so a killed run is taken up where it stopped and work of another recipe never mixes in.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.errors import EnvironmentFault, StoreError
from wsi_pipeline.provenance import TOOL, recipe_digest, tool_version
from wsi_pipeline.store.files import file_checksum, flush_folder, flush_tree, make_folder, write_file
from wsi_pipeline.store.lock import HIDDEN

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 2
VIEW = "view"
"""Entry of a product's recipe that says how its content is shown; it may be made anew without doing the work again."""


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


@dataclass(frozen=True, slots=True)
class Staging:
    """A product under way; any number of processes may write different blocks of it."""

    target: Path
    recipe: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where everything of this product under way lies."""
        return self.target.parent / HIDDEN / "staging" / f"{self.target.name}.{recipe_digest(self.recipe)[:16]}"

    @property
    def product(self) -> Path:
        """The folder that becomes the target."""
        return self.folder / "product"

    @property
    def _blocks(self) -> Path:
        return self.folder / "blocks"

    @property
    def is_prepared(self) -> bool:
        """Whether an earlier run prepared this product to the end, so that only blocks may be missing."""
        return (self.folder / "prepared").exists()

    def begin(self) -> None:
        """Start anew, throwing away what an unprepared attempt left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        make_folder(self.product)
        make_folder(self._blocks)

    def mark_prepared(self) -> None:
        """Say that the product's layout is on disk and its blocks may be written."""
        flush_tree(self.product)
        write_file(self.folder / "prepared", b"")

    def mark_block(self, block: int, report: Mapping[str, Any], chunk: Path) -> None:
        """Say that a block is on disk, in `chunk`, and what came of it; called after the chunk and its folders are flushed."""
        place = {"file": chunk.relative_to(self.product).as_posix(), "bytes": chunk.stat().st_size}
        write_file(self._blocks / f"{block}.json", json.dumps(dict(report) | {"chunk": place}).encode())

    def block_reports(self) -> dict[int, dict[str, Any]]:
        """Reports of the finished blocks; one whose chunk is gone or has another size is not finished."""
        found = {int(path.stem): self._read_report(path) for path in sorted(self._blocks.glob("*.json"))}
        return {block: report for block, report in found.items() if report is not None}

    def _read_report(self, path: Path) -> dict[str, Any] | None:
        try:
            report: dict[str, Any] = json.loads(path.read_bytes())
            place = report["chunk"]
            return report if (self.product / place["file"]).stat().st_size == place["bytes"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def check_complete(self, blocks: int) -> dict[int, dict[str, Any]]:
        """The reports of all blocks. Raises EnvironmentFault where one has vanished since it was written."""
        reports = self.block_reports()
        if len(reports) != blocks:
            raise EnvironmentFault(f"{self.target}: {blocks - len(reports)} finished blocks have vanished; run the same line again")
        return reports

    def commit(self, kind: str, counts: Mapping[str, Any], view: Mapping[str, Any] | None = None) -> Manifest:
        """Write the manifest, flush, and put the product under its final name, in place of an older one."""
        _check_replaceable(self.target, kind)
        _sweep(self.product)
        recipe = self.recipe if view is None else {**self.recipe, VIEW: view}
        manifest = Manifest(kind=kind, recipe=recipe, counts=counts, files=flush_tree(self.product))
        write_file(self.product / MANIFEST, _manifest_to_json(manifest))
        flush_folder(self.product)
        _publish(self.product, self.target)
        self._discard_all()
        return manifest

    def discard(self) -> None:
        """Throw the staging away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _discard_all(self) -> None:
        """Throw away what other recipes left of the same product; its lock is ours."""
        name = re.compile(re.escape(self.target.name) + r"\.[0-9a-f]{16}")
        for folder in self.folder.parent.iterdir():
            if name.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def _sweep(product: Path) -> None:
    """Remove what a killed writer left: a manifest that was not published, and files of Zarr and ours that were never renamed."""
    for path in [product / MANIFEST, *product.rglob("*.partial"), *product.rglob(".*")]:
        path.unlink(missing_ok=True)


def _publish(product: Path, target: Path) -> None:
    """Rename into place; an older product steps aside first and is removed last."""
    retired = product.parent / "retired"
    if target.exists():
        target.rename(retired)
    product.rename(target)
    flush_folder(target.parent)
    shutil.rmtree(retired, ignore_errors=True)


def read_manifest(product: Path) -> Manifest:
    """The manifest of a product, every file present with its recorded size. Raises StoreError naming the first fault."""
    try:
        manifest = _manifest_from_json((product / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{product}: not a finished product of wsi (no {MANIFEST}); make it again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{product}: its {MANIFEST} is damaged or of another version of wsi ({error}); make it again with --force"
        ) from error
    for name, (size, _) in manifest.files.items():
        found = _size_or_none(product / name)
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise StoreError(f"{product}: {name} {state}; make it again with --force")
    return manifest


def find_finished(staging: Staging, kind: str, force: bool, inputs: Iterable[Path | None] = ()) -> Manifest | None:
    """The manifest of the product where this very recipe made it, whatever its view; None where it is to be made.

    Raises StoreError where another recipe made what is there and `force` does not allow replacing it, and, whatever `force` says,
    where a product of another kind or one of the `inputs` would go; with `force`, work that was begun is thrown away too.
    """
    manifest = look_for_finished(staging, kind, force, inputs)
    if force:
        staging.discard()
    return manifest


def look_for_finished(staging: Staging, kind: str, force: bool, inputs: Iterable[Path | None] = ()) -> Manifest | None:
    """The same as `find_finished`, which nothing is touched by."""
    _check_replaceable(staging.target, kind)
    _spare_inputs(staging.target, inputs)
    if force or not is_product(staging.target):
        return None
    manifest = read_manifest(staging.target)
    made_from = {name: entry for name, entry in manifest.recipe.items() if name != VIEW}
    if made_from != staging.recipe:
        changed = " and ".join(_find_changes(made_from, staging.recipe))
        raise StoreError(f"{staging.target}: was made from another {changed}; use --force to replace it, or another folder")
    return manifest


def _find_changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the entries in which two recipes differ."""
    changes: list[str] = []
    for key in sorted({*old, *new}):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            changes += _find_changes(one, other, f"{prefix}{key}.")
        elif one != other:
            changes.append(f"{prefix}{key}")
    return changes


def _check_replaceable(target: Path, kind: str) -> None:
    """Raise StoreError where something else than a product of this kind would be replaced, or another product written into."""
    for folder in target.absolute().parents:
        if (owner := _find_kind(folder)) is not None:
            raise StoreError(f"{target}: lies inside a finished {owner}, {folder}; name another place")
    if not target.exists():
        return
    if not is_product(target):
        if target.is_dir() and not any(target.iterdir()):
            return
        raise StoreError(f"{target}: exists and was not made by wsi; move it away or name another place")
    if not _has_damaged_manifest(target) and (found := _find_kind(target)) != kind:
        what = "was not made by wsi" if found is None else f"is a {found}, no {kind}"
        raise StoreError(f"{target}: {what}, and is never replaced by one; name another place")


def _spare_inputs(target: Path, inputs: Iterable[Path | None]) -> None:
    """Raise StoreError where something that the work reads lies in the product's place and would go with an older one."""
    for path in inputs:
        if path is not None and path.resolve().is_relative_to(target.resolve()):
            raise StoreError(f"{target}: holds {path}, which this very work reads; name another place")


def _find_kind(folder: Path) -> str | None:
    """What kind of product a folder is by its manifest; None where it is none of ours, or one that cannot tell any more."""
    try:
        value = json.loads((folder / MANIFEST).read_bytes())
        kind = value["kind"]
        return kind if isinstance(kind, str) and isinstance(value["files"], dict) and "recipe" in value else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has_damaged_manifest(product: Path) -> bool:
    """Whether a manifest is no JSON any more: nobody's kind can be told by it."""
    try:
        json.loads((product / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return True
    return False


def find_damage(product: Path) -> list[str]:
    """Every file whose content is not what the manifest says, by size and checksum; empty where the product is whole."""
    manifest = read_manifest(product)
    return [name for name, (_, digest) in manifest.files.items() if file_checksum(product / name) != digest]


def check_whole(product: Path) -> Manifest:
    """The manifest, after every checksum was compared. Raises StoreError naming the damaged files."""
    manifest = read_manifest(product)
    if damaged := find_damage(product):
        raise StoreError(f"{product}: damaged: {', '.join(damaged[:3])}{' …' if len(damaged) > 3 else ''}; make it again with --force")
    return manifest


def is_product(path: Path) -> bool:
    """Whether a folder claims to be a finished product."""
    return (path / MANIFEST).is_file()


def _size_or_none(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _manifest_to_json(manifest: Manifest) -> bytes:
    value = {
        "format": MANIFEST_FORMAT,
        "tool": f"{TOOL} {tool_version()}",
        "kind": manifest.kind,
        "recipe": manifest.recipe,
        "counts": manifest.counts,
        "files": {name: list(entry) for name, entry in manifest.files.items()},
    }
    return json.dumps(value, indent=1, allow_nan=False).encode()


def _manifest_from_json(content: bytes) -> Manifest:
    value = json.loads(content)
    if value["format"] != MANIFEST_FORMAT:
        raise ValueError(f"manifest format {value['format']}")
    files = {str(name): (int(size), str(digest)) for name, (size, digest) in value["files"].items()}
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
        raise ValueError("a file outside the product")
    return Manifest(kind=value["kind"], recipe=value["recipe"], counts=value["counts"], files=files)
