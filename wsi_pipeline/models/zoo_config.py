"""`config.json` of a model folder as in the WSInfer zoo (specification 1.0): what patches a model takes, and what it tells."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.json_io import parse_json
from wsi_pipeline.models.inputs import Normalisation

CONFIG_JSON = "config.json"
OURS = "wsi"
SPEC_VERSION = "1.0"
MAX_BYTES = 1_000_000
MAX_RESIZED_PX = 2048


@dataclass(frozen=True, slots=True)
class ZooConfig:
    """The terms of use that a model folder states."""

    architecture: str
    class_names: tuple[str, ...]
    """In the order of the network's outputs."""
    spec: PatchSpec
    resized_px: int | None = None
    """Side that patches are resized to before the network sees them; None: as they are."""
    normalisation: Normalisation | None = None
    """None: the network takes pixels scaled to 0–1."""
    is_leaky: bool = False
    """A model of ours that was split at random. What follows stands under `wsi`, which other programs pass over."""
    seen_patients: tuple[str, ...] = ()
    """Hashes of the patients that a model of ours was made with."""

    def prepare(self, pixels: Tensor) -> Tensor:
        """uint8 (b, side, side, 3) → float32 (b, 3, side, side) as the network takes them, on the same device."""
        x = pixels.permute(0, 3, 1, 2)  # (b, 3, side, side)
        if self.resized_px is not None and self.resized_px != x.shape[-1]:
            from torchvision.transforms.functional import (
                resize,
            )  # here, because importing torchvision takes seconds

            x = resize(x, [self.resized_px, self.resized_px], antialias=True)
        x = x.float() / 255
        if self.normalisation is None:
            return x
        mean = torch.tensor(self.normalisation.mean, device=x.device).view(3, 1, 1)
        return (x - mean) / torch.tensor(self.normalisation.std, device=x.device).view(3, 1, 1)

    def to_json(self) -> dict[str, Any]:
        """The content of config.json."""
        transform: list[dict[str, Any]] = [
            {"name": "Resize", "arguments": {"size": self.resized_px or self.spec.side_px}},
            {"name": "ToTensor"},
        ]
        if self.normalisation is not None:
            statistics = {
                "mean": list(self.normalisation.mean),
                "std": list(self.normalisation.std),
            }
            transform.append({"name": "Normalize", "arguments": statistics})
        ours = {"is_leaky": self.is_leaky, "seen_patients": list(self.seen_patients)}
        return {
            "spec_version": SPEC_VERSION,
            "architecture": self.architecture,
            "num_classes": len(self.class_names),
            "class_names": list(self.class_names),
            "patch_size_pixels": self.spec.side_px,
            "spacing_um_px": self.spec.mpp,
            "transform": transform,
            **({OURS: ours} if any(ours.values()) else {}),
        }


def read_zoo_config(path: Path) -> ZooConfig:
    """Read and check a config.json. Raises ModelError naming the entry that is absent or cannot be."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(
                f"{path}: {path.stat().st_size} bytes are too many for a model's configuration;"
                " give another folder"
            )
        value = parse_json(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}); a model folder needs it"
        ) from error
    except ValueError as error:
        raise ModelError(
            f"{path}: not JSON ({' '.join(str(error).split())[:120]}); copy it again"
        ) from error
    try:
        return parse_zoo_config(value)
    except (ModelError, ConfigError) as error:
        raise ModelError(f"{path}: {error}") from error


def parse_zoo_config(value: Any) -> ZooConfig:
    """The configuration in a JSON value. Raises ModelError or ConfigError naming the entry that is absent or cannot be."""
    if not isinstance(value, Mapping):
        raise ModelError("is no JSON object; see the WSInfer zoo for its entries")
    if value.get("spec_version") != SPEC_VERSION:
        raise ModelError(
            f"spec_version is {value.get('spec_version')!r}; this version of wsi reads"
            f" {SPEC_VERSION!r}"
        )
    names = value.get("class_names")
    if not (
        isinstance(names, list)
        and names
        and all(isinstance(name, str) and name for name in names)
        and len(names) == len({*names})
    ):
        raise ModelError("class_names must be a list of different names")
    if value.get("num_classes") != len(names):
        raise ModelError(
            f"num_classes is {value.get('num_classes')!r} and class_names has {len(names)}; they"
            " must agree"
        )
    architecture = value.get("architecture")
    if not (isinstance(architecture, str) and architecture):
        raise ModelError("architecture must be a name")
    side_px, mpp = value.get("patch_size_pixels"), value.get("spacing_um_px")
    if not _is_whole(side_px) or not _is_number(mpp):
        raise ModelError("patch_size_pixels must be a whole number and spacing_um_px a number")
    resized_px, normalisation = _parse_transform(value.get("transform"))
    spec = PatchSpec(side_px, side_px, float(mpp))
    return ZooConfig(
        architecture,
        tuple(names),
        spec,
        resized_px,
        normalisation,
        *_parse_ours(value.get(OURS, {})),
    )


def _parse_ours(value: Any) -> tuple[bool, tuple[str, ...]]:
    """What an export of ours says of its making: whether it is leaky, the hashes of its patients."""
    is_leaky, seen = (
        (value.get("is_leaky", False), value.get("seen_patients", []))
        if isinstance(value, Mapping)
        else (None, None)
    )
    if not (
        isinstance(is_leaky, bool)
        and isinstance(seen, list)
        and all(isinstance(name, str) for name in seen)
    ):
        raise ModelError(f"{OURS} must hold is_leaky, true or false, and the list seen_patients")
    return is_leaky, tuple(seen)


def _parse_transform(steps: Any) -> tuple[int | None, Normalisation | None]:
    """What the steps do to patches: the side they are resized to, the normalisation."""
    if not (isinstance(steps, list) and all(isinstance(step, Mapping) for step in steps)):
        raise ModelError("transform must be a list of steps with a name each")
    names = [step.get("name") for step in steps]
    if names not in (
        ["ToTensor"],
        ["Resize", "ToTensor"],
        ["ToTensor", "Normalize"],
        ["Resize", "ToTensor", "Normalize"],
    ):
        raise ModelError(
            f"transform is {names}; it must be ToTensor, with Resize before and Normalize after"
            " where they are needed"
        )
    arguments = {step["name"]: step.get("arguments") or {} for step in steps}
    if not all(isinstance(entry, Mapping) for entry in arguments.values()):
        raise ModelError("the arguments of a transform must be an object")
    size = arguments["Resize"].get("size") if "Resize" in arguments else None
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if "Resize" in arguments and not (_is_whole(size) and 1 <= size <= MAX_RESIZED_PX):
        raise ModelError(
            f"Resize has the size {size}; it must be one side between 1 and {MAX_RESIZED_PX} px"
        )
    if "Normalize" not in arguments:
        return size, None
    mean, std = (arguments["Normalize"].get(name) for name in ("mean", "std"))
    if not (isinstance(mean, list) and isinstance(std, list)):
        raise ModelError("Normalize needs the lists mean and std")
    return size, Normalisation(tuple(mean), tuple(std))  # which checks their length


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
