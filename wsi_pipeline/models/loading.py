"""Loading and describing a model of any kind."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_pipeline.core.calibration import ModelTerms, Terms
from wsi_pipeline.core.choices import (
    CONFIG_JSON,
    EXTERNAL_THRESHOLD,
    FOLD,
    LEAK_WARNING,
    MODEL_FILE,
    TORCHSCRIPT,
)
from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.core.recipe import file_sha256
from wsi_pipeline.models.card import Card, ModelFacts, read_card
from wsi_pipeline.models.choice import ExternalModelTerms
from wsi_pipeline.models.ensemble import EnsembleCard, is_ensemble_folder, read_ensemble
from wsi_pipeline.models.own_code import take_own_code

if TYPE_CHECKING:
    from wsi_pipeline.models.model import Model

BOX = Path(__file__).parent / "box"
"""Models that come with the package."""
DEFAULT_BOXED = "idc"


def load_model(path: Path, terms: ExternalModelTerms | None = None) -> "Model":
    """Load a checkpoint, a folder of `wsi train`, or a trusted WSInfer zoo folder.

    Of a folder of `wsi train --folds`, load all models together.
    Raises ModelError where it cannot be used, ConfigError for terms that a checkpoint has not.
    """
    from wsi_pipeline.models.checkpoint import load_checkpoint
    from wsi_pipeline.models.stacked import load_ensemble

    terms = terms or ExternalModelTerms()
    if (path / CONFIG_JSON).is_file():
        return _load_external(path, terms)
    if is_ensemble_folder(path):
        return load_ensemble(path, terms)
    return load_checkpoint(find_checkpoint(path), terms)


def read_model(path: Path, terms: ExternalModelTerms | None = None) -> ModelFacts:
    """Return what a model states of itself; only an external one is loaded with torch for that.

    Raises as `load_model` does.
    """
    terms = terms or ExternalModelTerms()
    if (path / CONFIG_JSON).is_file():
        return _load_external(path, terms)
    model = _read_own(path)
    for card in [model] if isinstance(model, Card) else model.members:
        take_own_code(path, card.architecture, card.code, terms)
    return model


def _load_external(path: Path, terms: ExternalModelTerms) -> "Model":
    if terms.code is not None:
        raise ConfigError(f"{path}: is TorchScript, which needs no --arch; leave it out")
    from wsi_pipeline.models.zoo import load_external

    return load_external(path, terms.trust, terms.positive_class)


def _read_own(path: Path) -> Card | EnsembleCard[Card]:
    """Read the card or cards of a model that wsi trained. Raises ModelError."""
    return read_ensemble(path) if is_ensemble_folder(path) else read_card(find_checkpoint(path))


def list_boxed() -> dict[str, Path]:
    """Return the models that come with the package, by name."""
    found = sorted(BOX.glob("*.safetensors"), key=lambda path: path.stem)
    return {path.stem: path for path in found}


def find_model(named: Path | None) -> Path:
    """Return the model's path: a file or folder, or the name of one that comes with the package.

    None takes ./model where `wsi train` wrote one, else the model called `idc`. Raises ModelError
    where nothing is named and there is none.
    """
    boxed = list_boxed()
    if named is None:
        own = Path("model")
        if (own / MODEL_FILE).is_file():
            return own / MODEL_FILE
        if is_ensemble_folder(own):
            return own
        if DEFAULT_BOXED not in boxed:
            raise ModelError("no model named, and there is no ./model; train one with `wsi train`")
        return boxed[DEFAULT_BOXED]
    return named if named.exists() else boxed.get(str(named), named)


def describe_place(model: Path) -> str:
    """Return where a model is from, in words."""
    boxed = {path: name for name, path in list_boxed().items()}
    return f"the model {boxed[model]} in the box" if model in boxed else f"model {model}"


def load_unchanged(path: Path, digest: str, terms: ExternalModelTerms | None = None) -> "Model":
    """Load the model that a run started with. Raises ModelError where it has changed."""
    model = load_model(path, terms)
    _refuse_changed(path, digest, model)
    return model


@lru_cache(maxsize=1)
def read_unchanged(path: Path, digest: str, terms: ExternalModelTerms | None = None) -> ModelFacts:
    """Return what the model that a run started with states, read once. Raises as above."""
    facts = read_model(path, terms)
    _refuse_changed(path, digest, facts)
    return facts


def _refuse_changed(path: Path, digest: str, found: ModelFacts) -> None:
    if found.digest != digest:
        raise ModelError(f"{path}: has changed since the run began; start again")


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint's file, also by its folder. Raises ModelError where there is none."""
    if not path.is_dir():
        return path
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    if is_ensemble_folder(path):
        raise ModelError(
            f"{path}: holds the models of several folds, and this takes one; name one of them, as"
            f" {path / FOLD}1"
        )
    raise ModelError(f"{path}: holds no {MODEL_FILE} and no {CONFIG_JSON}; name a model")


def describe_model(path: Path) -> dict[str, Any]:
    """Return everything that the model's file or folder states, as JSON.

    Runs no external code. Raises ModelError where the model is damaged.
    """
    if (path / CONFIG_JSON).is_file():
        return _describe_external(path)
    model = _read_own(path)
    if isinstance(model, Card):
        return _describe_card(model)
    members = [_describe_card(member) for member in model.members]
    parameters = sum(member["parameters"] for member in members)
    return {
        **model.to_json(),
        "kind": "ensemble",
        "parameters": parameters,
        "models": members,
    }


def _describe_card(card: Card) -> dict[str, Any]:
    return {
        **card.to_json(),
        "kind": "checkpoint",
        "parameters": card.parameters,
        **card.training_to_json(),
    }


def _describe_external(folder: Path) -> dict[str, Any]:
    from wsi_pipeline.models.zoo import read_zoo_config

    config = read_zoo_config(folder / CONFIG_JSON)
    script = folder / TORCHSCRIPT
    return {
        "kind": "foreign TorchScript",
        "architecture": config.architecture,
        "patch": config.spec.to_json(),
        "class_names": list(config.class_names),
        "terms": ModelTerms.plain(EXTERNAL_THRESHOLD).to_json(),
        "is_leaky": config.is_leaky,
        "transform": config.to_json()["transform"],
        "torchscript_sha256": file_sha256(script) if script.is_file() else None,
    }


def describe_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of `describe_model` as pairs of a name and a text."""
    side_px, mpp = facts["patch"]["side_px"], facts["patch"]["mpp"]
    kind, names = facts["kind"], facts["class_names"]
    positive = f" (positive: {names[1]})" if kind in ("checkpoint", "ensemble") else ""
    return [
        ("architecture", facts["architecture"]),
        ("patches", f"{side_px} px at {mpp:g} µm/px, a field of {side_px * mpp:g} µm"),
        ("classes", ", ".join(names) + positive),
        *LINES.get(kind, _lines_of_external)(facts),
        *([("LEAKY", LEAK_WARNING)] if facts["is_leaky"] else []),
    ]


def _lines_of_external(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    digest = facts["torchscript_sha256"]
    return [
        ("kind", "external TorchScript; it runs only with --trust-model"),
        ("transform", ", ".join(step["name"] for step in facts["transform"])),
        ("threshold", f"{EXTERNAL_THRESHOLD:g}, because its folder states none"),
        ("digest", f"sha256:{digest}" if digest else f"no {TORCHSCRIPT} beside the configuration"),
    ]


def _lines_of_checkpoint(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    training, options = facts["training"], facts["options"]
    chosen = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    tool = training.get("tool", {})
    maker = f"{tool.get('tool', 'unknown')} {tool.get('version', '')}"
    split, patches = training.get("split", {}), training.get("patches", {})
    terms = ModelTerms.of_record(facts)
    return [
        ("options", chosen),
        ("parameters", f"{facts['parameters']:,}"),
        ("mean, std", f"{_round(facts['mean'])}, {_round(facts['std'])}"),
        ("on a grid", describe_terms(terms.on_grid)),
        ("a patch alone", describe_terms(terms.alone)),
        ("thresholds", facts["threshold_source"]),
        ("unlike beyond", _describe_limits(facts["limits"])),
        *(
            (f"scores, {side}", _list_numbers(scores))
            for side, scores in facts["scores"].items()
            if isinstance(scores, Mapping)
        ),
        *(
            (f"patients, {side}", str(len(members)))
            for side, members in split.items()
            if isinstance(members, list)
        ),
        *((f"patches, {side}", _list_numbers(counts)) for side, counts in patches.items()),
        *((name.replace("_", " "), str(text)) for name, text in training.get("about", {}).items()),
        ("stores", str(len(training.get("stores", [])))),
        ("made by", f"{maker}, {_list_numbers(tool.get('packages', {}))}"),
        ("digest", f"sha256:{facts['digest']}"),
    ]


def _lines_of_ensemble(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    terms, members = ModelTerms.of_record(facts), facts["models"]
    return [
        ("parameters", f"{facts['parameters']:,}"),
        ("on a grid", describe_terms(terms.on_grid)),
        ("a patch alone", describe_terms(terms.alone)),
        ("thresholds", facts["threshold_source"]),
        ("patients seen", str(len(facts["seen_patients"]))),
        *(
            (f"member {number}", f"{member['architecture']}, sha256:{member['digest']}")
            for number, member in enumerate(members, start=1)
        ),
        ("digest", f"sha256:{facts['digest']}"),
    ]


LINES = {"checkpoint": _lines_of_checkpoint, "ensemble": _lines_of_ensemble}


def describe_terms(terms: Terms) -> str:
    """Return context, calibration and thresholds as text."""
    calibration = terms.calibration
    context = f"context {terms.context_um:g} µm, " if terms.context_um else ""
    offset = f" offset {calibration.offset:+.3f}," if calibration.offset else ""
    return (
        f"{context}slope {calibration.slope:.3f},{offset} counted from {terms.count:.3f}, detected"
        f" from {terms.detect:.3f}"
    )


def _describe_limits(limits: Mapping[str, float | None] | None) -> str:
    """Return the distances from which on a slide is unlike the training patches."""
    known = [f"{name} {limit:.2f}" for name, limit in (limits or {}).items() if limit is not None]
    return ", ".join(known) or "not known"


def _list_numbers(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if isinstance(value, int | float | str)
    )


def _round(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
