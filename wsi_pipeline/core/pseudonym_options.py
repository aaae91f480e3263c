"""Options of `wsi pseudonymize`; `options` says how they are declared."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from wsi_pipeline.core.options import CLASSES, SheetOptions, option

# fmt: off


@dataclass(frozen=True, kw_only=True)
class PseudonymizeOptions(SheetOptions):
    """Options of `wsi pseudonymize`."""

    recursive: bool = option(False, None, "Go into folders within folders.")
    key_file: Path = option(MISSING, None,
        "File with the secret key, outside of DIR; made if it does not exist. Keep it: the same key"
        " gives the same pseudonyms.", flag="--key", metavar="KEYFILE", path="no folder")
    patient_regex: str | None = option(None, None,
        "Where the patient stands in a slide's file name; the part in parentheses. [default: every"
        " slide is a patient of its own]", metavar="REGEX")
    labels: Sequence[str] = option((), None,
        "Label files to link, matched by name. [default: auto, the file beside each slide]",
        metavar="auto|FILE|DIR")
    mask: Path | None = option(
        None, None, "Tissue masks to link, named like the slides.", metavar="DIR")
    mpp_csv: Path | None = option(
        None, None, "µm per pixel of single slides, columns wsi and mpp; goes into slides.csv.",
        metavar="CSV", path="file")
    split_file: Path | None = option(None, None,
        "A published split of patients, as `wsi train` reads it; becomes split.json.",
        metavar="DIR|JSON")
    layout: str | None = option(
        None, None, "Link ready-cut patches instead of slides; layouts as in `wsi ingest`.",
        choices=("idc", "folders", "csv"))
    class_names: tuple[str, str] | None = option(
        None, None, "With --layout folders or csv: the names of the classes.", metavar=CLASSES)
