"""Results in Python: load a results folder, draw a map, join metrics with a clinical table.

    python examples/results_in_python.py RESULTS CLINICAL.csv OUT

CLINICAL.csv has a column slide_id and any others. Writes OUT/<slide>.png for the slide with the
most positive tissue, OUT/regions.csv with every slide's regions, and OUT/joined.csv. Needs the
extra `analysis`.
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from wsi_pipeline.outputs.results import Slide, open_results, slides_frame


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("clinical", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    slides = open_results(options.results)
    worst = max(slides, key=lambda slide: slide.summary.positive_mm2)
    draw(worst, options.out / f"{worst.slide_id}.png")

    patches = pd.concat(
        {slide.slide_id: slide.to_frame() for slide in slides}, names=["slide_id", "patch"]
    )
    print(patches.groupby("slide_id")["probability"].describe().round(3).to_string())

    regions = pd.DataFrame(
        [
            (slide.slide_id, region.number, region.area_mm2, region.max_probability)
            for slide in slides
            for region in slide.regions
        ],
        columns=["slide_id", "region", "area_mm2", "max_probability"],
    )
    regions.to_csv(options.out / "regions.csv", index=False)

    clinical = pd.read_csv(options.clinical, dtype={"slide_id": str}).set_index("slide_id")
    joined = slides_frame(options.results).join(clinical, how="left")
    joined.to_csv(options.out / "joined.csv")
    print(
        f"{len(joined)} slides, {len(regions)} positive regions,"
        f" {joined[clinical.columns].notna().any(axis=1).sum()} with clinical data"
    )


def draw(slide: Slide, path: Path) -> None:
    """Draw the map in mm of the slide, by xarray's own plotting."""
    image = slide.to_xarray()
    image = image.assign_coords(x=image.x / 1000, y=image.y / 1000)
    figure = Figure(figsize=(8, 6), layout="constrained")
    image.plot.imshow(
        ax=figure.add_subplot(xlabel="mm", ylabel="mm", aspect="equal"),
        vmin=0,
        vmax=1,
        yincrease=False,
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()
