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


MAKE_AGAIN = "run the command that made it again, with --force"
"""The remedy for a product that cannot be read, whichever command finds it."""
DAMAGES = (KeyError, TypeError, ValueError, IndexError, ArithmeticError, ConfigError)
"""Errors of reading JSON values that are not as they were written."""


NO_MEMORY = (
    *("cuda out of memory", "cuda error: out of memory", "hip out of memory", "bad_alloc"),
    *("can't allocate memory", "cannot allocate memory"),
    *("can't start new thread", "failed to map segment"),
)
"""Texts by which libraries and the loader say that there was no memory."""


def is_memory_fault(error: BaseException) -> bool:
    """Return True where memory ran out, by the error of Python, of the system or of a library."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError | ImportError):
        return any(text in str(error).lower() for text in NO_MEMORY)
    return isinstance(error, MemoryError)


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
