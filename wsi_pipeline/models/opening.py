"""Opening a model: engine chosen, model loaded, its answers compared with known ones.

The choice travels between processes, each of which loads the model once. An untrained model serves
to measure speed.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.choices import AUTO
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.checkpoint import Checkpoint
from wsi_pipeline.models.choice import (
    EngineRequest,
    EngineSetting,
    ExternalModelTerms,
    ModelChoice,
    ResolvedEngine,
)
from wsi_pipeline.models.device import choose_device
from wsi_pipeline.models.engines import Candidate, list_candidates
from wsi_pipeline.models.engines.engine import EngineFault
from wsi_pipeline.models.loading import load_model, load_unchanged
from wsi_pipeline.models.model import Model, make_self_test
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.models.stacked import Ensemble

CHECKED_PATCHES = 8


@dataclass(frozen=True, slots=True)
class Agreement:
    """Difference between an engine's probabilities and the expected ones."""

    difference: float
    """The largest, in probability."""
    is_stored: bool
    """True if the model brought its answers, or they were computed here by the plain network."""

    @property
    def reference(self) -> str:
        """Name of the expected probabilities, for messages."""
        plain = "plain network, because the model stores no self-test"
        return "stored self-test" if self.is_stored else plain


@dataclass(frozen=True, slots=True)
class OpenedPredictor:
    """A checked predictor and the line that describes its engine."""

    predictor: Predictor
    line: str


LoadEngine = Callable[[EngineSetting], tuple[Predictor, Agreement]]


def open_predictor(
    model: Model,
    device: str = AUTO,
    engine: str = AUTO,
    precision: str = AUTO,
    batch_size: int | None = None,
) -> OpenedPredictor:
    """Return the predictor for a model, by the engine that is asked for or fits the device.

    Raises ModelError where the engine cannot run the model or gives other answers.
    """

    def load(setting: EngineSetting) -> tuple[Predictor, Agreement]:
        predictor = Predictor(model, setting, batch_size)
        return predictor, check_answers(predictor)

    return open_first(list_candidates(model, device, engine, precision), load)


def open_first(candidates: Sequence[Candidate], load: LoadEngine) -> OpenedPredictor:
    """Open the first of the candidates that takes the model. Raises ModelError where none does."""
    faults: list[str] = []
    for candidate in candidates:
        try:
            predictor, agreement = load(candidate.setting)
        except EngineFault as error:
            if candidate is candidates[-1]:
                raise
            faults.append(str(error))
            continue
        why = "; ".join(filter(None, [candidate.reason, *faults]))
        within = f"within {agreement.difference:.1g} of its {agreement.reference}"
        name = f"engine {candidate.setting}{why and f' ({why})'}"
        return OpenedPredictor(predictor, f"{name}: {within}")
    raise ModelError("no engine can run this model; leave --engine auto")


def check_answers(predictor: Predictor) -> Agreement:
    """Compare a predictor with the model's self-test or, without one, the reference network.

    Raises ModelError where they differ by more than the precision allows.
    """
    model, setting = predictor.model, predictor.setting
    known = model.self_test or make_self_test(model)
    given, expected = predictor(known.pixels.numpy()), known.probability.numpy()
    # A network may give NaN for some patches, which are then unreadable.
    name = f"{model.architecture} {model.digest[:12]}"
    if not (np.isfinite(given).any() or np.isfinite(expected).any()):
        raise ModelError(
            f"{name}: gives no number for any of {len(given)} synthetic patches; train it again"
        )
    apart = np.abs(given - expected)
    apart[np.isnan(given) & np.isnan(expected)] = 0.0
    agreement = Agreement(float(np.nan_to_num(apart, nan=1.0).max()), model.self_test is not None)
    if agreement.difference > setting.bound:
        plainest = "use --engine torch --precision fp32 --device cpu"
        remedy = "train or export it again" if setting == EngineSetting() else plainest
        raise ModelError(
            f"{name}: {setting} gives probabilities that differ by {agreement.difference:.2g} from"
            f" its {agreement.reference}, at most {setting.bound:g} is allowed; {remedy}"
        )
    return agreement


def check_model(path: Path, terms: ExternalModelTerms | None = None) -> Model:
    """Load a model, verify its checksums and run a batch. Raises ModelError with the fault."""
    model = load_model(path, terms)
    shape = (CHECKED_PATCHES, model.spec.side_px, model.spec.side_px, 3)
    predictor = Predictor(model)
    check_answers(predictor)
    for member in model.members if isinstance(model, Ensemble) else ():
        check_answers(Predictor(member))
    probability = predictor(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    if not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ModelError(f"{path}: does not give probabilities; train or export it again")
    return model


_loading = threading.Lock()
"""Held while a model is loaded: several steps run side by side, and it is loaded once."""


_opened: dict[ModelChoice, tuple[Predictor, Agreement]] = {}
"""The predictor of this process: one at most."""


def open_choice(choice: ModelChoice, model: Model | None = None) -> tuple[Predictor, Agreement]:
    """Return the predictor of a choice, made once per process, and how well it agrees.

    `model` is the choice's model where it is loaded already.
    """
    with _loading:
        if choice not in _opened:
            choose_device(choice.setting.device)  # which refuses one that is not there
            model = model or load_unchanged(choice.path, choice.digest, choice.terms)
            batches = choice.batch_size, choice.measured_batch
            predictor = Predictor(model, choice.setting, *batches)
            agreement = check_answers(predictor)
            _opened.clear()
            _opened[choice] = predictor, agreement
        return _opened[choice]


def resolve_engine(
    path: Path, request: EngineRequest, terms: ExternalModelTerms | None = None
) -> ResolvedEngine:
    """Choose the engine for a model, load it with that in this process and check its answers.

    Raises ModelError where the engine cannot run the model or gives other answers, and
    EnvironmentFault where the device is absent.
    """
    resolved, terms = path.resolve(), terms or ExternalModelTerms()
    model = load_model(path, terms)

    def choose(setting: EngineSetting) -> ModelChoice:
        return ModelChoice(resolved, model.digest, setting, request.batch_size, terms)

    candidates = list_candidates(model, request.device, request.engine, request.precision)
    opened = open_first(candidates, lambda setting: open_choice(choose(setting), model))
    choice = choose(opened.predictor.setting)
    if request.batch_size is not None or choice.setting.device == "cpu":
        return ResolvedEngine(choice, opened.line)
    size = opened.predictor.settle_batch()
    line = f"{opened.line}; batches of {size} patches"
    return ResolvedEngine(replace(choice, measured_batch=size), line)


def make_random_checkpoint(architecture: str = "idc_cnn") -> Checkpoint:
    """Return an untrained checkpoint for patches of 50 px at 0.25 µm/px, always the same."""
    spec = PatchSpec(50, 50, 0.25)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build_network(architecture, spec.side_px).state_dict()
    return Checkpoint(
        architecture=architecture,
        spec=spec,
        class_names=("negative", "positive"),
        normalisation=Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        terms=ModelTerms(),
        threshold_source="none: untrained",
        weights=weights,
    )
