"""Models of others: folders as in the WSInfer zoo, with `config.json` and `torchscript_model.pt`.

TorchScript is code. A file of it is loaded only where the user names its SHA-256, in every process
that loads it, and what was hashed is what is loaded: the same bytes in memory.
"""

import hashlib
import io
import re
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.recipe import recipe_digest
from wsi_pipeline.models.self_test import SelfTest
from wsi_pipeline.models.zoo_config import CONFIG_JSON, ZooConfig, read_zoo_config

TORCHSCRIPT = "torchscript_model.pt"
TRUST = re.compile(r"sha256:([0-9a-f]{64})")
EXTERNAL_THRESHOLD = 0.5
MAX_SCRIPT_BYTES = 4 * 1024**3
"""It is read into memory whole."""


@dataclass(frozen=True)
class ExternalModel:
    """A trusted TorchScript file and the configuration beside it."""

    path: Path
    config: ZooConfig
    script: bytes = field(repr=False)
    script_sha256: str
    positive_index: int
    """Which of the network's outputs is the positive class."""

    threshold: float = EXTERNAL_THRESHOLD
    threshold_source: str = "one half, for its folder states none"

    @property
    def architecture(self) -> str:
        return self.config.architecture

    @property
    def spec(self) -> PatchSpec:
        return self.config.spec

    @property
    def class_names(self) -> tuple[str, str]:
        """The negative and the positive one; where there are not exactly two, the negative one is everything else."""
        names = self.config.class_names
        negative = (
            names[1 - self.positive_index] if len(names) == 2 else f"not {self.positive_class}"
        )
        return negative, self.positive_class

    @property
    def positive_class(self) -> str:
        return self.config.class_names[self.positive_index]

    @property
    def is_leaky(self) -> bool:
        return self.config.is_leaky

    @property
    def training(self) -> Mapping[str, Any]:
        return {}

    @property
    def digest(self) -> str:
        """Names script, configuration and positive class together."""
        return recipe_digest(
            {
                "script": self.script_sha256,
                "config": self.config.to_json(),
                "positive": self.positive_class,
            }
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "architecture": self.architecture,
            "torchscript_sha256": self.script_sha256,
            "patch": self.spec.to_json(),
            "class_names": list(self.class_names),
            "threshold": self.threshold,
            "threshold_source": self.threshold_source,
            "is_leaky": self.is_leaky,
            "seen_patients": list(self.config.seen_patients),
        }

    @property
    def self_test(self) -> SelfTest | None:
        return None

    @property
    def is_script(self) -> bool:
        return True

    @property
    def resizes_patches(self) -> bool:
        return self.config.resized_px not in (None, self.spec.side_px)

    def network(self) -> nn.Module:
        network = PreparedScript(load_torchscript(self.script, self.path), self.config)
        side = self.spec.side_px
        try:
            with torch.inference_mode():
                output = network(torch.zeros((2, side, side, 3), dtype=torch.uint8))
        except RuntimeError as error:
            raise ModelError(
                f"{self.path}: does not run on its own patches ({_last_line(error)}); give another"
                " model"
            ) from error
        outputs = len(self.config.class_names)
        if output.shape != (2, outputs) and not (outputs == 1 and output.shape == (2,)):
            raise ModelError(
                f"{self.path}: gives {tuple(output.shape)} for 2 patches and {outputs} classes;"
                f" mend its {CONFIG_JSON}"
            )
        return network

    def probability(self, output: Tensor) -> Tensor:
        if len(self.config.class_names) == 1:
            return torch.sigmoid(output.reshape(-1))
        return torch.softmax(output, dim=1)[:, self.positive_index]


class PreparedScript(nn.Module):
    """TorchScript with the preparation of its patches before it."""

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
    """A model folder whose TorchScript has the digest `trust` (sha256:…).

    Raises ModelError where it is not trusted, naming its digest, where a file is absent or damaged,
    or where it is unclear which class is the positive one; nothing of the script has run then.
    """
    config = read_zoo_config(folder / CONFIG_JSON)
    positive_index = _find_positive(folder, config.class_names, positive_class)
    path = folder / TORCHSCRIPT
    script = read_script(path)
    digest = hashlib.sha256(script).hexdigest()
    if trust is None:
        raise ModelError(
            f"{path}: is TorchScript, which is code and would run with your rights; "
            f"if you trust whoever made it, add --trust-model sha256:{digest}"
        )
    if digest != parse_trust(trust):
        raise ModelError(
            f"{path}: has the digest sha256:{digest}, not the one given with --trust-model; get the"
            " file that you trust"
        )
    return ExternalModel(path, config, script, digest, positive_index)


def read_script(path: Path) -> bytes:
    """The bytes of a TorchScript file. Raises ModelError where it cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SCRIPT_BYTES:
            raise ModelError(
                f"{path}: no regular file of at most {MAX_SCRIPT_BYTES >> 30} GB; give another"
                " model"
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}); a model folder needs it"
        ) from error


def parse_trust(text: str) -> str:
    """The hex digest in `sha256:…`. Raises ConfigError where it is none."""
    match = TRUST.fullmatch(text.strip().lower())
    if match is None:
        raise ConfigError(
            f"{text!r} is no digest; give the one that the refusal prints, such as sha256:9f86d0…,"
            " all 64 digits of it"
        )
    return match[1]


def load_torchscript(script: bytes, path: Path) -> nn.Module:
    """The network in a TorchScript file that is trusted already, on the CPU. Raises ModelError where it cannot be loaded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # torch would rather have torch.export; the zoo has TorchScript
            network = torch.jit.load(io.BytesIO(script), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be loaded as TorchScript ({_last_line(error)}); get it again"
        ) from error
    loaded: nn.Module = network.eval()
    return loaded


def _find_positive(folder: Path, names: tuple[str, ...], wanted: str | None) -> int:
    listed = ", ".join(names)
    if wanted is not None:
        if wanted not in names:
            raise ModelError(f"{folder}: has no class {wanted!r} to call positive; it has {listed}")
        return names.index(wanted)
    if len(names) > 2:
        raise ModelError(
            f"{folder}: tells {len(names)} classes apart ({listed}); say which is positive with"
            " --positive-class"
        )
    return len(names) - 1


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:160] if lines else type(error).__name__
