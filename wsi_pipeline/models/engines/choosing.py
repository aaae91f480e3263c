"""Which engine runs, and in which precision: by what the device is, never by trying."""

from dataclasses import dataclass

from wsi_pipeline.core.choices import AUTO, BF16, FP16, FP32, PRECISIONS
from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.models.device import choose_device, find_bf16_unit, gpu_generation
from wsi_pipeline.models.engines import ENGINES
from wsi_pipeline.models.engines.engine import EngineSetting
from wsi_pipeline.models.model import Model

PREFERRED = {"cpu": ("openvino", "torch"), "cuda": ("torch",)}
"""By type of device, the best first; the last always runs."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setting that might run, and why it comes into question."""

    setting: EngineSetting
    reason: str


def list_candidates(
    model: Model, device: str = AUTO, engine: str = AUTO, precision: str = AUTO
) -> list[Candidate]:
    """The settings to try, in order: several only where `engine` is left to us and the first might turn out not to take the model.

    Raises ConfigError for an engine or a precision that there is not, ModelError where the named
    engine cannot run the model, and EnvironmentFault where the device is absent.
    """
    if precision not in (AUTO, *PRECISIONS):
        raise ConfigError(
            f"precision {precision!r}; it must be auto or one of {', '.join(PRECISIONS)}"
        )
    if engine == AUTO:
        return _choose_freely(model, choose_device(device).type, precision)
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r}; it must be auto or one of {', '.join(ENGINES)}")
    place = _place_of(engine, device)
    if fault := ENGINES[engine].find_fault(model, place):
        raise ModelError(f"engine {engine}: {fault}")
    resolved, why = _choose_precision(engine, place, precision)
    return [Candidate(EngineSetting(engine, resolved, place), why)]


def _choose_freely(model: Model, place: str, precision: str) -> list[Candidate]:
    found, faults = [], []
    for name in PREFERRED[place]:
        if precision not in (AUTO, *ENGINES[name].precisions[place]):
            faults.append(f"{name} has no {precision} there")
        elif fault := ENGINES[name].find_fault(model, place):
            faults.append(f"{name}: {fault}")
        else:
            resolved, why = _choose_precision(name, place, precision)
            reasons = [part for part in (why, *faults) if part]
            found.append(
                Candidate(
                    EngineSetting(name, resolved, place),
                    "; ".join(["chosen for this device", *reasons]),
                )
            )
    if not found:
        raise ConfigError(
            f"precision {precision}: no engine has it on this device ({'; '.join(faults)}); leave"
            " it auto"
        )
    return found


def _place_of(engine: str, device: str) -> str:
    places = ENGINES[engine].precisions
    place = (
        next(iter(places)) if device == AUTO and len(places) == 1 else choose_device(device).type
    )
    if place not in places:
        raise ConfigError(
            f"engine {engine}: does not run on {place}; add --device {next(iter(places))} or choose"
            " another engine"
        )
    return place


def _choose_precision(engine: str, place: str, precision: str) -> tuple[str, str]:
    """The precision, and why where it was left to us."""
    known = ENGINES[engine].precisions[place]
    if precision != AUTO:
        if precision not in known:
            raise ConfigError(
                f"engine {engine}: has no {precision} on {place}; it has {', '.join(known)}"
            )
        return precision, ""
    if place == "cuda":
        major, minor = gpu_generation()
        fast = BF16 if major >= 8 else FP16 if major >= 7 else FP32
        return fast, f"compute capability {major}.{minor}"
    if engine == "torch":
        return FP32, ""
    unit = find_bf16_unit()
    return (BF16, f"this CPU has {unit}") if unit else (FP32, "this CPU has no AMX or AVX512-BF16")
