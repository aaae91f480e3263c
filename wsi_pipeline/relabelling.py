"""New labels for an existing patch store: a new generation of it, without reading the slide again."""

import os
import shutil
from pathlib import Path

import numpy as np

from wsi_pipeline.labels import label_patches, label_recipe
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.store.commit import Staging, find_finished
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import MANIFEST, check_whole
from wsi_pipeline.store.patches import KIND, PatchStore
from wsi_pipeline.store.schema import LABEL_ARRAYS, write_labels


def relabel_store(path: Path, label_file: Path, rules: LabelRules) -> bool:
    """Put the labels of a file into a store, in place of its old ones; False where it has these very labels already.

    Pixels are taken over as they are (hard links where the file system has them). The old generation stays until the new one is
    complete. Raises StoreError for a damaged store, LabelError for labels that do not fit; the store is then as it was.
    """
    with hold_lock(path):
        store = PatchStore(path)
        staging = Staging(path, dict(store.manifest.recipe) | {"labels": label_recipe(rules, label_file)})
        if staging.recipe == store.manifest.recipe:
            return False
        find_finished(staging, KIND, force=True, inputs=[label_file])
        check_whole(path)
        table = store.table
        labels = label_patches(label_file, table.slide, table.grid, table.cells, rules)
        staging.begin()
        _take_over(path, staging.product, [*store.manifest.files])
        attributes = store.attributes | {
            "class_names": list(rules.class_names),
            "labels": labels.description,
            "generation": int(store.attributes.get("generation", 1)) + 1,
        }
        write_labels(staging.product, attributes, labels.labels, labels.fraction)
        counts = dict(store.manifest.counts) | {"labelled": int(np.count_nonzero(labels.labels >= 0))}
        staging.commit(KIND, counts)
        return True


def _take_over(store: Path, product: Path, files: list[str]) -> None:
    """Link or copy every file that labels do not change."""
    for name in files:
        if name in (MANIFEST, "zarr.json") or name.split("/")[0] in LABEL_ARRAYS:
            continue
        target = product / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(store / name, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(store / name, target)
