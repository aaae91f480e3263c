"""The names on offer are those that there are: every table has exactly the names of `choices`."""

import ast

import pytest

from tests import ROOT
from wsi_pipeline.core.choices import (
    ARCHITECTURE_NAMES,
    CLUSTERS,
    DEFAULT_ARCHITECTURE,
    ENGINE_NAMES,
    INITIALISATION_NAMES,
    LAYOUT_NAMES,
    MODEL_FORMATS,
    ON_REQUEST,
    OPTIMIZER_NAMES,
    OUTPUT_GROUPS,
    PATCH_FORMATS,
    PRESET_NAMES,
    READER_NAMES,
    RESERVED,
    SCHEDULE_NAMES,
)
from wsi_pipeline.core.training_options import PRESETS
from wsi_pipeline.models.architectures import ARCHITECTURES
from wsi_pipeline.models.engines import ENGINES
from wsi_pipeline.models.export import FORMATS
from wsi_pipeline.outputs import WRITERS
from wsi_pipeline.scheduling.clusters import STARTERS
from wsi_pipeline.slides import READERS
from wsi_pipeline.stages.export_patches import EXPORTS
from wsi_pipeline.stages.ingest_layouts import LAYOUTS
from wsi_pipeline.training.optimise import INITIALISATIONS, OPTIMIZERS, SCHEDULES


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (ARCHITECTURE_NAMES, ARCHITECTURES),
        (CLUSTERS, STARTERS),
        (ENGINE_NAMES, ENGINES),
        (INITIALISATION_NAMES, INITIALISATIONS),
        (LAYOUT_NAMES, LAYOUTS),
        (MODEL_FORMATS, FORMATS),
        (OPTIMIZER_NAMES, OPTIMIZERS),
        ((*OUTPUT_GROUPS["all"], *ON_REQUEST), WRITERS),
        (PATCH_FORMATS, EXPORTS),
        (PRESET_NAMES, PRESETS),
        (READER_NAMES, READERS),
        ((*SCHEDULE_NAMES, "rise"), SCHEDULES),  # only the learning rate finder uses "rise"
    ],
)
def test_the_names_are_those_of_the_table(names: tuple[str, ...], table: dict[str, object]) -> None:
    assert list(table) == list(names)


def test_the_default_network_exists() -> None:
    assert DEFAULT_ARCHITECTURE in ARCHITECTURES


def test_the_names_of_outputs_are_not_those_of_groups() -> None:
    assert not set(OUTPUT_GROUPS) & set(WRITERS)


def test_reserved_names_are_in_lower_case() -> None:
    assert all(name == name.casefold() for name in RESERVED)  # slides are compared by casefold


def test_names_need_no_import() -> None:
    tree = ast.parse((ROOT / "wsi_pipeline/core/choices.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
