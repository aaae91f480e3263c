"""Export of a checkpoint as files that other programs run.

It is committed only where these files give the same probabilities.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.core.choices import CONFIG_JSON
from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.models.choice import ExternalModelTerms
from wsi_pipeline.models.export import FORMATS, compare_export, describe_export, write_export
from wsi_pipeline.models.loading import find_checkpoint
from wsi_pipeline.models.zoo import read_zoo_config
from wsi_pipeline.store.commit import Staging, find_finished
from wsi_pipeline.store.lock import hold_lock

KIND = "wsi export"
MAX_DIFFERENCE = 1e-5
"""Largest allowed difference in probability between an export and its checkpoint."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    files: tuple[Path, ...]
    differences: dict[str, float]
    """Format → largest difference in probability from the checkpoint on the compared batch."""
    is_resumed_whole: bool
    """An earlier run made these very files."""


def export_model(
    model: Path,
    formats: Sequence[str],
    out: Path,
    *,
    is_normalised_inside: bool = False,
    force: bool = False,
    terms: ExternalModelTerms | None = None,
) -> Exported:
    """Commit `out` with the model in every format and `config.json` beside them.

    Each file is read back and compared with the checkpoint first. Raises ModelError, leaving
    nothing, where a probability differs by more than MAX_DIFFERENCE, and ConfigError for a format
    that there is not.
    """
    names = sorted({*formats})
    if unknown := [name for name in names if name not in FORMATS]:
        raise ConfigError(f"format {unknown[0]!r}; it must be one of {', '.join(FORMATS)}")
    checkpoint = load_checkpoint(find_checkpoint(model), terms)
    recipe = {
        "model": checkpoint.digest,
        "formats": names,
        "is_normalised_inside": is_normalised_inside,
        "torch": describe_tool()["packages"]["torch"],
    }
    staging = Staging(out, recipe)
    files = tuple(out / FORMATS[name].file for name in names)
    with hold_lock(out):
        if manifest := find_finished(staging, KIND, force, [model]):
            differences = dict(manifest.counts["largest_difference"])
            return Exported(files, differences, is_resumed_whole=True)
        staging.begin()
        try:
            config_path = staging.product / CONFIG_JSON
            config = describe_export(checkpoint, is_normalised_inside=is_normalised_inside)
            text = json.dumps(config.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
            config_path.write_text(text + "\n", encoding="utf-8")
            differences = {}
            for name in names:
                path = staging.product / FORMATS[name].file
                write_export(checkpoint, name, path, is_normalised_inside=is_normalised_inside)
                found = compare_export(checkpoint, name, path, read_zoo_config(config_path))
                differences[name] = found
                _check_difference(name, found)
            staging.commit(KIND, {"largest_difference": differences})
        finally:
            staging.discard()
    return Exported(files, differences, is_resumed_whole=False)


def _check_difference(name: str, difference: float) -> None:
    if not difference <= MAX_DIFFERENCE:  # so that NaN does not pass
        found = f"{difference:.2g}, more than {MAX_DIFFERENCE:g}"
        what = f"its probabilities differ from the checkpoint's by {found}"
        raise ModelError(f"{name}: {what}; nothing was kept; choose another format")
