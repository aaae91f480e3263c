"""The demo: draw slides, tile, train, infer on other patients, compare with the truth."""

from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.core.choices import INDEX_HTML
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.options import InferOptions, TileOptions
from wsi_pipeline.core.outcome import RunAccount, find_failures
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.evaluation import Evaluation, evaluate_results
from wsi_pipeline.runs.infer import infer_slides
from wsi_pipeline.runs.synthetic_slides import PHANTOM_MPP, draw_phantom, write_pyramid
from wsi_pipeline.runs.tile import tile_slides
from wsi_pipeline.slides.images import write_grey
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.run import train
from wsi_pipeline.training.split import SplitChoice

DEMO_ARCHITECTURE = "wide_resnet_10_1"
"""A wide residual network that two cores train in a minute, large enough for synthetic tissue."""


@dataclass(frozen=True, slots=True)
class DemoSize:
    """The size of the demo."""

    width_px: int = 1600
    height_px: int = 1200
    training_slides: int = 6
    held_out_slides: int = 2
    epochs: int = 6


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The result of the demo."""

    evaluation: Evaluation
    """On the held-out slides."""
    index: Path


def run_demo(
    out: Path, size: DemoSize | None = None, *, listener: Listener | None = None
) -> DemoResult:
    """Run the whole chain into `out`; run again, it goes on from what is there."""
    size, listener = size or DemoSize(), listener or Listener()
    say = listener.say
    say(
        f"1/5  drawing {size.training_slides + size.held_out_slides} slides at {PHANTOM_MPP:g}"
        f" µm/px into {out / 'slides'}"
    )
    training = [
        _draw(out, f"patient-{number}", number, size)
        for number in range(1, size.training_slides + 1)
    ]
    held_out = [
        _draw(out, f"held-out-{number}", 100 + number, size)
        for number in range(1, size.held_out_slides + 1)
    ]
    say(
        f"2/5  tiling the {len(training)} training slides: wsi tile … --mpp {PHANTOM_MPP:g}"
        " --labels labels"
    )
    classes = ("benign", "tumour")
    options = TileOptions(mpp=PHANTOM_MPP, labels=[out / "labels"], class_names=classes, workers=0)
    _check(tile_slides(find_slides(training), out / "stores", options, listener))
    say(
        "3/5  training a small network on these patients, a third of them for validation: wsi train"
        f" stores --arch {DEMO_ARCHITECTURE} --epochs {size.epochs}"
    )
    trained = train(
        [out / "stores"],
        out / "model",
        TrainConfig(DEMO_ARCHITECTURE, epochs=size.epochs),
        SplitChoice(val_fraction=1 / 3),
        listener=listener,
    )
    say(
        f"4/5  inferring {len(held_out)} slides of patients that training never saw: wsi infer"
        " --slides slides --model model"
    )
    slides, results = find_slides(held_out), out / "results"
    _check(infer_slides(slides, trained.model, results, InferOptions(workers=0), listener))
    say("5/5  comparing with the truth: wsi evaluate results --labels labels")
    return DemoResult(evaluate_results(results, [out / "labels"]), results / INDEX_HTML)


def _check(account: RunAccount) -> None:
    """Raise StoreError with the first failure of a run: a demo needs every slide."""
    failures = find_failures(account.outcomes)
    if failures:
        raise StoreError(f"{failures[0].message} (or give the demo another folder with --out)")


def _draw(out: Path, name: str, seed: int, size: DemoSize) -> Path:
    slide = out / "slides" / f"{name}.tiff"
    slide.parent.mkdir(parents=True, exist_ok=True)
    (out / "labels").mkdir(exist_ok=True)
    phantom = draw_phantom(size.width_px, size.height_px, seed)
    write_pyramid(slide, phantom.pixels, PHANTOM_MPP)
    write_grey(out / "labels" / f"{name}_labels.png", phantom.truth)
    return slide
