"""External models: WSInfer zoo folders (specification 1.0).

A folder holds `config.json` and `torchscript_model.pt`. TorchScript is code: a file is loaded only
where the user names its SHA-256, in every process, and the bytes that were hashed are the bytes
that are loaded.
"""

import hashlib
import io
import math
import re
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn

from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.choices import CONFIG_JSON, EXTERNAL_THRESHOLD, TORCHSCRIPT
from wsi_pipeline.core.errors import ConfigError, ModelError, one_line
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.json_io import parse_json
from wsi_pipeline.core.recipe import recipe_digest
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.model import SelfTest

OURS = "wsi"
SPEC_VERSION = "1.0"
MAX_BYTES = 1_000_000
MAX_RESIZED_PX = 2048
STEPS = ("Resize", "ToTensor", "Normalize")


@dataclass(frozen=True, slots=True)
class ZooConfig:
    """The terms of use that a model folder states."""

    architecture: str
    class_names: tuple[str, ...]
    """In the order of the network's outputs."""
    spec: PatchSpec
    resized_px: int | None = None
    """Side that patches are resized to; None: not resized."""
    normalisation: Normalisation | None = None
    """None: the network takes pixels scaled to 0–1."""
    is_leaky: bool = False
    """A model of wsi, split at random; this and the next field stand under the key `wsi`."""
    seen_patients: tuple[str, ...] = ()
    """Hashes of the patients that a model of wsi was made with."""

    def prepare(self, pixels: Tensor) -> Tensor:
        """Return uint8 (b, side, side, 3) as the network's float32 (b, 3, side, side)."""
        x = pixels.permute(0, 3, 1, 2)  # (b, 3, side, side)
        if self.resized_px is not None and self.resized_px != x.shape[-1]:
            # Here, because importing torchvision takes seconds.
            from torchvision.transforms.functional import resize

            x = resize(x, [self.resized_px, self.resized_px], antialias=True)
        x = x.float() / 255
        if self.normalisation is None:
            return x
        mean = torch.tensor(self.normalisation.mean, device=x.device).view(3, 1, 1)
        return (x - mean) / torch.tensor(self.normalisation.std, device=x.device).view(3, 1, 1)

    def to_json(self) -> dict[str, Any]:
        """Return the content of config.json."""
        transform: list[dict[str, Any]] = [
            {"name": "Resize", "arguments": {"size": self.resized_px or self.spec.side_px}},
            {"name": "ToTensor"},
        ]
        if self.normalisation is not None:
            mean, std = list(self.normalisation.mean), list(self.normalisation.std)
            transform.append({"name": "Normalize", "arguments": {"mean": mean, "std": std}})
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
    """Read and check a config.json. Raises ModelError naming the invalid entry."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ModelError(f"{path}: {size} bytes, too many for a configuration; give another")
        value = parse_json(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({one_line(error)}); copy it again") from error
    try:
        return parse_zoo_config(value)
    except (ModelError, ConfigError) as error:
        raise ModelError(f"{path}: {error}") from error


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path}: cannot be read ({error.strerror}); a model folder needs it")


def parse_zoo_config(value: Any) -> ZooConfig:
    """Return the configuration in a JSON value. Raises ModelError or ConfigError with the entry."""
    if not isinstance(value, Mapping):
        raise ModelError("is not a JSON object; see the WSInfer zoo for its entries")
    if (version := value.get("spec_version")) != SPEC_VERSION:
        raise ModelError(f"spec_version is {version!r}; this version of wsi reads {SPEC_VERSION!r}")
    names, count = value.get("class_names"), value.get("num_classes")
    if not (_are_names(names) and all(names) and 0 < len(names) == len({*names})):
        raise ModelError("class_names must be a list of different names")
    if count != len(names):
        raise ModelError(f"num_classes is {count!r}, class_names has {len(names)}; they must agree")
    architecture = value.get("architecture")
    if not (isinstance(architecture, str) and architecture):
        raise ModelError("architecture must be a name")
    side_px, mpp = value.get("patch_size_pixels"), value.get("spacing_um_px")
    if not _is_whole(side_px) or not _is_number(mpp):
        raise ModelError("patch_size_pixels must be a whole number and spacing_um_px a number")
    resized_px, normalisation = _parse_transform(value.get("transform"))
    spec = PatchSpec(side_px, side_px, float(mpp))
    ours = _parse_ours(value.get(OURS, {}))
    return ZooConfig(architecture, tuple(names), spec, resized_px, normalisation, *ours)


def _parse_ours(value: Any) -> tuple[bool, tuple[str, ...]]:
    """Return `is_leaky` and the hashes of the patients that an export by wsi records."""
    if isinstance(value, Mapping):
        is_leaky, seen = value.get("is_leaky", False), value.get("seen_patients", [])
        if isinstance(is_leaky, bool) and _are_names(seen):
            return is_leaky, tuple(seen)
    raise ModelError(f"{OURS} must hold is_leaky, true or false, and the list seen_patients")


def _parse_transform(steps: Any) -> tuple[int | None, Normalisation | None]:
    """Return the side that patches are resized to and the normalisation."""
    if not (isinstance(steps, list) and all(isinstance(step, Mapping) for step in steps)):
        raise ModelError("transform must be a list of steps with a name each")
    names = [step.get("name") for step in steps]
    if names != [name for name in STEPS if name in names or name == "ToTensor"]:
        raise ModelError(
            f"transform is {names}; it must be ToTensor, perhaps Resize before, Normalize after"
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


def _are_names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


TRUST = re.compile(r"sha256:([0-9a-f]{64})")
MAX_SCRIPT_BYTES = 4 * 1024**3
"""The file is read into memory whole."""


@dataclass(frozen=True)
class ExternalModel:
    """A trusted TorchScript file and the configuration beside it."""

    path: Path
    config: ZooConfig
    script: bytes = field(repr=False)
    script_sha256: str
    positive_index: int
    """Index of the positive class in the network's outputs."""

    terms: ClassVar[ModelTerms] = ModelTerms.plain(EXTERNAL_THRESHOLD)
    threshold_source: ClassVar[str] = "one half, for its folder states none"
    training: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    self_test: ClassVar[SelfTest | None] = None
    domain: ClassVar[None] = None
    is_ensemble: ClassVar[bool] = False
    is_script: ClassVar[bool] = True

    @property
    def architecture(self) -> str:
        return self.config.architecture

    @property
    def spec(self) -> PatchSpec:
        return self.config.spec

    @property
    def class_names(self) -> tuple[str, str]:
        """The negative and the positive class; of more than two, all others are negative."""
        names, positive = self.config.class_names, self.positive_class
        negative = names[1 - self.positive_index] if len(names) == 2 else f"not {positive}"
        return negative, positive

    @property
    def positive_class(self) -> str:
        return self.config.class_names[self.positive_index]

    @property
    def is_leaky(self) -> bool:
        return self.config.is_leaky

    @property
    def digest(self) -> str:
        """Digest of script, configuration and positive class."""
        config, positive = self.config.to_json(), self.positive_class
        return recipe_digest({"script": self.script_sha256, "config": config, "positive": positive})

    def to_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "architecture": self.architecture,
            "torchscript_sha256": self.script_sha256,
            "patch": self.spec.to_json(),
            "class_names": list(self.class_names),
            "terms": self.terms.to_json(),
            "threshold_source": self.threshold_source,
            "is_leaky": self.is_leaky,
            "seen_patients": list(self.config.seen_patients),
        }

    @property
    def resizes_patches(self) -> bool:
        return self.config.resized_px not in (None, self.spec.side_px)

    def network(self, *, has_features: bool = False) -> nn.Module:
        network = PreparedScript(load_torchscript(self.script, self.path), self.config)
        side = self.spec.side_px
        try:
            with torch.inference_mode():
                output = network(torch.zeros((2, side, side, 3), dtype=torch.uint8))
        except RuntimeError as error:
            reason = _last_line(error)
            raise ModelError(
                f"{self.path}: does not run on its own patches ({reason}); give another model"
            ) from error
        outputs, shape = len(self.config.class_names), tuple(output.shape)
        if shape != (2, outputs) and not (outputs == 1 and shape == (2,)):
            raise ModelError(
                f"{self.path}: gives {shape} for 2 patches and {outputs} classes; correct its"
                f" {CONFIG_JSON}"
            )
        return network

    def logit(self, output: Tensor) -> Tensor:
        if len(self.config.class_names) == 1:
            return output.reshape(-1)
        # The sigmoid of this is the softmax of the positive class among all.
        others = [index for index in range(output.shape[1]) if index != self.positive_index]
        return output[:, self.positive_index] - torch.logsumexp(output[:, others], dim=1)

    def spread(self, output: Tensor) -> None:
        return None

    def features(self, output: Tensor) -> None:
        return None


class PreparedScript(nn.Module):
    """TorchScript preceded by the preparation of its patches."""

    def __init__(self, script: nn.Module, config: ZooConfig) -> None:
        super().__init__()
        self.script = script
        self.config = config

    def forward(self, pixels: Tensor) -> Tensor:
        output: Tensor = self.script(self.config.prepare(pixels))
        return output.float()


def load_external(
    folder: Path, trust: str | None, positive_class: str | None = None
) -> ExternalModel:
    """Load a model folder whose TorchScript has the digest `trust` (sha256:…).

    Raises ModelError where it is not trusted, naming its digest, where a file is absent or damaged,
    or where the positive class is unclear; nothing of the script has run then.
    """
    config = read_zoo_config(folder / CONFIG_JSON)
    positive_index = _find_positive(folder, config.class_names, positive_class)
    path = folder / TORCHSCRIPT
    script = _read_script(path)
    digest = hashlib.sha256(script).hexdigest()
    if trust is None:
        raise ModelError(
            f"{path}: is TorchScript, which is code and would run with your rights; if you trust"
            f" its maker, add --trust-model sha256:{digest}"
        )
    if digest != _parse_trust(trust):
        raise ModelError(
            f"{path}: has the digest sha256:{digest}, not the one given with --trust-model; get the"
            " file that you trust"
        )
    return ExternalModel(path, config, script, digest, positive_index)


def _read_script(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SCRIPT_BYTES:
            limit = f"{MAX_SCRIPT_BYTES >> 30} GB"
            raise ModelError(f"{path}: no regular file of at most {limit}; give another model")
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _parse_trust(text: str) -> str:
    """Return the hex digest in `sha256:…`. Raises ConfigError where there is none."""
    match = TRUST.fullmatch(text.strip().lower())
    if match is None:
        raise ConfigError(
            f"{text!r} is not a digest; give sha256: and all 64 digits that the refusal prints"
        )
    return match[1]


def load_torchscript(script: bytes, path: Path) -> nn.Module:
    """Load a trusted TorchScript file on the CPU. Raises ModelError where it cannot be loaded."""
    try:
        with warnings.catch_warnings():
            # torch recommends torch.export; the zoo has TorchScript.
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(io.BytesIO(script), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be loaded as TorchScript ({_last_line(error)}); get it again"
        ) from error
    loaded: nn.Module = network.eval()
    return loaded


def _find_positive(folder: Path, names: tuple[str, ...], wanted: str | None) -> int:
    listed = ", ".join(names)
    if wanted is None and len(names) > 2:
        raise ModelError(f"{folder}: classes {listed}; name the positive one with --positive-class")
    if wanted is not None and wanted not in names:
        raise ModelError(f"{folder}: has no class {wanted!r} to call positive; it has {listed}")
    return len(names) - 1 if wanted is None else names.index(wanted)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:160] if lines else type(error).__name__
