"""What tests share, and the machine that they take for granted."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import ROOT
from tests.cost import Cost

# One thread per process, set before torch and OpenBLAS look: test processes share the cores, and no
# number depends on how many there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not os.access(
    Path.home(), os.W_OK
):  # some libraries that tests read results with keep a cache there
    os.environ["HOME"] = tempfile.mkdtemp(prefix="home-of-tests-")
# No deadline: on a busy machine a slow example is no fault.
settings.register_profile("wsi", deadline=None)
settings.load_profile("wsi")

SHARED_DATA = Path(os.environ.get("WSI_TEST_DATA", ROOT.parent / "shared" / "data"))
BF16_UNITS = {
    "none": frozenset[str](),
    "amx_bf16": frozenset({"amx_bf16", "avx512_bf16"}),
    "avx512_bf16": frozenset({"avx512_bf16"}),
}

SHARED = ("served_root", "zygote")
"""Fixtures of the whole run that take seconds to make."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("wsi")
    group.addoption(
        "--slowest",
        type=int,
        default=0,
        help="Name so many of the tests that take most CPU seconds.",
    )
    group.addoption(
        "--cpu-limit", type=float, help="Fail a test of `make test` that takes more CPU seconds."
    )
    group.addoption(
        "--bf16-unit",
        choices=("real", *BF16_UNITS),
        default="real",
        help="The unit that this CPU claims for bfloat16.",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Cost(config), "cost")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a costly fixture in one process, where the run has several: those of
    its module, or of the whole run.
    """
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("xdist_group"):
            continue
        if group := find_group(item):
            item.add_marker(pytest.mark.xdist_group(group))


def find_group(item: pytest.Function) -> str | None:
    """Return the name of what the tests in one process share; None where a test shares nothing."""
    for name in SHARED:
        if name in item.fixturenames:
            return name
    definitions = item._fixtureinfo.name2fixturedefs.values()
    lasting = [
        last for *_, last in definitions if last.scope != "function" and last.baseid.endswith(".py")
    ]
    return f"{item.path.parent.name}/{item.path.stem}" if lasting else None


@pytest.fixture(autouse=True, scope="session")
def cpu_of_the_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """With --bf16-unit the CPU claims another unit for bfloat16 than it has, so that what follows
    from it is tried everywhere.
    """
    name = request.config.getoption("bf16_unit")
    if name == "real":
        yield
        return
    from wsi_pipeline.models import device

    flags = (device.cpu_flags() - BF16_UNITS["amx_bf16"]) | BF16_UNITS[name]
    claimed = tmp_path_factory.mktemp("cpu") / "cpuinfo"
    claimed.write_text(f"flags : {' '.join(sorted(flags))}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "CPUINFO", claimed)
        device.cpu_flags.cache_clear()
        yield
    device.cpu_flags.cache_clear()


@pytest.fixture
def plots_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without plots, which tests/training/test_report_page.py looks at: they take most of
    the time of a small run.
    """
    leave_plots_out(monkeypatch)


def leave_plots_out(patch: pytest.MonkeyPatch) -> None:
    """The same, for fixtures that last longer."""
    patch.setattr("wsi_pipeline.training.report._plot_all", lambda content: {})


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real slides and patches, which are not part of the project; WSI_TEST_DATA names another
    place.
    """
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data are not at {SHARED_DATA}; set WSI_TEST_DATA to where they are")
    return SHARED_DATA


@pytest.fixture(scope="session")
def served_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides `one` and `two` in `slides`, and what two random models made of them, in `results` and
    `other`; made once, to be copied.
    """
    from tests.served import make_run

    root = tmp_path_factory.mktemp("served")
    make_run(root, name="results", seed=0)
    make_run(root, name="other", seed=1)
    return root
