"""Train the model that comes with the package, on the public IDC patches, and write its card.

python examples/train_boxed_model.py FOLDER… --out NAME.safetensors

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

import wsi_pipeline as wsi
from wsi_pipeline.evaluation import Evaluation
from wsi_pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_pipeline.models.loading import list_boxed

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
FIGURES = ("auroc", "f1", "balanced_accuracy")


def measure(evaluation: Evaluation) -> dict[str, Any]:
    """Figures on the held-out slides, with the counted and the true number of positives."""
    found: dict[str, Any] = {}
    for slide in evaluation.slides:
        scores = slide.scores
        found[f"held-out slide {slide.slide_id}"] = {
            **{name: getattr(scores, name) for name in FIGURES},
            "patches": scores.patches,
            "counted": scores.true_positives + scores.false_positives,
            "true": scores.true_positives + scores.false_negatives,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="Keep stores, run and results here.")
    parser.add_argument("--preset", help="As in `wsi train`.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        work = arguments.work or Path(made)
        stores = work / "stores"
        for folder in arguments.folders:
            wsi.ingest(folder, stores, mpp=4.0, class_names=("non_idc", "idc"))
        wsi.train(
            stores,
            work / "model",
            preset=arguments.preset,
            test_patients=HELD_OUT,
            seed=arguments.seed,
        )
        held_out = [stores / f"{patient}.patches.zarr" for patient in HELD_OUT]
        wsi.infer(stores=held_out, model=work / "model", out=work / "results")
        scores = measure(wsi.evaluate(work / "results"))
        trained = load_checkpoint(work / "model" / "model.safetensors")
    about = {"about": {**ABOUT, "seed": arguments.seed}}
    boxed = replace(
        trained,
        scores={**trained.scores, **scores},
        training={**trained.training, **about},
    )
    save_checkpoint(boxed, arguments.out)
    print(json.dumps(scores, indent=1))
    compare(arguments.out.stem, scores)


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
