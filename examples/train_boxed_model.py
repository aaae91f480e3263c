"""Train a model that comes with the package, on the public IDC patches, and write its card.

python examples/train_boxed_model.py FOLDER… [--name idc-cnn] --out FOLDER

Each FOLDER holds `<patient>/<class>/*.png` of the public IDC set at 4 µm/px. Patients 8863 and
8865, whose slides are whole, are kept out; the card gets the figures on them. At the end the
figures are compared with those of the model of the same name that is in the package.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import wsi_pipeline as wsi
from wsi_pipeline.evaluation.labelled import LabelledSlide, label_results
from wsi_pipeline.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_pipeline.models.loading import list_boxed
from wsi_pipeline.models.model import make_self_test
from wsi_pipeline.training.metrics import bootstrap_intervals, score

HELD_OUT = ("8863", "8865")
ABOUT = {
    "data": (
        "public IDC patches (breast-histopathology-images: H&E sections of breast cancer scanned at"
        " 40x, patches of 50 px at 4 µm/px), listed as CC0"
    ),
    "recipe": "wsi train with its defaults",
    "not_for": (
        "diagnosis; other organs, stains or scales; scanners unlike those of one centre. It counts"
        " patches, not cells, and on whole slides up to several times too many: review them"
    ),
}
NETWORKS: dict[str, dict[str, str]] = {"idc": {}, "idc-cnn": {"arch": "idc_cnn"}}
FIGURES = ("auroc", "f1", "balanced_accuracy")
SQUARE_PATCHES = 5
"""Side of the squares of a slide that are drawn together, for neighbours are alike."""


def measure(slide: LabelledSlide) -> dict[str, Any]:
    """Figures on one held-out slide with 95 % intervals from its squares of 1 mm, drawn anew."""
    known, summary = slide.take(~np.isnan(slide.probability)), slide.summary
    squares = known.positions // SQUARE_PATCHES @ [1000, 1]
    scores = score(known.labels, known.probability, summary.threshold)
    ends = bootstrap_intervals(known.labels, known.probability, squares, summary.threshold)
    found: dict[str, Any] = {}
    for name in FIGURES:
        ends_text = "{:.3f} to {:.3f}".format(*ends[name]) if name in ends else "none"
        found |= {name: getattr(scores, name), f"{name}_interval": ends_text}
    return {
        **found,
        "patches": scores.patches,
        "counted": scores.true_positives + scores.false_positives,
        "true": scores.true_positives + scores.false_negatives,
    }


def round_weights(trained: Checkpoint) -> Checkpoint:
    """The same model with weights of 16 bits, and a self-test of these."""
    halves = {
        name: weight.bfloat16() if weight.is_floating_point() else weight
        for name, weight in trained.weights.items()
    }
    rounded = replace(trained, weights=halves)
    return replace(rounded, self_test=make_self_test(rounded))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--name", choices=[*NETWORKS], default="idc")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    name, path = arguments.name, arguments.out / f"{arguments.name}.safetensors"
    with tempfile.TemporaryDirectory() as made:
        stores, run, results = (Path(made) / part for part in ("stores", "model", "results"))
        for folder in arguments.folders:
            wsi.ingest(folder, stores, mpp=4.0, class_names=("non_idc", "idc"))
        wsi.train(stores, run, test_patients=HELD_OUT, seed=arguments.seed, **NETWORKS[name])
        trained = load_checkpoint(run / "model.safetensors")
        # The weights of idc_cnn are most of its 20 MB.
        kept = round_weights(trained) if name == "idc-cnn" else trained
        save_checkpoint(kept, path)
        held_out = [stores / f"{patient}.patches.zarr" for patient in HELD_OUT]
        wsi.infer(stores=held_out, model=path, out=results)
        scores = {
            f"held-out slide {slide.slide_id}": measure(slide)
            for slide in label_results(results).slides
        }
    training = {**kept.training, "about": {**ABOUT, "seed": arguments.seed}}
    save_checkpoint(replace(kept, scores={**kept.scores, **scores}, training=training), path)
    print(json.dumps(scores, indent=1))
    compare(name, scores)


def compare(name: str, scores: dict[str, Any]) -> None:
    """Say how far the figures are from those of the packaged model of that name."""
    if name not in (known := list_boxed()):
        return
    before = load_checkpoint(known[name]).scores
    for slide, figures in scores.items():
        for figure in (*FIGURES, "counted"):
            one, other = figures[figure], before.get(slide, {}).get(figure)
            if other is not None:
                print(f"{slide}: {figure} {one:.4g}, in the package {other:.4g}")


if __name__ == "__main__":
    main()
