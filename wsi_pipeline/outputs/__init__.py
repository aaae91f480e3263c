"""Outputs: one file per format. A writer is one file and one line in WRITERS."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import OUTPUT_GROUPS
from wsi_pipeline.core.errors import DAMAGES, ConfigError, WsiError
from wsi_pipeline.core.options import AggregateOptions, OutputOptions
from wsi_pipeline.counting.site import SiteCalibration
from wsi_pipeline.outputs.heatmap import Aggregation
from wsi_pipeline.outputs.result import PlotStyle, SlideResult, Writer
from wsi_pipeline.store.commit import VIEW
from wsi_pipeline.store.predictions import is_estimate


def _later(module: str, function: str) -> Writer:
    """Return a writer whose file is imported, with the libraries it needs, at its first use."""

    def write(result: SlideResult, folder: Path) -> None:
        writer: Writer = getattr(import_module(f"{__name__}.{module}"), function)
        writer(result, folder)

    return write


WRITERS: dict[str, Writer] = {
    "heatmap": _later("png", "write_heatmap"),
    "overlay": _later("png", "write_overlay"),
    "spread": _later("png", "write_spread"),
    "gallery": _later("png", "write_gallery"),
    "report": _later("report_html", "write_report"),
    "summary": _later("summary_json", "write_summary"),
    "csv": _later("patches_csv", "write_patches_csv"),
    "parquet": _later("patches_parquet", "write_patches_parquet"),
    "regions": _later("regions_csv", "write_regions_csv"),
    "geojson": _later("regions_geojson", "write_regions_geojson"),
    "tissue": _later("tissue", "write_tissue"),
    "ome-zarr": _later("ome_zarr", "write_ome_zarr"),
    "ome-tiff": _later("ome_tiff", "write_ome_tiff"),
    "geojson-patches": _later("patches_geojson", "write_patches_geojson"),
    "dicom": _later("dicom", "write_dicom"),
}
"""Everything that can be written into a slide's folder besides its predictions."""

ALWAYS = "summary"
"""Without it a slide's folder does not count."""
OF_ESTIMATES = frozenset({ALWAYS, "heatmap", "overlay", "report", "parquet"})
"""Formats that an estimate may have: each says that it is one."""


@dataclass(frozen=True, slots=True)
class View:
    """Everything that decides a slide's outputs, given its predictions."""

    formats: tuple[str, ...] = OUTPUT_GROUPS["all"]
    """Names in WRITERS, in their order; `choose_formats` makes them of what a user names."""
    aggregation: Aggregation = field(default_factory=Aggregation)
    plot_style: PlotStyle = field(default_factory=PlotStyle)

    def to_json(self) -> dict[str, Any]:
        """Return the view as it is recorded in manifests."""
        looks = self.aggregation.to_json() | asdict(self.plot_style)
        return {"formats": list(self.formats)} | looks

    @classmethod
    def from_json(cls, value: Any) -> "View":
        """Return the view that a manifest records. Raises one of `DAMAGES`, or a WsiError."""
        style = PlotStyle(str(value["colormap"]), float(value["alpha"]))
        return cls(choose_formats(value["formats"]), Aggregation.from_json(value), style)

    def keep(self, recipe: Mapping[str, Any]) -> "View":
        """Return the view with threshold, context, smallest region and prevalence of a recipe's.

        Its own where the recipe has none that can be read.
        """
        try:
            kept = Aggregation.from_json(recipe.get(VIEW, {}))
        except (WsiError, *DAMAGES):
            return self
        return replace(self, aggregation=replace(kept, site=self.aggregation.site))

    def fit(self, recipe: Mapping[str, Any]) -> "View":
        """Return the view of a product: an estimate has no formats that need the whole slide."""
        if not is_estimate(recipe):
            return self
        return replace(self, formats=tuple(name for name in self.formats if name in OF_ESTIMATES))

    def describe_left_out(self, recipe: Mapping[str, Any]) -> str:
        """Return which formats `fit` leaves out, to be added to a slide's line; "" for none.

        Who asks for all formats asks for those that there are.
        """
        kept = self.fit(recipe).formats
        names = ", ".join(name for name in self.formats if name not in kept)
        if set(OUTPUT_GROUPS["all"]) <= {*self.formats}:
            return ""
        return names and f"; an estimate has no {names}"

    def at_site(self, site: SiteCalibration | None) -> "View":
        """Return the view with a site's calibration, or without one."""
        return replace(self, aggregation=replace(self.aggregation, site=site))


def choose_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Return the formats named by formats and groups, in the order of WRITERS.

    Raises ConfigError for an unknown name, or where an extra is missing.
    """
    chosen = {ALWAYS}
    for name in names:
        if name not in WRITERS and name not in OUTPUT_GROUPS:
            known = ", ".join([*OUTPUT_GROUPS, *WRITERS])
            raise ConfigError(f"--outputs {name}: no such format; choose from {known}")
        chosen |= set(OUTPUT_GROUPS.get(name, (name,)))
    if "dicom" in chosen:
        from wsi_pipeline.outputs.dicom import check_installed

        check_installed()
    return tuple(name for name in WRITERS if name in chosen)


def check_estimate(options: OutputOptions) -> None:
    """Raise ConfigError where a format is named that no estimate has; groups may hold some."""
    for name in (name.strip() for name in options.outputs.split(",")):
        if name in WRITERS and name not in OF_ESTIMATES:
            raise ConfigError(
                f"--outputs {name}: needs the whole slide, and --sample makes an estimate; leave"
                " one of them out"
            )


def read_view(options: OutputOptions) -> View:
    """Return everything that decides a slide's outputs. Raises ConfigError."""
    names = [name.strip() for name in options.outputs.split(",") if name.strip()]
    aggregation = Aggregation()
    if isinstance(options, AggregateOptions):
        aggregation = Aggregation(
            options.threshold, options.context, options.min_region_mm2, options.prevalence
        )
    return View(choose_formats(names), aggregation, PlotStyle(options.colormap, options.alpha))
