"""Coverage and width of a reviewed count's interval, and its error.

A person who answers as the labels say reviews synthetic slides, whose models are good, count too
much, are blind, or inverted, and the whole slides (patients with many patches) of the validation
tables that `wsi train --folds` writes. Each line: positives; the model's count; then for 50 and
100 patches the share of intervals that hold the truth, half width, root mean square error, its
share of the truth, bias as a share of that error, and of random sampling of as many patches the
half width (Clopper and Pearson's for a finite slide) and error.

    python benchmarks/review_coverage.py [fold-*/validation.csv …] [--rounds 400] [--no-synthetic]
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import hypergeom

from wsi_pipeline.counting import Design, draw, estimate_count, make_design

PATCHES = (50, 100)
MODELS = ("good", "over", "blind", "inverted")


@dataclass(frozen=True)
class Slide:
    name: str
    truth: NDArray[np.bool_]
    probability: NDArray[np.float32]


def read_slides(tables: list[Path], fewest: int) -> Iterator[Slide]:
    rows: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for table in tables:
        with table.open(newline="") as lines:
            for row in csv.DictReader(lines):
                rows[row["patient_id"]].append((row["label"] == "1", float(row["probability"])))
    for patient, patches in sorted(rows.items()):
        if len(patches) >= fewest:
            truth, probability = zip(*patches, strict=True)
            yield Slide(patient, np.array(truth), np.array(probability, dtype=np.float32))


def make_slides(patches: int) -> Iterator[Slide]:
    random = np.random.default_rng(7)
    for positives in (0, 1, patches // 100, patches // 20, patches // 5, patches // 2):
        truth = np.zeros(patches, dtype=bool)
        truth[random.choice(patches, positives, replace=False)] = True
        noise, sign = random.normal(size=patches), 2.0 * truth - 1
        logits = {
            "good": 2.3 * sign + 2 * noise,  # AUROC 0.95
            "over": 2.3 * sign + 2 * noise + 1.7,
            "blind": 1.5 * noise - 1.5,
            "inverted": -2 * sign + 1.5 * noise,
        }
        for model in MODELS:
            yield Slide(f"{positives}/{patches} {model}", truth, expit(logits[model]).astype("f4"))


def review(slide: Slide, rounds: int) -> NDArray[np.float64]:
    """(rounds, len(PATCHES), 3): estimate, low and high."""
    strata = make_design(slide.probability, 0).strata
    ends = np.full((rounds, len(PATCHES), 3), np.nan)
    for seed in range(rounds):
        design, answers = Design(strata, seed), dict[int, bool]()
        for place, wanted in enumerate(PATCHES):
            while shown := draw(design, wanted, answers):
                answers |= {each.patch: bool(slide.truth[each.patch]) for each in shown}
            count = estimate_count(design, answers)
            assert count is not None
            ends[seed, place] = count.estimate, count.low, count.high
    return ends


def sample(patches: int, positives: int, drawn: int) -> tuple[float, float]:
    """Mean half width and root mean square error of random sampling."""
    called = np.arange(max(0, drawn - patches + positives), min(drawn, positives) + 1)
    chance = hypergeom.pmf(called, patches, positives, drawn)
    half = 0.0
    for k in called[chance > 1e-6]:
        totals = np.arange(k, patches - drawn + k + 1)
        held = (hypergeom.sf(k - 1, patches, totals, drawn) > 0.025) & (
            hypergeom.cdf(k, patches, totals, drawn) > 0.025
        )
        half += hypergeom.pmf(k, patches, positives, drawn) * np.ptp(totals[held]) / 2
    error = patches * called / drawn - positives
    return float(half), float(np.sqrt((chance * error**2).sum()))


def report(slide: Slide, rounds: int) -> str:
    true = int(slide.truth.sum())
    line = f"{slide.name:19s} {true:5d} {np.count_nonzero(slide.probability >= 0.5):5d}"
    results = review(slide, rounds)
    for place, drawn in enumerate(PATCHES):
        estimate, low, high = results[:, place].T
        error = float(np.sqrt(((estimate - true) ** 2).mean()))
        covered = float(((low <= true) & (true <= high)).mean())
        bias = (estimate.mean() - true) / error if error else 0.0
        share = f"{error / true:4.0%}" if true else "   –"
        half, random_error = sample(len(slide.truth), true, drawn)
        line += f" | {covered:.3f} {(high - low).mean() / 2:6.1f} {error:6.1f} {share} {bias:+5.0%}"
        line += f"  {half:6.1f} {random_error:6.1f}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("tables", nargs="*", type=Path, help="validation.csv of folds")
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--fewest", type=int, default=400, help="patches of a whole slide")
    parser.add_argument("--patches", type=int, default=1000, help="patches of a synthetic slide")
    parser.add_argument("--no-synthetic", action="store_true")
    chosen = parser.parse_args()
    columns = " | covers   half  error share  bias   random: half, error"
    print(f"{'slide':19s}  true model" + "".join(f"{columns} ({n})" for n in PATCHES))
    synthetic = () if chosen.no_synthetic else make_slides(chosen.patches)
    for slide in (*synthetic, *read_slides(chosen.tables, chosen.fewest)):
        print(report(slide, chosen.rounds), flush=True)


if __name__ == "__main__":
    main()
