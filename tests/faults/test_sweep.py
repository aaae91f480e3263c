"""Every file operation of the real commands, killed, refused for want of space, or failing.

What is under a final name is whole, and the same line again ends as if nothing had happened.

`make test` takes a sample of the operations, `make test-faults` all of them.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.injector import Ended, Fault, Zygote
from tests.faults.workloads import (
    Workload,
    content,
    digest_state,
    find_broken,
    list_workloads,
    make_inputs,
)

SAMPLE = {"tile": 4, "infer": 2, "aggregate": 3, "train": 1, "store export": 1}
"""Operations per command and kind of fault in the sample."""
SPARSE = {"infer with every picture": 8, "infer, patches kept": 3, "store export": 4}
"""Of these commands every so many operations in the whole sweep: most of their operations are those
of `infer` and `tile`, or alike.
"""
SPARSE_READS = 16
ALL = (*SAMPLE, "infer, patches kept", "infer with every picture")
ROOM_BYTES = 512 * 1024 * 1024


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A folder in memory where there is room: flushing to disk 300 times a command is no part of
    what is tested.
    """
    memory = Path("/dev/shm")
    is_roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES
    folder = Path(tempfile.mkdtemp(prefix="wsi-faults-", dir=memory if is_roomy else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def choose(operations: Sequence[str], name: str, mode: str, kind: str, is_whole: bool) -> list[int]:
    """Numbers of the operations to disturb, counted from 1."""
    numbers = list(range(1, len(operations) + 1))
    if is_whole:
        step = SPARSE.get(name, 1) * (SPARSE_READS if kind == "read" else 1)
        return numbers[::step]
    spread = {"kill": 0.2, "ENOSPC": 0.5, "EIO": 0.8}[mode]
    share = len(numbers) / SAMPLE[name]
    return sorted({numbers[int(share * (index + spread))] for index in range(SAMPLE[name])})


class Sweep:
    """One command and the state that it must end in."""

    def __init__(self, workload: Workload, zygote: Zygote, is_whole: bool) -> None:
        self.workload = workload
        self.is_whole = is_whole
        self.zygote = zygote
        ended = workload.prepare(zygote)
        self.expected = content(workload.out)
        self.operations = {
            kind: [line for line in ended.operations if line.startswith(kind)]
            for kind in ("change", "read")
        }
        self.known: set[str] = set()
        """States that the same line again is known to mend."""

    def disturb(self, fault: Fault) -> str | None:
        """Put in one fault; what went wrong, or None."""
        self.workload.reset()
        ended = self.zygote.run(self.workload.arguments, fault, self.workload.out)
        try:
            self._check(fault, ended)
            self._run_again()
        except Exception as error:  # noqa: BLE001 - all faults are told together
            said = ended.stderr.strip().splitlines()[-1:] or ended.stdout.strip().splitlines()[-1:]
            struck = (
                ended.operations[0].replace(str(self.workload.out), "")
                if ended.operations
                else "nothing struck"
            )
            return (
                f"{fault.mode} at {struck}: exit {ended.code}: {type(error).__name__}:"
                f" {str(error)[:300]} (said: {said})"
            )
        return None

    def _check(self, fault: Fault, ended: Ended) -> None:
        assert "Traceback" not in ended.stderr, ended.stderr[-2000:]
        assert "internal error" not in ended.stderr
        allowed = {"kill": {-9}, "ENOSPC": {0, 5}, "EIO": {0, 5}}[fault.mode]
        if fault.kind == "read":
            allowed |= {1, 3, 4}
        assert ended.code in allowed | ({0} if not ended.operations else set())
        assert find_broken(self.workload.out) == []
        if ended.code == 0:
            assert content(self.workload.out) == self.expected
        elif fault.mode != "kill":
            assert any(
                line.startswith(("wsi: ", "failed: ")) or ": failed: " in line
                for line in (ended.stderr + ended.stdout).splitlines()
            )

    def _run_again(self) -> None:
        state = digest_state(self.workload.out)
        if state in self.known:
            return
        again = self.zygote.run(self.workload.arguments)
        assert again.code == 0, f"again: {again.stderr[-500:]}"
        found = content(self.workload.out)
        different = sorted(
            name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name)
        )
        assert not different, f"again: different: {different[:5]}"
        assert not list(self.workload.out.rglob(".wsi")), "again: left .wsi"
        self.known.add(state)


@pytest.fixture(
    scope="module",
    params=[(name, False) for name in SAMPLE]
    + [
        pytest.param(
            (name, True), marks=[pytest.mark.faults, pytest.mark.xdist_group(f"sweep of {name}")]
        )
        for name in ALL
    ],
    ids=lambda param: f"{param[0]}, {'all' if param[1] else 'sample'}",
)
def sweep(request: pytest.FixtureRequest, base: Path, zygote: Zygote) -> Sweep:
    name, is_whole = request.param
    folder = Path(tempfile.mkdtemp(dir=base))
    make_inputs(folder)
    return Sweep(list_workloads(folder)[name], zygote, is_whole)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("mode", "kind"), [("kill", "change"), ("ENOSPC", "change"), ("EIO", "change"), ("EIO", "read")]
)
def test_a_fault_leaves_nothing_broken_and_the_same_line_goes_on(
    mode: str, kind: str, sweep: Sweep, record_property: Callable[[str, object], None]
) -> None:
    if not sweep.operations[kind]:
        pytest.skip(
            f"{sweep.workload.name} does no such operation: nothing is read back from the folder"
            " that it writes to"
        )
    numbers = choose(sweep.operations[kind], sweep.workload.name, mode, kind, sweep.is_whole)
    found = [sweep.disturb(Fault(mode, kind, number)) for number in numbers]
    record_property(
        f"count of faults in {sweep.workload.name}: {mode} at what {kind}s", len(numbers)
    )
    record_property("count of faults in all", len(numbers))
    wrong = [entry for entry in found if entry is not None]
    assert not wrong, f"{len(wrong)} of {len(numbers)}:\n" + "\n".join(wrong)
