"""The damage matrix: every file of each kind of product deleted, flipped in one bit, cut short, or
swapped with another of its files.

`wsi verify` names every one of them, and whatever reads the product refuses it before use.
"""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.builders import SMALL, make_store, make_table, write_model
from tests.commands import infer
from tests.faults import by_extent
from wsi_pipeline.core.choices import MANIFEST, PREDICTIONS
from wsi_pipeline.core.errors import ModelError, StoreError
from wsi_pipeline.core.outcome import SlideState
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.evaluation.labelled import label_results
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs.heatmap import Aggregation
from wsi_pipeline.outputs.run_files import read_finished
from wsi_pipeline.runs.verify import find_products, verify
from wsi_pipeline.stages.aggregate import aggregate_results
from wsi_pipeline.stages.export_model import export_model
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.run import train
from wsi_pipeline.training.split import SplitChoice


def delete(path: Path, other: Path, seed: int) -> None:
    path.unlink()


def flip_bit(path: Path, other: Path, seed: int) -> None:
    held = bytearray(path.read_bytes())
    place = int(np.random.default_rng(seed).integers(len(held) * 8))
    held[place // 8] ^= 1 << (place % 8)
    path.write_bytes(held)


def cut_short(path: Path, other: Path, seed: int) -> None:
    size = path.stat().st_size
    os.truncate(path, int(np.random.default_rng(seed).integers(size)))


def swap(path: Path, other: Path, seed: int) -> None:
    held = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(held)


Count = Callable[[], None]

DAMAGES: dict[str, Callable[[Path, Path, int], None]] = {
    "delete": delete,
    "flip": flip_bit,
    "cut": cut_short,
    "swap": swap,
}


def list_files(product: Path) -> list[str]:
    return sorted(
        path.relative_to(product).as_posix() for path in product.rglob("*") if path.is_file()
    )


def choose_partner(product: Path, name: str) -> str:
    """Another file of other content, of the same size where there is one, so that sizes do not
    tell.
    """
    held = (product / name).read_bytes()
    others = [other for other in list_files(product) if (product / other).read_bytes() != held]
    return min(others, key=lambda other: (abs((product / other).stat().st_size - len(held)), other))


@contextlib.contextmanager
def damaged(product: Path, name: str, damage: str, seed: int) -> Iterator[set[str]]:
    """A product with one file damaged, until the end of the block; the names of those that are not
    as they were.
    """
    other = choose_partner(product, name)
    kept = {each: (product / each).read_bytes() for each in (name, other)}
    DAMAGES[damage](product / name, product / other, seed)
    try:
        yield {name, other} if damage == "swap" else {name}
    finally:
        for each, held in kept.items():
            (product / each).write_bytes(held)


def every_damage(
    product: Path, count: Count, only: Callable[[str], bool] = lambda name: True, step: int = 1
) -> Iterator[tuple[str, set[str]]]:
    """Every file, damaged in every way, one after the other: what was done, and the names of the
    damaged files. Of every `step` damages one is tried.
    """
    damages = enumerate(itertools.product(filter(only, list_files(product)), DAMAGES))
    for seed, (name, damage) in itertools.islice(damages, 0, None, step):
        with damaged(product, name, damage, seed) as names:
            count()
            yield f"{damage} {name}", names


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Count:
    """Call it for every damage that is tried."""
    name = request.node.name.removeprefix("test_").replace("_", " ")

    def count() -> None:
        request.node.user_properties.extend(
            [(f"count of damages, {name}", 1), ("count of damages in all", 1)]
        )

    return count


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled stores, `stores`; a model trained on them, `model`; its results on them,
    `results`; and an export.
    """
    root = tmp_path_factory.mktemp("damage")
    for number in range(3):
        labels = np.arange(12) % 2
        noise = np.random.default_rng(number).integers(0, 90, (12, 50, 50, 3))
        pixels = (noise + labels[:, None, None, None] * 120).astype(np.uint8)
        table = make_table(
            [(k // 4, k % 4) for k in range(12)],
            labels=labels.tolist(),
            slide_id=f"p{number}",
            block_size=4,
        )
        make_store(root / "stores" / f"p{number}.patches.zarr", table, pixels)
    train_on(root / "stores", root / "model")
    infer(
        root / "stores" / "p0.patches.zarr",
        root / "model" / "model.safetensors",
        root / "results",
        view=View(),
    )
    export_model(root / "model", ["torchscript"], root / "export")
    return root


def train_on(stores: Path, out: Path, listener: Listener | None = None) -> None:
    train(
        [stores],
        out,
        TrainConfig(architecture=SMALL, epochs=1, device="cpu"),
        SplitChoice(val_patients=("p0",)),
        listener=listener,
    )


KINDS = {
    "patch store": "stores/p0.patches.zarr",
    "results": "results/p0",
    "training run": "model",
    "export": "export",
}


@pytest.mark.parametrize("kind", KINDS)
def test_verify_names_every_damaged_file(kind: str, base: Path, count: Count) -> None:
    product = base / KINDS[kind]
    missed = []
    for done, names in every_damage(product, count):
        if kind == "export" and not (product / MANIFEST).exists():
            with pytest.raises(StoreError, match="nothing to verify"):
                find_products([product])  # without it, it is a model like those of others
            continue
        [verified] = [verify(found) for found in find_products([product])]
        is_found = MANIFEST in verified.faults if MANIFEST in names else {*verified.faults} == names
        missed += [] if is_found else [f"{done}: {dict(verified.faults)}"]
    assert missed == []
    assert verify(find_products([product])[0]).is_whole, "the test did not put back what it damaged"


@by_extent
def test_verify_finds_a_checkpoint_damaged_by_itself(
    is_whole: bool, base: Path, tmp_path: Path, count: Count
) -> None:
    held = (base / "model" / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(held[:8], "little")
    rng = np.random.default_rng(5)
    places = [
        int(place)
        for place in (np.arange(header) if is_whole else rng.choice(header, 150, replace=False))
    ]
    places += [int(place) for place in rng.integers(header, len(held), 20)]
    path = tmp_path / "m.safetensors"
    missed = []
    for place in places:
        bent = bytearray(held)
        bent[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bent)
        try:
            load_checkpoint(path)
            missed.append(place)
        except ModelError:
            pass
    for size in (0, 1, 7, 8, header - 1, header, header + 1, len(held) - 1):
        path.write_bytes(held[:size])
        with pytest.raises(ModelError):
            load_checkpoint(path)
    path.write_bytes(held + b"\0")
    with pytest.raises(ModelError):
        load_checkpoint(path)
    for _ in range(len(places) + 9):
        count()
    assert missed == []


def test_training_refuses_every_damaged_store_before_it_begins(
    base: Path, tmp_path: Path, count: Count
) -> None:
    begun: list[str] = []
    listener = Listener(say=begun.append)
    missed = []
    for done, names in every_damage(base / "stores" / "p0.patches.zarr", count):
        try:
            train_on(base / "stores", tmp_path / "model", listener)
            missed.append(f"{done}: trained")
        except StoreError as error:
            if "p0.patches.zarr" not in str(error) or not (
                any(name in str(error) for name in names) or MANIFEST in names
            ):
                missed.append(f"{done}: {error}")
    assert missed == []
    assert begun == []
    assert not (tmp_path / "model").exists()


@by_extent
def test_inference_refuses_damaged_stores_before_use(
    is_whole: bool, base: Path, tmp_path: Path, count: Count
) -> None:
    model = write_model(tmp_path / "m.safetensors")
    missed = []
    step = 1 if is_whole else len(DAMAGES) + 1  # each kind in turn
    for done, names in every_damage(base / "stores" / "p0.patches.zarr", count, step=step):
        results = tmp_path / "results"
        [outcome] = infer(base / "stores" / "p0.patches.zarr", model, results).outcomes
        is_named = any(name in outcome.message for name in names) or MANIFEST in names
        if outcome.state is not SlideState.FAILED or not is_named or (results / "p0").exists():
            missed.append(f"{done}: {outcome.state.value}: {outcome.message}")
        shutil.rmtree(results)
    assert missed == []


@pytest.mark.system
def test_aggregation_refuses_every_damaged_result(base: Path, count: Count) -> None:
    missed = []
    view = View(formats=("summary",), aggregation=Aggregation(threshold=0.3))
    for done, _ in every_damage(base / "results" / "p0", count, lambda name: name != MANIFEST):
        [outcome] = aggregate_results(base / "results", view).outcomes
        missed += [] if outcome.state is SlideState.FAILED else [f"{done}: {outcome.message}"]
    assert missed == []


@pytest.mark.system
def test_inference_makes_no_outputs_of_damaged_predictions(
    base: Path, tmp_path: Path, count: Count
) -> None:
    missed = []
    for done, _ in every_damage(
        base / "results" / "p0", count, lambda name: name.startswith(PREDICTIONS)
    ):
        model = base / "model" / "model.safetensors"
        [outcome] = infer(base / "stores" / "p0.patches.zarr", model, base / "results").outcomes
        missed += [] if outcome.state is SlideState.FAILED else [f"{done}: {outcome.message}"]
    assert missed == []


def test_evaluation_refuses_damaged_predictions(base: Path, count: Count) -> None:
    missed = []
    for done, _ in every_damage(
        base / "results" / "p0", count, lambda name: name.startswith(PREDICTIONS)
    ):
        with contextlib.suppress(StoreError):
            label_results(base / "results")
            missed.append(done)
    assert missed == []


def test_tables_take_no_figures_from_a_damaged_summary(base: Path, count: Count) -> None:
    for done, _ in every_damage(
        base / "results" / "p0", count, lambda name: name == "summary.json"
    ):
        finished = read_finished(base / "results")
        assert (finished.summaries, [failure.slide_id for failure in finished.damaged]) == (
            (),
            ["p0"],
        ), done
