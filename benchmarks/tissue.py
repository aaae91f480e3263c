"""Dice of the detectors of tissue on drawn thumbnails, by kind, with their flags and their cost.

python -m benchmarks.tissue [--per-kind 6] [--reduce 1] [--worst FOLDER] [--tiatoolbox]
                            [--hand first|second]

Two hands drew them: the detector `local` was tuned on even seeds of the first generator only; odd
seeds of it and everything of the second are new to it. --reduce 2 looks at 16 µm/px instead of 8,
--worst writes the picture of every kind's worst slide beside its truth and what was found,
--tiatoolbox also asks TIAToolbox's morphological masker, in an environment that has it.
"""

import argparse
import time
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests import drawn_thumbnails, stained_glass
from wsi_pipeline.core.choices import TISSUE_DETECTORS
from wsi_pipeline.slides.tissue import TissueParameters, find_tissue

TIATOOLBOX = "tiatoolbox"


def main() -> None:
    """Print a table for each generator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-kind", type=int, default=6)
    parser.add_argument("--reduce", type=int, default=1)
    parser.add_argument("--worst", type=Path)
    parser.add_argument("--tiatoolbox", action="store_true")
    parser.add_argument("--hand", choices=("first", "second"))
    options = parser.parse_args()
    first = [2 * number + 1 for number in range(len(drawn_thumbnails.KINDS) * options.per_kind)]
    later = range(len(drawn_thumbnails.LATER_KINDS) * options.per_kind)
    first += [drawn_thumbnails.LATER + 2 * number + 1 for number in later]
    second = range(len(stained_glass.KINDS) * options.per_kind)
    measure_cost()
    detectors = (*([TIATOOLBOX] if options.tiatoolbox else []), *TISSUE_DETECTORS[::-1])
    if options.hand != "second":
        compare(drawn_thumbnails, first, detectors, options.reduce, options.worst)
    if options.hand != "first":
        compare(stained_glass, second, detectors, options.reduce, options.worst)


def compare(
    generator: Any, seeds: Any, detectors: tuple[str, ...], reduce: int, worst: Path | None
) -> None:
    """Print Dice by kind, median and worst, for each detector."""
    dice: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    faults: dict[str, list[NDArray[np.int64]]] = defaultdict(list)
    lowest: dict[str, tuple[float, NDArray[np.uint8], int]] = {}
    seconds = 0.0
    for seed in seeds:
        drawn = generator.draw(seed)
        small = shrink(drawn.rgb, reduce)
        for detector in detectors:
            started = time.process_time()
            mpp = generator.UM_PER_PX * reduce
            if detector == TIATOOLBOX:
                mask = find_dark(small, mpp)
            else:
                found = find_tissue(small, mpp, TissueParameters(detector=detector))
                mask = found.tissue
            seconds += (time.process_time() - started) * (detector == "local")
            mask = mask.repeat(reduce, 0).repeat(reduce, 1)
            mask = mask[: len(drawn.tissue), : drawn.tissue.shape[1]]
            value = score(mask, drawn)
            dice[detector][drawn.kind].append(value)
        count_faults(faults, found.faults, drawn, reduce)
        if value < lowest.get(drawn.kind, (2.0,))[0]:
            lowest[drawn.kind] = (value, show(drawn, found.areas, reduce), seed)
    print(f"\n{generator.__name__}: {len(seeds)} slides, local {seconds / len(seeds):.3f} s of CPU")
    print(f"{'kind':22}" + "".join(f"{name + ' median':>14}{'worst':>8}" for name in detectors))
    for kind in dice[detectors[0]]:
        print(f"{kind:22}" + "".join(describe(dice[name][kind]) for name in detectors))
    every = {name: [*chain(*dice[name].values())] for name in detectors}
    print(f"{'all':22}" + "".join(describe(every[name]) for name in detectors))
    for name, counts in faults.items():
        seen, truth, right = np.sum(counts, axis=0)
        print(f"{name}: recall {right / max(1, truth):.2f}, precision {right / max(1, seen):.2f}")
    if worst is None:
        return
    for kind, (value, picture, seed) in lowest.items():
        name = f"{generator.__name__.split('.')[-1]}_{value:.3f}_{kind.replace(' ', '_')}_{seed}"
        Image.fromarray(picture).save(worst / f"{name}.png")


def measure_cost() -> None:
    """Print CPU seconds of `local` for thumbnails of 1,250 × 940 px, and of a thousand patches.

    The first is of a slide of 40,000 × 30,000 px at 40x.
    """
    drawn = [drawn_thumbnails.draw(seed).rgb for seed in (0, 10, 12, 24)]
    large = np.vstack([np.hstack(drawn[:2]), np.hstack(drawn[2:])])[:940, :1250]
    for rgb in (large, large[:200, :200]):
        seconds = []
        for _ in range(5):
            started = time.process_time()
            find_tissue(rgb, drawn_thumbnails.UM_PER_PX, TissueParameters())
            seconds.append(time.process_time() - started)
        height, width, _ = rgb.shape
        print(f"local, {width} × {height} px: {min(seconds):.3f} s of CPU")


def find_dark(rgb: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Return what TIAToolbox's morphological masker takes for tissue."""
    from tiatoolbox.tools.tissuemask import MorphologicalMasker

    return np.asarray(MorphologicalMasker(mpp=mpp).fit_transform([rgb])[0])


def score(mask: NDArray[np.bool_], drawn: Any) -> float:
    """Return Dice where it matters; without tissue 1 if under a thousandth is kept, else 0."""
    kept, truth = mask[drawn.matters], drawn.tissue[drawn.matters]
    if not truth.any():
        return float(kept.mean() < 0.001)
    return float(2 * (kept & truth).sum() / (kept.sum() + truth.sum()))


def count_faults(
    faults: dict[str, Any], found: dict[str, NDArray[np.bool_]], drawn: Any, reduce: int
) -> None:
    """Add the pixels that are flagged, drawn, and both."""
    for name, where in (("pen", "ink"), ("fold", "folds"), ("bubble", "bubbles")):
        truth = getattr(drawn, where, None)
        if truth is not None and truth.any():
            seen = found[name].repeat(reduce, 0).repeat(reduce, 1)
            seen = seen[: truth.shape[0], : truth.shape[1]]
            faults[name].append(np.array([seen.sum(), truth.sum(), (seen & truth).sum()]))


def shrink(rgb: NDArray[np.uint8], reduce: int) -> NDArray[np.uint8]:
    """Return the mean of squares of so many pixels."""
    height, width = -(-len(rgb) // reduce), -(-rgb.shape[1] // reduce)
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX))


def show(drawn: Any, areas: NDArray[np.uint8], reduce: int) -> NDArray[np.uint8]:
    """Return the slide, its truth and what was found, side by side."""
    found = areas.repeat(reduce, 0).repeat(reduce, 1)[: len(drawn.rgb), : drawn.rgb.shape[1]]
    masks = [drawn.tissue * np.uint8(255), found * np.uint8(40)]
    return np.hstack([drawn.rgb, *(mask[..., None].repeat(3, 2) for mask in masks)])


def describe(values: list[float]) -> str:
    """Return median and worst in two columns."""
    return f"{np.median(values):14.3f}{min(values):8.3f}" if values else f"{'':22}"


if __name__ == "__main__":
    main()
