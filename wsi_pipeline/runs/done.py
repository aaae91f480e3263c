"""Looking for slides that an earlier run has finished, before anything large is loaded.

Slides are opened for that in a process of their own, for a file may have become one that ends it.
"""

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from wsi_pipeline.core.limits import available_cores, limited_memory
from wsi_pipeline.core.outcome import SlideOutcome
from wsi_pipeline.stages.infer import InferJob
from wsi_pipeline.store.manifest import is_product

PATIENCE_S, PATIENCE_PER_SLIDE_S = 60.0, 2.0
"""After that the process is ended, and all slides count as not done."""
CODE = "from wsi_pipeline.runs.done import answer; answer()"
ANSWER = b"\nwhat is done: "
"""Before the answer may stand what a library, or Python's start, prints."""
logger = logging.getLogger(__name__)


def find_done(jobs: Sequence[InferJob], *, here: bool) -> dict[int, SlideOutcome]:
    """Return the outcomes of jobs of which nothing is left to do, by their number.

    `here` looks in this process. Whatever goes wrong is left to the run, which names it.
    """
    begun = {number: job for number, job in enumerate(jobs) if is_product(job.target)}
    if not begun:
        return {}
    if here:
        return look(begun)
    try:
        done = subprocess.run(
            # Modules are found where this process finds them, never in the folder it stands in.
            [sys.executable, "-P", "-c", CODE],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            input=pickle.dumps(begun),
            stdout=subprocess.PIPE,
            check=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends the other
            timeout=PATIENCE_S + PATIENCE_PER_SLIDE_S * len(begun),
        )
        found = _unpack(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        logger.warning("finished slides were not looked for (%s); all are opened again", error)
        return {}
    return found


def _unpack(said: bytes) -> dict[int, SlideOutcome]:
    """Return what `answer` sent; ValueError for anything else, or for an end before that."""
    _, mark, found = said.partition(ANSWER)
    try:
        outcomes: dict[int, SlideOutcome] = pickle.loads(mark and found)
    except Exception as error:
        raise ValueError(f"no answer ({type(error).__name__})") from error
    return outcomes


def answer() -> None:
    """Look for the jobs that come by standard input, and send what was found."""
    with limited_memory():
        found = look(pickle.loads(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(ANSWER + pickle.dumps(found))


def look(jobs: Mapping[int, InferJob]) -> dict[int, SlideOutcome]:
    """Return the outcomes of finished jobs."""
    with ThreadPoolExecutor(available_cores(), "look") as pool:
        found = zip(jobs, pool.map(_find_done, jobs.values()), strict=True)
        return {number: outcome for number, outcome in found if outcome is not None}


def _find_done(job: InferJob) -> SlideOutcome | None:
    try:
        return job.find_done()
    except Exception as error:  # noqa: BLE001 - a run that opens it again names the fault
        logger.debug("%s: looked at in vain (%s)", job.slide.slide_id, error)
        return None
