"""Engines, which run a model's network over batches: one file each, the table, and the choice.

The choice depends on the device's properties and needs no trial run.
"""

from dataclasses import dataclass

from wsi_pipeline.core.choices import AUTO, BF16, FP16, FP32, PRECISIONS
from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.device import choose_device, find_bf16_unit, gpu_generation
from wsi_pipeline.models.engines import openvino, torch_compiled, torch_eager
from wsi_pipeline.models.engines.engine import Engine
from wsi_pipeline.models.model import Model

ENGINES: dict[str, Engine] = {
    "torch": Engine(
        "PyTorch, channels last",
        {"cpu": (FP32, BF16), "cuda": (BF16, FP16, FP32)},
        torch_eager.find_fault,
        torch_eager.load,
        place=torch_eager.place,
    ),
    "torch-compile": Engine(
        "PyTorch's compiler, weights frozen",
        {"cpu": (FP32, BF16), "cuda": (BF16, FP16, FP32)},
        torch_compiled.find_fault,
        torch_compiled.load,
        is_fixed_shape=True,
        place=torch_compiled.place,
    ),
    "openvino": Engine(
        "OpenVINO, on the CPU",
        {"cpu": (FP32, BF16)},
        openvino.find_fault,
        openvino.load,
        is_fixed_shape=True,
    ),
}


PREFERRED = {"cpu": ("openvino", "torch"), "cuda": ("torch",)}
"""Best engine first, by type of device; the last can run every model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setting that might run, and the reason for it."""

    setting: EngineSetting
    reason: str


def list_candidates(
    model: Model, device: str = AUTO, engine: str = AUTO, precision: str = AUTO
) -> list[Candidate]:
    """Return the settings to try, in order: several only for `auto`.

    Raises ConfigError for an unknown engine or precision, ModelError where the named engine cannot
    run the model, and EnvironmentFault where the device is absent.
    """
    if precision not in (AUTO, *PRECISIONS):
        raise ConfigError(f"precision {precision!r}; it must be auto or {', '.join(PRECISIONS)}")
    if engine == AUTO:
        return _choose_freely(model, choose_device(device).type, precision)
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r}; it must be auto or one of {', '.join(ENGINES)}")
    device_type = _find_device_type(engine, device)
    if fault := ENGINES[engine].find_fault(model, device_type):
        raise ModelError(f"engine {engine}: {fault}")
    resolved, why = _choose_precision(engine, device_type, precision)
    return [Candidate(EngineSetting(engine, resolved, device_type), why)]


def _choose_freely(model: Model, device_type: str, precision: str) -> list[Candidate]:
    found, faults = [], []
    for name in PREFERRED[device_type]:
        if precision not in (AUTO, *ENGINES[name].precisions[device_type]):
            faults.append(f"{name} has no {precision} there")
        elif fault := ENGINES[name].find_fault(model, device_type):
            faults.append(f"{name}: {fault}")
        else:
            resolved, why = _choose_precision(name, device_type, precision)
            reason = "; ".join(filter(None, ["chosen for this device", why, *faults]))
            found.append(Candidate(EngineSetting(name, resolved, device_type), reason))
    if not found:
        raise ConfigError(
            f"precision {precision}: no engine has it on this device ({'; '.join(faults)}); leave"
            " it auto"
        )
    return found


def _find_device_type(engine: str, device: str) -> str:
    own, *others = ENGINES[engine].precisions
    device_type = own if device == AUTO and not others else choose_device(device).type
    if device_type not in (own, *others):
        raise ConfigError(
            f"engine {engine}: does not run on {device_type}; add --device {own} or choose another"
        )
    return device_type


def _choose_precision(engine: str, device_type: str, precision: str) -> tuple[str, str]:
    """Return the precision, and the reason where it was chosen here."""
    known = ENGINES[engine].precisions[device_type]
    if precision != AUTO:
        if precision not in known:
            raise ConfigError(
                f"engine {engine}: has no {precision} on {device_type}; it has {', '.join(known)}"
            )
        return precision, ""
    if device_type == "cuda":
        major, minor = gpu_generation()
        fast = BF16 if major >= 8 else FP16 if major >= 7 else FP32
        return fast, f"compute capability {major}.{minor}"
    if engine == "torch":
        return FP32, ""
    unit = find_bf16_unit()
    return (BF16, f"this CPU has {unit}") if unit else (FP32, "this CPU has no AMX or AVX512-BF16")
