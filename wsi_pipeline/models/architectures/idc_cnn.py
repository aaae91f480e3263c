"""The small convolutional network for 50×50 IDC patches."""

from torch import Tensor, nn

from wsi_pipeline.models.architectures.network import Network, squeeze_logits
from wsi_pipeline.models.outlines import CNN_DENSE, CNN_WIDTHS, NetworkOptions

DROPOUT = 0.5


class IdcCnn(Network):
    """Three convolutions, then three linear layers: 4096→1024→512→1 for 50-px patches.

    Each 3×3 convolution (3→64→128→256) has ReLU and 2×2 max-pooling. Other patch sides change the
    first linear layer. Each convolution is followed by batch normalisation and has no bias,
    which that would cancel, unless the options say `batch_norm=False`.
    """

    def __init__(self, side_px: int = 50, options: NetworkOptions | None = None) -> None:
        super().__init__()
        options = options or NetworkOptions()
        dropout = DROPOUT if options.dropout is None else options.dropout
        layers: list[nn.Module] = []
        channels, side = 3, side_px
        for width in CNN_WIDTHS:
            layers.append(nn.Conv2d(channels, width, kernel_size=3, bias=not options.batch_norm))
            layers += [nn.BatchNorm2d(width)] if options.batch_norm else []
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            channels, side = width, (side - 2) // 2
        self.features = nn.Sequential(*layers)
        first, second = CNN_DENSE
        self.classifier = nn.Sequential(
            nn.Linear(channels * side * side, first),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(second, options.logits),
        )

    @property
    def head(self) -> nn.Module:
        return self.classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self._pool_first(x) if self.training else self.features(x)
        # (b, 256, 4, 4) for 50-px patches
        x = self.classifier(x.flatten(1))  # (b, logits)
        return squeeze_logits(x)

    def _pool_first(self, x: Tensor) -> Tensor:
        """Return what `features` returns, with ReLU after pooling: there are a quarter as many.

        Values and gradients are the same. Inference keeps the order, which its engines fuse.
        """
        waiting: list[nn.Module] = []
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                waiting.append(layer)
                continue
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                x = waiting.pop()(x)
        return x
