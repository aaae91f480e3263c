"""Answers in JSON; errors as a client sees them.

A client gets a sentence and an id, under which the log has the reason.
"""

import json
import logging
import secrets
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from wsi_pipeline.core.errors import EnvironmentFault, WsiError
from wsi_pipeline.serve.decoding import Busy, TooSlow

logger = logging.getLogger(__name__)

RETRY_AFTER_S = "2"
REASON = "the server's log has the reason under this id"
ANSWERS: tuple[tuple[type[Exception], int, int, str], ...] = (
    (ClientDisconnect, 400, logging.INFO, "the request did not come whole"),
    (Busy, 503, logging.WARNING, "busy; try again in a moment"),
    (TooSlow, 422, logging.WARNING, "took longer than the time limit and was stopped"),
    (EnvironmentFault, 503, logging.ERROR, f"the machine cannot do it now; {REASON}"),
    (WsiError, 422, logging.WARNING, f"cannot be read; {REASON}"),
    (Exception, 500, logging.ERROR, f"internal error; {REASON}"),
)
"""Errors, with status, level of the log, and text; the first that fits counts."""


class JsonAnswer(JSONResponse):
    """JSON in ASCII: text in results, such as a file name, may not be UTF-8."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Refusal(HTTPException):
    """A request that is not served.

    The text goes to the client, so it holds nothing but what the client sent or may know.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)


def answer_fault(error: Exception) -> JsonAnswer:
    """Return the answer to a request that ended in `error`; log the error under the answer's id."""
    fault_id, headers = secrets.token_hex(4), {}
    if isinstance(error, HTTPException):
        status, level, text = error.status_code, logging.INFO, str(error.detail)
        headers = dict(error.headers or {})
    else:
        _, status, level, text = next(row for row in ANSWERS if isinstance(error, row[0]))
    trace = error if level == logging.ERROR else None
    logger.log(level, "%s: %s: %s", fault_id, type(error).__name__, error, exc_info=trace)
    headers |= {"Retry-After": RETRY_AFTER_S} if status == 503 else {}
    return JsonAnswer({"error": text, "id": fault_id}, status, headers)
