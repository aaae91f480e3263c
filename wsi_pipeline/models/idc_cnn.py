"""The small convolutional network for 50×50 IDC patches."""

from torch import Tensor, nn

WIDTHS = (64, 128, 256)
MIN_SIDE_PX = 22


class IdcCnn(nn.Module):
    """Three 3×3 convolutions (3→64→128→256), each with ReLU and 2×2 max-pooling, then 4096→1024→512→1.

    The figures are those of 50-px patches; other sides change the first linear layer. Input (b, 3, side, side) normalised
    float; output (b,) logits.
    """

    def __init__(self, side_px: int = 50, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = 3, side_px
        for width in WIDTHS:
            layers += [nn.Conv2d(channels, width, kernel_size=3), nn.ReLU(), nn.MaxPool2d(2)]
            channels, side = width, (side - 2) // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * side * side, 1024),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(1024, 512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (b, 256, 4, 4) for 50-px patches
        x = self.classifier(x.flatten(1))  # (b, 1)
        return x.squeeze(1)
