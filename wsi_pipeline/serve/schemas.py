"""Bodies of requests and answers, as OpenAPI shows them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.outputs.regions import Polygons
from wsi_pipeline.serve.job_queue import JobState


class Fault(BaseModel):
    """An error."""

    error: str
    id: str = Field(description="The server's log says more under this id.")


class RunBody(BaseModel):
    """One results folder."""

    run_id: str
    name: str


class FailureBody(BaseModel):
    """A slide of the last run that failed."""

    slide_id: str
    reason: str


class SlideUnderWay(BaseModel):
    """A slide that is being inferred."""

    slide_id: str
    blocks_done: int
    blocks: int | None = Field(description="Null until its patches are chosen.")


class LiveBody(BaseModel):
    """The last `wsi` run over a results folder, while it is under way and afterwards."""

    is_under_way: bool
    ending: str = Field(description="ended, stopped, killed, under way, or begun (not known).")
    slides: int
    slides_ended: int
    patches_done: int | None = Field(description="Null unless under way, as the next ones.")
    patches_expected: float | None
    rate: float | None = Field(description="Patches per second, over the last five minutes.")
    seconds_left: float | None
    slides_under_way: list[SlideUnderWay]
    failures: list[FailureBody] = Field(description="As they came; the first thousand.")


class ListedRun(RunBody):
    """One results folder in the list."""

    live: LiveBody | None = Field(description="Null where no run has left a log of events.")


class SlideRow(BaseModel):
    """One line of the slide list."""

    slide_id: str
    version: str = Field(description="Changes whenever the results on disk do.")
    has_file: bool
    can_run: bool = Field(description="True if POST /jobs may run it.")
    patient_id: str | None = Field(description="By its first readable results; null: none.")
    columns: dict[str, str] = Field(
        description="Free columns of the sample sheet, such as the site; by the same results."
    )
    summaries: dict[str, SlideSummary | None] = Field(description="By run; null where damaged.")
    concerns: dict[str, dict[str, str]] = Field(
        description="By run and kind (damaged, unlike, near): why to look at it before others."
    )


class SlideList(BaseModel):
    """Every slide that is served."""

    runs: list[ListedRun]
    can_predict: bool
    can_run_jobs: bool
    can_review: bool = Field(description="True if patches may be called on the page /review.")
    can_write_excel: bool = Field(description="True if POST /tables/xlsx is possible here.")
    slides: list[SlideRow]


class TableRequest(BaseModel):
    """The slides of a table of metrics."""

    model_config = ConfigDict(extra="forbid")

    run_id: str = Field(max_length=200)
    slide_ids: list[str] | None = Field(
        None, max_length=100_000, description="In this order; null: every slide of the run."
    )


class TilesBody(BaseModel):
    """The slide's tiles: level 0 is the scan, level k the scan reduced 2ᵏ times.

    Tiles at the edges are smaller.
    """

    tile_px: int
    coarsest: int


class ResultBody(RunBody):
    """One run's results on the slide."""

    summary: SlideSummary
    interval: str = Field(description="The interval of the count and its source, in words.")
    distance: str = Field(
        description="Distance from the model's training patches, in words; empty: not known."
    )
    counting: str = Field(description="What the count is a count of, in words.")
    threshold: float = Field(description="The one that the results show.")
    model_threshold: float = Field(description="The model's own for counting.")
    positive_class: str
    grid: dict[str, Any] = Field(description="Where its patches lie, in level-0 pixels.")
    model: dict[str, Any]
    overview: dict[str, Any] = Field(description="Where its tissue mask lies, in level-0 pixels.")
    has_tissue: bool = Field(description="True if the results hold their tissue mask.")


class SlideBody(BaseModel):
    """A slide and what is known of it."""

    slide_id: str
    version: str
    slide: dict[str, Any] = Field(description="Size, bounds, scale: nothing else leaves the file.")
    overview: dict[str, Any] = Field(description="Where the thumbnail lies, in level-0 pixels.")
    tiles: TilesBody | None
    tiles_note: str | None = Field(description="The reason where there are no tiles.")
    results: list[ResultBody]
    damaged_runs: list[RunBody] = Field(description="Left out: their results are damaged.")
    colours: str = Field(description="The 256 colours of the map, base64 of RGB.")
    colormaps: dict[str, str] = Field(description="All that can be chosen, the first shown first.")
    centred: list[str] = Field(description="Colormaps whose middle stands for the threshold.")


class RegionBody(BaseModel):
    """Positive patches that touch."""

    number: int
    patches: int
    area_mm2: float
    mean_probability: float
    max_probability: float
    bounds_l0: list[float]
    peak_xy_l0: list[float]
    outline: Polygons = Field(
        description="Polygons of rings of x, y in level-0 pixels; the first ring is the outer."
    )


class RegionsBody(BaseModel):
    """Regions at a threshold, strongest (mean probability × area) first."""

    threshold: float
    min_area_mm2: float = Field(description="Smaller ones are left out.")
    found: int
    regions: list[RegionBody]


class PieceBody(BaseModel):
    """A piece of tissue: a section, a core, a spot; or the rest, which is specks."""

    tissue_id: int = Field(description="1 … in rows from top to bottom; 0: the rest.")
    name: str
    area_mm2: float
    patches: int
    assessed: int = Field(description="Patches with a probability.")
    positives: int
    positive_mm2: float
    positive_fraction: float | None = Field(description="Of the assessed patches.")
    bounds_l0: list[float] | None = Field(description="x0, y0, x1, y1; null without tissue.")
    outline: list[list[list[list[float]]]] = Field(
        description="Polygons of rings of x, y in level-0 pixels; the first ring is the outer."
    )


class TissueBody(BaseModel):
    """The pieces of tissue on the glass, by number, the rest last; none without a tissue mask."""

    pieces: list[PieceBody]


class ImagePrediction(BaseModel):
    """One image: `probability` where it is a patch, else `grid` and `probabilities` by row."""

    image: int
    size: list[int]
    positives: int
    probability: float | None
    grid: dict[str, Any] | None
    probabilities: list[list[float | None]] | None


class PredictionBody(BaseModel):
    """Probabilities of the positive class, with the threshold and the model's terms of use."""

    positive_class: str
    threshold: float = Field(description="The model's threshold for counting patches alone.")
    context_um: float = Field(description="0: each patch alone; images have no neighbours.")
    model: dict[str, Any]
    images: list[ImagePrediction]


class JobRequest(BaseModel):
    """The slide to infer."""

    model_config = ConfigDict(extra="forbid")

    slide_id: str = Field(max_length=200)
    force: bool = Field(False, description="Overwrite results of another run or model.")
    region: dict[str, Any] | None = Field(
        None,
        description="GeoJSON of polygons, in level-0 pixels: infer only there, keep other results.",
    )


class JobBody(BaseModel):
    """One inference."""

    job_id: str
    slide_id: str
    state: JobState
    patches_done: int
    patches_total: int
    message: str


class TruthBody(BaseModel):
    """The known labels of a slide; everything is empty where nothing is known."""

    source: str = Field(default="", description="Name of the label file.")
    note: str = Field(default="", description="The reason where the labels cannot be read.")
    class_names: list[str] = []
    labels: str = Field(
        default="",
        description="int8 of each patch in row order, base64: 0 negative, 1 positive, -1 unknown.",
    )
    negative: Polygons = Field(default=[], description="Its area in level-0 pixels.")
    positive: Polygons = Field(default=[], description="Its area in level-0 pixels.")


class CorrectedRegion(BaseModel):
    """One region that a person drew."""

    number: int
    class_name: str
    area_mm2: float
    outline: Polygons


class CorrectionsBody(BaseModel):
    """The regions that people drew on a slide."""

    version: str = Field(
        description="Changes with the regions; requests that change them state it."
    )
    class_names: list[str]
    can_write: bool
    regions: list[CorrectedRegion]
    lines: list[str] = Field(description="The commands that train with them.")


class DrawnAreaBody(BaseModel):
    """A drawn area, in which every run assesses the slide."""

    number: int
    area_mm2: float
    outline: Polygons


class DrawnBody(BaseModel):
    """The drawn areas of a slide."""

    version: str = Field(
        description="Changes with the regions; requests that change them state it."
    )
    run_id: str | None = Field(description="The results that they belong to; null: none.")
    can_write: bool = Field(description="True if POST /jobs may run the slide.")
    areas: list[DrawnAreaBody]


class NewCorrection(BaseModel):
    """One region with its class."""

    model_config = ConfigDict(extra="forbid")

    class_name: str = Field(max_length=200)
    geometry: dict[str, Any] = Field(description="GeoJSON of polygons, in level-0 pixels.")


class NewCorrections(BaseModel):
    """All regions of a slide."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(max_length=64)
    regions: list[NewCorrection] = Field(max_length=5000)


class CorrectionBody(BaseModel):
    """One change of the corrections: of an area, or of a region by its number."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(max_length=64)
    action: Literal["draw", "erase", "relabel", "remove"]
    class_name: str | None = Field(default=None, max_length=200)
    number: int = Field(default=-1, ge=-1, le=10_000)
    geometry: dict[str, Any] | None = Field(
        default=None, description="GeoJSON of polygons, in level-0 pixels."
    )
