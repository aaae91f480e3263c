"""Conformance of a user's network: everything that training, inference and export ask of it."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsi_pipeline.core.errors import ModelError, one_line
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.architectures.network import count_parameters
from wsi_pipeline.models.choice import BOUNDS
from wsi_pipeline.models.domain import gives_features
from wsi_pipeline.models.outlines import MAX_PARAMETERS, NetworkOptions
from wsi_pipeline.models.own_code import OwnCode

BATCH = 4
CLOSE = 1e-4
"""Largest difference of a logit between two ways of the same computation in fp32."""


class Finding(NamedTuple):
    """One thing that is asked of a network, and the fault in it."""

    name: str
    fault: str | None
    """None: it conforms."""


class Subject(NamedTuple):
    """A network, a batch for it, and its logits."""

    code: OwnCode
    options: NetworkOptions
    network: nn.Module
    x: Tensor
    """float32 (4, 3, side, side)"""
    logits: Tensor
    """float32 (4,) or (4, 2)"""

    @property
    def side_px(self) -> int:
        return int(self.x.shape[-1])


def check_conformance(code: OwnCode, side_px: int) -> tuple[Finding, ...]:
    """Try a user's network in everything that is asked of it; it runs for that, on the CPU.

    Logits are two where the function gives two whatever it is asked for.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same page each time
            options, network = _build(code, side_px)
        x = torch.randn(BATCH, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
        logits = _run(network.eval(), x)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's code may raise anything
        return (Finding("builds, and gives one logit or two", one_line(error)),)
    subject = Subject(code, options, network, x, logits)
    shape = f"builds, and gives {tuple(logits.shape)} for {BATCH} patches of {side_px} px"
    return (Finding(shape, None), *(_try(name, check, subject) for name, check in CHECKS.items()))


def _build(code: OwnCode, side_px: int) -> tuple[NetworkOptions, nn.Module]:
    try:
        return (one := NetworkOptions()), build_network(code.name, side_px, one, code)
    except ModelError as error:
        try:
            return (two := NetworkOptions(logits=2)), build_network(code.name, side_px, two, code)
        except ModelError:
            raise error from None


def _try(name: str, check: Callable[[Subject], str | None], subject: Subject) -> Finding:
    try:
        return Finding(name, check(subject))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
        return Finding(name, f"{type(error).__name__}: {one_line(error)}")


def _run(network: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    with torch.inference_mode():
        output: Tensor = network(x)
    return output


def _compare(found: Tensor, expected: Tensor, bound: float, name: str) -> str | None:
    if found.shape != expected.shape:
        return f"{name} gives {tuple(found.shape)}, not {tuple(expected.shape)}"
    apart = float((found.float() - expected).abs().max())
    return None if apart <= bound else f"{name} differs by {apart:.2g}, more than {bound:g}"


def _is_finite(subject: Subject) -> str | None:
    return None if bool(torch.isfinite(subject.logits).all()) else "its logits are not finite"


def _is_repeatable(subject: Subject) -> str | None:
    again = _run(subject.network, subject.x)
    return _compare(again, subject.logits, 0.0, "the same batch again (is dropout on in eval?)")


def _is_independent(subject: Subject) -> str | None:
    alone = torch.cat([_run(subject.network, one[None]) for one in subject.x])
    return _compare(alone, subject.logits, CLOSE, "a patch alone")


def _begins_by_the_seed(subject: Subject) -> str | None:
    states = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            options, code = subject.options, subject.code
            states.append(build_network(code.name, subject.side_px, options, code).state_dict())
    one, two = states
    unlike = [name for name in one if not torch.equal(one[name], two[name])]
    return f"{unlike[0]} has other first weights; draw them by torch alone" if unlike else None


def _learns(subject: Subject) -> str | None:
    network = copy.deepcopy(subject.network).train()
    network(subject.x).sum().backward()
    dead = [name for name, weight in network.named_parameters() if weight.grad is None]
    return f"{dead[0].removeprefix('module.')} gets no gradient" if dead else None


def _is_restored(subject: Subject) -> str | None:
    options, code = subject.options, subject.code
    network = build_network(code.name, subject.side_px, options, code)
    network.load_state_dict(subject.network.state_dict(), strict=True)
    again = _run(network.eval(), subject.x)
    return _compare(again, subject.logits, 0.0, "a copy with the same weights")


def _is_of_a_size(subject: Subject) -> str | None:
    count = count_parameters(subject.network)
    if not 0 < count <= MAX_PARAMETERS:
        return f"it has {count:,} parameters, more than {MAX_PARAMETERS:,}, or none"
    return None


def _takes_bf16(subject: Subject) -> str | None:
    with torch.autocast("cpu", torch.bfloat16):
        found = _run(subject.network, subject.x).float()
    probability, expected = torch.sigmoid(found), torch.sigmoid(subject.logits)
    return _compare(probability, expected, BOUNDS["bf16"], "a probability in bf16")


def _is_exported(subject: Subject) -> str | None:
    batch = {0: torch.export.Dim("b", min=2, max=1024)}
    frozen = copy.deepcopy(subject.network).requires_grad_(False)
    exported = torch.export.export(frozen, (subject.x,), dynamic_shapes=(batch,))
    return _compare(exported.module()(subject.x), subject.logits, CLOSE, "the exported network")


def _is_compiled(subject: Subject) -> str | None:
    compiled = torch.compile(subject.network, backend="eager", fullgraph=True)
    return _compare(_run(compiled, subject.x), subject.logits, CLOSE, "the captured network")


def _has_features(subject: Subject) -> str | None:
    if gives_features(copy.deepcopy(subject.network), subject.side_px):
        return None
    return "its last linear layer does not give the logits: slides unlike it cannot be told"


CHECKS: dict[str, Callable[[Subject], str | None]] = {
    "finite logits": _is_finite,
    "the same logits again": _is_repeatable,
    "each patch by itself": _is_independent,
    "first weights by the seed": _begins_by_the_seed,
    "a gradient for every weight": _learns,
    "restored from its weights": _is_restored,
    "of a size that fits": _is_of_a_size,
    "bf16": _takes_bf16,
    "torch.export, for pt2 and onnx": _is_exported,
    "captured whole, for torch.compile": _is_compiled,
    "features, to tell slides unlike it": _has_features,
}
"""In the order in which they are shown."""
