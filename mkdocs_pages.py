"""Pages that `make docs` generates: commands from click, modules from docstrings, examples.

A hook of mkdocs. Whatever is added to the package, to examples/ or to docs/ appears without a line
anywhere else.
"""

import ast
import json
import posixpath
import re
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from wsi_cli.main import COMMANDS, wsi

ROOT = Path(__file__).parent
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
PYTHON_PAGES = {
    "The module": ("",),
    "Pipeline": ("core.options", "runs.tile", "runs.infer", "core.outcome", "runs.batch"),
    "Results": ("outputs.results", "outputs.heatmap", "evaluation.run"),
    "Slides and stores": (
        "core.geometry",
        "core.slide",
        "core.patch_table",
        "slides",
        "stages.tile",
        "stages.tile_config",
        "slides.tissue",
        "store.patches",
        "store.predictions",
        "store.slide_results",
    ),
    "Training": (
        "core.training_options",
        "core.serve_options",
        "training.run",
        "training.config",
        "training.optimise",
        "training.augment",
        "training.split",
        "training.images",
        "training.metrics",
        "training.evaluate",
    ),
    "Models": (
        "models.architectures",
        "models.architectures.network",
        "models.checkpoint",
        "models.loading",
        "models.predictor",
    ),
    "Errors": ("core.errors",),
}
"""Pages of the Python API and the modules on each."""
COPIES = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "examples/index.md": "examples/README.md",
    "examples/neural_networks.md": "examples/neural_networks.md",
}
"""Pages that are copies of text in the repository."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation: pages of docs/ that it does not name, and all that is generated."""
    named = set(_leaves(config.nav))
    pages = [
        path.relative_to(ROOT / "docs").as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))
    ]
    others = [page for page in pages if page not in named]
    config.nav = [
        *(config.nav or []),
        *([{"More": others}] if others else []),
        {"Commands": [*(f"commands/{name}.md" for name in COMMANDS)]},
        {
            "Examples": [
                "examples/index.md",
                "examples/neural_networks.md",
                *(f"examples/{path.stem}.md" for path in list_examples()),
            ]
        },
        {"Python": [f"python/{_slug(title)}.md" for title in PYTHON_PAGES]},
        {"Project": ["contributing.md", "changelog.md"]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of docs/."""
    for place, text in write_pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository at the pages that the site has for them."""
    place = page.file.src_uri
    is_example = place.startswith("examples/")
    folder = posixpath.dirname(COPIES.get(place, place if is_example else f"docs/{place}"))
    return LINK.sub(lambda link: _point(link, folder, place), markdown)


def _point(link: re.Match[str], folder: str, place: str) -> str:
    text, target, anchor = link[1], link[2], link[3] or ""
    if ":" in target:
        return link[0]
    page = find_page(posixpath.normpath(posixpath.join(folder, target)))
    if page is None:  # the site has no page for it: the text alone
        return text
    return f"[{text}]({posixpath.relpath(page, posixpath.dirname(place) or '.')}{anchor})"


def find_page(file: str) -> str | None:
    """Return the page of the site for a file of the repository, None where there is none."""
    copies = {original: place for place, original in COPIES.items()}
    path = Path(file)
    if file in copies or file == "README.md":
        return copies.get(file, "index.md")
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    if ROOT / path in list_examples():
        return f"examples/{path.stem}.md"
    if path.parent == Path("cli"):
        return f"commands/{path.stem.replace('_', '-')}.md"
    module = ".".join(path.with_suffix("").parts[1:])
    titles = [title for title, modules in PYTHON_PAGES.items() if module in modules]
    return f"python/{_slug(titles[0])}.md" if titles else None


def write_pages() -> dict[str, str]:
    """Return every generated page by its place in the site."""
    pages = {f"commands/{name}.md": write_command(name) for name in COMMANDS}
    pages |= {
        f"python/{_slug(title)}.md": write_module_page(title, modules)
        for title, modules in PYTHON_PAGES.items()
    }
    pages |= {f"examples/{path.stem}.md": write_example(path) for path in list_examples()}
    for place, original in COPIES.items():
        pages[place] = (ROOT / original).read_text(encoding="utf-8")
    return pages


def write_command(name: str) -> str:
    """Return a command's page: what it does, how it is called, every option."""
    with click.Context(wsi, info_name="wsi", **wsi.context_settings) as context:
        return "\n".join(
            [f"# wsi {name}", "", *_describe(_find(context, name), f"wsi {name}", context)]
        )


def _describe(command: click.Command, called: str, parent: click.Context) -> list[str]:
    context = click.Context(
        command, info_name=called.split()[-1], parent=parent, **command.context_settings
    )
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [_format_help(command.help or ""), "", "```text", f"{called} {usage}", "```", ""]
    options = [
        parameter
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option)
    ]
    records = [
        record for record in (option.get_help_record(context) for option in options) if record
    ]
    rows = [f"| {_code(names)} | {_escape(text)} |" for names, text in records]
    lines += ["| option | |", "| --- | --- |", *rows, ""]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            lines += [f"## {called} {name}", "", *_describe(below, f"{called} {name}", context)]
    return lines


def _find(context: click.Context, name: str) -> click.Command:
    command = wsi.get_command(context, name)
    assert command is not None
    return command


def _format_help(text: str) -> str:
    r"""Return paragraphs unchanged; one that begins with \b is shown line by line."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    shown = []
    for paragraph in paragraphs:
        if paragraph.lstrip().startswith("\b"):
            shown.append("```text\n" + paragraph.replace("\b", "").strip("\n") + "\n```")
        else:
            shown.append(_escape(" ".join(paragraph.split())))
    return "\n\n".join(shown)


def _code(names: str) -> str:
    """Return `-o, --out DIR` as code, each name separately."""
    return ", ".join(f"`{name.strip()}`" for name in names.split(", "))


def _escape(text: str) -> str:
    """Return text in which signs are literal, also in a table; backticks still make code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _escape_prose(part) for part in parts)


def _escape_prose(text: str) -> str:
    return re.sub(r"([\\*_\[\]|])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def write_module_page(title: str, modules: tuple[str, ...]) -> str:
    """Return a page that mkdocstrings fills from docstrings."""
    blocks = [f"::: wsi_pipeline.{module}".rstrip(".") + "\n" for module in modules]
    return "\n".join([f"# {title}", "", *blocks])


def list_examples() -> list[Path]:
    """Return the examples in Python: scripts and notebooks."""
    return sorted((ROOT / "examples").glob("*.py")) + sorted((ROOT / "examples").glob("*.ipynb"))


def write_example(path: Path) -> str:
    """Return an example's own description, then its code; of a notebook, its cells."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "\n\n".join(map(_write_cell, json.loads(source)["cells"])) + "\n"
    description = ast.get_docstring(ast.parse(source)) or ""
    title, _, rest = description.partition("\n")
    return f"# {path.name}\n\n{_escape(title)}\n{_indent_safe(rest)}\n\n```python\n{source}```\n"


def _write_cell(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"


def _indent_safe(text: str) -> str:
    """Return text escaped, except commands, which are indented."""
    return "\n".join(
        line if line.startswith("    ") else _escape(line) for line in text.splitlines()
    )


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav or []
    return [leaf for value in values for leaf in _leaves(value)]
