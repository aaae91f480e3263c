"""The findings of a GPU machine's check: facts with a verdict, and figures."""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WSI = [sys.executable, "-c", "import sys; sys.argv[0] = 'wsi'; from wsi_cli.main import wsi; wsi()"]


@dataclass
class Report:
    """Facts and figures of one section; they are saved after each part."""

    section: str
    device: str
    """"cuda", or "cpu": a rehearsal, with little to do."""
    work: Path
    """Folder for whatever the section makes."""
    place: Path
    """Folder of the reports."""
    facts: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def is_rehearsal(self) -> bool:
        """True without a GPU."""
        return self.device == "cpu"

    @property
    def path(self) -> Path:
        """File of the section."""
        return self.place / f"{self.section}.json"

    def state(self, fact: str, is_true: bool, found: object = "") -> None:
        """Add a fact: whether it holds, and what was found."""
        self.facts.append(
            {"fact": fact, "holds": bool(is_true), "found": " ".join(str(found).split())[:300]}
        )

    def leave_out(self, fact: str) -> None:
        """Add a fact that only a GPU can show."""
        self.facts.append({"fact": fact, "holds": None, "found": "needs a GPU"})

    def measure(self, name: str, value: object) -> None:
        """Add a figure."""
        self.figures[name] = round(value, 4) if isinstance(value, float) else value

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Do a part; what it raises is a fact that does not hold, and the next part follows."""
        started = time.perf_counter()
        try:
            yield
        except (Exception, SystemExit) as error:  # noqa: BLE001 - what is raised is the finding
            traceback.print_exc()
            self.state(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")
        self.measure(f"seconds of {name}", time.perf_counter() - started)
        self.save()

    def save(self) -> None:
        """Write what there is so far: a section that is stopped loses its last part alone."""
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps({"facts": self.facts, "figures": self.figures}, default=str))
        beside.replace(self.path)


def run_wsi(
    *arguments: object, seconds: float = 120.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of wsi to its end, stopped after some seconds."""
    line = [*WSI, *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=seconds, env=os.environ | environment
    )


def last_lines(done: subprocess.CompletedProcess[str]) -> str:
    """Return the exit code and the last lines of a command."""
    said = " | ".join((done.stdout + done.stderr).strip().splitlines()[-2:])
    return f"exit code {done.returncode}: {said[-220:]}"


def draw_table(sections: dict[str, Any], skipped: dict[str, str]) -> str:
    """Return all facts and figures as lines for people."""
    marks = {True: "ok", False: "FAIL", None: "-"}
    lines: list[str] = []
    for name, section in sections.items():
        lines += ["", name]
        for fact in section["facts"]:
            lines.append(f"  {marks[fact['holds']]:<5}{fact['fact']}: {fact['found']}")
        for figure, value in section["figures"].items():
            lines.append(f"       {figure}: {_tell(value)}")
    lines += [f"\nleft out: {name}: {reason}" for name, reason in skipped.items()]
    return "\n".join(lines).strip()


def _tell(value: object) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_tell(each)}" for name, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_tell, value))
    return str(value)
