"""The count of faults, printed at the end of the run."""

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for everything that tests counted with `record_property("count of …", n)`."""
    reports = [report for state in ("passed", "failed") for report in terminalreporter.stats.get(state, [])]
    counts: Counter[str] = Counter()
    for report in reports:
        for name, count in report.user_properties:
            if name.startswith("count of "):
                counts[name.removeprefix("count of ")] += count
    if counts:
        terminalreporter.section("counted")
        for name, count in sorted(counts.items()):
            terminalreporter.line(f"{name}: {count}")
