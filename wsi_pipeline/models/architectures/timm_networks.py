"""The only import of timm, an optional library of several hundred networks: `timm:NAME`."""

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from wsi_pipeline.core.errors import EnvironmentFault, ModelError, one_line
from wsi_pipeline.models.architectures.network import Network, squeeze_logits
from wsi_pipeline.models.outlines import NetworkOptions

PREFIX = "timm:"
NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
"""A model name of timm, perhaps with a tag; names such as `hf_hub:…` would be downloaded."""
BODY = "body."


class TimmNetwork(Network):
    """The timm model `name`, made with `settings`, and a fresh head for one or two logits."""

    def __init__(self, body: nn.Module, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.body = body
        self._name = name
        self._settings = dict(settings)

    @property
    def head(self) -> nn.Module:
        found: nn.Module = self.body.get_classifier()  # type: ignore[operator]
        return found

    def rename_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{BODY}{name.removeprefix(BODY)}": weights[name] for name in weights}

    def download_weights(self) -> Mapping[str, Tensor]:
        timm = _import_timm(self._name)
        try:
            # timm fits the weights to the patch size.
            body = timm.create_model(self._name, pretrained=True, **self._settings)
        except (OSError, RuntimeError) as error:  # no network; no published weights
            reason = one_line(error)
            raise EnvironmentFault(
                f"{PREFIX}{self._name}: cannot download its weights ({reason}); give a file instead"
            ) from error
        head = {id(tensor) for tensor in body.get_classifier().state_dict(keep_vars=True).values()}
        weights = body.state_dict(keep_vars=True)
        return {name: weights[name] for name in weights if id(weights[name]) not in head}

    def forward(self, x: Tensor) -> Tensor:
        return squeeze_logits(self.body(x))


def build_timm(name: str, side_px: int, options: NetworkOptions) -> Network:
    """Return a network of timm with fresh weights. Raises ModelError for timm's refusals."""
    timm = _import_timm(name)
    if not NAME.fullmatch(name) or not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{re.sub(r'[^A-Za-z0-9_]', '*', name)[:30]}*")[:3])
        perhaps = near and f"; perhaps {near}"
        raise ModelError(
            f"{PREFIX}{name}: timm {timm.__version__} has no such model{perhaps}; see"
            " timm.list_models()"
        )
    settings: dict[str, Any] = {"num_classes": options.logits, "in_chans": 3}
    settings |= {} if options.dropout is None else {"drop_rate": options.dropout}
    configuration = timm.get_pretrained_cfg(name)
    if configuration is not None and configuration.fixed_input_size:
        settings["img_size"] = side_px
    try:
        body = timm.create_model(name, pretrained=False, **settings)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{PREFIX}{name}: cannot be built for patches of {side_px} px with these options"
            f" ({one_line(error)}); choose another"
        ) from error
    if not isinstance(body.get_classifier(), nn.Module):
        raise ModelError(f"{PREFIX}{name}: has no single classifier; choose another model")
    return TimmNetwork(body, name, settings)


def _import_timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"{PREFIX}{name}: needs timm, which is not installed; pip install 'wsi-pipeline[timm]'"
        ) from error
    return timm
