"""Which model runs and on what, in a form that travels between processes."""

import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from wsi_pipeline.core.choices import AUTO
from wsi_pipeline.models.device import choose_device
from wsi_pipeline.models.engines.choosing import list_candidates
from wsi_pipeline.models.engines.engine import EngineSetting
from wsi_pipeline.models.loading import ExternalModelTerms, load_model, load_same
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.opening import Agreement, check_answers, open_first
from wsi_pipeline.models.predictor import Predictor

_loading = threading.Lock()
"""Several steps run side by side in one process, and the model is to be loaded once."""


@lru_cache(1)
def _open(
    path: Path,
    digest: str,
    setting: EngineSetting,
    batch_size: int | None,
    terms: ExternalModelTerms,
) -> tuple[Predictor, Agreement]:
    choose_device(setting.device)  # which refuses one that is not there
    predictor = Predictor(load_same(path, digest, terms), setting, batch_size)
    return predictor, check_answers(predictor)


def unload() -> None:
    """Forget the model that this process has loaded, where only others will run it."""
    with _loading:
        _open.cache_clear()


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model runs, and what computes it: settled once for a run, so that no slide is computed by two engines."""

    path: Path
    digest: str
    setting: EngineSetting = field(default_factory=EngineSetting)
    batch_size: int | None = None
    """None: as the device has it."""
    terms: ExternalModelTerms = field(default_factory=ExternalModelTerms)
    """A worker trusts a foreign model by these alone, and checks its digest itself."""

    def load(self) -> Predictor:
        """The predictor, loaded once per process, its answers checked. Raises ModelError and EnvironmentFault."""
        return self.load_checked()[0]

    def load_checked(self) -> tuple[Predictor, Agreement]:
        """The predictor, and how well it keeps to the answers that the model is known to give."""
        with _loading:
            return _open(self.path, self.digest, self.setting, self.batch_size, self.terms)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What the user says of how a model is computed; "auto" leaves it to the device."""

    device: str = AUTO
    engine: str = AUTO
    precision: str = AUTO
    batch_size: int | None = None
    """None: as the device has it."""


@dataclass(frozen=True, slots=True)
class ResolvedEngine:
    """A choice that runs on this machine and gives the right answers, and what is to be said of it."""

    choice: ModelChoice
    line: str


def resolve_engine(
    model: Model, path: Path, engine_request: EngineRequest, terms: ExternalModelTerms | None = None
) -> ResolvedEngine:
    """Choose the engine, load the model with it in this process and check its answers; no slide is needed for it.

    Raises ModelError where the engine cannot run the model or gives other answers, and
    EnvironmentFault where the device is absent.
    """

    def choose(setting: EngineSetting) -> ModelChoice:
        return ModelChoice(
            path.resolve(),
            model.digest,
            setting,
            engine_request.batch_size,
            terms or ExternalModelTerms(),
        )

    candidates = list_candidates(
        model, engine_request.device, engine_request.engine, engine_request.precision
    )
    opened = open_first(candidates, lambda setting: choose(setting).load_checked())
    return ResolvedEngine(choose(opened.predictor.setting), opened.line)


def resolve_engine_for(
    path: Path, engine_request: EngineRequest, terms: ExternalModelTerms
) -> ResolvedEngine:
    """The same for a model by its file, for workers of other machines."""
    return resolve_engine(load_model(path, terms), path, engine_request, terms)
