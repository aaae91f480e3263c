"""Networks of torchvision, with new heads.

torchvision is imported where it is used: it imports torch's compiler, which takes as long as all
other imports of a worker together.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.models.architectures.network import (
    Network,
    make_head,
    squeeze_logits,
)
from wsi_pipeline.models.outlines import NetworkOptions

MIN_SIDE_PX = 32
FEATURES = 2048
BODY, OLD_HEAD, NEW_HEAD = "body.", "fc.", "classifier."


class WideResNet50(Network):
    """torchvision's wide_resnet50_2, a ResNet-50 with bottlenecks twice as wide.

    It takes patches of any side. Made for 224-px photographs: 50-px patches leave a last map of
    2×2.
    """

    def __init__(self, options: NetworkOptions | None = None) -> None:
        from torchvision.models import wide_resnet50_2

        super().__init__()
        options = options or NetworkOptions()
        self.body: nn.Module = wide_resnet50_2(weights=None)
        self.body.fc = nn.Identity()
        self.dropout = nn.Dropout(options.dropout or 0.0)
        self.classifier = make_head(FEATURES, options)

    @property
    def head(self) -> nn.Module:
        return self.classifier

    def rename_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {_rename(name): tensor for name, tensor in weights.items()}

    def download_weights(self) -> Mapping[str, Tensor]:
        from torchvision.models import Wide_ResNet50_2_Weights

        try:
            weights: Mapping[str, Tensor] = Wide_ResNet50_2_Weights.IMAGENET1K_V2.get_state_dict(
                progress=False, check_hash=True
            )
        except (OSError, RuntimeError) as error:  # no network, or a file that came over damaged
            raise EnvironmentFault(
                f"wide_resnet50_2: cannot download its weights ({error}); give a file instead"
            ) from error
        return weights

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.body(x))  # (b, 2048)
        return squeeze_logits(self.classifier(x))


def _rename(name: str) -> str:
    if name.startswith(OLD_HEAD):
        return f"{NEW_HEAD}{name.removeprefix(OLD_HEAD)}"
    return name if name.startswith((BODY, NEW_HEAD)) else f"{BODY}{name}"
