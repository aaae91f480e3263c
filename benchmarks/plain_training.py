"""Training as articles do it, in one process: plain PyTorch, eager, fp32, step after step.

Patches are read into memory; flips and quarter turns by batch; AdamW; validation in large batches
after every epoch. `benchmarks/training.py` runs it in turns with `wsi train`.

    python benchmarks/plain_training.py STORES --arch idc_cnn --epochs 2
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.data import load_labelled, read_pixels
from wsi_pipeline.training.split import SplitChoice

BATCH, VALIDATION_BATCH = 64, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", type=Path)
    parser.add_argument("--arch", default="idc_cnn")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    patches = load_labelled(find_stores([options.stores]))
    division = SplitChoice().divide(patches, 0)
    (train, train_labels), (val, _) = (
        (torch.from_numpy(read_pixels(patches, part)), torch.from_numpy(patches.labels[part]))
        for part in (division.train, division.val)
    )
    network = build_network(options.arch, patches.spec.side_px)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(options.epochs):
        train_epoch(network, optimizer, train, train_labels.float())
        network.eval()
        with torch.no_grad():
            for batch in val.split(VALIDATION_BATCH):
                network(normalise(batch))


def train_epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, pixels: Tensor, labels: Tensor
) -> None:
    """Take a step on every batch of patches uint8 (n, side, side, 3) with labels (n,)."""
    network.train()
    measure_loss = nn.BCEWithLogitsLoss()
    for batch in torch.randperm(len(pixels)).split(BATCH):
        x = normalise(pixels[batch])
        turns, is_mirrored = int(torch.randint(4, ())), torch.rand(()) < 0.5
        x = torch.rot90(x.flip(3) if is_mirrored else x, turns, dims=(2, 3)).contiguous()
        optimizer.zero_grad()
        measure_loss(network(x).flatten(), labels[batch]).backward()
        optimizer.step()


def normalise(pixels: Tensor) -> Tensor:
    """Return uint8 (b, side, side, 3) as float32 (b, 3, side, side) from -1 to 1."""
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


if __name__ == "__main__":
    main()
