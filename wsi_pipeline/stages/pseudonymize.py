"""Slides and patients under pseudonyms: from here on no job knows another name of theirs."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.pseudonyms import Pseudonyms, Veil
from wsi_pipeline.labels.user_mask import match_mask
from wsi_pipeline.slides.discovery import FoundSlide
from wsi_pipeline.stages.ingest_layouts import LeftOut, PatientPatches

LABELS = "labels"
MASKS = "masks"
MIRAX, DICOM = ".mrxs", ".dcm"


def disguise_slides(
    slides: Sequence[FoundSlide], pseudonyms: Pseudonyms | None
) -> list[FoundSlide]:
    """The slides by links that carry their pseudonyms, with label files and patients likewise; as they are without `pseudonyms`.

    A run that reads through these links can tell nobody the slides' names, whatever raises, logs or
    records a path.
    """
    return (
        list(slides)
        if pseudonyms is None
        else [_disguise_slide(slide, pseudonyms) for slide in slides]
    )


def _disguise_slide(slide: FoundSlide, pseudonyms: Pseudonyms) -> FoundSlide:
    name = pseudonyms.name(slide.slide_id)
    return replace(
        slide,
        slide_id=name,
        path=_link_slide(slide.path, name, pseudonyms),
        patient_id=None if slide.patient_id is None else pseudonyms.name(slide.patient_id),
        label_file=(
            None
            if slide.label_file is None
            else pseudonyms.link(slide.label_file, f"{name}.{LABELS}")
        ),
        mpp_source="user",  # not the name of a table
    )


def _link_slide(path: Path, name: str, pseudonyms: Pseudonyms) -> Path:
    """A link to a slide, beside links to what else it consists of: the folder of a MIRAX, the other files of a DICOM series."""
    suffix = path.suffix.lower()
    if suffix == DICOM:
        own = pseudonyms.below(name)
        for other in path.parent.glob(f"*{path.suffix}"):
            if other != path:
                own.link(other, own.name(other.name))
        return own.link(path, name)
    if suffix == MIRAX and path.with_suffix("").is_dir():
        pseudonyms.link(path.with_suffix(""), name)
    return pseudonyms.link(path, name)


def disguise_masks(
    slides: Sequence[FoundSlide], masks: tuple[Path, ...], pseudonyms: Pseudonyms | None
) -> tuple[Path, ...]:
    """The users' masks of these slides (by their real names) under the slides' pseudonyms; those of no slide are left out."""
    if pseudonyms is None:
        return masks
    own = pseudonyms.below(MASKS)
    found: list[Path] = []
    for slide in slides:
        try:
            found.append(own.link(match_mask(slide.path.stem, masks), own.name(slide.slide_id)))
        except LabelError:
            continue  # the slide's own job says that it has none
    return tuple(found) or masks[:0]


def disguise_patients(
    patients: Sequence[PatientPatches], pseudonyms: Pseudonyms | None
) -> list[PatientPatches]:
    """The patients under pseudonyms; their files keep their names, by which they are read."""
    if pseudonyms is None:
        return list(patients)
    disguised = [
        replace(patient, patient_id=pseudonyms.name(patient.patient_id)) for patient in patients
    ]
    return sorted(disguised, key=lambda patient: patient.patient_id)


def disguise_left_out(left_out: Iterable[LeftOut], pseudonyms: Pseudonyms | None) -> list[LeftOut]:
    """Files that became no patches, under pseudonyms."""
    return [
        entry if pseudonyms is None else LeftOut(pseudonyms.name(entry.file), entry.reason)
        for entry in left_out
    ]


def veil_slides(slides: Sequence[FoundSlide], pseudonyms: Pseudonyms | None) -> Veil:
    """What takes the real names of slides and patients out of texts."""
    if pseudonyms is None:
        return Veil()
    names: dict[str, str] = {}
    for slide in slides:
        name = pseudonyms.name(slide.slide_id)
        for file in filter(None, (slide.path, slide.label_file)):
            names |= {
                str(file.absolute()): name,
                str(file): name,
                file.name: name,
                str(file.absolute().parent): "…",
                os.path.realpath(file): name,  # Path.resolve raises where links run in a circle
            }
        names |= {slide.slide_id: name, slide.path.stem: name}
        names |= {slide.patient_id: pseudonyms.name(slide.patient_id)} if slide.patient_id else {}
    return Veil(names)


def veil_patients(patients: Sequence[PatientPatches], pseudonyms: Pseudonyms | None) -> Veil:
    """What takes the real names of patients, and of the files of their patches, out of texts."""
    if pseudonyms is None:
        return Veil()
    names: dict[str, str] = {}
    for patient in patients:
        names |= {str(patient.folder): "…", patient.patient_id: pseudonyms.name(patient.patient_id)}
        for entry in patient.entries:
            alias = pseudonyms.name(entry.file)
            names |= {
                entry.file: alias,
                str(patient.folder / entry.file): alias,
                Path(entry.file).name: alias,
            }
    return Veil(names)
