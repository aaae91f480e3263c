"""The commit rule: a product is written aside, described by a manifest, flushed, and renamed into place once.

A product is complete if and only if its final name exists and its manifest verifies. Beside every
product lies a hidden folder
`.wsi` with the staging of products under way and the locks of their writers:

    <out>/<name>/                       the product, with manifest.json
    <out>/.wsi/staging/<name>.<recipe>/ product/ (becomes <out>/<name>) and blocks/ (one small file
    per finished block) <out>/.wsi/locks/<name>.lock        held by `flock` while somebody writes
    the product

Staging is named by its recipe, so a killed run is taken up where it stopped and work of another
recipe never mixes in.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import HIDDEN, MANIFEST
from wsi_pipeline.core.errors import EnvironmentFault, StoreError
from wsi_pipeline.core.json_io import format_json
from wsi_pipeline.core.recipe import recipe_digest
from wsi_pipeline.store.files import exchange, flush_folder, flush_tree, make_folder, write_file
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
"""Where a replaced product waits, in the staging of the newer one, while that is put in its place."""
STAGED = re.compile(r"(.+)\.[0-9a-f]{16}")
"""What a staging is called: the product's name, and the beginning of its recipe's."""
VIEW = "view"
"""Entry of a product's recipe that says how its content is shown; it may be made anew without doing the work again."""


@dataclass(frozen=True, slots=True)
class Staging:
    """A product under way; any number of processes may write different blocks of it."""

    target: Path
    recipe: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where everything of this product under way lies."""
        return (
            self.target.parent
            / HIDDEN
            / "staging"
            / f"{self.target.name}.{recipe_digest(self.recipe)[:16]}"
        )

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
        return (
            (self.folder / "prepared").exists()
            and self.product.is_dir()
            and not self._holds_replaced_product()
        )

    def _holds_replaced_product(self) -> bool:
        """Whether the product was published, and what lies here is the one that it replaced."""
        try:
            made_from = read_claims(self.product).recipe
        except StoreError:
            return False  # it is not finished yet
        return {name: entry for name, entry in made_from.items() if name != VIEW} != self.recipe

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
        write_file(
            self._blocks / f"{block}.json", format_json(dict(report) | {"chunk": place}).encode()
        )

    def block_reports(self) -> dict[int, dict[str, Any]]:
        """Reports of the finished blocks; one whose chunk is gone or has another size is not finished."""
        found = {
            int(path.stem): self._read_report(path) for path in sorted(self._blocks.glob("*.json"))
        }
        return {block: report for block, report in found.items() if report is not None}

    def _read_report(self, path: Path) -> dict[str, Any] | None:
        try:
            report: dict[str, Any] = json.loads(path.read_bytes())
            place = report["chunk"]
            return (
                report if (self.product / place["file"]).stat().st_size == place["bytes"] else None
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def check_complete(self, blocks: int) -> dict[int, dict[str, Any]]:
        """The reports of all blocks. Raises EnvironmentFault where one has vanished since it was written."""
        reports = self.block_reports()
        if len(reports) != blocks:
            raise EnvironmentFault(
                f"{self.target}: {blocks - len(reports)} finished blocks have vanished; run the"
                " same line again"
            )
        return reports

    def commit(
        self, kind: str, counts: Mapping[str, Any], view: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Write the manifest, flush, and put the product under its final name, in place of an older one."""
        _check_replaceable(self.target, kind)
        _sweep(self.product)
        recipe = self.recipe if view is None else {**self.recipe, VIEW: view}
        manifest = Manifest(kind=kind, recipe=recipe, counts=counts, files=flush_tree(self.product))
        write_file(self.product / MANIFEST, manifest_to_json(manifest))
        flush_folder(self.product)
        _publish(self.product, self.target)
        self._discard_all()
        return manifest

    def discard(self) -> None:
        """Throw the staging away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _discard_all(self) -> None:
        """Throw away what other recipes left of the same product; its lock is ours."""
        for folder in list_staged(self.target):
            shutil.rmtree(folder, ignore_errors=True)


def list_staged(target: Path) -> list[Path]:
    """The stagings of a product, one for every recipe that was begun."""
    folders = sorted((target.parent / HIDDEN / "staging").glob("*"))
    return [
        folder
        for folder in folders
        if (match := STAGED.fullmatch(folder.name)) and match[1] == target.name
    ]


def _sweep(product: Path) -> None:
    """Remove what a killed writer left: a manifest that was not published, and files of Zarr and ours that were never renamed."""
    for path in [product / MANIFEST, *product.rglob("*.partial"), *product.rglob(".*")]:
        path.unlink(missing_ok=True)


def _publish(product: Path, target: Path) -> None:
    """Rename into place; an older product is swapped with it in one step, or steps aside first, and is removed last."""
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
    """Give products in a folder their names back that stepped aside for newer ones which, by a kill, never came."""
    for retired in sorted((folder / HIDDEN / "staging").glob(f"*/{RETIRED}")):
        target = folder / retired.parent.name.rpartition(".")[0]
        with (
            suppress(EnvironmentFault),
            hold_lock(target),
        ):  # where it is being written, it is no dead writer's
            put_back(target)


def put_back(target: Path) -> None:
    """The same for one product, whose lock is ours."""
    for retired in (folder / RETIRED for folder in list_staged(target)):
        if retired.exists() and not target.exists():
            retired.rename(target)
            flush_folder(target.parent)


def find_finished(
    staging: Staging, kind: str, force: bool, inputs: Iterable[Path | None] = ()
) -> Manifest | None:
    """The manifest of the product where this very recipe made it, whatever its view; None where it is to be made.

    Raises StoreError where another recipe made what is there and `force` does not allow replacing
    it, and, whatever `force` says, where a product of another kind or one of the `inputs` would go;
    with `force`, work that was begun is thrown away too.
    """
    put_back(staging.target)
    manifest = check_finished(staging, kind, force, inputs)
    if force or manifest is not None:
        staging.discard()  # of a finished product nothing is left but what a kill after its commit spared
    return manifest


def check_finished(
    staging: Staging, kind: str, force: bool, inputs: Iterable[Path | None] = ()
) -> Manifest | None:
    """The same as `find_finished`, which nothing is touched by."""
    _check_replaceable(staging.target, kind)
    _spare_inputs(staging.target, inputs)
    if force or not is_product(staging.target):
        return None
    manifest = read_manifest(staging.target)
    made_from = {name: entry for name, entry in manifest.recipe.items() if name != VIEW}
    if made_from != staging.recipe:
        changed = " and ".join(_find_changes(made_from, staging.recipe))
        raise StoreError(
            f"{staging.target}: was made from another {changed}; use --force to replace it, or"
            " another folder"
        )
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
        if (owner := find_kind(folder)) is not None:
            raise StoreError(
                f"{target}: lies inside a finished {owner}, {folder}; name another place"
            )
    if not target.exists():
        if target.is_symlink():
            raise StoreError(
                f"{target}: is a link to what is not there; mount that, or remove the link"
            )
        return
    if not is_product(target):
        if target.is_dir() and not any(target.iterdir()):
            return
        raise StoreError(
            f"{target}: exists and was not made by wsi; move it away or name another place"
        )
    if not has_damaged_manifest(target) and (found := find_kind(target)) != kind:
        what = "was not made by wsi" if found is None else f"is a {found}, no {kind}"
        raise StoreError(f"{target}: {what}, and is never replaced by one; name another place")


def _spare_inputs(target: Path, inputs: Iterable[Path | None]) -> None:
    """Raise StoreError where something that the work reads lies in the product's place and would go with an older one."""
    for path in inputs:
        if path is not None and path.resolve().is_relative_to(target.resolve()):
            raise StoreError(
                f"{target}: holds {path}, which this very work reads; name another place"
            )
