"""Split, data, augmentation, metrics, loop and whole runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import make_patches, make_store, make_table, make_training_stores
from wsi_pipeline.errors import ConfigError, StoreError
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.training.augment import shift_tone, turn
from wsi_pipeline.training.dataset import load_labelled
from wsi_pipeline.training.loop import TrainConfig, shuffle_batches
from wsi_pipeline.training.metrics import choose_threshold, describe_scores, draw_confusion, score
from wsi_pipeline.training.run import SplitChoice, TrainListener, train
from wsi_pipeline.training.split import PatientSplit, split_patients

CELLS = [(0, 0), (0, 1), (1, 0), (1, 1)]
QUICK = TrainConfig(epochs=2, batch_size=16, device="cpu")


def labelled(**patients: list[int]) -> tuple[np.ndarray, np.ndarray]:
    names = np.array([name for name, labels in patients.items() for _ in labels])
    return names, np.array([label for labels in patients.values() for label in labels], dtype=np.int8)


@settings(max_examples=40)
@given(st.integers(4, 12), st.integers(0, 10_000), st.floats(0.1, 0.5))
def test_no_patient_is_on_two_sides(count: int, seed: int, fraction: float) -> None:
    rng = np.random.default_rng(seed)
    names, labels = labelled(**{f"p{k}": [0, 1, *rng.integers(0, 2, rng.integers(0, 20)).tolist()] for k in range(count)})
    split = split_patients(names, labels, val_fraction=fraction, seed=seed)
    assert {*split.train} & {*split.val} == set()
    assert {*split.train} | {*split.val} == {*names.tolist()}


def test_the_same_seed_gives_the_same_split() -> None:
    names, labels = labelled(**{f"p{k}": [0, 1, 1] for k in range(10)})
    assert split_patients(names, labels, seed=3) == split_patients(names, labels, seed=3)


def test_named_patients_are_where_they_were_put() -> None:
    names, labels = labelled(a=[0, 1], b=[0, 1], c=[0, 1], d=[0, 1])
    split = split_patients(names, labels, val_patients=["b"], test_patients=["d"])
    assert split == PatientSplit(train=("a", "c"), val=("b",), test=("d",))


def test_held_out_patients_are_never_drawn() -> None:
    names, labels = labelled(**{f"p{k}": [0, 1, 1] for k in range(10)})
    for seed in range(20):
        split = split_patients(names, labels, test_patients=["p3", "p4"], seed=seed)
        assert {"p3", "p4"} & {*split.train, *split.val} == set()


def test_a_patient_on_two_sides_is_refused() -> None:
    names, labels = labelled(a=[0, 1], b=[0, 1], c=[0, 1])
    with pytest.raises(ConfigError, match="two sides"):
        split_patients(names, labels, val_patients=["b"], test_patients=["b"])


def test_a_patient_without_patches_is_named() -> None:
    names, labels = labelled(a=[0, 1], b=[0, 1])
    with pytest.raises(ConfigError, match="nobody"):
        split_patients(names, labels, val_patients=["nobody"])


def test_one_patient_cannot_be_divided() -> None:
    names, labels = labelled(a=[0, 1, 0, 1])
    with pytest.raises(ConfigError, match="at least two"):
        split_patients(names, labels)


def test_one_class_cannot_be_learnt() -> None:
    names, labels = labelled(a=[0, 0], b=[0, 0])
    with pytest.raises(ConfigError, match="one class"):
        split_patients(names, labels)


def test_a_class_too_rare_to_draw_by_is_refused() -> None:
    names, labels = labelled(a=[0, 0, 0], b=[0, 0, 1], c=[0, 0])
    with pytest.raises(ConfigError, match="too few to draw patients by"):
        split_patients(names, labels)


def test_a_side_with_one_class_is_refused() -> None:
    names, labels = labelled(a=[0, 1], b=[0, 0], c=[0, 1])
    with pytest.raises(ConfigError, match="validation patients have 0 positive and 2 negative"):
        split_patients(names, labels, val_patients=["b"])


def test_unlabelled_and_unreadable_patches_are_skipped(tmp_path: Path) -> None:
    pixels = make_patches(4)
    make_store(tmp_path / "a.patches.zarr", make_table(CELLS, labels=[0, -1, 1, 1], slide_id="a"), pixels, unreadable=[3])
    patches = load_labelled([tmp_path / "a.patches.zarr"])
    assert np.array_equal(patches.pixels, pixels[[0, 2]])
    assert patches.labels.tolist() == [0, 1]
    assert patches.patients.tolist() == ["a", "a"]
    assert patches.skipped == 2


def test_pixels_and_labels_stay_together_over_blocks(tmp_path: Path) -> None:
    table = make_table([(k // 5, k % 5) for k in range(23)], labels=[k % 2 if k % 3 else -1 for k in range(23)], block_size=4)
    pixels = make_patches(23)
    make_store(tmp_path / "a.patches.zarr", table, pixels)
    patches = load_labelled([tmp_path / "a.patches.zarr"])
    assert np.array_equal(patches.pixels, pixels[table.labels >= 0])


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        ({"mpp": 1.0}, "1 µm/px.* has 0.5 µm/px"),
        ({"side_px": 64}, "64 px.* has 50 px"),
    ],
)
def test_stores_that_do_not_fit_together_are_refused(other: dict[str, float], fault: str, tmp_path: Path) -> None:
    make_store(tmp_path / "a.patches.zarr", make_table(CELLS, labels=[0, 1, 0, 1]))
    make_store(tmp_path / "b.patches.zarr", make_table(CELLS, labels=[0, 1, 0, 1], **other))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=fault):
        load_labelled([tmp_path / "a.patches.zarr", tmp_path / "b.patches.zarr"])


def test_stores_without_labels_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "a.patches.zarr", make_table(CELLS))
    with pytest.raises(ConfigError, match="none of the 1 stores has a labelled patch"):
        load_labelled([tmp_path / "a.patches.zarr"])


def test_a_flipped_bit_is_found_before_training(tmp_path: Path) -> None:
    path = make_store(tmp_path / "a.patches.zarr", make_table(CELLS, labels=[0, 1, 0, 1]))
    chunk = path / "patches" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 64
    chunk.write_bytes(content)
    with pytest.raises(StoreError, match="damaged: patches/c/0"):
        load_labelled([path])


def test_turning_gives_all_eight_symmetries_and_nothing_else() -> None:
    patch = torch.arange(3 * 4 * 4, dtype=torch.float32).reshape(3, 4, 4)
    ways = [torch.rot90(patch, k, dims=(1, 2)) for k in range(4)]
    ways += [way.flip(2) for way in ways]
    turned = turn(patch.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0))
    seen = [[torch.equal(one, way) for way in ways].index(True) for one in turned]
    assert set(seen) == set(range(8))


def test_the_same_seed_gives_the_same_augmentation() -> None:
    x = torch.randn(10, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    one = shift_tone(x, torch.Generator().manual_seed(7))
    assert torch.equal(one, shift_tone(x, torch.Generator().manual_seed(7)))
    assert not torch.equal(one, x)


def test_tone_is_shifted_within_its_bounds() -> None:
    shifted = shift_tone(torch.ones(1000, 3, 1, 1), torch.Generator().manual_seed(0))
    assert float(shifted.min()) >= 1 - 0.2
    assert float(shifted.max()) <= 1 + 0.2


@given(st.integers(1, 200), st.integers(2, 50), st.integers(0, 99))
def test_every_patch_is_seen_once_per_epoch(count: int, batch_size: int, seed: int) -> None:
    batches = list(shuffle_batches(count, batch_size, torch.Generator().manual_seed(seed)))
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    assert count == 1 or min(len(batch) for batch in batches) > 1


def test_scores_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1], dtype=np.int8)
    scores = score(labels, np.array([0.1, 0.6, 0.2, 0.7, 0.4], dtype=np.float32), threshold=0.5)
    counts = (scores.true_negatives, scores.false_positives, scores.false_negatives, scores.true_positives)
    assert counts == (2, 1, 1, 1)
    assert scores.f1 == pytest.approx(0.5)  # 2 · 1 / (2 · 1 + 1 + 1)
    assert scores.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores.auroc == pytest.approx(5 / 6)  # of 6 pairs only (0.6, 0.4) is the wrong way round


def test_figures_without_meaning_are_none() -> None:
    scores = score(np.zeros(3, dtype=np.int8), np.array([0.1, 0.2, 0.3], dtype=np.float32), threshold=0.5)
    assert (scores.auroc, scores.f1, scores.balanced_accuracy, scores.sensitivity) == (None, None, None, None)
    assert scores.specificity == 1.0
    assert describe_scores(scores) == "AUROC –, F1 –, balanced accuracy –"


def test_no_patches_have_no_scores() -> None:
    scores = score(np.empty(0, dtype=np.int8), np.empty(0, dtype=np.float32), threshold=0.5)
    assert (scores.patches, scores.auroc, scores.f1) == (0, None, None)


def test_the_threshold_lies_halfway_between_the_classes() -> None:
    labels = np.array([0, 0, 1, 1], dtype=np.int8)
    assert choose_threshold(labels, np.array([0.1, 0.3, 0.5, 0.9], dtype=np.float32)) == pytest.approx(0.4)


@pytest.mark.parametrize("probability", [[1e-7, 4e-7], [0.9999997, 0.9999999], [0.0, 1e-45], [0.5, 0.50000006]])
def test_the_threshold_divides_even_neighbouring_numbers(probability: list[float]) -> None:
    labels, values = np.array([0, 1], dtype=np.int8), np.array(probability, dtype=np.float32)
    assert score(labels, values, choose_threshold(labels, values)).balanced_accuracy == 1.0


def test_the_threshold_does_not_turn_on_the_share_of_positives() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1], dtype=np.int8)
    probability = np.array([0.1, 0.35, 0.6, 0.3, 0.7, 0.9], dtype=np.float32)
    many = np.concatenate([np.repeat(labels[:3], 50), labels[3:]])
    assert choose_threshold(labels, probability) == choose_threshold(
        many, np.concatenate([np.repeat(probability[:3], 50), probability[3:]])
    )


def test_the_confusion_matrix_reads_truth_down() -> None:
    scores = score(np.array([0, 1, 1], dtype=np.int8), np.array([0.9, 0.9, 0.1], dtype=np.float32), 0.5)
    rows = [line.split() for line in draw_confusion(scores, ("benign", "tumour")).splitlines()]
    assert rows[1:] == [["benign", "0", "1"], ["tumour", "1", "1"]]


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"patience": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"weight_decay": -1.0}],
)
def test_impossible_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        TrainConfig(**wrong)  # type: ignore[arg-type]


def test_a_network_learns_dark_from_bright(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    trained = train([stores], tmp_path / "model", QUICK, SplitChoice(val_fraction=0.5))
    assert trained.scores is not None
    assert trained.scores.auroc == 1.0
    assert trained.scores.f1 == 1.0


def test_a_run_leaves_a_checkpoint_and_a_report(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    train([stores], tmp_path / "model", QUICK, SplitChoice(val_patients=("p1",), test_patients=("p3",)))
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "model.safetensors", "history.csv", "loss_curve.png", "metrics.json", "split.json", "manifest.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "model" / "split.json").read_text()) == {"train": ["p0", "p2"], "val": ["p1"], "test": ["p3"]}
    assert len((tmp_path / "model" / "history.csv").read_text().splitlines()) == 3


def test_the_checkpoint_knows_its_terms_of_use(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    trained = train([stores], tmp_path / "model", QUICK, SplitChoice(val_patients=("p1",)))
    checkpoint = load_checkpoint(trained.model)
    assert checkpoint.spec.mpp == 0.5
    assert checkpoint.training["split"]["val"] == ["p1"]
    assert checkpoint.threshold == trained.scores.threshold  # type: ignore[union-attr]
    assert "1 patients, 24 patches" in checkpoint.threshold_source
    train_pixels, _ = load_labelled([stores / f"p{k}.patches.zarr" for k in (0, 2, 3)]).of(["p0", "p2", "p3"])
    assert checkpoint.normalisation.mean == pytest.approx((train_pixels.reshape(-1, 3) / 255).mean(axis=0), abs=1e-6)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    files = [train([stores], tmp_path / f"model{k}", QUICK, SplitChoice(val_patients=("p1",))).model for k in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_training_again_does_nothing(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    first = train([stores], tmp_path / "model", QUICK, SplitChoice(val_patients=("p1",)))
    epochs: list[object] = []
    again = train([stores], tmp_path / "model", QUICK, SplitChoice(val_patients=("p1",)), listener=TrainListener(on_epoch=epochs.append))
    assert (again.model, again.scores, epochs) == (first.model, None, [])


def test_other_parameters_do_not_overwrite_a_model(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    train([stores], tmp_path / "model", QUICK, SplitChoice(val_patients=("p1",)))
    other = TrainConfig(epochs=2, batch_size=16, seed=1, device="cpu")
    with pytest.raises(StoreError, match=r"another parameters\.seed; use --force"):
        train([stores], tmp_path / "model", other, SplitChoice(val_patients=("p1",)))


def test_training_stops_when_it_no_longer_gets_better(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    config = TrainConfig(epochs=30, batch_size=16, patience=2, device="cpu")
    train([stores], tmp_path / "model", config, SplitChoice(val_patients=("p1",)))
    history = (tmp_path / "model" / "history.csv").read_text().splitlines()[1:]
    best = max(index for index, row in enumerate(history) if row.endswith("True"))
    assert len(history) - 1 - best == 2
