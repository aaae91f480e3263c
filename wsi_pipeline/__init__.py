"""Whole-slide pipeline: tile, train, infer and aggregate on one store.

    import wsi_pipeline as wsi

    wsi.tile("slides", "stores", mpp=0.5, labels="auto")
    wsi.train("stores", "model")
    wsi.infer("slides", "model", "results")
    for slide in wsi.open_results("results"):
        print(slide)

Paths are `str` or `Path`, one or several. Options are keywords with the names and defaults of the
commands' options. Importing this package loads neither torch nor Dask. Scripts whose runs use
worker processes need the usual `if __name__ == "__main__":` guard.
"""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wsi_pipeline.core.errors import WsiError
from wsi_pipeline.core.progress import Listener

if TYPE_CHECKING:
    from wsi_pipeline.core.outcome import RunAccount
    from wsi_pipeline.evaluation import Evaluation
    from wsi_pipeline.models.predictor import Predictor
    from wsi_pipeline.outputs.results import Results
    from wsi_pipeline.runs.tile import IngestAccount
    from wsi_pipeline.serve.notebook import NotebookSlide
    from wsi_pipeline.slides.base import SlideReader
    from wsi_pipeline.store.patches import PatchStore
    from wsi_pipeline.training.folds import FoldsResult
    from wsi_pipeline.training.run import Trained

__all__ = [
    "Listener",
    "WsiError",
    "aggregate",
    "evaluate",
    "infer",
    "ingest",
    "load_model",
    "open_results",
    "open_slide",
    "open_store",
    "tile",
    "train",
]

Place = str | Path
Options = TypeVar("Options")


def tile(
    slides: Place | Iterable[Place] = (),
    out: Place = "stores",
    *,
    sheet: Place | None = None,
    recursive: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> "RunAccount":
    """Cut slides into patches: one patch store per slide in `out`, as `wsi tile` does.

    `slides` are files, folders or patterns; or a `sheet` names them. `options` are those of the
    command, such as `mpp`, `patch_size`, `min_tissue`, `labels` or `workers`. Raises ConfigError
    before anything is written where they do not fit together; a slide that fails is an outcome.
    """
    from wsi_pipeline.core.options import TileOptions
    from wsi_pipeline.runs.tile import tile_slides
    from wsi_pipeline.slides.selection import find_slides

    settings = _read(TileOptions, options)
    found = find_slides(_list(slides), recursive=recursive, sheet=_path(sheet))
    return tile_slides(found, Path(out), settings, listener)


def ingest(
    folder: Place, out: Place = "stores", *, listener: Listener | None = None, **options: Any
) -> "IngestAccount":
    """Write the ready-cut patches of `folder` into one store per patient in `out`, as `wsi ingest`.

    `mpp`, µm per pixel of the patches, must be given. Raises ConfigError.
    """
    from wsi_pipeline.core.options import IngestOptions
    from wsi_pipeline.runs.tile import ingest_patches

    return ingest_patches(Path(folder), Path(out), _read(IngestOptions, options), listener)


def train(
    stores: Place | Iterable[Place] = "stores",
    out: Place = "model",
    *,
    preset: str | None = None,
    listener: Listener | None = None,
    **options: Any,
) -> "Trained | FoldsResult":
    """Train a network on labelled stores, split by patient, as `wsi train` does.

    A `preset` (article-cnn, article-wideresnet) sets the options that are not given. With `folds`,
    train once per fold. Raises ConfigError, ModelError or StoreError.
    """
    from wsi_pipeline.core.training_options import TrainOptions, apply_preset
    from wsi_pipeline.training.folds import train_stores

    settings = _read(TrainOptions, apply_preset(preset, options))
    return train_stores(_list(stores), Path(out), settings, listener)


def infer(
    slides: Place | Iterable[Place] = (),
    model: Place | None = None,
    out: Place = "results",
    *,
    stores: Place | Iterable[Place] = (),
    sheet: Place | None = None,
    recursive: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> "RunAccount":
    """Run a model over slides, or over patch `stores`, and write their results, as `wsi infer`.

    `model` None takes ./model where there is one, else the model in the package called "idc".
    Raises ConfigError or ModelError before anything is written; a slide that fails is an outcome.
    """
    from wsi_pipeline.core.errors import ConfigError
    from wsi_pipeline.core.options import InferOptions
    from wsi_pipeline.models.loading import find_model
    from wsi_pipeline.runs.infer import infer_slides, list_stores
    from wsi_pipeline.slides.selection import find_slides

    settings, places, kept = _read(InferOptions, options), _list(slides), _list(stores)
    if [bool(places), bool(kept), sheet is not None].count(True) != 1:
        raise ConfigError("give one of slides, stores and sheet")
    if kept:
        found = list_stores(kept)
    else:
        found = find_slides(places, recursive=recursive, sheet=_path(sheet))
    return infer_slides(found, find_model(_path(model)), Path(out), settings, listener)


def evaluate(
    results: Place = "results",
    labels: Place | Iterable[Place] = (),
    *,
    threshold: str | float | None = None,
    compare: Place | None = None,
    by: str | None = None,
    sheet: Place | None = None,
    **options: Any,
) -> "Evaluation":
    """Compare predictions with known labels and write the report, as `wsi evaluate`.

    `by` compares the groups of a column, of the results or of a sample `sheet`. `options` are
    those of labels, such as `label_map`. Raises LabelError where no slide has labels.
    """
    from wsi_pipeline.core.options import LabelOptions
    from wsi_pipeline.evaluation import evaluate_results, find_class_names
    from wsi_pipeline.labels.rules import read_rules
    from wsi_pipeline.training.calibrate import parse_threshold_rule

    place = Path(results)
    return evaluate_results(
        place,
        _list(labels),
        read_rules(_read(LabelOptions, options), find_class_names(place)),
        threshold=None if threshold is None else parse_threshold_rule(str(threshold)),
        compare_with=_path(compare),
        by=by,
        sheet=_path(sheet),
    )


def aggregate(
    results: Place = "results",
    out: Place | None = None,
    *,
    listener: Listener | None = None,
    **options: Any,
) -> "RunAccount":
    """Write the outputs of every slide again from its logits, as `wsi aggregate`.

    `options` are those of the command, such as `threshold`, `context` or `outputs`.
    """
    from wsi_pipeline.core.options import AggregateOptions
    from wsi_pipeline.outputs import read_view
    from wsi_pipeline.stages.aggregate import aggregate_results

    settings = _read(AggregateOptions, options)
    view, force = read_view(settings), settings.force
    return aggregate_results(Path(results), view, _path(out), force=force, listener=listener)


def open_slide(
    slide: Place, *, slide_mpp: float | None = None, reader: str = "auto"
) -> "SlideReader":
    """Open a slide: `.info`, `.levels`, and `.read(level, x, y, width, height)`, which gives RGB.

    Raises SlideError.
    """
    from wsi_pipeline.slides import open_slide as open_file

    return open_file(Path(slide), slide_mpp=slide_mpp, reader=reader)


def open_store(store: Place) -> "PatchStore":
    """Open a patch store: `.labels`, `.coords`, `.read_patches(numbers)`, `.dataset()` for torch.

    Raises StoreError where it is incomplete or damaged.
    """
    from wsi_pipeline.store.patches import PatchStore

    return PatchStore(Path(store))


def open_results(results: Place) -> "Results[NotebookSlide]":
    """Open the finished slides of a results folder: `.summary`, `.heatmap`, `.to_frame()` of each.

    They are in order, and found by name too: `results["S1"].show()` is the viewer in a notebook.
    Raises StoreError where there is none, or where one is damaged.
    """
    from wsi_pipeline.serve.notebook import open_results as open_folder

    return open_folder(Path(results))


def load_model(
    model: Place,
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    trust_model: str | None = None,
    positive_class: str | None = None,
    arch: str | None = None,
) -> "Predictor":
    """Load a model as a function: patches uint8 (n, side, side, 3) → probabilities float32 (n,).

    Its size of patches, scale in µm per pixel and threshold are in `.model`. Raises ModelError.
    """
    from wsi_pipeline.core.options import ExternalModelOptions
    from wsi_pipeline.models.choice import read_terms
    from wsi_pipeline.models.loading import load_model as load
    from wsi_pipeline.models.opening import open_predictor

    named = ExternalModelOptions(trust_model=trust_model, positive_class=positive_class, arch=arch)
    loaded = load(Path(model), read_terms(named))
    return open_predictor(loaded, device, engine, precision, batch_size).predictor


def _list(places: Place | Iterable[Place]) -> list[Path]:
    return [Path(place) for place in ([places] if isinstance(places, str | Path) else places)]


def _path(place: Place | None) -> Path | None:
    return None if place is None else Path(place)


def _read(kind: type[Options], options: dict[str, Any]) -> Options:
    """Return the options object; raise TypeError for a keyword that it does not have."""
    known = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    settings = dict(options)
    for name, value in options.items():
        if name not in known:
            raise TypeError(f"there is no option {name}; there are {', '.join(sorted(known))}")
        if "Path" in known[name] and "Sequence" not in known[name] and isinstance(value, str):
            settings[name] = Path(value)
        elif "Sequence" in known[name] and isinstance(value, str | Path):
            settings[name] = (value,)
    return kind(**settings)
