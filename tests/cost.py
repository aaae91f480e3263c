"""CPU seconds of every test: told for the slowest, and limited where `make test` is to stay fast.

CPU seconds count the test's own process and every process that it has waited for. Fixtures that
outlive a test (of a module, or of the whole run) are told by themselves and charged to no test. A
busy machine makes a test slower, not dearer.
"""

import multiprocessing
import os
import subprocess
from collections import defaultdict
from collections.abc import Generator

import pytest

TIERS = ("system", "faults")
"""Markers of the tests that `make test` leaves to the other two commands."""
TEST, FIXTURE = "cpu seconds", "cpu seconds of "


def cpu_seconds() -> float:
    """CPU seconds of this process so far, and of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def reap() -> None:
    """Wait for children that have ended, so that the next test is not charged with those of an
    earlier one.
    """
    multiprocessing.active_children()
    subprocess._cleanup()  # type: ignore[attr-defined]


class Cost:
    """Measures tests where they run, and tells about them where the run is reported."""

    def __init__(self, config: pytest.Config) -> None:
        self.limit: float | None = config.getoption("cpu_limit")
        self.slowest: int = config.getoption("slowest")
        self._started = 0.0
        self._taken = 0.0
        """CPU seconds of the test that runs, its own fixtures among them; not of their end, which
        may be that of the whole run.
        """
        self._shared = 0.0
        """CPU seconds that fixtures of more than one test have taken so far."""
        self._fixtures: list[tuple[str, float]] = []
        self._told: dict[str, float] = {}
        self._told_fixtures: defaultdict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object]
    ) -> Generator[None, object, object]:
        started, shared = cpu_seconds(), self._shared
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                took = cpu_seconds() - started
                own = took - (self._shared - shared)
                self._shared = shared + took
                self._fixtures.append((f"{fixturedef.baseid}::{fixturedef.argname}", own))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        reap()
        self._started, self._shared, self._taken = cpu_seconds(), 0.0, 0.0
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        self._taken = cpu_seconds() - self._started - self._shared
        if (
            self.limit is not None
            and self._taken > self.limit
            and not any(item.get_closest_marker(tier) for tier in TIERS)
        ):
            pytest.fail(
                f"took {self._taken:.1f} s of CPU, {self.limit:g} are allowed: make it cheaper, or"
                " mark it system",
                pytrace=False,
            )
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        item.user_properties.append((TEST, round(self._taken, 3)))
        item.user_properties.extend(
            (FIXTURE + name, round(seconds, 3)) for name, seconds in self._fixtures
        )
        self._fixtures.clear()
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            return
        for name, seconds in report.user_properties:
            if name == TEST:
                self._told[report.nodeid] = float(str(seconds))
            elif name.startswith(FIXTURE):
                self._told_fixtures[name.removeprefix(FIXTURE)] += float(str(seconds))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.slowest:
            return
        tests, fixtures = sum(self._told.values()), sum(self._told_fixtures.values())
        terminalreporter.section(
            f"{tests:.0f} s of CPU in {len(self._told)} tests, {fixtures:.0f} s in shared fixtures;"
            " the slowest"
        )
        every = {
            **self._told,
            **{f"{name} (fixture)": seconds for name, seconds in self._told_fixtures.items()},
        }
        for name, seconds in sorted(every.items(), key=lambda entry: -entry[1])[: self.slowest]:
            terminalreporter.line(f"{seconds:7.2f} s  {name}")
