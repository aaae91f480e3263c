"""/api/v1/slides/…/truth and …/corrections: what is known of a slide, and what people correct."""

import base64
from pathlib import Path

from fastapi import APIRouter

from wsi_pipeline.core.errors import LabelError, StoreError
from wsi_pipeline.labels.corrections import (
    Correction,
    Corrections,
    check_size,
    draw,
    erase,
    relabel,
    remove,
)
from wsi_pipeline.labels.sent_areas import read_area
from wsi_pipeline.outputs.regions import list_polygons
from wsi_pipeline.serve.annotations import READ_ONLY, corrections_file, training_lines
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.result_reader import LoadedResult
from wsi_pipeline.serve.schemas import (
    CorrectedRegion,
    CorrectionBody,
    CorrectionsBody,
    NewCorrections,
    TruthBody,
)
from wsi_pipeline.serve.services import Here, NamedResult, NamedSlide, Services
from wsi_pipeline.serve.slide_routes import FAULTS

router = APIRouter(prefix="/slides/{slide_id}", tags=["annotations"], responses=FAULTS)


@router.get("/truth", summary="True label of each patch, and true regions")
def show_truth(services: Here, entry: NamedSlide, loaded: NamedResult) -> TruthBody:
    """Show the labels of each patch, and their outlines: as evaluated, else beside the slide."""
    slides = [each.file for each in services.catalogue.entries() if each.file is not None]
    try:
        truth = services.truths.read(entry, loaded, slides)
    except (LabelError, StoreError) as error:
        return TruthBody(note=_name_only(error, loaded, entry.file))
    if truth is None:
        return TruthBody()
    return TruthBody(
        source=truth.source,
        class_names=list(truth.class_names),
        labels=base64.b64encode(truth.labels.tobytes()).decode(),
        negative=truth.outlines[0],
        positive=truth.outlines[1],
    )


def _name_only(error: LabelError | StoreError, loaded: LoadedResult, file: Path | None) -> str:
    """Return an error's text without the folders of this machine."""
    text = str(error)
    folders = {loaded.result.folder.parent, *([file.parent] if file else [])}
    for folder in sorted(folders, key=lambda each: -len(str(each))):
        text = text.replace(f"{folder}/", "")
    return text


@router.get("/corrections", summary="Corrected regions")
def show_corrections(services: Here, loaded: NamedResult) -> CorrectionsBody:
    """Show the regions that were drawn on the slide, and how to train with them."""
    return _describe(services, loaded, *corrections_file(loaded).read())


@router.post("/corrections", summary="Draw, relabel or erase a region")
def correct(services: Here, loaded: NamedResult, wanted: CorrectionBody) -> CorrectionsBody:
    """Draw, relabel or erase a region; it is on disk when this answers.

    409: somebody else has changed the corrections since they were read.
    """

    def change(corrections: Corrections) -> Corrections:
        if wanted.action == "remove":
            return remove(corrections, wanted.number)
        if wanted.action == "relabel":
            return relabel(corrections, wanted.number, _class_name(loaded, wanted.class_name))
        area = read_area(wanted.geometry, loaded.table.slide)
        if wanted.action == "erase":
            return erase(corrections, area)
        return draw(corrections, _class_name(loaded, wanted.class_name), area)

    _check_writable(services)
    return _describe(services, loaded, *corrections_file(loaded).change(wanted.version, change))


@router.put("/corrections", summary="Replace all corrected regions")
def replace_corrections(
    services: Here, loaded: NamedResult, wanted: NewCorrections
) -> CorrectionsBody:
    """Replace all regions of the slide, as to undo a step or to start from its labels."""

    def change(_: Corrections) -> Corrections:
        slide = loaded.table.slide
        regions = (
            Correction(_class_name(loaded, each.class_name), read_area(each.geometry, slide))
            for each in wanted.regions
        )
        return check_size(tuple(regions))

    _check_writable(services)
    return _describe(services, loaded, *corrections_file(loaded).change(wanted.version, change))


def _check_writable(services: Services) -> None:
    if services.settings.reviewer is None:
        raise Refusal(403, READ_ONLY)


def _class_name(loaded: LoadedResult, name: str | None) -> str:
    names = loaded.table.class_names
    if name not in names:
        raise LabelError(f"class {str(name)[:40]!r} is unknown; choose {names[0]} or {names[1]}")
    return name


def _describe(
    services: Services, loaded: LoadedResult, corrections: Corrections, version: str
) -> CorrectionsBody:
    slide = loaded.table.slide
    run_name = next(
        run.name
        for run in services.catalogue.runs
        if run.folder == loaded.result.folder.parent.absolute()
    )
    return CorrectionsBody(
        version=version,
        class_names=list(loaded.table.class_names),
        can_write=services.settings.reviewer is not None,
        regions=[
            CorrectedRegion(
                number=number,
                class_name=each.class_name,
                area_mm2=each.area.area * (slide.mpp / 1000) ** 2,
                outline=list_polygons(each.area),
            )
            for number, each in enumerate(corrections)
        ],
        lines=training_lines(run_name) if corrections else [],
    )
