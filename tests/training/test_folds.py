"""Cross-validation by patient, and the learning rate finder."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.builders import folder_bytes, make_store, make_training_stores
from wsi_pipeline.core.errors import ConfigError, ModelError, StoreError
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.core.training_options import TrainOptions
from wsi_pipeline.store.patches import PatchStore, find_stores
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import load_labelled
from wsi_pipeline.training.folds import train_folds, train_held_out
from wsi_pipeline.training.loop import Epoch
from wsi_pipeline.training.lr_finder import Sweep, sweep_stores
from wsi_pipeline.training.split import SplitChoice, hold_out_groups

pytestmark = pytest.mark.usefixtures("plots_left_out")

QUICK = TrainConfig(
    architecture="wide_resnet_10_1", epochs=2, batch_size=16, device="cpu", precision="fp32"
)


class Stopped(Exception):
    """Raised by a test to stop a run."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_stores(tmp_path_factory.mktemp("folds") / "stores", patients=6, patches=12)


@pytest.mark.system
def test_a_run_of_folds_stopped_in_the_second_goes_on_there_and_ends_in_the_same_bytes(
    stores: Path, tmp_path: Path
) -> None:
    train_folds([stores], tmp_path / "quiet", QUICK, 3)
    trained: list[int] = []

    def stop(epoch: Epoch) -> None:
        trained.append(epoch.epoch)
        if len(trained) == 3:  # the second fold's first epoch
            raise Stopped

    with pytest.raises(Stopped):
        train_folds([stores], tmp_path / "stopped", QUICK, 3, listener=Listener(epoch_ended=stop))
    rest: list[int] = []
    train_folds(
        [stores],
        tmp_path / "stopped",
        QUICK,
        3,
        listener=Listener(epoch_ended=lambda epoch: rest.append(epoch.epoch)),
    )
    assert rest == [2, 1, 2]
    assert folder_bytes(tmp_path / "stopped") == folder_bytes(tmp_path / "quiet")


def test_the_spread_is_mean_and_sample_deviation_of_the_folds(stores: Path, tmp_path: Path) -> None:
    result = train_folds([stores], tmp_path / "folds", QUICK, 3)
    metrics = [
        json.loads((tmp_path / "folds" / f"fold-{k}" / "metrics.json").read_text())["scores"]
        for k in (1, 2, 3)
    ]
    brier = [fold["brier"] for fold in metrics]
    assert result.metrics["brier"].mean == pytest.approx(sum(brier) / 3)
    assert result.metrics["brier"].deviation == pytest.approx(
        np.sqrt(sum((value - sum(brier) / 3) ** 2 for value in brier) / 2)
    )
    with (tmp_path / "folds" / "summary" / "folds.csv").open() as stream:
        rows = {row["figure"]: row for row in csv.DictReader(stream)}
    written = [float(rows["brier"][f"fold-{k}"]) for k in (1, 2, 3)]
    assert written == pytest.approx(brier, rel=1e-5)  # six digits


def test_every_fold_holds_out_the_test_patients(stores: Path, tmp_path: Path) -> None:
    train_folds([stores], tmp_path / "folds", replace(QUICK, epochs=1), 2, test_patients=["p5"])
    for number in (1, 2):
        split = json.loads((tmp_path / "folds" / f"fold-{number}" / "split.json").read_text())
        assert split["test"] == ["p5"]
        assert "p5" not in split["train"] + split["val"]


def test_other_folds_do_not_mix_into_a_finished_folder(stores: Path, tmp_path: Path) -> None:
    train_folds([stores], tmp_path / "folds", replace(QUICK, epochs=1), 2)
    with pytest.raises(StoreError, match="was made from another split"):
        train_folds([stores], tmp_path / "folds", replace(QUICK, epochs=1), 3)


def test_the_suggestion_is_where_the_loss_falls_fastest_per_decade() -> None:
    """Flat up to 1e-4, falling by 0.1 per step around 1e-3, flat again, then rising."""
    exponents = np.linspace(-8, 0, 81)
    losses = np.interp(
        exponents, [-8, -4, -3.5, -2.5, -2, -1, 0], [0.7, 0.7, 0.65, 0.35, 0.3, 0.3, 2.0]
    )
    assert 10**-3.5 <= Sweep(10**exponents, losses).suggestion <= 10**-2.5


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    with pytest.raises(ModelError, match="falls at none of the rates"):
        Sweep(np.geomspace(1e-8, 1, 80), np.linspace(0.7, 0.8, 80)).suggestion  # noqa: B018 - the property raises


def test_a_sweep_of_a_real_network_leaves_a_table_and_a_plot(stores: Path, tmp_path: Path) -> None:
    done: list[int] = []
    sweep = sweep_stores(
        [stores],
        tmp_path / "sweep",
        QUICK,
        SplitChoice(val_patients=("p1",)),
        steps=60,
        highest=10.0,
        listener=Listener(progress=lambda line, step, steps: done.append(step)),
    )
    assert 1e-7 < sweep.suggestion < 10
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {
        "lr_find.csv",
        "lr_find.png",
        "manifest.json",
    }
    rows = (tmp_path / "sweep" / "lr_find.csv").read_text().splitlines()
    assert len(rows) - 1 == len(done) == len(sweep.rates)
    assert float(rows[1].split(",")[0]) == pytest.approx(1e-7)


def test_the_same_sweep_again_reads_the_one_that_is_there(stores: Path, tmp_path: Path) -> None:
    done: list[list[int]] = [[], []]
    first, again = (
        sweep_stores(
            [stores],
            tmp_path / "sweep",
            QUICK,
            SplitChoice(val_patients=("p1",)),
            steps=40,
            highest=10.0,
            listener=Listener(progress=lambda _, step, __, steps=steps: steps.append(step)),
        )
        for steps in done
    )
    assert len(done[0]) > 30
    assert done[1] == []
    assert np.array_equal(first.losses, again.losses)


@pytest.mark.parametrize("highest", [0.0, float("nan"), -1.0])
def test_an_impossible_highest_rate_is_refused(
    highest: float, stores: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        sweep_stores(
            [stores],
            tmp_path / "sweep",
            QUICK,
            SplitChoice(val_patients=("p1",)),
            steps=40,
            highest=highest,
        )


def test_a_sweep_that_ends_at_once_suggests_nothing() -> None:
    with pytest.raises(ModelError, match="diverged at once"):
        Sweep(np.geomspace(1e-8, 1e-6, 12), np.linspace(0.7, 3, 12)).suggestion  # noqa: B018 - the property raises


def test_a_sweep_of_a_few_steps_is_refused(stores: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 40"):
        sweep_stores(
            [stores],
            tmp_path / "sweep",
            QUICK,
            SplitChoice(val_patients=("p1",)),
            steps=20,
            highest=10.0,
        )


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of seven patients: p0 to p2 of the north, p3 to p5 of the south, p6 of no site."""
    folder = tmp_path_factory.mktemp("sites")
    plain = make_training_stores(folder / "plain", patients=7, patches=12)
    for number, path in enumerate(find_stores([plain])):
        store = PatchStore(path)
        site = {"site": "north" if number < 3 else "south"} if number < 6 else {}
        table = replace(store.table, columns=site)
        pixels = store.read_patches(range(len(store)))
        make_store(folder / "stores" / path.name, table, pixels)
    return folder / "stores"


def read_split(folder: Path) -> dict[str, list[str]]:
    split: dict[str, list[str]] = json.loads((folder / "split.json").read_text())
    return split


def test_each_group_is_held_out_in_turn_and_judged_by_the_model_without_it(
    sites: Path, tmp_path: Path
) -> None:
    result = train_held_out([sites], tmp_path / "out", QUICK, "site", SplitChoice())
    splits = [read_split(tmp_path / "out" / f"fold-{number}") for number in (1, 2)]
    assert [split["test"] for split in splits] == [["p0", "p1", "p2"], ["p3", "p4", "p5"]]
    for split in splits:
        assert sorted(split["train"] + split["val"] + split["test"]) == [f"p{k}" for k in range(7)]
    assert [(each.value, each.patients) for each in result.held_out] == [("north", 3), ("south", 3)]
    with (tmp_path / "out" / "summary" / "held_out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["held_out"] for row in rows] == ["north", "south"]
    assert float(rows[0]["auroc"]) == pytest.approx(result.held_out[0].scores["auroc"], abs=1e-5)
    mean = (float(rows[0]["auroc"]) + float(rows[1]["auroc"])) / 2
    assert result.metrics["auroc"].mean == pytest.approx(mean, abs=1e-5)
    assert "fold-1, 3 patients held out: AUROC" in str(result)
    assert not {"north", "south"} & set(str(result).split())
    again = train_held_out([sites], tmp_path / "out", QUICK, "site", SplitChoice())
    assert again == result


def test_a_patient_of_two_groups_is_trained_on_in_neither(sites: Path) -> None:
    patches = load_labelled(find_stores([sites]))
    patients = np.where(patches.patients == "p3", "p0", patches.patients)  # of both sites
    both = replace(patches, patients=patients)
    north, south = hold_out_groups(both, "site", both.columns, SplitChoice())
    for group in (north, south):
        assert "p0" in group.split.test
        assert "p0" not in group.split.train + group.split.val
    # Judged in each group with its own slides alone.
    assert (len(north.members), len(south.members)) == (36, 36)
    assert not {*north.members.tolist()} & {*south.members.tolist()}


def test_a_column_without_two_groups_is_refused_with_those_that_there_are(sites: Path) -> None:
    patches = load_labelled(find_stores([sites]))
    with pytest.raises(ConfigError, match=r"--hold-out-by stain: 0 group .* are site;"):
        hold_out_groups(patches, "stain", patches.columns, SplitChoice())


def test_folds_and_groups_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--hold-out-by once for each group"):
        TrainOptions(folds=3, hold_out_by="site")
    with pytest.raises(ConfigError, match="--hold-out-by draws the validation patients itself"):
        TrainOptions(hold_out_by="site", val_patients=("p1",))
