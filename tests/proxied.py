"""A reverse proxy in a thread of the tests, which shows a server below a prefix."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@contextlib.contextmanager
def run_proxy(
    server: str, prefix: str, *, strips: bool = True, headers: dict[str, str] | None = None
) -> Iterator[str]:
    """Show a server at `prefix` of a free port; yield the address with the prefix.

    The path is handed on without the prefix (`strips`) or whole; all else is nobody's: 404.
    `headers` are added to every request.
    """
    target = urlsplit(server).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def hand_on(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404, "nothing of mine")
                return
            path = self.path[len(prefix) :] if strips else self.path
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = dict(self.headers.items()) | (headers or {})
            with closing(http.client.HTTPConnection(target, timeout=30)) as connection:
                connection.request(self.command, path, body or None, sent)
                answer = connection.getresponse()
                content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP | {"date", "server"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = hand_on  # noqa: N815 – http.server looks for these names

        def handle(self) -> None:
            """Take no notice of a browser that goes away."""
            with contextlib.suppress(ConnectionError):
                super().handle()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}{prefix}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(10)
