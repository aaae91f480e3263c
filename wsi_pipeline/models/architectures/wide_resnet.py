"""Wide residual networks after Zagoruyko and Komodakis (2016), made for small images."""

import torch
from torch import Tensor, nn

from wsi_pipeline.models.architectures.network import (
    Network,
    make_head,
    squeeze_logits,
)
from wsi_pipeline.models.outlines import GROUP_STRIDES, STEM_WIDTH, NetworkOptions


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv-dropout-BN-ReLU-conv, added to its input.

    Where the shape changes, it is added to a 1×1 convolution of the activated input.
    """

    def __init__(self, channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if channels != width or stride != 1:
            self.shortcut = nn.Conv2d(channels, width, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.norm1(x))
        residual: Tensor = self.conv2(self.dropout(torch.relu(self.norm2(self.conv1(activated)))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(Network):
    """WRN-d-k: three groups of n = (d - 4) / 6 blocks, then a global average.

    The groups are 16k, 32k and 64k wide; the last two halve the sides. There is no dropout unless
    the options set it, as in the paper for augmented images.
    """

    def __init__(self, depth: int, widening: int, options: NetworkOptions | None = None) -> None:
        super().__init__()
        options = options or NetworkOptions()
        self.stem = nn.Conv2d(3, STEM_WIDTH, kernel_size=3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        channels = STEM_WIDTH
        for group, group_stride in enumerate(GROUP_STRIDES):
            width = STEM_WIDTH * widening * 2**group
            for stride in (group_stride, *[1] * ((depth - 4) // 6 - 1)):
                blocks.append(PreActivationBlock(channels, width, stride, options.dropout or 0.0))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = make_head(channels, options)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def head(self) -> nn.Module:
        return self.classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))  # (b, 64k, 13, 13) for 50-px patches
        x = torch.relu(self.norm(x)).mean(dim=(2, 3))  # (b, 64k)
        return squeeze_logits(self.classifier(x))
