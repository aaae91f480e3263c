"""What the Dockerfile and the Apptainer definition hold, and that the image works where docker or
podman is to be had.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import ROOT

DEFINITION = (ROOT / "apptainer.def").read_text()
TARGETS = ("cpu", "cuda")


class Stage(NamedTuple):
    """A stage of the Dockerfile: its base, and its instructions as (word, arguments)."""

    base: str
    instructions: list[tuple[str, str]]


def read_stages(text: str) -> dict[str, Stage]:
    """The stages by name, in their order; lines that a backslash joins are one."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    instructions: list[tuple[str, str]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, arguments = line.strip().partition(" ")
        if word == "FROM":
            base, name = arguments.split(" AS ")
            instructions = []
            stages[name] = Stage(base, instructions)
        elif word:
            instructions.append((word, arguments.strip()))
    return stages


STAGES = read_stages((ROOT / "Dockerfile").read_text())


def last(name: str, word: str) -> str:
    """The arguments of the last such instruction of a stage, or of those that it is based on."""
    stage = STAGES[name]
    found = [arguments for each, arguments in stage.instructions if each == word]
    return found[-1] if found else last(stage.base, word)


def list_commands() -> Iterator[str]:
    for stage in STAGES.values():
        yield from (arguments for word, arguments in stage.instructions if word == "RUN")
    yield from read_section("post")


def read_section(name: str) -> list[str]:
    """The lines of a section of the Apptainer definition, without comments."""
    text = re.split(rf"^%{name}\n", DEFINITION, flags=re.MULTILINE)[1]
    lines = [line.strip() for line in re.split(r"^%", text, flags=re.MULTILINE)[0].splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def list_extras(commands: list[str]) -> set[str]:
    return {
        extra
        for names in re.findall(r"\[([\w,]+)\]", " ".join(commands))
        for extra in names.split(",")
    }


def extras_of(target: str) -> set[str]:
    """The extras that a target installs, with those of the stages below it."""
    stage = STAGES[target]
    here = list_extras([arguments for word, arguments in stage.instructions if word == "RUN"])
    return here | (extras_of(stage.base) if stage.base in STAGES else set())


def list_copied() -> list[str]:
    """What the Dockerfile takes from the checkout."""
    return [
        source
        for stage in STAGES.values()
        for word, arguments in stage.instructions
        if word == "COPY" and not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]


def test_the_targets_are_cpu_and_cuda() -> None:
    assert tuple(STAGES)[-2:] == TARGETS


def test_every_base_image_has_a_tag() -> None:
    bases = {stage.base for stage in STAGES.values()} - set(STAGES)
    assert bases == {re.findall(r"^From: (.+)$", DEFINITION, flags=re.MULTILINE)[0]}
    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+", base) for base in bases)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_wsi_as_a_user_without_rights(target: str) -> None:
    assert last(target, "USER") == "1000:1000"
    assert json.loads(last(target, "ENTRYPOINT")) == ["wsi"]
    assert last(target, "WORKDIR") == "/data"


def test_the_targets_differ_by_one_extra() -> None:
    assert extras_of("cpu") - extras_of("cuda") == {"cpu"}
    assert extras_of("cuda") - extras_of("cpu") == {"gpu"}


def test_apptainer_installs_what_the_cuda_image_has_and_runs_wsi() -> None:
    assert list_extras(read_section("post")) == extras_of("cuda")
    assert read_section("runscript") == ['exec wsi "$@"']
    assert read_section("test")[0].startswith("wsi doctor")
    assert [line.split()[0] for line in read_section("files")] == list_copied()


def test_extras_of_the_containers_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras_of("cpu") | extras_of("cuda") <= set(project["optional-dependencies"])


def test_no_pip_keeps_its_cache_and_nothing_else_is_fetched() -> None:
    commands = list(list_commands())
    pips = [command for command in commands if "pip " in command]
    assert len(pips) == 5
    assert all("--no-cache-dir" in command for command in pips)
    assert not re.search(r"https?:|\b(curl|wget|git)\b", " ".join(commands))
    assert all(word != "ADD" for stage in STAGES.values() for word, _ in stage.instructions)


def test_only_what_is_copied_goes_to_docker() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules == ["*", *(f"!{place}" for place in list_copied()), "**/__pycache__"]


@pytest.mark.system
def test_what_is_copied_makes_a_wheel_that_runs(tmp_path: Path) -> None:
    for place in list_copied():
        copy = shutil.copytree if (ROOT / place).is_dir() else shutil.copy
        copy(ROOT / place, tmp_path / place)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheel", "."]
    subprocess.run(build, cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    installed = tmp_path / "installed"
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel)]
    subprocess.run(install, cwd=tmp_path, capture_output=True, check=True)
    done = subprocess.run(
        [sys.executable, "-c", "from wsi_cli.main import wsi; wsi(['model', 'info', 'idc'])"],
        env=os.environ | {"PYTHONPATH": str(installed)},
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed / "wsi_pipeline" / "models" / "box"))


@pytest.fixture(scope="module")
def docker() -> str:
    """The program that makes and runs images."""
    for name in ("docker", "podman"):
        path = shutil.which(name)
        if path and not subprocess.run([path, "info"], capture_output=True, check=False).returncode:
            return path
    pytest.skip("neither docker nor podman answers here: no image is built")


@pytest.mark.system
@pytest.mark.timeout(3600)
def test_the_image_runs_the_whole_chain_for_any_user_without_a_network(docker: str) -> None:
    image = "wsi-pipeline-test"
    subprocess.run([docker, "build", "--target", "cpu", "--tag", image, str(ROOT)], check=True)
    run = [docker, "run", "--rm", "--network", "none", "--tmpfs", "/data:mode=1777"]
    subprocess.run([*run, image, "doctor", "--seconds", "1"], check=True)
    demo = [*run, "--user", "4321:4321", image, "demo"]
    done = subprocess.run(demo, capture_output=True, text=True, check=True)
    assert "heatmaps: open /data/wsi-demo/results/index.html" in done.stdout
