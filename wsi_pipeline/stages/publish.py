"""From predictions in a staging to a committed slide's folder: every output of a view, published in one commit."""

import shutil
from pathlib import Path

from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.outputs import WRITERS, SlideResult
from wsi_pipeline.outputs.heatmap import build_heatmap, summarise
from wsi_pipeline.outputs.result import Sample
from wsi_pipeline.outputs.style import View
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.manifest import is_product
from wsi_pipeline.store.predictions import FOLDER, RESULT_KIND, Predictions


def take_over(staging: Staging, folder: Path) -> None:
    """Begin a product with the predictions of a finished slide's folder, so that only its outputs are made anew."""
    staging.begin()
    try:
        shutil.copytree(folder / FOLDER, staging.product / FOLDER)
    except shutil.Error as error:  # of every file that could not be copied; one says enough
        _, place, reason = error.args[0][0]
        raise EnvironmentFault(
            f"{place}: cannot be written ({reason}); mend that and run the same line again"
        ) from error


def _clear_outputs(product: Path) -> None:
    """Remove what a killed publication wrote: everything but the predictions."""
    for path in product.iterdir():
        if path.name == FOLDER:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def publish(
    staging: Staging, view: View, samples: tuple[Sample, ...] | None, previous: Path
) -> SlideSummary:
    """Aggregate, write every format of the view, commit them together; `previous` is the slide's folder as it stood, if any."""
    predictions = Predictions(staging.product / FOLDER)
    aggregation = view.aggregation
    heatmap = build_heatmap(
        predictions,
        aggregation.threshold,
        smooth_um=aggregation.smooth_um,
        min_region_mm2=aggregation.min_region_mm2,
    )
    summary = summarise(predictions, heatmap)
    result = SlideResult(
        predictions.table,
        heatmap,
        summary,
        view.plot_style,
        samples,
        previous if is_product(previous) else None,
    )
    _clear_outputs(staging.product)
    for name in view.formats:
        WRITERS[name](result, staging.product)
    counts = {
        "patches": summary.patches,
        "unreadable": summary.unreadable,
        "positives": summary.positives,
    }
    staging.commit(RESULT_KIND, counts, view.to_json())
    return summary
