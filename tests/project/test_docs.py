"""README and docs as their reader would use them: their blocks of code run, their commands and
options exist, their pages build.

A block whose first line begins with `# needs` (a GPU, a cluster, somebody's data, a network, time)
is not run, and its reader is told why; the options of its `wsi` lines are looked at all the same.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pytest

from tests import ROOT
from tests.builders import draw_regions, make_checkpoint, write_model, write_slide
from tests.commands import infer, run, tile
from tests.project.test_architecture import FLOORS
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.runs.synthetic_slides import draw_phantom
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.slides.images import write_grey
from wsi_pipeline.stages.tile_config import TileConfig

PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
)
FROM_NOTHING = ("README.md", "docs/start/quickstart.md")
"""Pages that begin with slides alone; the others stand in a folder where the chain has been run."""
LANGUAGES = {"bash", "console", "csv", "json", "python", "text", "yaml"}
IN_A_HURRY = {
    "WSI_TRAIN_EPOCHS": "1",
    "WSI_TILE_WORKERS": "0",
    "WSI_INFER_WORKERS": "0",
    "WSI_AGGREGATE_WORKERS": "0",
    "WSI_VIEW_IS_OPENED": "false",
}
"""What the tests change about the blocks: one epoch, no worker processes, no browser."""
MPP = 0.5
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def needs(self) -> bool:
        """Whether it says that it needs what a test does not have."""
        return self.text.startswith("# needs ")

    @property
    def wsi_lines(self) -> list[list[str]]:
        """The arguments of its `wsi` lines."""
        lines = self.text.replace("\\\n", " ").splitlines()
        words = [
            shlex.split(line, comments=True)
            for line in lines
            if line.startswith("wsi ") or " wsi " in line.split("#")[0]
        ]
        nested = [shlex.split(each) for line in words for each in line if each.startswith("wsi ")]
        return [line[line.index("wsi") + 1 :] for line in (*words, *nested) if "wsi" in line]


def read_blocks(page: Path) -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [
        Block(
            page.relative_to(ROOT).as_posix(),
            page.read_text()[: match.start()].count("\n") + 1,
            match[1],
            match[2],
        )
        for match in found
    ]


BLOCKS = {page.relative_to(ROOT).as_posix(): read_blocks(page) for page in PAGES}


def draw(world: Path, folder: str, slide: str, seed: int) -> None:
    phantom = draw_phantom(600, 500, seed)
    write_slide(world / folder / f"{slide}.tiff", phantom.pixels, mpp=MPP)
    for labels in ("labels", "annotations"):
        (world / labels).mkdir(exist_ok=True)
        write_grey(world / labels / f"{slide}_labels.png", phantom.truth)


def draw_at_40x(world: Path, folder: str, name: str, seed: int, size: tuple[int, int]) -> None:
    """A slide at 0.25 µm/px with its regions beside it, tumour to the left, and its truth."""
    phantom = draw_phantom(*size, seed)
    write_slide(world / folder / f"{name}.svs", phantom.pixels, mpp=0.25)
    middle, height = size[0] // 2, size[1]
    squares = {"Tumor": (0, 0, middle, height), "normal": (middle, 0, size[0], height)}
    draw_regions(world / folder / f"{name}.geojson", squares)
    for labels in ("labels", "annotations"):
        write_grey(world / labels / f"{name}_labels.png", phantom.truth)


@pytest.fixture(scope="module")
def slides_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four labelled slides, one of which is to be held out, and a new one."""
    world = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate(("8863", "8865", "8951", "8955"), start=1):
        draw(world, "slides", name, seed)
    draw(world, "new-slides", "9001", 101)
    for seed, name in enumerate(("slide", "another"), start=201):
        draw_at_40x(world, "", name, seed, (600, 500))
    draw_at_40x(world, "dir", "9002", 301, (2000, 1600))
    (world / "labels.yaml").write_text("classes: [benign, tumour]\n")
    (world / "held-out.txt").write_text("8955\n")
    return world


@pytest.fixture(scope="module")
def whole_chain(slides_alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with stores, a model, and the results of two."""
    world = tmp_path_factory.mktemp("chain") / "world"
    shutil.copytree(slides_alone, world)
    config = TileConfig(spec=PatchSpec(mpp=MPP), rules=LabelRules(class_names=("benign", "tumour")))
    tile(
        [world / "slides"],
        world / "stores",
        config,
        labels=[world / "labels"],
        workers=Workers(count=0),
    )
    for results, model in (("results", "model"), ("other", "other-model")):
        path = write_model(
            world / model / "model.safetensors", make_checkpoint(mpp=MPP, seed=len(model))
        )
        slides = [world / "slides" / "8863.tiff", world / "slides" / "8955.tiff"]
        infer(slides, path, world / results, engine="auto", precision="auto")
    return world


@pytest.mark.system
@pytest.mark.parametrize(
    "page", [name for name, blocks in BLOCKS.items() if any(not block.needs for block in blocks)]
)
def test_blocks_of_code_run(
    page: str,
    slides_alone: Path,
    whole_chain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = tmp_path / "world"
    shutil.copytree(slides_alone if page in FROM_NOTHING else whole_chain, world)
    monkeypatch.chdir(world)
    for name, value in IN_A_HURRY.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    for block in BLOCKS[page]:
        if block.needs:
            continue
        if block.language == "python":
            exec(compile(block.text, f"{page}:{block.line}", "exec"), names)
        elif block.language == "bash":
            run_lines(block)


def run_lines(block: Block) -> None:
    """Run the block's commands here, one after another: a process for each would spend most of the
    time loading torch.
    """

    for line in block.text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or ["wsi", "--version"]
        assert program == "wsi", (
            f"{block.page}:{block.line}: only `wsi` lines can be run; say what `# needs` …"
        )
        done = run(*arguments)
        assert done.exit_code == 0, f"{block.page}:{block.line}: {line}\n{done.output}"


def test_every_block_of_code_says_its_language() -> None:
    unnamed = [
        f"{block.page}:{block.line}"
        for blocks in BLOCKS.values()
        for block in blocks
        if block.language not in LANGUAGES
    ]
    assert unnamed == []


def test_commands_stand_in_blocks_that_run() -> None:
    hidden = [
        f"{block.page}:{block.line}"
        for blocks in BLOCKS.values()
        for block in blocks
        if block.language not in ("bash", "python", "console")
        and re.search(r"^wsi \w", block.text, flags=re.MULTILINE)
    ]
    assert hidden == []


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that a line calls, and what it gives it. Raises KeyError where there is no such
    command.
    """
    from wsi_cli.main import wsi

    command: click.Command | None = wsi
    while isinstance(command, click.Group) and words:
        name, *words = words
        if name.startswith("-"):
            continue
        command = command.get_command(click.Context(command), name)
        if command is None:
            raise KeyError(name)
    assert command is not None
    return command, words


@pytest.mark.parametrize("page", BLOCKS)
def test_every_command_and_option_in_blocks_exists(page: str) -> None:
    for block in BLOCKS[page]:
        for words in block.wsi_lines if block.language == "bash" else ():
            command, rest = find_command(words)
            context = click.Context(command, resilient_parsing=True)
            command.make_parser(context).parse_args(rest)  # raises NoSuchOption


@pytest.mark.parametrize("page", PAGES, ids=list(BLOCKS))
def test_every_command_in_the_text_exists(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for name in re.findall(r"`wsi ([a-z][a-z-]*)", text):
        find_command([name])


TEXTS = (ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES)
MAX_COLUMNS = 100


def read_prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def list_links(page: Path) -> list[str]:
    """Return the targets of a page's links into the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", read_prose(page))
    return [target for target in targets if not re.match(r"\w+:", target)]


def list_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and mkdocs give a page's headings."""
    headings = re.findall(r"^#+ (.+)$", read_prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_of_the_repository(page: Path) -> None:
    lost = []
    for link in list_links(page):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        found = file.is_relative_to(ROOT) and file.exists()
        if not found or (anchor and anchor not in list_anchors(file)):
            lost.append(link)
    assert lost == []


def test_pages_link_to_each_other() -> None:
    assert sum(len(list_links(page)) for page in TEXTS) > 60


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_of_text_have_at_most_100_columns(page: Path) -> None:
    """Rows of tables, images and lines with an address may be longer."""
    long = [
        f"{page.name}:{number}"
        for number, line in enumerate(page.read_text().splitlines(), start=1)
        if len(line) > MAX_COLUMNS and not line.startswith("|") and "](" not in line
    ]
    assert long == []


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def list_stops() -> list[tuple[str, str]]:
    """Return every (file, function or class) of the walk through the code."""
    walk = CONTRIBUTING.split("## One slide through the code")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.*?) \|", walk, flags=re.MULTILINE)
    return [(file, name) for file, names in rows for name in re.findall(r"`([\w.]+)`", names)]


def list_definitions(file: Path) -> set[str]:
    """Return the names of a module's functions and classes, methods as Class.method."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
            found |= {node.name, *(f"{node.name}.{method}" for method in methods)}
    return found


def test_the_walk_through_the_code_names_what_exists() -> None:
    assert len({file for file, _ in list_stops()}) > 15
    lost = [
        f"{file}: {name}"
        for file, name in list_stops()
        if not (ROOT / file).is_file() or name not in list_definitions(ROOT / file)
    ]
    assert lost == []


def test_the_drawing_shows_every_room_on_its_floor() -> None:
    drawing = CONTRIBUTING.split("## The rooms")[1].split("```")[1]
    drawn = {
        name: int(floor)
        for line, floor in re.findall(r"^(.*) floor (\d)$", drawing, flags=re.MULTILINE)
        for name in set(line.split()) & FLOORS.keys()
    }
    assert drawn == {name: floor for name, floor in FLOORS.items() if name != "__init__"}


def test_files_and_tables_named_in_contributing_exist() -> None:
    named = set(re.findall(r"`((?:wsi_pipeline|tests|docs|cli)/[\w./-]+)`", CONTRIBUTING))
    lost = [each for each in named if "NAME" not in each and not (ROOT / each).exists()]
    assert lost == []
    for table, file in re.findall(r"to `([A-Z_]+)[^`]*` in `([\w/.]+)`", CONTRIBUTING):
        assert table in (ROOT / file).read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as `make docs` builds it, with every warning an error."""
    place = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(place),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.system
def test_the_pages_show_every_command_with_every_option(site: Path) -> None:
    from wsi_cli.main import COMMANDS, wsi

    for name in COMMANDS:
        command = wsi.get_command(click.Context(wsi), name)
        assert command is not None
        page = (site / "commands" / f"{name}.html").read_text()
        for each in (command, *getattr(command, "commands", {}).values()):
            for parameter in each.params:
                if isinstance(parameter, click.Option):
                    assert parameter.opts[0] in page


class Links(HTMLParser):
    """What a page loads when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Scripts, styles, pictures and frames; a link that somebody may click is no load."""
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.loaded.append(values.get("src") or "")
        if tag == "link" and values.get("rel") in (
            "stylesheet",
            "preconnect",
            "preload",
            "icon",
            "dns-prefetch",
        ):
            self.loaded.append(values.get("href") or "")


def each_page(site: Path) -> Iterator[Path]:
    yield from site.rglob("*.html")


@pytest.mark.system
def test_the_pages_load_nothing_from_elsewhere(site: Path) -> None:
    count = 0
    for page in each_page(site):
        links = Links()
        links.feed(page.read_text())
        assert [place for place in links.loaded if "//" in place] == []
        count += len(links.loaded)
    assert count > 100


@pytest.mark.system
def test_the_python_pages_hold_what_docstrings_say(site: Path) -> None:
    assert "Run a model over slides" in (site / "commands" / "infer.html").read_text()
    assert "Labelled images." in (site / "python" / "training.html").read_text()


@pytest.mark.system
def test_every_example_has_a_page(site: Path) -> None:
    examples = {path.stem for ending in ("py", "ipynb") for path in EXAMPLES.glob(f"*.{ending}")}
    assert {path.stem for path in (site / "examples").glob("*.html")} == examples | {
        "index",
        "neural_networks",
    }


def test_ci_builds_the_documentation() -> None:
    assert "make docs" in (ROOT / ".ci" / "run").read_text()
