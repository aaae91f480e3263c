"""Errors as a client sees them: a sentence and an id, under which the log has the reason."""

import logging
import secrets
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from wsi_pipeline.core.errors import WsiError
from wsi_pipeline.serve.decoding import Busy, TooSlow

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 2


class Refusal(HTTPException):
    """A request that is not served.

    The text goes to the client, so it holds nothing but what the client sent or may know.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the client."""

    status: int
    text: str
    fault_id: str

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}

    def to_json(self) -> dict[str, str]:
        """Return the body of the answer."""
        return {"error": self.text, "id": self.fault_id}


def reply_to(error: Exception) -> Reply:
    """Return the reply to a request that ended in `error`; log the error under the reply's id."""
    fault_id = secrets.token_hex(4)
    if isinstance(error, HTTPException):
        logger.info("%s: refused (%d): %s", fault_id, error.status_code, error.detail)
        return Reply(error.status_code, str(error.detail), fault_id)
    if isinstance(error, ClientDisconnect):
        logger.info("%s: disconnected before the request was complete", fault_id)
        return Reply(400, "the request did not come whole", fault_id)
    if isinstance(error, Busy):
        logger.warning("%s: busy: %s", fault_id, error)
        return Reply(503, "busy; try again in a moment", fault_id)
    if isinstance(error, TooSlow):
        logger.warning("%s: %s", fault_id, error)
        return Reply(422, "took longer than the time limit and was stopped", fault_id)
    if isinstance(error, WsiError):
        logger.warning("%s: %s", fault_id, error)
        return Reply(422, "cannot be read; the server's log has the reason under this id", fault_id)
    logger.error("%s: internal error", fault_id, exc_info=error)
    return Reply(500, "internal error; the server's log has the reason under this id", fault_id)
