"""The process that runs the commands, and the count of faults, printed at the end of the run."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults.injector import Zygote, open_zygote


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Runs commands, each in a child of a process that has loaded what they need."""
    with open_zygote(tmp_path_factory.mktemp("said")) as opened:
        yield opened


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for everything that tests counted with `record_property("count of …", n)`."""
    reports = [
        report for state in ("passed", "failed") for report in terminalreporter.stats.get(state, [])
    ]
    counts: Counter[str] = Counter()
    for report in reports:
        for name, count in report.user_properties:
            if name.startswith("count of "):
                counts[name.removeprefix("count of ")] += count
    if counts:
        terminalreporter.section("counted")
        for name, count in sorted(counts.items()):
            terminalreporter.line(f"{name}: {count}")
