"""slides.csv, slides.parquet, failures.csv and run.json: what a run came to."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import (
    AGGREGATE_JSON,
    COMPARISON_CSV,
    EVALUATION_CSV,
    EVALUATION_GROUPS_CSV,
    EVALUATION_HTML,
    EVALUATION_PATIENTS_CSV,
    FAILURES_CSV,
    INDEX_HTML,
    MANIFEST,
    PATIENTS_CSV,
    RUN_JSON,
    SLIDES_CSV,
    SLIDES_PARQUET,
)
from wsi_pipeline.core.csv_io import format_csv, round_number
from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.core.outcome import (
    SlideOutcome,
    SlideSummary,
    describe_counting,
    describe_failure,
    find_failures,
    list_concerns,
)
from wsi_pipeline.outputs.dicom import SOURCE_JSON
from wsi_pipeline.outputs.patients import PatientSummary, summarise_patients
from wsi_pipeline.outputs.png import GALLERY_PNG, HEATMAP_PNG, OVERLAY_PNG, SPREAD_LABEL, SPREAD_PNG
from wsi_pipeline.outputs.summary_json import add_saved_review, read_summary
from wsi_pipeline.store.files import write_file
from wsi_pipeline.store.manifest import is_product, read_manifest
from wsi_pipeline.store.slide_results import find_results

if TYPE_CHECKING:
    import pyarrow as pa


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table atomically: None as an empty value, no value that a spreadsheet runs."""
    write_file(path, format_csv(header, rows).encode(errors="surrogateescape"))


def write_parquet(path: Path, types: Mapping[str, type], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a Parquet table atomically: str, int and float columns by `types`, null for None."""
    import pyarrow as pa
    import pyarrow.parquet

    columns = {name: _make_column([row[name] for row in rows], types[name]) for name in types}
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pydict(columns), sink)
    write_file(path, sink.getvalue().to_pybytes())


def _make_column(values: Sequence[Any], kind: type) -> "pa.Array":
    from wsi_pipeline.outputs.arrow import make_column, make_text_column

    if kind is str:
        return make_text_column([None if value is None else _clean(value) for value in values])
    numbers: NDArray[Any] = np.array(
        [kind(0 if value is None else value) for value in values], dtype=kind
    )
    return make_column(numbers, np.array([value is None for value in values], dtype=np.bool_))


def _clean(value: Any) -> str:
    # Names of files need not be text; Parquet's strings must be.
    return str(value).encode(errors="surrogateescape").decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Finished:
    """The finished slides of a results folder, read once, so that all its files agree."""

    summaries: tuple[SlideSummary, ...]
    """The summary of every finished slide, by name."""
    damaged: tuple[SlideOutcome, ...]
    """A failure for every slide whose results are not whole."""


def write_slides_tables(results: Path, summaries: Sequence[SlideSummary]) -> None:
    """Write slides.csv and slides.parquet, a row for every finished slide, and patients.csv."""
    types, rows = tabulate_slides(summaries)
    write_csv(results / SLIDES_CSV, list(types), ([row[name] for name in types] for row in rows))
    write_parquet(results / SLIDES_PARQUET, types, rows)
    names = [field.name for field in fields(PatientSummary)]
    patients = (asdict(patient).values() for patient in summarise_patients(summaries))
    write_csv(results / PATIENTS_CSV, names, map(list, patients))


def tabulate_slides(
    summaries: Sequence[SlideSummary],
) -> tuple[dict[str, type], list[dict[str, Any]]]:
    """Return the columns of slides.csv with their types, and its rows.

    The free columns of sample sheets stand behind the others, sorted by name.
    """
    own = {field.name: _plain_type(field.type) for field in fields(SlideSummary)}
    del own["columns"]
    free = {name for summary in summaries for name in summary.columns} - set(own)
    rows = [dict.fromkeys(free) | dict(each.columns) | asdict(each) for each in summaries]
    return own | dict.fromkeys(sorted(free), str), rows


def format_workbook(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Return an Excel workbook of one sheet; no text is run as a formula or becomes a link.

    Raises ConfigError where XlsxWriter is not installed.
    """
    try:
        from xlsxwriter import Workbook
    except ImportError as error:
        what = "Excel files need XlsxWriter, which is not installed"
        raise ConfigError(f"{what}; pip install 'wsi-pipeline[excel]'") from error
    stream = io.BytesIO()
    with Workbook(stream, {"in_memory": True}) as book:
        sheet = book.add_worksheet("slides")
        sheet.freeze_panes(1, 1)
        sheet.autofilter(0, 0, len(rows), len(header) - 1)
        for row, values in enumerate((header, *rows)):
            for column, value in enumerate(values):
                if isinstance(value, int | float):
                    sheet.write_number(row, column, round_number(value))
                elif value is not None:
                    sheet.write_string(row, column, _clean(value))
        sheet.autofit()
    return stream.getvalue()


def _plain_type(annotation: Any) -> type:
    """Return int, float or str for the type of a summary's field, which may also be None."""
    return next((kind for kind in (int, float) if annotation in (kind, kind | None)), str)


def read_finished(results: Path) -> Finished:
    """Return every slide in the results folder."""
    summaries: list[SlideSummary] = []
    damaged: list[SlideOutcome] = []
    for folder in find_results([results]):
        try:
            read_manifest(folder)
            # The folder's name is unique where stores of one slide were inferred side by side.
            summary = replace(read_summary(folder), slide_id=folder.name)
            summaries.append(add_saved_review(summary, folder))
        except (StoreError, MemoryError) as error:
            damaged.append(describe_failure(folder.name, str(folder), error))
    return Finished(tuple(summaries), tuple(damaged))


def write_failures_csv(results: Path, outcomes: Sequence[SlideOutcome], suffix: str = "") -> None:
    """Write the slides of this run that failed or are damaged, with the reason."""
    failures = find_failures(outcomes)
    rows = ([found.slide_id, found.path, found.state, found.message] for found in failures)
    path = results / FAILURES_CSV
    write_csv(path.with_stem(path.stem + suffix), ["slide_id", "path", "state", "reason"], rows)


def write_run_json(results: Path, record: Mapping[str, Any], suffix: str = "") -> None:
    """Write run.json: the options, versions, and seconds of each stage."""
    path = results / RUN_JSON
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_file(path.with_stem(path.stem + suffix), text.encode())


RUN_FILES = (
    *(SLIDES_CSV, SLIDES_PARQUET, PATIENTS_CSV, FAILURES_CSV, RUN_JSON, AGGREGATE_JSON),
    *(EVALUATION_HTML, EVALUATION_CSV, EVALUATION_PATIENTS_CSV, EVALUATION_GROUPS_CSV),
    COMPARISON_CSV,
)
PICTURES = {
    OVERLAY_PNG: "on the slide",
    HEATMAP_PNG: "probability; grey: not assessed",
    SPREAD_PNG: SPREAD_LABEL,
    GALLERY_PNG: "most and least probable patches, and a random sample",
}
NOT_FOR_PEOPLE = (MANIFEST, SOURCE_JSON)


def write_index(results: Path, finished: Finished | None = None) -> Path:
    """Write index.html for a results folder and return its path.

    `finished` is its content, if already read. Raises StoreError for any other folder.
    """
    from wsi_pipeline.outputs.pages import open_template

    finished = finished or read_finished(results)
    if is_product(results):
        raise StoreError(f"{results}: is one slide's folder; give the results folder above it")
    if not finished.summaries and not finished.damaged and not (results / SLIDES_CSV).exists():
        raise StoreError(f"{results}: holds no results; make some with `wsi infer`")
    # Most positive tissue first.
    order = sorted(finished.summaries, key=lambda shown: (-shown.positive_mm2, shown.slide_id))
    page = open_template("index.html").render(
        name=results.resolve().name,
        slides=[(summary, _list_outputs(results / summary.slide_id)) for summary in order],
        states=sorted({summary.state.value for summary in finished.summaries}),
        damaged=finished.damaged,
        first=[(each.slide_id, "; ".join(why)) for each, why in _find_first(order)],
        counting=_describe_counts(order),
        files=[name for name in RUN_FILES if (results / name).exists()],
        pictures=PICTURES,
    )
    write_file(results / INDEX_HTML, page.encode())
    return results / INDEX_HTML


def _find_first(summaries: Sequence[SlideSummary]) -> list[tuple[SlideSummary, list[str]]]:
    """Return the slides to look at first, each with the reasons."""
    concerns = [(summary, list_concerns(summary)) for summary in summaries]
    return [(summary, [*found.values()]) for summary, found in concerns if found]


def _describe_counts(summaries: Sequence[SlideSummary]) -> str:
    """Return what the counts of a page count; slides of several thresholds are said to be so."""
    if len({summary.threshold for summary in summaries}) > 1:
        return (
            "A count is the number of patches at or above the threshold of its slide, which stands"
            " in the table, of those that were assessed. It counts patches, not cells, and is no"
            " grade."
        )
    return describe_counting(summaries[0]) if summaries else ""


def _list_outputs(folder: Path) -> list[str]:
    """Return the files of a slide's folder for people: images first, then the rest by name."""
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    others = sorted(found - {*NOT_FOR_PEOPLE, *PICTURES})
    return [name for name in PICTURES if name in found] + others
