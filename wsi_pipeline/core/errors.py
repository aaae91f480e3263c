"""Every error that the pipeline raises on purpose.

Each takes one finished message (`what: where: what to do`), so that it survives pickling between
processes. Context gained on the way up is added with `add_note`. Foreign exceptions are translated
in the one module that calls the library.
"""

import errno
import os
from pathlib import Path

MACHINE_ERRNOS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.EMFILE, errno.ENFILE, errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ENOLCK),
        errno.ETIMEDOUT,
    }
)
"""Full, read-only, failing or vanished disks, denied access, too many or too large files."""
LIMITS = {
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close programs, or raise the machine's limit of open files (fs.file-max)",
}
"""Remedies of errors that are not the disk's."""


class WsiError(Exception):
    """The run or the slide cannot continue; the message is one line and names the remedy."""

    exit_code = 1


class SlideError(WsiError):
    """A slide file cannot be opened, read, or placed on a scale."""


class StoreError(WsiError):
    """A store is missing, incomplete, damaged, or of another recipe."""


class LabelError(WsiError):
    """Labels cannot be read or do not belong to the slide."""


class ModelError(WsiError):
    """A checkpoint cannot be loaded or does not fit the pixels it is given."""


class ConfigError(WsiError, ValueError):
    """A parameter is out of its range, or parameters contradict each other."""


class EnvironmentFault(WsiError):
    """A fault of the machine, not of the input (disk, lock, cluster): safe to run again."""

    exit_code = 5


class GpuLost(EnvironmentFault):
    """A process can use its GPU no more; another process can, unless the GPU itself is broken."""


MAKE_AGAIN = "run the command that made it again, with --force"
"""The remedy for a product that cannot be read, whichever command finds it."""
DAMAGES = (KeyError, TypeError, ValueError, IndexError, ArithmeticError, ConfigError)
"""Errors of reading JSON values that are not as they were written."""


NO_MEMORY = (
    *("bad_alloc", "can't allocate memory", "cannot allocate memory"),
    *("can't start new thread", "failed to map segment"),
)
"""Texts by which libraries and the loader say that there was no memory."""
NO_GPU_MEMORY = (
    *("cuda out of memory", "cuda error: out of memory", "hip out of memory"),
    *("cudnn_status_alloc_failed", "cublas_status_alloc_failed", "cusolver_status_alloc_failed"),
)
"""Texts by which CUDA and its libraries say that a GPU, or pinned memory, is full."""
GPU_FAULTS = ("cuda error", "cudnn error", "cudnn_status_", "cublas_status_", "hip error")
GPU_LOST = (
    *("illegal memory access", "illegal address", "misaligned address", "illegal instruction"),
    *("unspecified launch failure", "launch timed out", "device-side assert", "uncorrectable"),
    *("hardware stack error", "invalid program counter", "unknown error", "execution_failed"),
)
"""Faults after which no call to the GPU succeeds in the same process (CUDA's sticky errors)."""


def is_memory_fault(error: BaseException) -> bool:
    """Return True where memory ran out, by the error of Python, of the system or of a library."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError | ImportError):
        return _says(error, *NO_MEMORY, *NO_GPU_MEMORY)
    return isinstance(error, MemoryError)


def is_gpu_full(error: BaseException) -> bool:
    """Return True where the memory of a GPU, or memory that is pinned for it, ran out."""
    return isinstance(error, RuntimeError) and _says(error, *NO_GPU_MEMORY)


def gpu_fault(error: BaseException) -> "EnvironmentFault | None":
    """Return the fault of a GPU behind an error of torch, or None for another error."""
    if not isinstance(error, RuntimeError) or not _says(error, *GPU_FAULTS):
        return None
    kind = GpuLost if _says(error, *GPU_LOST) else EnvironmentFault
    remedy = "see nvidia-smi and the kernel's log for Xid, and run the same line again"
    return kind(f"the GPU failed ({one_line(error)}); {remedy}")


def _says(error: BaseException, *texts: str) -> bool:
    said = str(error).lower()
    return any(text in said for text in texts)


def memory_fault(error: BaseException) -> EnvironmentFault | None:
    """Return the fault of this process's memory behind an error, or None for another error."""
    if not is_memory_fault(error):
        return None
    found = f" ({one_line(error)})" if str(error) else ""
    remedy = "end other programs, use fewer workers or a larger machine"
    return EnvironmentFault(f"out of memory{found}: {remedy}, and run the same line again")


def damage_error(path: Path, fault: object) -> StoreError:
    """Return the error of a product that is not as it was written."""
    return StoreError(f"{path}: damaged: {fault}; {MAKE_AGAIN}")


def one_line(error: BaseException) -> str:
    """Return the text of another library's error on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def machine_fault(path: Path | str, error: OSError) -> EnvironmentFault | None:
    """Return the machine's fault behind an error, or None where the input is the cause.

    It names the file of the error, else `path`.
    """
    if error.errno not in MACHINE_ERRNOS:
        return None
    name = error.filename
    where = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else path
    remedy = LIMITS.get(error.errno, "fix that (see df -h, df -i and permissions)")
    return EnvironmentFault(f"{where}: {error.strerror}; {remedy} and run the same line again")
