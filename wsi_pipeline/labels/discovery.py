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
            found += sorted(path for path in place.iterdir() if is_label_file(path))
        elif place.exists():
            found.append(place)
        else:
            raise LabelError(f"{place}: no such file or folder; check the path")
    if not found:
        raise LabelError(
            f"{', '.join(map(str, places))}: no annotations or *{LABEL_ENDING}.png among them; name"
            " the label files"
        )
    return found


def is_label_file(path: Path) -> bool:
    """Return whether a file is a label file; of images, only those called `*_labels`."""
    suffix = path.suffix.lower()
    return (
        path.is_file()
        and suffix in LABEL_SUFFIXES
        and (suffix not in IMAGE_SUFFIXES or path.stem.endswith(LABEL_ENDING))
    )


def match_labels(slide_id: str, files: Sequence[Path]) -> Path | None:
    """Return the label file of a slide; None where there is none.

    Its stem without `_labels` is the slide's name, or its beginning up to `_`, `-` or `.`:
    `idc_8863_labels.png` belongs to `idc_8863_mosaic`. The longest match wins; raises LabelError
    where two are as long.
    """
    fitting = [
        (len(stem), path)
        for path in files
        if _belongs(stem := path.stem.removesuffix(LABEL_ENDING), slide_id)
    ]
    if not fitting:
        return None
    longest = max(length for length, _ in fitting)
    best = [path for length, path in fitting if length == longest]
    if len(best) > 1:
        raise LabelError(
            f"{slide_id}: both {best[0]} and {best[1]} could be its labels; name one of them"
        )
    return best[0]


def find_beside(slide: Path) -> Path | None:
    """Return the label file beside a slide, by its name. Raises LabelError for two."""
    beside = [
        path for path in sorted(slide.parent.iterdir()) if path != slide and is_label_file(path)
    ]
    return match_labels(slide.stem, beside)


def _belongs(stem: str, slide_id: str) -> bool:
    return stem != "" and (
        slide_id == stem or (slide_id.startswith(stem) and slide_id[len(stem)] in "_-.")
    )
