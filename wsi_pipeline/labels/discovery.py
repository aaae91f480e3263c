"""Search for label files, and the match between label files and slides."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.labels.annotation import IMAGE_SUFFIXES, LABEL_SUFFIXES

LABEL_ENDING = "_labels"


def list_label_files(places: Iterable[Path]) -> list[Path]:
    """Return the label files among files and folders.

    In a folder, these are annotations, and images called `*_labels.png` or `.tif`. Raises
    LabelError where there is none.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(filter(_is_label_file, place.iterdir()))
        elif place.exists():
            found.append(place)
        else:
            raise LabelError(f"{place}: no such file or folder; check the path")
    if not found:
        where = ", ".join(map(str, places))
        raise LabelError(f"{where}: no annotations or *_labels.png; name the label files")
    return found


def _is_label_file(path: Path) -> bool:
    """Return whether a file is a label file; of images, only those called `*_labels`."""
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    is_named = path.stem.endswith(LABEL_ENDING) or not is_image
    return is_named and path.suffix.lower() in LABEL_SUFFIXES and path.is_file()


def match_labels(slide_id: str, files: Sequence[Path]) -> Path | None:
    """Return the label file of a slide; None where there is none.

    Its stem without `_labels` is the slide's name, or its beginning up to `_`, `-` or `.`:
    `idc_8863_labels.png` belongs to `idc_8863_mosaic`. The longest match wins; raises LabelError
    where two are as long.
    """
    stems = [(path.stem.removesuffix(LABEL_ENDING), path) for path in files]
    fitting = [(len(stem), path) for stem, path in stems if _belongs(stem, slide_id)]
    longest = max((length for length, _ in fitting), default=0)
    best = [path for length, path in fitting if length == longest]
    if len(best) > 1:
        raise LabelError(
            f"{slide_id}: both {best[0]} and {best[1]} could be its labels; name one of them"
        )
    return best[0] if best else None


def find_beside(slide: Path) -> Path | None:
    """Return the label file beside a slide, by its name. Raises LabelError for two."""
    files = filter(_is_label_file, sorted(slide.parent.iterdir()))
    return match_labels(slide.stem, [path for path in files if path != slide])


def _belongs(stem: str, slide_id: str) -> bool:
    return stem != "" and (
        slide_id == stem or (slide_id.startswith(stem) and slide_id[len(stem)] in "_-.")
    )
