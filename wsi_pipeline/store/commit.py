"""The commit rule: write a product aside with a manifest, flush it, and rename it into place once.

A product is complete if and only if its final name exists and its manifest verifies. Beside every
product lies a hidden folder `.wsi` with the staging of unfinished products and the locks of their
writers:

    <out>/<name>/                        the product, with manifest.json
    <out>/.wsi/staging/<name>.<recipe>/  product/ (becomes <out>/<name>) and
                                         blocks/ (one small file per finished block)
    <out>/.wsi/locks/<name>.lock         held by `flock` while a process writes the product

Staging is named by its recipe, so a killed run continues where it stopped and work of different
recipes is never mixed.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import HIDDEN, MANIFEST
from wsi_pipeline.core.errors import EnvironmentFault, StoreError
from wsi_pipeline.core.json_io import format_json
from wsi_pipeline.core.recipe import recipe_digest
from wsi_pipeline.store.files import (
    Recorded,
    exchange,
    file_checksum,
    flush_folder,
    flush_tree,
    make_folder,
    write_file,
)
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import (
    Manifest,
    find_kind,
    has_damaged_manifest,
    is_product,
    manifest_to_json,
    read_claims,
    read_manifest,
)

RETIRED = "retired"
"""Place of a replaced product, in the staging of the newer one, during the exchange."""
STAGED = re.compile(r"(.+)\.[0-9a-f]{16}")
"""Name of a staging: the product's name, and the beginning of its recipe's digest."""
VIEW = "view"
"""Entry of a recipe for how content is shown; it may change without repeating the work."""


@dataclass(frozen=True, slots=True)
class Staging:
    """A product under construction; several processes may write different blocks of it."""

    target: Path
    recipe: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Folder of everything that belongs to this product until it is committed."""
        name = f"{self.target.name}.{recipe_digest(self.recipe)[:16]}"
        return self.target.parent / HIDDEN / "staging" / name

    @property
    def product(self) -> Path:
        """The folder that becomes the target."""
        return self.folder / "product"

    @property
    def _blocks(self) -> Path:
        return self.folder / "blocks"

    @property
    def is_prepared(self) -> bool:
        """True where an earlier run prepared this product fully; only blocks may be missing."""
        is_there = (self.folder / "prepared").exists() and self.product.is_dir()
        return is_there and not self._holds_replaced_product()

    @property
    def is_begun(self) -> bool:
        """True where this recipe made the product, or an earlier run prepared it where none is."""
        if not is_product(self.target):
            return self.is_prepared
        return not _find_changes(without_view(read_manifest(self.target).recipe), self.recipe)

    def _holds_replaced_product(self) -> bool:
        """Return True where the product was published and this folder holds the one it replaced."""
        try:
            return without_view(read_claims(self.product).recipe) != self.recipe
        except StoreError:
            return False  # it is not finished yet

    def begin(self) -> None:
        """Create empty folders, removing the remains of an unprepared attempt."""
        shutil.rmtree(self.folder, ignore_errors=True)
        make_folder(self.product)
        make_folder(self._blocks)

    def mark_prepared(self) -> None:
        """Record that the product's layout is on disk and its blocks may be written."""
        flush_tree(self.product)
        write_file(self.folder / "prepared", b"")

    def mark_block(
        self, block: int, report: Mapping[str, Any], chunk: Path, checksum: str | None = None
    ) -> None:
        """Record that a block is on disk in `chunk`, which has been flushed, and its report.

        `checksum` is that of the bytes that were written; without it the chunk is read.
        """
        record = Recorded.of(chunk, checksum or file_checksum(chunk))
        place = {
            "file": chunk.relative_to(self.product).as_posix(),
            "bytes": record.size,
            "inode": record.inode,
            "changed_ns": record.changed_ns,
            "checksum": record.checksum,
        }
        content = format_json({**report, "chunk": place}).encode()
        write_file(self._blocks / f"{block}.json", content)

    def block_reports(self) -> dict[int, dict[str, Any]]:
        """Return the reports of finished blocks, whose chunks are there and of the same size."""
        found = {int(path.stem): self._read_report(path) for path in self._blocks.glob("*.json")}
        return {block: report for block, report in sorted(found.items()) if report is not None}

    def _read_report(self, path: Path) -> dict[str, Any] | None:
        try:
            report: dict[str, Any] = json.loads(path.read_bytes())
            place = report["chunk"]
            size = (self.product / place["file"]).stat().st_size
            return report if size == place["bytes"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _recorded(self) -> dict[str, Recorded]:
        """Return the chunks whose checksums blocks have reported; none of an older version's."""
        places = [report["chunk"] for report in self.block_reports().values()]
        return {
            place["file"]: Recorded(
                place["bytes"], place["inode"], place["changed_ns"], place["checksum"]
            )
            for place in places
            if "checksum" in place
        }

    def check_complete(self, blocks: int) -> dict[int, dict[str, Any]]:
        """Return the reports of all blocks. Raises EnvironmentFault where one has disappeared."""
        reports = self.block_reports()
        if lost := blocks - len(reports):
            what = f"{lost} finished blocks have vanished"
            raise EnvironmentFault(f"{self.target}: {what}; run the same line again")
        return reports

    def commit(
        self,
        kind: str,
        counts: Mapping[str, Any],
        view: Mapping[str, Any] | None = None,
        *,
        keeps_begun: bool = False,
    ) -> Manifest:
        """Write the manifest, flush, and rename the product into place, replacing an older one.

        Chunks that are as their blocks reported them are not read again. What was begun by other
        recipes is removed, unless `keeps_begun`.
        """
        _check_replaceable(self.target, kind)
        _sweep(self.product)
        recipe = self.recipe if view is None else {**self.recipe, VIEW: view}
        manifest = Manifest(kind, recipe, counts, flush_tree(self.product, self._recorded()))
        write_file(self.product / MANIFEST, manifest_to_json(manifest))
        flush_folder(self.product)
        _publish(self.product, self.target)
        others = [] if keeps_begun else list_staged(self.target)  # the product's lock is ours
        for folder in {self.folder, *others}:
            shutil.rmtree(folder, ignore_errors=True)
        return manifest

    def discard(self) -> None:
        """Remove the staging."""
        shutil.rmtree(self.folder, ignore_errors=True)


def without_view(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a recipe that decide the work, not how it is shown."""
    return {name: entry for name, entry in recipe.items() if name != VIEW}


def list_staged(target: Path) -> list[Path]:
    """Return the stagings of a product, one for every recipe that was started."""
    folders = sorted((target.parent / HIDDEN / "staging").glob("*"))
    matches = [(folder, STAGED.fullmatch(folder.name)) for folder in folders]
    return [folder for folder, match in matches if match and match[1] == target.name]


def _sweep(product: Path) -> None:
    """Remove the remains of a killed writer: an old manifest, and files that were not renamed."""
    for path in [product / MANIFEST, *product.rglob("*.partial"), *product.rglob(".*")]:
        path.unlink(missing_ok=True)


def _publish(product: Path, target: Path) -> None:
    """Rename into place; an older product is swapped or moved aside first, and then removed."""
    retired = product.parent / RETIRED
    if target.exists() and exchange(product, target):
        flush_folder(target.parent)
        shutil.rmtree(product, ignore_errors=True)
        return
    if target.exists():
        target.rename(retired)
    product.rename(target)
    flush_folder(target.parent)
    shutil.rmtree(retired, ignore_errors=True)


def put_back_retired(folder: Path) -> None:
    """Restore products in a folder that a killed run had moved aside for newer ones."""
    for retired in sorted((folder / HIDDEN / "staging").glob(f"*/{RETIRED}")):
        target = folder / retired.parent.name.rpartition(".")[0]
        with suppress(EnvironmentFault), hold_lock(target):  # a locked one has a living writer
            put_back(target)


def put_back(target: Path) -> None:
    """Restore one product, whose lock is ours."""
    for retired in (folder / RETIRED for folder in list_staged(target)):
        if retired.exists() and not target.exists():
            retired.rename(target)
            flush_folder(target.parent)


LookFor = Callable[["Staging", str, bool, Iterable[Path | None]], Manifest | None]
"""`find_finished` or `check_finished`."""


def find_finished(
    staging: Staging, kind: str, force: bool, inputs: Iterable[Path | None] = ()
) -> Manifest | None:
    """Return the manifest of the product where this recipe made it, whatever its view, else None.

    Raises StoreError where another recipe made it and `force` is False, and always where a product
    of another kind or one of the `inputs` would be replaced. With `force`, unfinished work is
    removed too.
    """
    put_back(staging.target)
    manifest = check_finished(staging, kind, force, inputs)
    if force or manifest is not None:
        staging.discard()  # of a finished product: what a kill just after its commit left
    return manifest


def check_finished(
    staging: Staging, kind: str, force: bool, inputs: Iterable[Path | None] = ()
) -> Manifest | None:
    """Return the same as `find_finished`, changing nothing."""
    target = staging.target
    _check_replaceable(target, kind)
    for path in inputs:
        if path is not None and path.resolve().is_relative_to(target.resolve()):
            raise StoreError(f"{target}: holds {path}, which this work reads; name another place")
    if force or not is_product(target):
        return None
    manifest = read_manifest(target)
    if changes := _find_changes(without_view(manifest.recipe), staging.recipe):
        what = f"was made from another {' and '.join(changes)}"
        raise StoreError(f"{target}: {what}; use --force to replace it, or another folder")
    return manifest


def _find_changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of the entries in which two recipes differ.

    A part that has other entries is named as a whole.
    """
    changes: list[str] = []
    for key in sorted({*old, *new}):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            inner = _find_changes(one, other, f"{prefix}{key}.")
            is_another_kind = any(one.get(k) != other.get(k) for k in one.keys() ^ other.keys())
            changes += [f"{prefix}{key}"] if is_another_kind else inner
        elif one != other:
            changes.append(f"{prefix}{key}")
    return changes


def _check_replaceable(target: Path, kind: str) -> None:
    """Raise StoreError where `target` is not a product of this kind, or lies in another product."""
    remedy = "name another place"
    for folder in target.absolute().parents:
        if (owner := find_kind(folder)) is not None:
            raise StoreError(f"{target}: lies inside a finished {owner}, {folder}; {remedy}")
    if not target.exists() and target.is_symlink():
        raise StoreError(f"{target}: is a link to nothing; mount its target, or remove it")
    if not target.exists():
        return
    if not is_product(target):
        if target.is_dir() and not any(target.iterdir()):
            return
        raise StoreError(f"{target}: exists and was not made by wsi; move it away or {remedy}")
    if not has_damaged_manifest(target) and (found := find_kind(target)) != kind:
        what = "was not made by wsi" if found is None else f"is a {found}, no {kind}"
        raise StoreError(f"{target}: {what}, and is never replaced by one; {remedy}")
