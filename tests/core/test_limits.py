"""Limits of processes: memory, and what a parent and its limited child say to each other."""

import os
import resource
import struct
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.core import limits
from wsi_pipeline.core.limits import (
    NO_MESSAGE,
    Message,
    limited_memory,
    machine_memory,
    receive_message,
    send_message,
)

GIB = 1024**3


def frame(content: bytes) -> bytes:
    return struct.pack("!i", len(content)) + content


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    st.binary(max_size=50),
)
def test_a_message_comes_back_as_it_went(header: dict[str, object], payload: bytes) -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        send_message(theirs, Message(header, payload))
        assert receive_message(ours) == (header, payload)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("!iQ", -1, 2**63) + b"x",  # a length beyond all measure
        frame(b"[]"),
        frame(b"no"),
        frame(b"[" * 100_000),
        frame(b"{}") + struct.pack("!iQ", -1, 2**40),
        frame(b"{}"),  # without its payload
    ],
)
def test_what_is_no_message_is_refused_before_its_length_is_believed(content: bytes) -> None:
    ours, theirs = Pipe()
    with ours:
        with theirs:
            os.write(theirs.fileno(), content)
        with pytest.raises(NO_MESSAGE):
            receive_message(ours)


def test_a_confined_process_can_write_no_file(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys; from wsi_pipeline.core.limits import confine; confine(1 <<"
        " 31); signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        " pathlib.Path(sys.argv[1]).write_bytes(b'x')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts private memory alone")
def test_the_limit_holds_for_a_block_and_never_raises_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(limits, "machine_memory", lambda: 64 * GIB)
    with limited_memory():
        assert resource.getrlimit(resource.RLIMIT_DATA) == (64 * GIB, before[1])
        monkeypatch.setattr(limits, "machine_memory", lambda: 128 * GIB)
        with limited_memory():
            assert resource.getrlimit(resource.RLIMIT_DATA) == (64 * GIB, before[1])
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_the_memory_of_the_machine_is_what_dask_takes_it_for() -> None:
    from distributed.system import MEMORY_LIMIT

    assert machine_memory() == MEMORY_LIMIT


def test_the_memory_of_a_container_counts_where_it_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unlimited").write_text("max\n")
    (tmp_path / "limited").write_text("1073741824\n")
    files = tuple(str(tmp_path / name) for name in ("unlimited", "limited", "missing"))
    monkeypatch.setattr(limits, "CONTAINER_MEMORY", files)
    assert machine_memory() == GIB
