"""Opening a group of a product: its metadata are compared with the manifest, then what they declare with what we write, then content.

In this order, because metadata are small, and a table that has the right layout is as long as its patches make it: nothing endless is read.
"""

from pathlib import Path
from typing import Any

from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.store.layout import MAX_GROUP_JSON_BYTES, ZARR_JSON
from wsi_pipeline.store.manifest import Manifest, check_files
from wsi_pipeline.store.schema import check_kind, list_table_files


def check_tables(product: Path, manifest: Manifest, kind: str, folder: str = "") -> dict[str, Any]:
    """The attributes of the group in `folder` of a product, whose tables are as they were written. Raises StoreError."""
    prefix = f"{folder}/" if folder else ""
    metadata = [name for name in manifest.files if name.startswith(prefix) and name.endswith(ZARR_JSON)]
    for name in metadata:
        if manifest.files[name][0] > MAX_GROUP_JSON_BYTES:
            raise StoreError(f"{product}: damaged: {name} has more than {MAX_GROUP_JSON_BYTES} bytes; make it again with --force")
    check_files(product, manifest, metadata)
    attributes = check_kind(product / folder, kind)
    check_files(product, manifest, [f"{prefix}{name}" for name in list_table_files(product / folder, attributes)])
    return attributes
