"""The page of messages and the table of tasks, held against the code."""

import ast
import re
import shlex
from functools import cache

import click
import pytest

from tests import ROOT
from tests.project.test_docs import find_command

PAGE = ROOT / "docs" / "guides" / "troubleshooting.md"
TASKS = ROOT / "docs" / "start" / "tasks.md"
FEWEST = 8
"""Characters of a part of a heading that says something."""


def list_headings() -> list[str]:
    return re.findall(r"^### (.+)$", PAGE.read_text(), flags=re.MULTILINE)


def show(node: ast.AST) -> str:
    """The text of a literal, with … for what is put in; "" for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(show(part) or "…" for part in node.values)
    return ""


@cache
def read_messages() -> dict[str, str]:
    """All texts of each module of the package and its commands, one a line."""
    modules = [*(ROOT / "wsi_pipeline").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    return {
        str(path): "\n".join(map(show, ast.walk(ast.parse(path.read_text())))) for path in modules
    }


def find_parts(heading: str) -> list[str]:
    """The literal parts of a message: between its names, and between its clauses."""
    parts = (part.strip(" :,()").removesuffix(" or") for part in re.split(r"…|; ", heading))
    return [part for part in parts if len(part) >= FEWEST]


@pytest.mark.parametrize("heading", list_headings())
def test_every_heading_is_a_message_of_the_code(heading: str) -> None:
    parts = find_parts(heading)
    assert parts, "the heading has no words of the code"
    modules = [path for path, text in read_messages().items() if all(p in text for p in parts)]
    assert modules, f"no module says all of {parts}"


def test_a_heading_that_nobody_says_is_found() -> None:
    parts = find_parts("…: the file states no inches per pixel…; give it with --slide-mpp")
    assert parts == ["the file states no inches per pixel", "give it with --slide-mpp"]
    assert not any(all(part in text for part in parts) for text in read_messages().values())


def test_every_message_has_its_cause_and_its_remedy() -> None:
    sections = re.split(r"^### .+$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    assert len(sections) == len(list_headings()) > 30
    for section in sections:
        assert section.count("*Cause:*") == section.count("*Remedy:*") == 1


def list_tasks() -> list[str]:
    rows = TASKS.read_text().split("| --- | --- | --- |\n")[1].splitlines()
    return [line for row in rows for line in re.findall(r"`(wsi [^`]+)`", row.split(" | ")[1])]


@pytest.mark.parametrize("line", list_tasks())
def test_every_line_of_the_table_is_a_command_with_its_options(line: str) -> None:
    command, words = find_command(shlex.split(line)[1:])
    context = click.Context(command, resilient_parsing=True)
    command.make_parser(context).parse_args(words)  # raises NoSuchOption
