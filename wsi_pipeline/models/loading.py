"""Opening a model, whatever kind it is of."""

from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.core.choices import MODEL_FILE
from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.zoo import load_external
from wsi_pipeline.models.zoo_config import CONFIG_JSON


@dataclass(frozen=True, slots=True)
class ExternalModelTerms:
    """What the user says of a model that wsi did not train."""

    trust: str | None = None
    """`sha256:…` of the TorchScript file that may run."""
    positive_class: str | None = None
    """None: the last of at most two."""


def load_model(path: Path, terms: ExternalModelTerms | None = None) -> Model:
    """A checkpoint, a folder of `wsi train` that holds one, or a trusted folder as in the WSInfer zoo.

    Raises ModelError where it cannot be used, and ConfigError where terms for foreign models are
    given for one of our own.
    """
    terms = terms or ExternalModelTerms()
    if is_zoo_folder(path):
        return load_external(path, terms.trust, terms.positive_class)
    if terms != ExternalModelTerms():
        raise ConfigError(
            f"{path}: is no folder with a {CONFIG_JSON}; --trust-model and --positive-class are for"
            " these alone"
        )
    return load_checkpoint(find_checkpoint(path))


def load_same(path: Path, digest: str, terms: ExternalModelTerms | None = None) -> Model:
    """The model that a run began with. Raises ModelError where another lies in its place by now."""
    model = load_model(path, terms)
    if model.digest != digest:
        raise ModelError(f"{path}: is another model than when the run began; start again")
    return model


def is_zoo_folder(path: Path) -> bool:
    """Whether a path is a model folder of the zoo's kind."""
    return (path / CONFIG_JSON).is_file()


def find_checkpoint(path: Path) -> Path:
    """The checkpoint's file where its folder is named. Raises ModelError where the folder holds no model."""
    if not path.is_dir():
        return path
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    raise ModelError(f"{path}: holds no {MODEL_FILE} and no {CONFIG_JSON}; name a model")
