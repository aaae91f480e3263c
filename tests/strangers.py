"""Products as a stranger could send them: changed at will, with manifests that vouch for every
change.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.builders import rewrite_manifest
from wsi_pipeline.core.choices import MANIFEST
from wsi_pipeline.core.recipe import canonical_json, recipe_digest
from wsi_pipeline.store.files import file_checksum

Change = Callable[[Path], object]
BIG = 10**12


def vouch(product: Path) -> None:
    """Write the manifest anew, as somebody would who knows its format: sizes and checksums of what
    is there now.
    """
    files = [
        path for path in sorted(product.rglob("*")) if path.is_file() and path.name != MANIFEST
    ]
    entries = {
        path.relative_to(product).as_posix(): [path.stat().st_size, _checksum(path)]
        for path in files
    }
    rewrite_manifest(product, lambda manifest: manifest.update(files=entries))


def _checksum(path: Path) -> str:
    """Of sparse gigabytes a made-up one: it would take all day, and sizes are what counts at
    opening.
    """
    return file_checksum(path) if path.stat().st_size < 10**9 else "0" * 32


def edit_json(name: str, *keys: str | int, value: Any) -> Change:
    """Put a value at a place in one of a product's JSON files."""

    def change(product: Path) -> None:
        content = json.loads((product / name).read_bytes())
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (product / name).write_text(json.dumps(content))

    return change


def attribute(*keys: str | int, value: Any) -> Change:
    """Put a value into a group's attributes."""
    return edit_json("zarr.json", "attributes", *keys, value=value)


def declare(array: str, shape: Sequence[int], chunks: Sequence[int] | None = None) -> Change:
    """Let an array say that it has another shape, and chunks."""

    def change(product: Path) -> None:
        edit_json(f"{array}/zarr.json", "shape", value=list(shape))(product)
        grid = {"name": "regular", "configuration": {"chunk_shape": list(chunks or shape)}}
        edit_json(f"{array}/zarr.json", "chunk_grid", value=grid)(product)

    return change


def put_values(array: str, values: NDArray[Any]) -> Change:
    """Put values into the one chunk of an array, with a checksum that is right."""

    def change(product: Path) -> None:
        content = np.ascontiguousarray(values).tobytes()
        chunk = product.joinpath(array, "c", *["0"] * values.ndim)
        chunk.write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))

    return change


def several(*changes: Change) -> Change:
    """One change after another."""

    def change(product: Path) -> None:
        for one in changes:
            one(product)

    return change


def rewrite_card(path: Path, **changes: object) -> None:
    """Change what a checkpoint's card says, and its checksum with it."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        card = json.loads(stored.metadata()["wsi"]) | changes
    card["card_sha256"] = recipe_digest(
        {key: value for key, value in card.items() if key != "card_sha256"}
    )
    save_file(load_file(path), path, metadata={"wsi": canonical_json(card)})
