"""What goes into the wheel, and what README says of it."""

import re
import tomllib

import click
import pytest

from tests import ROOT

README = (ROOT / "README.md").read_text()


def packages_on_disk() -> set[str]:
    ours = {
        path.parent.relative_to(ROOT).parts for path in (ROOT / "wsi_pipeline").rglob("__init__.py")
    }
    return {".".join(parts) for parts in ours} | {"wsi_cli"}


def test_the_package_list_is_the_folders() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(configuration["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_no_dependency_has_an_upper_bound() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [
        dependency for dependency in dependencies if "<" in dependency or "==" in dependency
    ] == []


def test_readme_folder_map_is_the_folders() -> None:
    block = README.split("## Folder map")[1].split("```")[1]
    named = set(re.findall(r"^wsi_pipeline/(\w+)/ +\w", block, flags=re.MULTILINE))
    assert named == {path.parent.name for path in (ROOT / "wsi_pipeline").glob("*/__init__.py")}


def test_the_folders_that_readme_names_beside_the_package_exist() -> None:
    named = re.findall(r"`(\w+)/`", README.split("## Folder map")[1].split("```")[2])
    assert len(named) == 5
    assert [name for name in named if not (ROOT / name).is_dir()] == []


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def list_commands(text: str) -> set[str]:
    table = text.split("# Commands")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`wsi ([\w-]+)", row.split(" | ")[0])}


@pytest.mark.parametrize("page", ["README.md", "docs/reference/commands.md"])
def test_the_table_of_commands_lists_every_command(page: str) -> None:
    from wsi_cli.main import COMMANDS

    assert list_commands((ROOT / page).read_text()) == set(COMMANDS)


def test_every_option_in_readme_and_docs_exists() -> None:
    """Outside blocks of code, which test_docs.py looks at. An option of another program stands in
    backticks behind that program's name.
    """
    from wsi_cli.main import COMMANDS, wsi

    known = {
        "--version",
        "--help",
        *(option for parameter in wsi.params for option in parameter.opts),
    }
    for name in COMMANDS:
        command = wsi.get_command(click.Context(wsi), name)
        for each in (command, *getattr(command, "commands", {}).values()):
            known |= {
                option
                for parameter in each.get_params(click.Context(each))
                for option in (*parameter.opts, *parameter.secondary_opts)
            }
    for example in (ROOT / "examples").glob("*.py"):
        known |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', example.read_text()))
    for page in (README, *(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))):
        text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
        spans = re.findall(r"`([^`]*)`", text)
        ours = " ".join(
            [
                re.sub(r"`[^`]*`", " ", text),
                *(span for span in spans if span.startswith(("wsi ", "-", "python examples/"))),
            ]
        )
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", ours)) <= known


def test_readme_test_command_is_what_ci_runs() -> None:
    assert "make test" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()
