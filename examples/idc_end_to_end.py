"""From the public IDC patches to scored whole slides, in Python: ingest, train, infer, evaluate.

    python examples/idc_end_to_end.py PATCHES OUT --test-patients 8863,8865 --slides slides/
        --labels slides/

PATCHES holds the set's <patient>_idx5_x<X>_y<Y>_class<C>.png files; SLIDES are scans of the test
patients, LABELS their masks.
"""

import argparse
from pathlib import Path

from wsi_pipeline.core.options import IngestOptions
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.evaluation import evaluate_results
from wsi_pipeline.runs.infer import infer_slides
from wsi_pipeline.runs.tile import ingest_patches
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.metrics import describe_scores
from wsi_pipeline.training.run import train
from wsi_pipeline.training.split import SplitChoice

SOURCE = "https://www.kaggle.com/datasets/paultimothymooney/breast-histopathology-images"
IDC_MPP = 4.0  # 40x scans reduced 16 times: 16 × 0.25 µm/px


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("patches", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--test-patients",
        required=True,
        help="comma-separated; neither trained on nor validated with",
    )
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()

    if not any(options.patches.rglob("*_idx5_*.png")):
        raise SystemExit(
            f"{options.patches}: no patches called <patient>_idx5_….png below it; the set is at"
            f" {SOURCE}"
        )
    taken = ingest_patches(options.patches, options.out / "stores", IngestOptions(mpp=IDC_MPP))
    print(
        f"{taken.patches} patches of {len(taken.run.outcomes)} patients, {len(taken.left_out)}"
        " files left out"
    )

    trained = train(
        [options.out / "stores"],
        options.out / "model",
        TrainConfig(epochs=options.epochs),
        SplitChoice(test_patients=tuple(options.test_patients.split(","))),
        listener=Listener(
            epoch_ended=lambda epoch: print(
                f"epoch {epoch.epoch}: validation AUROC {epoch.val_auroc:.3f}"
            )
        ),
    )

    account = infer_slides(find_slides([options.slides]), trained.model, options.out / "results")
    print(account.sentence)

    evaluation = evaluate_results(options.out / "results", [options.labels])
    for slide in (*evaluation.slides, evaluation.pooled):
        print(
            f"{slide.name}: {describe_scores(slide.scores)} ({slide.not_assessed} of"
            f" {slide.labelled} labelled patches not assessed)"
        )


if __name__ == "__main__":  # worker processes import this file
    main()
