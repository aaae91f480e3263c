"""A real Slurm of one node, started for the test, runs workers of `wsi infer --cluster slurm`."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import folder_bytes, paint_coordinates, write_model, write_slide

pytestmark = pytest.mark.system

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sinfo", "scancel")

CONF = """
ClusterName=wsi
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmUser=root
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
SelectType=select/cons_tres
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=work Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

SETTINGS = """
queue: work
cores: 1
processes: 1
memory: 2GB
walltime: "00:10:00"
interface: lo
jobs: 2
job_script_prologue: ["env > {folder}/environment"]
log_directory: {folder}/logs
local_directory: {folder}
shared_temp_directory: {folder}
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def wait_until_idle(environment: dict[str, str]) -> None:
    for _ in range(100):
        state = subprocess.run(
            ["sinfo", "-h", "-o", "%T"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        if state == "idle":
            return
        time.sleep(0.2)
    raise AssertionError(f"Slurm's node is {state!r}")


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's programs find the cluster."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.getuid() != 0:
        pytest.skip(
            f"needs root and Slurm; missing: {', '.join(missing) or 'root'} (Debian: slurmctld"
            " slurmd slurm-client munge)"
        )
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("spool", "state", "logs"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        CONF.format(host=socket.gethostname(), folder=folder, ports=(free_port(), free_port()))
    )
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "SLURM_FOLDER": str(folder),
    }
    if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode != 0:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        subprocess.run(
            ["munged", "--force"], user="munge", group="munge", check=True, capture_output=True
        )
    daemons = [
        subprocess.Popen(
            [program, "-D"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for program in ("slurmctld", "slurmd")
    ]
    try:
        wait_until_idle(environment)
        yield environment
    finally:
        subprocess.run(
            ["scancel", "--state=RUNNING", "--partition=work"],
            env=environment,
            capture_output=True,
            check=False,
        )
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(timeout=30)


def infer(
    tmp_path: Path, results: str, environment: dict[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from wsi_cli.main import wsi; wsi()",
        "infer",
        "--slides",
        str(tmp_path / "slides"),
        "--device",
        "cpu",
    ]
    places = [
        "--model",
        str(tmp_path / "model.safetensors"),
        "--results-dir",
        str(tmp_path / results),
        "--engine",
        "torch",
    ]
    return subprocess.run(
        [*command, *places, *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.mark.timeout(300)
def test_slurm_jobs_give_what_the_plain_loop_gives(slurm: dict[str, str], tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors")
    for index in range(3):
        write_slide(tmp_path / "slides" / f"s{index}.tiff", paint_coordinates(400, 300))
    settings = tmp_path / "slurm.yaml"
    settings.write_text(SETTINGS.format(folder=slurm["SLURM_FOLDER"]))
    done = infer(tmp_path, "by-slurm", slurm, "--cluster", "slurm", "--slurm-config", str(settings))
    assert done.returncode == 0, done.stderr
    assert "3 slides: 3 ok" in done.stdout
    assert infer(tmp_path, "here", slurm, "--workers", "0").returncode == 0
    by_slurm, here = (
        {
            name: content
            for name, content in folder_bytes(tmp_path / place).items()
            if "/predictions.zarr/" in name
        }
        for place in ("by-slurm", "here")
    )
    assert by_slurm == here
    jobs = subprocess.run(
        ["scontrol", "show", "jobs", "-o"], env=slurm, capture_output=True, text=True, check=True
    ).stdout
    assert jobs.count("JobName=dask-worker") == 2
    assert (
        "MALLOC_MMAP_THRESHOLD_=33554432\n"
        in (Path(slurm["SLURM_FOLDER"]) / "environment").read_text()
    )
