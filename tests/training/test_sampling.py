"""Patches of an epoch, and the sources of their pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import make_patches, make_store, make_table
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import (
    LabelledPatches,
    MemoryPixels,
    StorePixels,
    choose_cache,
    cut_batches,
    free_memory,
    load_labelled,
    open_pixels,
    sample_epoch,
    weigh_classes,
)
from wsi_pipeline.training.fit import measure_normalisation

CPU = torch.device("cpu")


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 200), st.integers(2, 50), st.integers(0, 99), st.integers(1, 3))
def test_every_patch_is_seen_once_per_epoch(
    count: int, batch_size: int, seed: int, ranks: int
) -> None:
    labels = np.zeros(count, dtype=np.int8)
    batch_size = max(batch_size, 2 * ranks)  # as the configuration demands
    batches = cut_batches(
        sample_epoch("shuffle", labels, labels.astype(str), draws(seed)), batch_size, ranks
    )
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    assert len(batches) == 1 or min(len(batch) for batch in batches[:-1]) == batch_size
    assert len(batches) == 1 or len(batches[-1]) >= 2 * ranks


def test_class_sampling_shows_both_classes_alike() -> None:
    labels = np.array([0] * 900 + [1] * 100, dtype=np.int8)
    drawn = sample_epoch("class", labels, labels.astype(str), draws())
    assert len(drawn) == 1000
    assert 450 < int((labels[drawn.numpy()] == 1).sum()) < 550


def test_patient_sampling_shows_patients_alike() -> None:
    patients = np.array(["a"] * 800 + ["b"] * 150 + ["c"] * 50)
    drawn = sample_epoch("patient", np.zeros(1000, dtype=np.int8), patients, draws())
    counts = np.unique(patients[drawn.numpy()], return_counts=True)[1]
    assert counts.min() > 280
    assert counts.max() < 390


def test_class_and_patient_sampling_shows_classes_alike_and_within_a_class_its_patients() -> None:
    patients = np.array(["a"] * 700 + ["b"] * 200 + ["c"] * 100)
    labels = np.array(
        [0] * 700 + [0] * 100 + [1] * 100 + [1] * 100, dtype=np.int8
    )  # a has no positives, c no negatives
    drawn = sample_epoch("class-patient", labels, patients, draws()).numpy()
    counts = {
        key: int(((labels[drawn] == key[0]) & (patients[drawn] == key[1])).sum())
        for key in ((0, "a"), (0, "b"), (1, "b"), (1, "c"))
    }
    assert all(200 < count < 300 for count in counts.values()), counts


def test_class_weights_give_both_classes_the_same_sum() -> None:
    assert weigh_classes(np.array([0, 0, 0, 1], dtype=np.int8)) == pytest.approx((4 / 6, 4 / 2))


def test_an_unknown_sampling_is_refused() -> None:
    with pytest.raises(ConfigError, match="shuffle, class, patient, class-patient"):
        TrainConfig(sampling="best")


def two_stores(folder: Path) -> tuple[LabelledPatches, np.ndarray]:
    """Two stores of 23 and 9 patches in blocks of 4; a third of the first has no label."""
    first, second = make_patches(23, seed=1), make_patches(9, seed=2)
    labels = [k % 2 if k % 3 else -1 for k in range(23)]
    make_store(
        folder / "a.patches.zarr",
        make_table([(k // 5, k % 5) for k in range(23)], labels=labels, slide_id="a"),
        first,
    )
    make_store(
        folder / "b.patches.zarr",
        make_table([(k, 0) for k in range(9)], labels=[k % 2 for k in range(9)], slide_id="b"),
        second,
    )
    patches = load_labelled([folder / "a.patches.zarr", folder / "b.patches.zarr"])
    return patches, np.concatenate([first[np.array(labels) >= 0], second])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelledPatches, np.ndarray]:
    return two_stores(tmp_path_factory.mktemp("stores"))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    blocks_held=st.integers(1, 9),
    how=st.sampled_from(["shuffle", "class", "patient", "class-patient"]),
)
def test_the_stores_give_the_pixels_that_memory_gives(
    seed: int, blocks_held: int, how: str, stores: tuple[LabelledPatches, np.ndarray]
) -> None:
    patches, pixels = stores
    members = np.arange(len(patches))
    source = StorePixels(patches, members, CPU, buffer_bytes=blocks_held * 4 * 7500)
    order = source.arrange(
        sample_epoch(how, patches.labels, patches.patients, draws(seed)), draws(seed)
    )
    batches = cut_batches(order, 5)
    for batch, streamed in zip(batches, source.stream(batches), strict=True):
        assert np.array_equal(streamed.numpy(), pixels[batch.numpy()])


def test_arranging_by_block_keeps_what_was_drawn(tmp_path: Path) -> None:
    patches, _ = two_stores(tmp_path)
    source = StorePixels(patches, np.arange(len(patches)), CPU, buffer_bytes=1)
    drawn = sample_epoch("class", patches.labels, patches.patients, draws())
    assert sorted(source.arrange(drawn, draws()).tolist()) == sorted(drawn.tolist())


def test_two_epochs_read_the_blocks_in_different_order(tmp_path: Path) -> None:
    patches, _ = two_stores(tmp_path)
    source = StorePixels(patches, np.arange(len(patches)), CPU, buffer_bytes=1)
    everything = torch.arange(len(patches))
    assert (
        source.arrange(everything, draws(1)).tolist()
        != source.arrange(everything, draws(2)).tolist()
    )


def test_few_blocks_are_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, _ = two_stores(tmp_path)
    source = StorePixels(patches, np.arange(len(patches)), CPU, buffer_bytes=4 * 4 * 7500)
    read: list[int] = []
    original = StorePixels._read

    def count(self: StorePixels, block: int) -> np.ndarray:
        read.append(block)
        return original(self, block)

    monkeypatch.setattr(StorePixels, "_read", count)
    order = source.arrange(torch.arange(len(patches)), draws())
    for _ in source.stream(cut_batches(order, 5)):
        pass
    assert sorted(read) == list(range(9))  # 6 blocks of a, 3 of b, each once


def test_reading_order_takes_each_block_once(tmp_path: Path) -> None:
    patches, pixels = two_stores(tmp_path)
    source = StorePixels(patches, np.arange(len(patches)), CPU, buffer_bytes=1)
    order = source.order_for_reading()
    assert sorted(order.tolist()) == list(range(len(patches)))
    streamed = torch.cat(list(source.stream(cut_batches(order, 7))))
    assert np.array_equal(streamed.numpy(), pixels[order.numpy()])


@pytest.mark.parametrize("cache", ["memory", "stores", "device"])
def test_normalisation_is_exact_from_any_cache(cache: str, tmp_path: Path) -> None:
    patches, pixels = two_stores(tmp_path)
    members = np.arange(0, len(patches), 2)
    normalisation = measure_normalisation(open_pixels(patches, members, cache, CPU))
    unit = pixels[members].reshape(-1, 3) / 255
    assert normalisation.mean == pytest.approx(unit.mean(axis=0), abs=1e-9)
    assert normalisation.std == pytest.approx(unit.std(axis=0), abs=1e-9)


def test_a_small_set_is_kept_in_memory(tmp_path: Path) -> None:
    patches, _ = two_stores(tmp_path)
    assert choose_cache("auto", patches, CPU) == "memory"
    assert isinstance(open_pixels(patches, np.arange(3), "memory", CPU), MemoryPixels)


def test_a_set_larger_than_half_the_memory_is_read_from_the_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches, _ = two_stores(tmp_path)
    monkeypatch.setattr(
        "wsi_pipeline.training.data.free_memory", lambda: 2 * len(patches) * 7500 - 1
    )
    assert choose_cache("auto", patches, CPU) == "stores"
    assert choose_cache("memory", patches, CPU) == "memory"


def test_free_memory_is_less_than_the_machine_has() -> None:
    import os

    assert 0 < free_memory() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
