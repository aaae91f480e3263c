"""Patches of a store in Python: labels, places, and a PyTorch data set."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset

from tests.builders import make_patches, make_store, make_table
from wsi_pipeline.store.patches import PatchStore

POSITIONS = [(0, 0), (0, 2), (1, 0), (1, 1), (2, 2), (3, 0)]
LABELS = [0, 1, -1, 1, 0, 1]
UNREADABLE = 3
PIXELS = make_patches(len(POSITIONS), 10)


@pytest.fixture
def store(tmp_path: Path) -> PatchStore:
    table = make_table(POSITIONS, labels=LABELS, side_px=10)
    return PatchStore(make_store(tmp_path / "s.patches.zarr", table, PIXELS, [UNREADABLE]))


def test_a_store_gives_the_label_of_every_patch(store: PatchStore) -> None:
    assert store.labels.tolist() == LABELS


def test_coords_are_x_and_y_of_corners_in_level_0_pixels(store: PatchStore) -> None:
    # Patches of 10 px at the slide's own scale: (row, col) lies at (10 col, 10 row).
    assert store.coords.tolist() == [[0, 0], [20, 0], [0, 10], [10, 10], [20, 20], [0, 30]]


def test_a_store_prints_what_it_holds(store: PatchStore) -> None:
    expected = f"PatchStore({store.path}: 6 patches of 10 px at 0.5 µm/px, 5 labelled)"
    assert repr(store) == expected


def test_a_data_set_has_the_readable_labelled_patches(store: PatchStore) -> None:
    data = store.dataset()
    assert isinstance(data, Dataset)
    assert [label for _, label in DataLoader(data, batch_size=None)] == [0, 1, 0, 1]


def test_unlabelled_patches_come_with_label_minus_1(store: PatchStore) -> None:
    labels = [label for _, label in DataLoader(store.dataset(labelled=False), batch_size=None)]
    assert labels == [0, 1, -1, 0, 1]


def test_images_are_the_pixels_as_float_from_0_to_1(store: PatchStore) -> None:
    image, label = store.dataset()[1]  # the second patch
    expected = torch.from_numpy(PIXELS[1].transpose(2, 0, 1) / np.float32(255))
    assert torch.equal(image, expected)
    assert label == 1


def test_a_transform_is_applied_to_every_image(store: PatchStore) -> None:
    image, _ = store.dataset(transform=lambda image: image[:, :2, :2])[0]
    assert image.shape == (3, 2, 2)


def test_an_index_beyond_the_end_is_refused(store: PatchStore) -> None:
    with pytest.raises(IndexError):
        store.dataset()[4]


def test_a_copy_sent_to_another_process_reads_the_same_images(store: PatchStore) -> None:
    data = store.dataset()
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[2][0], data[2][0])


def test_a_loop_of_ones_own_trains(store: PatchStore) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(300, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        for images, labels in DataLoader(store.dataset(), batch_size=4):
            loss = binary_cross_entropy_with_logits(network(images)[:, 0], labels.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
