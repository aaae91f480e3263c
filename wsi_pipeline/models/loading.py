"""Loading and describing a model of either kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import MODEL_FILE
from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.core.options import ExternalModelOptions
from wsi_pipeline.core.recipe import file_sha256
from wsi_pipeline.models.architectures.network import count_parameters
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.zoo import (
    CONFIG_JSON,
    EXTERNAL_THRESHOLD,
    TORCHSCRIPT,
    load_external,
    read_zoo_config,
)


@dataclass(frozen=True, slots=True)
class ExternalModelTerms:
    """Trust and positive class, given by the user, for a model that wsi did not train."""

    trust: str | None = None
    """`sha256:…` of the TorchScript file that may run."""
    positive_class: str | None = None
    """None: the last of at most two."""


def read_terms(options: ExternalModelOptions) -> ExternalModelTerms:
    """Return the terms that options state."""
    return ExternalModelTerms(options.trust_model, options.positive_class)


def load_model(path: Path, terms: ExternalModelTerms | None = None) -> Model:
    """Load a checkpoint, a folder of `wsi train`, or a trusted WSInfer zoo folder.

    Raises ModelError where the model cannot be used, and ConfigError where terms for external
    models are given for a checkpoint.
    """
    terms = terms or ExternalModelTerms()
    if is_zoo_folder(path):
        return load_external(path, terms.trust, terms.positive_class)
    if terms != ExternalModelTerms():
        raise ConfigError(
            f"{path}: not a folder with a {CONFIG_JSON}; leave out --trust-model and"
            " --positive-class, which are for such folders only"
        )
    return load_checkpoint(find_checkpoint(path))


def load_unchanged(path: Path, digest: str, terms: ExternalModelTerms | None = None) -> Model:
    """Load the model that a run started with. Raises ModelError where it has changed."""
    model = load_model(path, terms)
    if model.digest != digest:
        raise ModelError(f"{path}: has changed since the run began; start again")
    return model


def is_zoo_folder(path: Path) -> bool:
    """Return whether a path is a model folder of the zoo's kind."""
    return (path / CONFIG_JSON).is_file()


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint's file, also by its folder. Raises ModelError where there is none."""
    if not path.is_dir():
        return path
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    raise ModelError(f"{path}: holds no {MODEL_FILE} and no {CONFIG_JSON}; name a model")


LEAK = "split at random: patients on both sides; its metrics are too high"


def describe_model(path: Path) -> dict[str, Any]:
    """Return everything that the model's file or folder states, as JSON.

    Runs no external code. Raises ModelError where the model is damaged.
    """
    if is_zoo_folder(path):
        return _describe_external(path)
    checkpoint = load_checkpoint(find_checkpoint(path))
    return {
        **checkpoint.to_json(),
        "kind": "checkpoint",
        "parameters": count_parameters(checkpoint.build()),
        "mean": list(checkpoint.normalisation.mean),
        "std": list(checkpoint.normalisation.std),
        "scores": dict(checkpoint.scores),
        "training": dict(checkpoint.training),
    }


def _describe_external(folder: Path) -> dict[str, Any]:
    config = read_zoo_config(folder / CONFIG_JSON)
    script = folder / TORCHSCRIPT
    return {
        "kind": "foreign TorchScript",
        "architecture": config.architecture,
        "patch": config.spec.to_json(),
        "class_names": list(config.class_names),
        "threshold": EXTERNAL_THRESHOLD,
        "is_leaky": config.is_leaky,
        "transform": config.to_json()["transform"],
        "torchscript_sha256": file_sha256(script) if script.is_file() else None,
    }


def describe_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of `describe_model` as pairs of a name and a text."""
    patch = facts["patch"]
    names = facts["class_names"]
    lines = [
        ("architecture", facts["architecture"]),
        (
            "patches",
            (
                f"{patch['side_px']} px at {patch['mpp']:g} µm/px, a field of"
                f" {patch['side_px'] * patch['mpp']:g} µm"
            ),
        ),
        (
            "classes",
            ", ".join(names)
            + (f" (positive: {names[1]})" if facts["kind"] == "checkpoint" else ""),
        ),
    ]
    return lines + (
        _lines_of_checkpoint(facts)
        if facts["kind"] == "checkpoint"
        else _describe_external_lines(facts)
    )


def _describe_external_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    digest = facts["torchscript_sha256"]
    return [
        ("kind", "external TorchScript; it runs only with --trust-model"),
        ("transform", ", ".join(step["name"] for step in facts["transform"])),
        ("threshold", f"{facts['threshold']:g}, because its folder states none"),
        ("digest", f"sha256:{digest}" if digest else f"no {TORCHSCRIPT} beside the configuration"),
        *([("LEAKY", LEAK)] if facts["is_leaky"] else []),
    ]


def _lines_of_checkpoint(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    training, options = facts["training"], facts["options"]
    chosen = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    lines = [
        ("options", chosen),
        ("parameters", f"{facts['parameters']:,}"),
        ("mean, std", f"{_round(facts['mean'])}, {_round(facts['std'])}"),
        ("temperature", f"{facts['temperature']:g}"),
        ("threshold", f"{facts['threshold']:.4g} ({facts['threshold_source']})"),
    ]
    lines += [
        (f"scores, {side}", _list_numbers(scores))
        for side, scores in facts["scores"].items()
        if isinstance(scores, Mapping)
    ]
    lines += [
        (f"patients, {side}", str(len(members)))
        for side, members in training.get("split", {}).items()
        if isinstance(members, list)
    ]
    lines += [
        (f"patches, {side}", _list_numbers(counts))
        for side, counts in training.get("patches", {}).items()
    ]
    tool = training.get("tool", {})
    lines += [
        ("stores", str(len(training.get("stores", [])))),
        (
            "made by",
            (
                f"{tool.get('tool', 'unknown')} {tool.get('version', '')},"
                f" {_list_numbers(tool.get('packages', {}))}"
            ),
        ),
        ("digest", f"sha256:{facts['digest']}"),
    ]
    return lines + ([("LEAKY", LEAK)] if facts["is_leaky"] else [])


def _list_numbers(values: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in values.items() if isinstance(value, int | float | str)}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shown.items()
    )


def _round(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
