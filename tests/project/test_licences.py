"""What the project needs at run time is under licences that let everybody use it; and what `make
audit` makes of an answer.
"""

import re
from importlib import metadata
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests import ROOT
from tests.project.audit import main, sort_packages

EXTRAS = ("analysis", "cpu", "dashboard", "dicom", "excel", "export", "formats", "slurm", "timm")
"""All that belong to running it; `gpu` and what it brings are only there on machines with a GPU."""

PERMISSIVE = frozenset(
    {
        "0bsd",
        "apache-2.0",
        "bsd-1-clause",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsl-1.0",
        "cc0-1.0",
        "isc",
        "llvm-exception",
        "mit",
        "mit-0",
        "mit-cmu",
        "psf-2.0",
        "zlib",
        # As older packages put it.
        "3-clause bsd license",
        "apache 2.0",
        "apache software license",
        "bsd",
        "bsd 3-clause",
        "bsd license",
        "mit license",
        "python software foundation license",
    }
)

SPECIAL = {
    "openslide-bin": (
        "LGPL-2.1 and others: a shared library of its own, which may be replaced; used, not changed"
    ),
    "openslide-python": "LGPL-2.1: imported as it is, not changed",
    "tqdm": (
        "MPL-2.0 and MIT: the MPL binds changes to its own files, and nobody changes them; brought"
        " by the extra timm"
    ),
    "cuda-toolkit": "names no licence: an empty package that brings NVIDIA's libraries",
}
"""Packages under other licences, and why they may be used."""

PROPRIETARY = re.compile(r"nvidia-[a-z0-9-]+")
"""Libraries of CUDA, which the ordinary build of torch brings on Linux; NVIDIA lets them be used
and handed on unchanged.
"""


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def collect(name: str, extras: tuple[str, ...], found: dict[str, set[str]]) -> None:
    """Every package that is installed because this one, with these extras, needs it."""
    key = normalise(name)
    if key in found and set(extras) <= found[key]:
        return
    found.setdefault(key, set()).update(extras)
    for text in metadata.requires(key) or []:
        wanted = Requirement(text)
        if wanted.marker is None or any(
            wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            collect(wanted.name, tuple(wanted.extras), found)


def licence_of(name: str) -> str:
    """What a package says of its licence: the expression where it has one, else its classifiers,
    else its own words.
    """
    said = metadata.metadata(name)
    classifiers = [
        entry.rpartition("::")[2].strip()
        for entry in said.get_all("Classifier") or []
        if entry.startswith("License ::")
    ]
    words = ("\n".join(said.get_all("License") or [])).strip().splitlines()
    return (
        "".join(said.get_all("License-Expression") or [])
        or " AND ".join(entry for entry in classifiers if entry != "OSI Approved")
        or (words or [""])[0]
    )


def is_permissive(licence: str) -> bool:
    """True if every licence in an expression is in PERMISSIVE; of alternatives, one is enough."""
    parts = [part.strip(" ()") for part in re.split(r"\s+(?:AND|WITH)\s+", licence)]
    return all(
        any(choice.strip(" ()").lower() in PERMISSIVE for choice in re.split(r"\s+OR\s+", part))
        for part in parts
    )


def test_everything_needed_at_run_time_may_be_used_by_everybody() -> None:
    found: dict[str, set[str]] = {}
    collect("wsi-pipeline", EXTRAS, found)
    licences = {
        name: licence_of(name)
        for name in sorted(found)
        if name not in SPECIAL and not PROPRIETARY.fullmatch(name)
    }
    assert len(licences) > 60
    assert {name: licence for name, licence in licences.items() if not is_permissive(licence)} == {}


def test_the_special_ones_are_still_needed() -> None:
    found: dict[str, set[str]] = {}
    collect("wsi-pipeline", EXTRAS, found)
    assert {"openslide-bin", "openslide-python"} <= set(found)
    assert all(not is_permissive(licence_of(name)) for name in SPECIAL if name in found)


@pytest.mark.parametrize(
    "licence",
    [
        "GPL-3.0-only",
        "AGPL-3.0-or-later",
        "LGPL-2.1-only",
        "GNU General Public License v3 (GPLv3)",
        "MIT AND GPL-2.0-only",
        "CC-BY-NC-4.0",
        "",
        "UNKNOWN",
        "LicenseRef-Proprietary",
        "Apache-2.0 AND (GPL-2.0-only OR LGPL-3.0-only)",
        "SSPL-1.0",
        "BUSL-1.1",
    ],
)
def test_licences_that_bind_are_found(licence: str) -> None:
    assert not is_permissive(licence)


@pytest.mark.parametrize(
    "licence",
    ["MIT", "Apache-2.0 OR GPL-3.0-only", "(MIT OR Apache-2.0) AND BSD-3-Clause", "BSD License"],
)
def test_licences_that_do_not_bind_are_taken(licence: str) -> None:
    assert is_permissive(licence)


def test_floors_that_keep_known_faults_out_are_there_with_their_reason() -> None:

    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for floor in (
        "openslide-bin>=4.0.1",
        "torch>=2.10",
        "starlette>=",
        "pillow>=",
        "cryptography>=",
        "python-multipart>=",
        "jinja2>=",
        "h11>=",
    ):
        found = [line for line in lines if line.strip().startswith(f'"{floor}')]
        assert len(found) == 1
        assert "#" in found[0]
    starlette = next(line for line in lines if '"starlette>=' in line)
    version = re.search(r">=([0-9.]+)", starlette)
    assert version is not None
    assert tuple(map(int, version[1].split("."))) >= (0, 49, 1)


def test_the_audit_counts_faults_and_what_it_could_not_look_up() -> None:
    packages: list[dict[str, Any]] = [
        {"name": "good", "version": "1", "vulns": []},
        {
            "name": "bad",
            "version": "1",
            "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}, {"id": "CVE-2", "fix_versions": []}],
        },
        {"name": "unknown", "skip_reason": "Dependency not found on PyPI"},
        {"name": "wsi-pipeline", "skip_reason": "Dependency not found on PyPI"},
    ]
    faulty, skipped = sort_packages(packages)
    assert faulty == ["bad 1: CVE-1, mended in 2", "bad 1: CVE-2, mended in no version yet"]
    assert skipped == ["unknown"]


@pytest.mark.parametrize(
    ("said", "exit_code"),
    [
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', 0),
        (
            (
                '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1",'
                ' "fix_versions": []}]}]}'
            ),
            1,
        ),
        ('{"dependencies": [{"name": "a", "skip_reason": "not found on PyPI"}]}', 2),
        ("Traceback", 2),
    ],
)
def test_an_audit_that_found_out_nothing_is_no_good_news(
    said: str, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["python3", "-c", f"print({said!r})"]) == exit_code
    assert ("nothing was found out" in capsys.readouterr().err) == (exit_code == 2)
