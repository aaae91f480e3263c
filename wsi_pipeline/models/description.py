"""What a model says of itself, for people and for programs; and whether it works."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.recipe import file_sha256
from wsi_pipeline.models.architectures.network import count_parameters
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.models.loading import (
    ExternalModelTerms,
    find_checkpoint,
    is_zoo_folder,
    load_model,
)
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.opening import check_answers
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.models.zoo import EXTERNAL_THRESHOLD, TORCHSCRIPT
from wsi_pipeline.models.zoo_config import CONFIG_JSON, read_zoo_config

LEAK = "split at random: patients on both sides; its figures are inflated"
CHECKED_PATCHES = 8


def describe_model(path: Path) -> dict[str, Any]:
    """Everything that the model's file or folder says, as JSON. Raises ModelError where it is damaged; no foreign code is run."""
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


def check_model(path: Path, terms: ExternalModelTerms | None = None) -> Model:
    """Load a model, verify its checksums and run a batch through it. Raises ModelError naming the fault."""
    model = load_model(path, terms)
    side = model.spec.side_px
    pixels = np.random.default_rng(0).integers(
        0, 256, (CHECKED_PATCHES, side, side, 3), dtype=np.uint8
    )
    predictor = Predictor(model)
    check_answers(predictor)
    probability = predictor(pixels)
    if not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ModelError(
            f"{path}: gives numbers that are no probabilities; train or export it again"
        )
    return model


def describe_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The facts of `describe_model` as pairs of a name and a text."""
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
        ("kind", "TorchScript of others; it runs only with --trust-model"),
        ("transform", ", ".join(step["name"] for step in facts["transform"])),
        ("threshold", f"{facts['threshold']:g}, for its folder states none"),
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
