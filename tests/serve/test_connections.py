"""Connections that are slow, too many, or do not say where a request ends: none of them keeps
others out.
"""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.served import ALLOWED, TOKEN, run_server, wait_until
from wsi_pipeline.serve.connections import Connection
from wsi_pipeline.serve.settings import Limits, ServeSettings

KNOWN = f"Host: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
HEALTH = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
LAST = "Connection: close\r\n\r\n"
JOB = f"POST /api/v1/jobs HTTP/1.1\r\n{KNOWN}Content-Type: application/json\r\n"
FORM = "POST /enter HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SOON_S = 0.3
CHUNK = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
SCRIPT = "/static/docs/swagger-ui-bundle.js"


@contextlib.contextmanager
def serve(folder: Path, **limits: Any) -> Iterator[str]:
    settings = ServeSettings(results=(folder,), token=TOKEN, decoders=1, limits=Limits(**limits))
    with run_server(settings) as (url, _):
        yield url


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with short deadlines."""
    folder = tmp_path_factory.mktemp("connections")
    limits = {"head_s": SOON_S, "answer_s": SOON_S, "upload_bytes": 100_000}
    with serve(folder, **limits) as url:
        yield url


def dial(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def send(url: str, head: str, body: bytes = b"") -> bytes:
    """Send something and return all that comes until the server closes the connection."""
    with dial(url) as stream:
        stream.sendall(head.encode() + body)
        return read_all(stream)


def read_all(stream: socket.socket) -> bytes:
    return b"".join(iter(lambda: stream.recv(65536), b""))


def is_healthy(url: str) -> bool:
    return httpx.get(f"{url}/healthz", timeout=5).status_code == 200


# -- heads
# --------------------------------------------------------------------------------------------------


def test_300_half_requests_keep_nobody_out(tmp_path: Path) -> None:
    with serve(tmp_path) as url, contextlib.ExitStack() as held:
        for _ in range(300):
            held.enter_context(dial(url)).sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert is_healthy(url)
        assert httpx.get(f"{url}/api/v1/slides", headers=ALLOWED).status_code == 200


def test_a_head_has_ten_seconds() -> None:
    assert Limits().head_s == 10


def test_a_head_that_is_late_is_told_so_and_its_connection_closed(url: str) -> None:
    assert send(url, "GET / HTTP/1.1\r\nHost: ").startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_says_nothing_is_closed(url: str) -> None:
    assert send(url, "") == b""


def test_a_head_that_comes_byte_by_byte_has_no_longer(url: str) -> None:
    started = time.monotonic()
    with dial(url) as stream, contextlib.suppress(OSError):
        for byte in HEALTH.encode() * 9:
            stream.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - started < 4 * SOON_S + 2


def test_the_next_head_of_a_connection_has_a_deadline_of_its_own(url: str) -> None:
    with dial(url) as stream:
        for _ in range(2):
            stream.sendall(f"{HEALTH}\r\n".encode())
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += stream.recv(65536)
            time.sleep(1.2 * SOON_S)  # idle between requests: not the deadline of a head
        stream.sendall(HEALTH.encode())
        assert read_all(stream).startswith(b"HTTP/1.1 408 ")


def test_half_a_head_right_behind_a_request_has_a_deadline(url: str) -> None:
    answer = send(url, f"{HEALTH}\r\n{HEALTH}")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer


def test_the_oldest_connection_that_waits_makes_room(tmp_path: Path) -> None:
    with serve(tmp_path, waiting_heads=2) as url, contextlib.ExitStack() as held:
        first, *others = (held.enter_context(dial(url)) for _ in range(3))
        assert first.recv(1) == b""
        for stream in others:
            stream.sendall(f"{HEALTH}{LAST}".encode())
            assert read_all(stream).startswith(b"HTTP/1.1 200 ")


# -- numbers of requests
# --------------------------------------------------------------------------------------------------


def test_requests_count_once_they_have_shown_the_token(tmp_path: Path) -> None:
    with serve(tmp_path, connections=2, visits=1) as url, contextlib.ExitStack() as held:

        def ask(path: str, **headers: str) -> int:
            return httpx.get(f"{url}{path}", headers=headers).status_code

        held.enter_context(dial(url)).sendall(f"{FORM}Content-Length: 9\r\n\r\n".encode())
        wait_until(lambda: ask("/enter") == 503)  # one visit at a time
        assert ask("/static/list.js", **ALLOWED) == 200  # the token counts elsewhere
        for _ in range(2):
            held.enter_context(dial(url)).sendall(f"{JOB}Content-Length: 9\r\n\r\n".encode())
        wait_until(lambda: ask("/api/v1/slides", **ALLOWED) == 503)
        assert ask("/healthz") == 200
        held.close()
        wait_until(lambda: ask("/api/v1/slides", **ALLOWED) == 200)
        wait_until(lambda: ask("/enter") == 200)


def test_a_form_that_does_not_come_has_no_longer_than_a_head(url: str) -> None:
    assert send(url, f"{FORM}Content-Length: 9\r\n\r\n").startswith(b"HTTP/1.1 408 ")


def test_whoever_does_not_take_an_answer_loses_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Connection.connection_made

    def hold_little(self: Connection, transport: Any) -> None:
        """Let the system's buffers hold less than the answer, which else is as good as taken."""
        sender = transport.get_extra_info("socket")
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        begin(self, transport)

    monkeypatch.setattr(Connection, "connection_made", hold_little)
    with serve(tmp_path, visits=1, answer_s=3.0) as url, socket.socket() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = url.removeprefix("http://").split(":")
        stream.connect((host, int(port)))
        stream.sendall(f"GET {SCRIPT} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert stream.recv(12) == b"HTTP/1.1 200"  # before anybody else asks
        assert httpx.get(f"{url}/static/list.js").status_code == 503
        wait_until(lambda: httpx.get(f"{url}/static/list.js").status_code == 200)


# -- bodies
# --------------------------------------------------------------------------------------------------


def test_a_body_without_end_is_refused_and_the_connection_closed(url: str) -> None:
    answer = send(url, f"{JOB}Transfer-Encoding: chunked\r\n\r\n", CHUNK * 20)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


def test_a_client_that_sends_all_of_a_refused_body_reads_the_refusal(url: str) -> None:
    head = f"{JOB}Content-Length: 20000000\r\n\r\n"
    assert send(url, head, bytes(20_000_000)).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_nobody_reads_ends_the_connection(url: str) -> None:
    answer = send(url, f"{HEALTH}Transfer-Encoding: chunked\r\n\r\n", CHUNK)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_request_in_the_body_of_a_refused_one_is_not_answered(url: str, method: str) -> None:
    hidden = f"{HEALTH}\r\n".encode()
    head = f"{method} /api/v1/slides HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    answer = send(url, f"{head}Content-Length: {len(hidden)}\r\n\r\n", hidden * 2)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "head",
    [
        f"{JOB}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        f"{JOB}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        f"{JOB}Content-Length: 3\r\nTransfer-Encoding: Chunked\r\n",
        f"{JOB}Content-Length: 3\r\nTransfer-Encoding: identity\r\n",
        f"{JOB}Content-Length: 3\r\nContent-Length: 5\r\n",
        f"{JOB}Content-Length: 3, 5\r\n",
        f"{JOB}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        f"{JOB}Transfer-Encoding : chunked\r\n",
        f"{JOB}Transfer-Encoding: chunked\r\n".replace("HTTP/1.1", "HTTP/1.0"),
    ],
)
def test_a_request_of_two_lengths_is_refused_and_its_rest_not_read(url: str, head: str) -> None:
    answer = send(url, f"{head}\r\n", f"0\r\n\r\n{HEALTH}\r\n".encode())
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 501")
    assert answer.count(b"HTTP/1.1 ") == 1
