"""A network by hand: 9 measurements of a breast biopsy, 15 ReLU units, one sigmoid.

Back-propagation is in NumPy, checked against torch.

    python examples/wisconsin_mlp.py breast-cancer-wisconsin.data OUT --rate 0.01 --iterations 15000

The table is UCI's "Breast Cancer Wisconsin (Original)": 699 rows of id, nine grades from 1 to 10,
class 2 (benign) or 4 (malignant). The 16 rows with a "?" are left out, columns brought to 0–1, the
first 500 rows learned from. Writes OUT/cost.png and OUT/confusion.png.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wsi_pipeline.training.evaluate import sweep_thresholds

Floats = NDArray[np.float64]
TRAINED_ROWS, HIDDEN, THRESHOLDS = 500, 15, (0.5, 0.7, 0.8, 0.9)


def load_table(path: Path, download: bool) -> tuple[Floats, NDArray[np.int8]]:
    """Return measurements (n, 9) from 0 to 1 and classes (n,), 1 malignant."""
    if download:
        from sklearn.datasets import fetch_openml

        x, kind = fetch_openml(
            "breast-w", version=1, as_frame=False, parser="liac-arff", return_X_y=True
        )
        x, labels = x[~np.isnan(x).any(axis=1)], (kind == "malignant")[~np.isnan(x).any(axis=1)]
    elif path.is_file():
        rows = [
            line.split(",") for line in path.read_text().splitlines() if line and "?" not in line
        ]
        x, labels = np.array(rows, dtype=float)[:, 1:10], np.array([row[10] == "4" for row in rows])
    else:
        raise SystemExit(
            f"{path}: not there; it is breast-cancer-wisconsin.data of archive.ics.uci.edu, or add"
            " --download for OpenML's copy"
        )
    return (x - x.min(axis=0)) / (x.max(axis=0) - x.min(axis=0)), labels.astype(np.int8)


def forward(weights: list[Floats], x: Floats) -> tuple[Floats, Floats]:
    """Return hidden units (n, 15) and probabilities (n,)."""
    w1, b1, w2, b2 = weights
    hidden = np.maximum(x @ w1 + b1, 0)
    return hidden, 1 / (1 + np.exp(-(hidden @ w2 + b2)))


def measure_cost(probability: Floats, y: Floats) -> float:
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def backward(weights: list[Floats], x: Floats, y: Floats) -> tuple[float, list[Floats]]:
    """Return the cost and its gradients.

    The error at the output, p - y, is sent back through w2 to the units that were active.
    """
    hidden, probability = forward(weights, x)
    output_error = (probability - y) / len(y)  # (n,): sigmoid and cross-entropy together
    hidden_error = np.outer(output_error, weights[2]) * (hidden > 0)  # (n, 15)
    return measure_cost(probability, y), [
        x.T @ hidden_error,
        hidden_error.sum(0),
        hidden.T @ output_error,
        output_error.sum(keepdims=True),
    ]


def differ_from_torch(weights: list[Floats], x: Floats, y: Floats) -> float:
    """Return the largest difference between our gradients and those that torch derives."""
    w1, b1, w2, b2 = (torch.tensor(weight, requires_grad=True) for weight in weights)
    logits = torch.relu(torch.from_numpy(x) @ w1 + b1) @ w2 + b2
    torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(y)).backward()
    ours = backward(weights, x, y)[1]
    return max(
        float(np.abs(theirs.grad.numpy() - mine).max())
        for theirs, mine in zip((w1, b1, w2, b2), ours, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--iterations", type=int, default=15_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--download",
        action="store_true",
        help="take OpenML's copy of the table, by scikit-learn, instead of the file",
    )
    options = parser.parse_args()
    x, labels = load_table(options.table, options.download)
    y, draws = labels.astype(float), np.random.default_rng(options.seed)
    weights = [
        draws.normal(size=(9, HIDDEN)) / 3,
        np.zeros(HIDDEN),
        draws.normal(size=HIDDEN) / HIDDEN**0.5,
        np.zeros(1),
    ]
    print(
        f"{len(x)} rows; gradients, NumPy against torch:"
        f" {differ_from_torch(weights, x[:TRAINED_ROWS], y[:TRAINED_ROWS]):.1e}"
    )
    costs = []
    for _ in range(options.iterations):
        cost, gradients = backward(weights, x[:TRAINED_ROWS], y[:TRAINED_ROWS])
        weights = [
            weight - options.rate * gradient
            for weight, gradient in zip(weights, gradients, strict=True)
        ]
        costs.append(cost)
    print(
        f"after {options.iterations} iterations:"
        f" {differ_from_torch(weights, x[:TRAINED_ROWS], y[:TRAINED_ROWS]):.1e}, cost"
        f" {costs[-1]:.4f}"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    figure.add_subplot(
        xlabel="iteration", ylabel="cost", title=f"learning rate {options.rate}"
    ).plot(costs)
    figure.savefig(options.out / "cost.png")
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    for row, (side, members) in enumerate(
        (("training", slice(TRAINED_ROWS)), ("validation", slice(TRAINED_ROWS, None)))
    ):
        probability = forward(weights, x[members])[1].astype(np.float32)
        for column, point in enumerate(sweep_thresholds(labels[members], probability, THRESHOLDS)):
            counts = np.array(
                [
                    [point.true_negatives, point.false_positives],
                    [point.false_negatives, point.true_positives],
                ]
            )
            accuracy = np.trace(counts) / counts.sum()
            print(
                f"{side:<10} threshold {point.threshold}: accuracy {accuracy:.3f}, {counts[0, 1]}"
                f" false alarms, {counts[1, 0]} missed"
            )
            axes = figure.add_subplot(
                2, 4, 4 * row + column + 1, title=f"{side}, {point.threshold}: {accuracy:.3f}"
            )
            axes.matshow(counts, cmap="Blues")
            axes.set(
                xticks=(0, 1),
                yticks=(0, 1),
                xticklabels=("benign", "malignant"),
                yticklabels=("benign", "malignant"),
            )
            _ = [
                axes.text(
                    j,
                    i,
                    counts[i, j],
                    ha="center",
                    color="black" if counts[i, j] < counts.max() / 2 else "white",
                )
                for i in (0, 1)
                for j in (0, 1)
            ]
    figure.savefig(options.out / "confusion.png")


if __name__ == "__main__":
    main()
