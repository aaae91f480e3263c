"""Connections with deadlines, so that no client keeps one for ever.

uvicorn ends a connection that is idle between two requests, but waits without end for the rest of
a head and for a client that does not take its answer. Its own limit of connections counts clients
that have shown no token, so that they could shut out all others.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from wsi_pipeline.serve.settings import Limits

LINGER_S = 2.0
"""Seconds in which the rest of a refused body is thrown away. A client that is still sending when
its connection is closed finds it reset, and may never read the answer.
"""
TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
HEAD, ANSWER, END = "head", "answer", "end"
"""The part of a request that a connection waits for."""


def limited_connection(limits: Limits) -> type["Connection"]:
    """Return the protocol of one server's connections, which share a list of those that wait."""
    return type("LimitedConnection", (Connection,), {"limits": limits, "waiting": {}})


class Connection(H11Protocol):
    """A connection that ends where a head or the taking of an answer exceeds its deadline."""

    limits: ClassVar[Limits]
    waiting: ClassVar[dict["Connection", None]]
    """Connections between two requests or within a head, the oldest first."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._is_ending = False
        self._socket: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first head."""
        self._socket = transport
        super().connection_made(cast("asyncio.Transport", _Transport(transport, self)))
        self._await_head(has_begun=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for name in tuple(self._timers):
            self._stop(name)
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        if not self._is_ending:
            super().data_received(data)
            self._await_head(has_begun=True)

    def on_response_complete(self) -> None:
        """Wait for the next request, of which a part may be there."""
        super().on_response_complete()
        self._await_head(has_begun=bool(self.conn.trailing_data[0]))

    def pause_writing(self) -> None:
        """Wait for the client to take what was sent."""
        super().pause_writing()
        self._start(ANSWER, self.limits.answer_s, self._socket.abort)

    def resume_writing(self) -> None:
        """Send on."""
        self._stop(ANSWER)
        super().resume_writing()

    def shutdown(self) -> None:
        """Close the connection when the server stops, or once its answer is sent."""
        if not self.is_ending:
            super().shutdown()

    def end(self) -> None:
        """Close the connection once its answer was taken; an unread rest is thrown away."""
        if self._is_ending:
            return
        self._is_ending = True
        self._await_head(has_begun=False)
        self._start(END, self.limits.answer_s, self._socket.abort)
        if self.conn.their_state not in (h11.SEND_BODY, h11.ERROR) or self._socket.is_closing():
            self._socket.close()
            return
        self._socket.write_eof()
        self._socket.resume_reading()
        self._start("linger", LINGER_S, self._socket.close)

    @property
    def is_ending(self) -> bool:
        """True where nothing more is answered."""
        return self._is_ending or self._socket.is_closing()

    def _await_head(self, *, has_begun: bool) -> None:
        """Start the deadline of a head that has begun; later parts of it give no more time."""
        if self.is_ending or self.conn.their_state is not h11.IDLE:
            self._stop(HEAD)
            self.waiting.pop(self, None)
            return
        self.waiting[self] = None
        if has_begun:
            self._start(HEAD, self.limits.head_s, self._end_late)
        if len(self.waiting) > self.limits.waiting_heads:
            next(iter(self.waiting)).end()

    def _end_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._socket.write(TOO_LATE)
        self.end()

    def _start(self, name: str, seconds: float, act: Callable[[], None]) -> None:
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, act)

    def _stop(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()


class _Transport:
    """A transport whose closing ends the connection by `Connection.end`."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._connection.end()

    def is_closing(self) -> bool:
        return self._connection.is_ending
