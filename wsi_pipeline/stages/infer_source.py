"""The request for a slide's predictions: settings, source of the patches, and present results.

`InferRequest` holds the settings, opens the source of the patches (the slide, whole or in part, or
its patch store) and compares recipes with the product that exists. `InferJob` in `infer.py` adds
the work.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from wsi_pipeline.core.errors import LabelError, StoreError
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.models.card import ModelFacts
from wsi_pipeline.models.choice import ModelChoice
from wsi_pipeline.models.loading import read_unchanged
from wsi_pipeline.outputs import View
from wsi_pipeline.slides import open_found
from wsi_pipeline.slides.base import SlideReader
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.stages.part import (
    AREAS_ALONE,
    Sampling,
    add_areas,
    areas_entry,
    draw_sample,
    drop_areas,
    find_areas,
    is_larger_sample,
    is_of_areas,
    is_other_part,
    is_part,
    is_same_but_part,
    read_extensible,
    with_part_of,
)
from wsi_pipeline.stages.predict import ENGINE
from wsi_pipeline.stages.tile import TileJob, find_mask, plan_patches
from wsi_pipeline.stages.tile_config import TileConfig, settle, tile_recipe
from wsi_pipeline.store.commit import LookFor, Staging, without_view
from wsi_pipeline.store.manifest import Manifest, is_product, read_manifest
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.predictions import SAMPLE, is_estimate
from wsi_pipeline.store.slide_results import RESULT_KIND, open_result


def describe_engine(entry: Mapping[str, Any]) -> str:
    """Return the recorded engine of predictions, in words."""
    return f"{entry.get('engine')} {entry.get('precision')} ({entry.get('device')})"


class Source(NamedTuple):
    """Source of a slide's patches."""

    slide: SlideInfo
    recipe: dict[str, Any]
    """Everything that decides the patches."""
    choose_patches: Callable[[], PatchTable]
    """Finds the patches, which may take a while; only called where no table is on disk."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One slide to predict, and the settings of its predictions and outputs."""

    slide: FoundSlide
    """A slide file, or a patch store where `is_store`."""
    out: Path
    model: ModelChoice
    config: TileConfig
    is_store: bool = False
    force: bool = False
    view: View = field(default_factory=View)
    keep: TileJob | None = None
    """The job of the patch store that is written at the same time, or read if it exists."""
    takes_any_engine: bool = False
    """True if a finished slide is done whichever engine computed it."""
    masks: tuple[Path, ...] = ()
    """The user's masks, one of them this slide's; empty where tissue is found here."""
    sampling: Sampling | None = None
    """The sample that is asked for; None: the whole slide."""
    extends: bool = False
    """True if only the drawn areas are asked for: they join the results; without results they are
    all that is assessed.
    """

    @property
    def target(self) -> Path:
        """Folder of the slide's results."""
        return self.out / self.slide.slide_id

    def open(self) -> closing[SlideReader]:
        """Return the open slide."""
        scale, icc = self.config.scale_of(self.slide), self.config.spec.icc
        return closing(open_found(self.slide, scale, self.config.reader, icc))

    def read_facts(self) -> ModelFacts:
        """Return what the model states, read without its engine. Raises ModelError."""
        return read_unchanged(self.model.path, self.model.digest, self.model.terms)

    @contextmanager
    def open_source(self) -> Iterator[Source]:
        """Open the slide or the store until the block ends.

        Raises SlideError, StoreError and LabelError.
        """
        if self.is_store:
            store = PatchStore(self.slide.path)
            recipe = {"store": store.manifest.content_digest}
            yield Source(store.slide, recipe, lambda: store.table)
            return
        columns = dict(self.slide.columns)
        with self.open() as reader:
            if self.extends and not self._takes_areas_alone:
                yield self._extend(reader)
                return
            config = self.settle_cutting(reader.info)

            def choose() -> PatchTable:
                chosen = self._chosen
                if self._takes_areas_alone:
                    chosen = (*chosen[:2], self._require_areas())
                table, _ = plan_patches(reader, config, *chosen)
                return self._take_part(reader, replace(table, columns=columns))

            yield Source(reader.info, self._recipe_by(reader.info, config), choose)

    def _recipe_by(self, slide: SlideInfo, config: TileConfig) -> dict[str, Any]:
        """Return the source's recipe for the part of the slide that is asked for."""
        part: dict[str, Any] = areas_entry(self._areas)
        if self.sampling is not None:
            part = {SAMPLE: asdict(self.sampling)}
        elif self._takes_areas_alone:
            part |= {AREAS_ALONE: True}
        return tile_recipe(slide, config, *self._chosen) | self.slide.columns_entry | part

    @property
    def _areas(self) -> Path | None:
        """The areas drawn on the slide; None without any, and for a sample or a kept store."""
        leaves_out = self.sampling is not None or self.keep is not None
        return None if leaves_out else find_areas(self.out, self.slide.slide_id)

    def _require_areas(self) -> Path:
        if (areas := self._areas) is None:
            raise LabelError(f"{self.slide.path}: no area is drawn on it; draw one first")
        return areas

    @property
    def _takes_areas_alone(self) -> bool:
        """True where drawn areas are asked for, and the results are of them alone, or absent."""
        if not self.extends:
            return False
        return not is_product(self.target) or is_of_areas(read_manifest(self.target).recipe)

    def _take_part(self, reader: SlideReader, table: PatchTable) -> PatchTable:
        """Return the table of the sample, or the table with the patches of drawn areas."""
        if self.sampling is not None:
            context_um = self.read_facts().terms.on_grid.context_um
            return draw_sample(reader, table, self.sampling, context_um)
        areas = self._areas
        return table if areas is None else add_areas(reader, table, areas)

    def _extend(self, reader: SlideReader) -> Source:
        """Return the source of the finished product's patches and those of the present areas."""
        source, areas = read_extensible(self.target, reader.info), self._areas
        recipe = source | areas_entry(areas)

        def choose() -> PatchTable:
            table = open_result(self.target).table
            return drop_areas(table) if areas is None else add_areas(reader, table, areas)

        return Source(reader.info, recipe, choose)

    @property
    def _chosen(self) -> tuple[None, str | None, Path | None]:
        """No labels, the patient and the user's mask, in the order of `plan_patches`."""
        return None, self.slide.patient_id, find_mask(self.slide, self.masks)

    def settle_cutting(self, slide: SlideInfo) -> TileConfig:
        """Return how the slide is cut: by otsu where that made what is here and is taken, too."""

        def stage(config: TileConfig) -> Staging:
            staging = self.stage(self._recipe_by(slide, config))
            if is_product(self.target):
                made = read_manifest(self.target).recipe
                if is_other_part(made, staging.recipe):  # another part, cut the same way
                    return Staging(self.target, without_view(made))
            return staging

        if self.force:
            return replace(self.config, takes_otsu=False)
        config = settle(self.config, stage)
        if self.keep is None or stage(config).is_begun:
            return config
        return replace(config, tissue=self.keep.settle(slide).tissue)

    def stage(self, source_recipe: dict[str, Any]) -> Staging:
        """Return the staging of the predictions of a source.

        Its recipe is that of the finished product where that is what is asked for: a whole slide
        is, where a sample is asked for. Raises StoreError where another engine computed it.
        """
        new = self.model.setting.to_json()  # not the size of batches, which changes the last bits
        recipe = {"source": source_recipe, "model": self.model.digest, ENGINE: new}
        if self.force or not is_product(self.target):
            return Staging(self.target, recipe)
        made = without_view(read_manifest(self.target).recipe)
        old = made.get(ENGINE)
        is_it = {**made, ENGINE: new} == recipe
        if self._is_enough(made):
            is_it = is_same_but_part({**made, ENGINE: new}, recipe)
        if is_it and (old == new or self.takes_any_engine):
            return Staging(self.target, made)
        is_same = is_same_but_part({**made, ENGINE: new}, recipe)
        if not isinstance(old, Mapping) or old == new or not is_same:
            return Staging(self.target, recipe)
        one, other = (describe_engine(entry) for entry in (old, new))
        raise StoreError(
            f"{self.target}: was computed by {one}, this run computes by {other}, and their"
            f" results are not the same; run with --engine {old.get('engine')} --precision"
            f" {old.get('precision')}, with --force to replace it, or into another folder"
        )

    def _is_enough(self, made: Mapping[str, Any]) -> bool:
        """Return True where results hold more than what is asked for, which they stay for."""
        if self.sampling is not None and is_estimate(made):
            return is_larger_sample(made["source"][SAMPLE], self.sampling)
        is_less = self.sampling is not None or self.keep is not None
        return is_less and not is_part(made)

    def look_for(self, staging: Staging, look: LookFor) -> Manifest | None:
        """Return what `look` finds; None also where the product is of another part of the slide."""
        if is_product(self.target) and not self.force:
            made = read_manifest(self.target).recipe
            if is_other_part(made, staging.recipe):
                return None
            staging = Staging(self.target, with_part_of(made, staging.recipe))  # to name the rest
        return look(staging, RESULT_KIND, self.force, [self.slide.path, self.model.path])
