"""Checks of the machine that need only the operating system."""

import fcntl
import os
import platform
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from wsi_pipeline.core.recipe import TOOL
from wsi_pipeline.runs.disk_space import find_existing

GB = 1e9
LOW_DISK_GB, VERY_LOW_DISK_GB = 20.0, 1.0
LOW_INODES = 100_000
LOW_SHARED_GB = 0.25
LOW_OPEN_FILES, VERY_LOW_OPEN_FILES = 4096, 256
SHARED_MEMORY = Path("/dev/shm")
FAST_UNITS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX512-BF16",
    "avx512_vnni": "AVX512-VNNI",
    "avx512f": "AVX512",
    "avx2": "AVX2",
}
"""Units of a CPU that networks gain from, by Linux's names, the best first."""


class Verdict(StrEnum):
    """The result of a check: ok, warn or fail."""

    OK = "ok"
    WARN = "warn"
    """Works, but slower or not for long."""
    BAD = "bad"
    """Work will fail."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""

    @property
    def line(self) -> str:
        """The check in one line."""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.verdict:<5}{self.name:<22}{self.found}{remedy}"


def judge(amount: float, low: float, very_low: float) -> Verdict:
    """Return the verdict for an amount."""
    return Verdict.BAD if amount < very_low else Verdict.WARN if amount < low else Verdict.OK


def check_packages(names: Sequence[str]) -> list[Check]:
    """Versions of installed packages."""
    checks = []
    for name in names:
        try:
            checks.append(Check(name, Verdict.OK, metadata.version(name)))
        except metadata.PackageNotFoundError:
            checks.append(Check(name, Verdict.BAD, "not installed", f"pip install {name}"))
    return checks


def check_tool() -> Check:
    """Our own version, and Python's."""
    return Check(TOOL, Verdict.OK, f"{metadata.version(TOOL)}, Python {platform.python_version()}")


def check_cpu(flags: frozenset[str], cores: int) -> Check:
    """Cores that this process may use, and units for networks."""
    units = [name for flag, name in FAST_UNITS.items() if flag in flags]
    found = f"{cores} of {os.cpu_count() or cores} cores, {', '.join(units) or 'units not told'}"
    if {"AMX", "AVX512-BF16"} & set(units):
        return Check("CPU", Verdict.OK, found)
    return Check("CPU", Verdict.OK, f"{found}; no units for bf16, so networks run in fp32")


def check_load(cores: int, load: float | None = None) -> Check:
    """Check the load: other programs make every measurement too low."""
    load = os.getloadavg()[0] if load is None else load
    found = f"{load:.1f} processes want to run on {cores} cores"
    if load <= cores + 1:
        return Check("load", Verdict.OK, found)
    found += ", so the figures below are too low"
    return Check("load", Verdict.WARN, found, "measure again when the others have ended")


GPU_FIELDS = {
    "index": "{}",
    "name": "{}",
    "memory.total": "{}",
    "memory.free": "{} free",
    "compute_mode": "compute mode {}",
    "mig.mode.current": "MIG {}",
    "driver_version": "driver {}",
}
"""Fields that nvidia-smi is asked for, and how they are told; one that it does not know is left
out.
"""
NOT_TOLD = ("[N/A]", "[Not Supported]", "N/A", "")
LOW_GPU_MIB = 2048


def check_gpu(usable: int, torch_cuda: str | None) -> Check:
    """GPUs by the driver's word and by torch's; a machine without one is a machine without one."""
    present = read_gpus()
    found = "; ".join(_describe_gpu(gpu) for gpu in present)
    if not usable:
        if not present:
            return Check("GPU", Verdict.OK, "none; networks run on the CPU")
        needs_build = "install a torch that is built for CUDA"
        needs_driver = f"install a driver that knows CUDA {torch_cuda}, see CUDA_VISIBLE_DEVICES"
        remedy = needs_build if torch_cuda is None else needs_driver
        return Check("GPU", Verdict.WARN, f"{found}, but torch cannot use it", remedy)
    found = f"{found or 'not told by nvidia-smi'} ({usable} usable, CUDA {torch_cuda})"
    if any(gpu.get("compute_mode") == "Prohibited" for gpu in present):
        remedy = "nvidia-smi --compute-mode DEFAULT"
        return Check("GPU", Verdict.BAD, f"{found}; nothing may compute there", remedy)
    if any(_is_low(gpu.get("memory.free", "")) for gpu in present):
        remedy = "end what holds the memory (nvidia-smi), or take another GPU by --gpus"
        return Check("GPU", Verdict.WARN, f"{found}; less than {LOW_GPU_MIB} MiB are free", remedy)
    return Check("GPU", Verdict.OK, found)


def _describe_gpu(gpu: dict[str, str]) -> str:
    told = [form.format(gpu[name]) for name, form in GPU_FIELDS.items() if name in gpu]
    return f"{told[0]}: {', '.join(told[1:])}" if "index" in gpu else ", ".join(told)


def _is_low(free: str) -> bool:
    amount, _, unit = free.partition(" ")
    return unit == "MiB" and amount.isdecimal() and int(amount) < LOW_GPU_MIB


def read_gpus() -> list[dict[str, str]]:
    """Return what nvidia-smi tells of every NVIDIA GPU, by the names of its fields."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in told.splitlines() if line]
    return [
        {name: part for name, part in zip(GPU_FIELDS, row, strict=True) if part not in NOT_TOLD}
        for row in rows
        if len(row) == len(GPU_FIELDS)
    ]


def check_folder(folder: Path) -> list[Check]:
    """Space, inodes and locks where a folder is, or would be made; nothing stays behind."""
    place = find_existing(folder)
    space = check_space(place, "disk", LOW_DISK_GB, VERY_LOW_DISK_GB)
    return [space, check_inodes(os.statvfs(place)), _try_writing(place)]


def check_space(
    place: Path,
    name: str,
    low_gb: float,
    very_low_gb: float,
    remedy: str = "make room, or name another folder",
) -> Check:
    """Free space of a file system."""
    usage = shutil.disk_usage(place)
    verdict = judge(usage.free / GB, low_gb, very_low_gb)
    found = f"{usage.free / GB:,.1f} GB free of {usage.total / GB:,.1f} at {place}"
    return Check(name, verdict, found, "" if verdict is Verdict.OK else remedy)


def check_inodes(system: os.statvfs_result) -> Check:
    """Count the files that can still be made: a result is some 30 files."""
    if system.f_files == 0:
        return Check("inodes", Verdict.OK, "not limited")
    verdict = judge(system.f_favail, LOW_INODES, LOW_INODES / 100)
    remedy = "" if verdict is Verdict.OK else "remove small files, or name another folder"
    return Check("inodes", verdict, f"{system.f_favail:,} free of {system.f_files:,}", remedy)


def _try_writing(place: Path) -> Check:
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".wsi-doctor-") as stream:
            stream.write(bytes(1024 * 1024))
            stream.flush()
            os.fsync(stream.fileno())
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        remedy = "name a folder that can be written to and locked in"
        return Check("writing", Verdict.BAD, f"{place}: {error.strerror}", remedy)
    return Check("writing", Verdict.OK, "files can be written, flushed and locked there")


def check_shared_memory(place: Path = SHARED_MEMORY) -> Check:
    """Through which processes of one training run hand each other batches."""
    if not place.is_dir():
        remedy = "mount a tmpfs on it where several GPUs are to train"
        return Check("shared memory", Verdict.WARN, f"{place} is not there", remedy)
    remedy = "start the container with --shm-size=2g where several GPUs are to train"
    return check_space(place, "shared memory", LOW_SHARED_GB, 0.0, remedy)


def check_open_files(limit: int | None = None) -> Check:
    """Check the limit of open files; a store keeps up to 1,024 chunks mapped."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = soft if limit is None else limit
    if limit == resource.RLIM_INFINITY:
        return Check("open files", Verdict.OK, "not limited")
    verdict = judge(limit, LOW_OPEN_FILES, VERY_LOW_OPEN_FILES)
    remedy = "" if verdict is Verdict.OK else f"ulimit -n {max(hard, LOW_OPEN_FILES)}"
    return Check("open files", verdict, f"{limit:,} a process", remedy)
