"""Nothing is asked of any other machine: sockets that leave the loopback are refused, and none is
tried.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import SMALL, make_training_stores, tissue, write_slide

pytestmark = pytest.mark.system
GUARD = Path(__file__).parent / "no_network"
RUN = """
import json, sys
from wsi_cli.main import wsi
if __name__ == "__main__":
    for arguments in json.loads(sys.argv[1]):
        try:
            wsi(arguments)
        except SystemExit as end:
            if end.code:
                raise
"""


def run_guarded(log: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(GUARD), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {
        "PYTHONPATH": path,
        "WSI_TEST_SOCKET_LOG": str(log),
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
        "import socket; socket.getaddrinfo('pypi.org', 443)",
        (
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x',"
            " ('192.0.2.1', 53))"
        ),
        "import urllib.request; urllib.request.urlopen('http://example.org', timeout=1)",
        (
            "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket;"
            ' socket.gethostbyname("a.org")\'], check=True)'
        ),
    ],
)
def test_the_guard_refuses_and_tells(attempt: str, tmp_path: Path) -> None:
    assert run_guarded(tmp_path / "log", attempt).returncode != 0
    assert "tried socket." in (tmp_path / "log").read_text()


def test_the_guard_lets_the_loopback_be(tmp_path: Path) -> None:
    script = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        " socket.create_connection(s.getsockname()).close()"
    )
    assert run_guarded(tmp_path / "log", script).returncode == 0
    assert "tried" not in (tmp_path / "log").read_text()


def test_tile_train_and_infer_ask_nobody(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", tissue(300, 250))
    make_training_stores(tmp_path / "patients", patients=3, patches=12)
    model = tmp_path / "model" / "model.safetensors"
    slides, stores = tmp_path / "slides", tmp_path / "patients"
    commands = [
        ["tile", slides, "--out", tmp_path / "stores", "--mpp", 0.5, "--workers", 1],
        [
            "train",
            stores,
            "--out",
            tmp_path / "model",
            "--arch",
            SMALL,
            "--epochs",
            1,
            "--device",
            "cpu",
        ],
        [
            "infer",
            "--slides",
            slides,
            "--model",
            model,
            "--results-dir",
            tmp_path / "results",
            "--workers",
            1,
        ],
    ]
    answer = run_guarded(
        tmp_path / "log", RUN, json.dumps([[str(part) for part in command] for command in commands])
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert (tmp_path / "results" / "s" / "summary.json").is_file()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if line.startswith("tried")] == []
    assert (
        len({line for line in lines if line.startswith("guarded")}) >= 3
    )  # this process's child and its workers
