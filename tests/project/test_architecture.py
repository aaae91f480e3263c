"""Floors and doors: imports point down, each outside library has one door."""

import ast
import importlib
import os
from pathlib import Path

import pytest

from tests import ROOT
from tests.builders import tissue, write_model, write_slide

FLOORS: dict[str, int] = {
    "__init__": 7,
    "core": 0,
    "slides": 1,
    "labels": 1,
    "store": 1,
    "models": 1,
    "scheduling": 1,
    "counting": 2,
    "training": 3,
    "outputs": 3,
    "stages": 4,
    "evaluation": 4,
    "runs": 5,
    "serve": 6,
}
"""Every room of wsi_pipeline with its floor; a room imports only from floors below its own."""

DOORS: dict[str, set[str]] = {
    "fastslide": {"slides"},
    "openslide": {"slides"},
    "tifffile": {"labels", "outputs", "runs"},
    "imagecodecs": {"slides", "stages", "store"},
    "PIL": {"slides", "labels", "outputs"},
    "simplejpeg": {"slides"},
    "zarr": {"store"},
    "google_crc32c": {"store"},
    "xxhash": {"store"},
    "cachetools": {"serve", "slides", "store"},
    "bokeh": {"scheduling"},
    "dask": {"scheduling"},
    "dask_cuda": {"scheduling"},
    "dask_jobqueue": {"scheduling"},
    "distributed": {"scheduling"},
    "torch": {"models", "store", "training"},
    "torchvision": {"models"},
    "timm": {"models"},
    "onnxruntime": {"models"},
    "onnxscript": {"models"},
    "openvino": {"models"},
    "safetensors": {"models", "training"},
    "lightning_fabric": {"training"},
    "tensorboard": {"training"},
    "shapely": {"evaluation", "labels", "outputs"},
    "scipy": {"counting", "labels", "outputs", "slides", "training"},
    "defusedxml": {"labels"},
    "yaml": {"labels", "scheduling"},
    "sklearn": {"training"},
    "skimage": {"outputs", "runs", "slides"},
    "matplotlib": {"training"},
    "jinja2": {"outputs", "serve", "training"},
    "pyarrow": {"outputs"},
    "ome_zarr_models": {"outputs"},
    "pydicom": {"outputs"},
    "highdicom": {"outputs"},
    "pandas": {"outputs"},
    "xarray": {"outputs"},
    "xlsxwriter": {"outputs"},
    "fastapi": {"serve"},
    "fastapi_offline": {"serve"},
    "pydantic": {"outputs", "serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "h11": {"serve"},
    "prometheus_client": {"serve"},
    "numpy": set(FLOORS),
    "click": set(),
    "rich": set(),
}
"""Which rooms of wsi_pipeline may import an outside library; one that is not listed may not be
imported at all.
"""

STATEFUL = {
    "DaskExecutor",
    "LoneWorker",
    "_Child",
    "PlainLoop",
    "_Active",
    "FitHistory",
    "Pace",
    "EventLog",
    "ProgressFile",
    "InferenceJob",
    "JobQueue",
    "SlideTimes",
    "Batch",
    "LocalCopies",
    "CopiedJob",
    "Watched",
}
"""Dataclasses that change while something runs; all others hold what was checked once, where it
entered.
"""

STANDARD_CLI_LIBRARIES = {"click", "rich", "rich_click", "yaml"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "wsi_pipeline").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full dotted names of every absolute import, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def outside_libraries(path: Path) -> set[str]:
    import sys

    tops = {name.split(".")[0] for name in imported(path)}
    return {
        top
        for top in tops
        if top not in sys.stdlib_module_names and top not in ("wsi_pipeline", "wsi_cli")
    }


def test_every_part_has_a_floor() -> None:
    assert {part_of(path) for path in modules("wsi_pipeline")} == set(FLOORS)


@pytest.mark.parametrize(
    "path", modules("wsi_pipeline"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    used = {name.split(".")[1] for name in imported(path) if name.startswith("wsi_pipeline.")} - {
        part
    }
    upward = {
        other
        for other in used
        if FLOORS[other] > FLOORS[part] or (FLOORS[other] == FLOORS[part] != 0)
    }
    assert not upward


@pytest.mark.parametrize(
    "path", modules("wsi_pipeline"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_outside_libraries_come_through_their_doors(path: Path) -> None:
    assert {
        library
        for library in outside_libraries(path)
        if part_of(path) not in DOORS.get(library, set())
    } == set()


def test_floor_zero_needs_numpy_only() -> None:
    floor_zero = [path for path in modules("wsi_pipeline") if FLOORS[part_of(path)] == 0]
    assert set().union(*map(outside_libraries, floor_zero)) <= {"numpy"}


@pytest.mark.parametrize("path", modules("cli"), ids=lambda path: path.name)
def test_commands_use_click_rich_and_yaml_only(path: Path) -> None:
    assert outside_libraries(path) <= STANDARD_CLI_LIBRARIES


def test_there_are_no_import_cycles_between_modules() -> None:
    graph = {dotted(path): known_targets(path) for path in modules("wsi_pipeline")}
    visiting: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        assert name not in visiting, f"cycle: {' → '.join([*visiting, name])}"
        if name in done:
            return
        visiting.append(name)
        for target in graph.get(name, set()):
            visit(target)
        visiting.pop()
        done.add(name)

    for name in graph:
        visit(name)


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def known_targets(path: Path) -> set[str]:
    """Modules of ours that a module imports, inside functions too: no import may dodge a cycle."""
    known = {dotted(other) for other in modules("wsi_pipeline")}
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("wsi_pipeline")
        ):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in known else node.module)
    return names - {dotted(path)}


def test_data_cannot_be_changed_after_they_were_checked() -> None:
    trees = [ast.parse(path.read_text()) for path in modules("wsi_pipeline")]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    decorated = {
        (node.name, text)
        for node in classes
        for text in map(ast.unparse, node.decorator_list)
        if text.startswith("dataclass")
    }
    assert {name for name, text in decorated if "frozen=True" not in text} == STATEFUL


@pytest.mark.system
def test_help_loads_no_heavy_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from click.testing import CliRunner; from wsi_cli.main import wsi; assert"
        " CliRunner().invoke(wsi, ['--help']).exit_code == 0; print([name for name in ('torch',"
        " 'openvino', 'dask', 'zarr', 'numpy', 'matplotlib', 'skimage') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.system
def test_tile_and_infer_load_no_plotting_library(tmp_path: Path) -> None:
    """matplotlib and pandas take half a second, in every process that imports them."""
    import subprocess
    import sys

    slide = write_slide(tmp_path / "s.tiff", tissue(150, 100))
    model = write_model(tmp_path / "m.safetensors")
    infer = ["infer", "--slides", str(slide), "--model", str(model), "--engine", "torch"]
    tile = ["tile", str(slide), "--mpp", "0.5"]
    code = (
        "import sys; from click.testing import CliRunner; from wsi_cli.main import wsi\n"
        f"for line in ({infer}, {tile}):\n"
        "    done = CliRunner().invoke(wsi, [*line, '--workers', '0', '--out', line[0]])\n"
        "    assert done.exit_code == 0, done.output\n"
        "print([name for name in ('matplotlib', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "infer" / "s" / "overlay.png").is_file()
    assert (tmp_path / "tile" / "s.mask.png").is_file()


def test_benchmarks_and_examples_import_names_that_exist() -> None:
    """`make test` runs none of them, so their user would be the first to meet a name that moved."""
    imports = [
        (node.module or "", alias.name)
        for folder in ("benchmarks", "examples")
        for path in sorted((ROOT / folder).glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    ours = [each for each in imports if each[0].startswith("wsi_pipeline")]
    assert len(ours) > 50
    lost = [each for each in ours if not hasattr(importlib.import_module(each[0]), each[1])]
    assert lost == []


@pytest.mark.xdist_group("one process")
def test_tests_of_a_group_share_a_process(request: pytest.FixtureRequest) -> None:
    """Without the group in its id, each process makes every costly fixture for itself."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@one process")
