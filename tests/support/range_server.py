"""A web server of this machine that gives ranges of the files in a directory."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class RangeServer(http.server.ThreadingHTTPServer):
    """Counts its answers, and waits before each."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self.latency = 0.0
        self.n_requests = self.n_bytes = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        time.sleep(self.server.latency)
        file = self.server.directory / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        whole = file.read_bytes()
        wanted = self.headers.get("Range")
        body = whole if wanted is None else whole[_slice(wanted, len(whole))]
        self.send_response(200 if wanted is None else 206)
        if wanted is not None:
            start = _slice(wanted, len(whole)).start
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = b"" if self.command == "HEAD" else body
        with self.server.lock:
            self.server.n_requests += 1
            self.server.n_bytes += len(body)
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _slice(wanted: str, n: int) -> slice:
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    if not first:
        return slice(max(n - int(last), 0), n)
    return slice(int(first), min(int(last) + 1, n) if last else n)


@contextmanager
def serving(directory: Path) -> Iterator[RangeServer]:
    """Serve a directory from a thread."""
    with RangeServer(directory) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
