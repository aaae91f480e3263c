"""An estimate by a sample against the whole slide, as whole processes, in turns.

    python benchmarks/sampling.py [--patches 40000] [--sample 2000] [--model idc-cnn] [--rounds 1]

The share of positive patches of the whole slide should lie within the estimate's interval.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from startup import infer, make_slide
from stopwatch import Timed, measure
from tiling import describe_machine

ENDS = ("positives_low", "positives_high")


def run(slide: Path, out: Path, model: str, *more: str) -> tuple[Timed, dict[str, Any]]:
    """Infer a slide into an empty folder: what it took, and the slide's summary."""
    shutil.rmtree(out, ignore_errors=True)
    timed = measure(infer(slide, out, model, "--outputs", "summary", *more))
    record = json.loads((out / "run.json").read_text())
    summary: dict[str, Any] = json.loads((out / slide.stem / "summary.json").read_text())
    return timed.with_patches(record["patches_predicted"]), summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patches", type=int, default=40_000)
    parser.add_argument("--sample", type=int, default=2000)
    parser.add_argument("--model", default="idc-cnn")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        slide, out = Path(folder) / "slide.tiff", Path(folder) / "out"
        make_slide(slide, options.patches)
        for _ in range(options.rounds):
            part, found = run(slide, out, options.model, "--sample", str(options.sample))
            whole, all_of_it = run(slide, out, options.model)
            low, high = (found[name] / found["slide_patches"] for name in ENDS)
            print(
                f"{found['patches']:,} of {found['slide_patches']:,} patches count,"
                f" {part.patches:,} computed: {part.total_wall:.1f} s, whole"
                f" {whole.total_wall:.1f} s: {part.total_wall / whole.total_wall:.2f} of the time;"
                f" positive {found['positive_fraction']:.1%} ({low:.1%} to {high:.1%}), whole"
                f" {all_of_it['positive_fraction']:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
