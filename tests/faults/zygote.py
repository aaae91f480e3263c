"""A process that has loaded everything and forks a child for every command, some with faults of
their file operations armed.

It reads one JSON object a line (what to run) and answers with one (what came of it). A command so
costs its own time, not that of loading torch. It is started with the library of `file_faults.c`
preloaded.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

MODES = {"none": 0, "count": 1, "kill": 2, "ENOSPC": 3, "EIO": 4}
KINDS = {"change": 0, "read": 1}
MOST_SECONDS = 120


def run_command(job: dict[str, Any], faults: ctypes.CDLL | None) -> int:
    """In the child: run `wsi` with the job's arguments; the exit code."""
    from wsi_cli.main import wsi

    for name, value in job.get("limits", {}).items():
        import resource

        resource.setrlimit(getattr(resource, name), (value, value))
    if faults is not None and job["mode"] != "none":
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        faults.file_faults_arm(
            os.fsencode(job["watched"]),
            MODES[job["mode"]],
            KINDS[job["kind"]],
            ctypes.c_long(job["number"]),
            log,
        )
    code = 0
    try:
        wsi.main(args=job["arguments"], prog_name="wsi")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - a traceback is what the tests look for
        traceback.print_exc()
        code = 99
    if faults is not None:
        faults.file_faults_disarm()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def redirect(job: dict[str, Any]) -> None:
    """Let the command speak into files."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)


def begin(job: dict[str, Any], faults: ctypes.CDLL | None) -> int:
    """Fork a child that runs the job; its process number."""
    child = os.fork()
    if child:
        return child
    code = 98
    try:
        signal.alarm(MOST_SECONDS)
        redirect(job)
        code = run_command(job, faults)
        if "modules" in job:
            Path(job["modules"]).write_text("\n".join(sys.modules))
    finally:
        os._exit(code)


def load(modules: list[str]) -> list[str]:
    """Import what the first command needed; the names of the threads that this process has then
    beside its own.
    """
    for name in modules:
        if name != "__main__":
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or a child's first collection would copy every page
    others = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    return [(task / "comm").read_text().strip() for task in others]


def main() -> None:
    """Answer line by line."""
    library = os.environ.pop("LD_PRELOAD", None)
    faults = ctypes.CDLL(library) if library else None
    for line in sys.stdin:
        job = json.loads(line)
        if "load" in job:
            answer: Any = load(job["load"])
        elif "begin" in job:
            answer = [begin(each, faults) for each in job["begin"]]
        else:
            answer = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in job["wait"]]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
