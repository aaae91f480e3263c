"""The limited process in which a slide is opened before another process opens it.

Run as `python -P -m wsi_pipeline.slides.probing BYTES`; requests come on stdin, answers go to
stdout, a line of JSON each.
"""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from wsi_pipeline.core.errors import WsiError
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.base import UserScale


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Open the slide and close it; what is wrong is an answer too."""
    scale = request["scale"]
    try:
        open_slide(
            Path(request["path"]),
            slide_mpp=None if scale is None else UserScale(*scale),
            reader=request["reader"],
        ).close()
    except MemoryError:
        return {
            "error": (
                f"{request['name']}: needs more memory to be opened than any slide does; leave"
                " it out"
            ),
            "is_last": True,
        }
    except (WsiError, OSError, ValueError, ArithmeticError, RuntimeError) as error:
        return {"error": str(error).replace(request["path"], request["name"], 1)}
    return {}


def confine(memory_bytes: int) -> None:
    """Give up what opening does not need: memory, writing files, core dumps with pixels in them."""
    for kind, value in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))


def main() -> None:
    """Answer until the other side hangs up."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not fall among the answers
    confine(int(sys.argv[1]))
    print("{}", file=answers, flush=True)  # ready
    for line in sys.stdin.buffer:
        print(json.dumps(answer(json.loads(line)), allow_nan=False), file=answers, flush=True)


if __name__ == "__main__":
    main()
