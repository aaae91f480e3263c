"""A model of nobody's: the network for IDC patches with fresh weights, to measure speed with."""

import torch

from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.checkpoint import Checkpoint
from wsi_pipeline.models.inputs import Normalisation

SIDE_PX = 50
MPP = 0.25


def draw_checkpoint(architecture: str = "idc_cnn") -> Checkpoint:
    """An untrained checkpoint for patches of 50 px at 0.25 µm/px; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build_network(architecture, SIDE_PX).state_dict()
    return Checkpoint(
        architecture=architecture,
        spec=PatchSpec(SIDE_PX, SIDE_PX, MPP),
        class_names=("negative", "positive"),
        normalisation=Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        threshold=0.5,
        threshold_source="nobody's",
        weights=weights,
    )
