"""A web server on loopback with the latency and bandwidth of an object store."""

from __future__ import annotations

import asyncio
import mmap
import re
import threading
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.common.child import serve

_RANGE = re.compile(rb"\r\n[Rr]ange: *bytes=(\d*)-(\d*)")


class SlowFiles:
    """Files of a directory; each answer begins late, and each connection is slow.

    Parameters
    ----------
    directory
        Files in it and below are served.
    latency
        Seconds before an answer begins.
    rate
        Bytes per second of a connection.

    Attributes
    ----------
    requests, nbytes
        Number of answers, and their bytes.
    """

    def __init__(self, directory: Path, latency: float, rate: float) -> None:
        self._directory, self._latency, self._rate = directory, latency, rate
        self._open = cache(self._map)
        self.requests, self.nbytes = 0, 0

    async def serve(self) -> asyncio.Server:
        """Listen on a free port."""
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=1024)

    def _map(self, target: bytes) -> memoryview | None:
        path = self._directory / target.decode().lstrip("/").partition("?")[0]
        if not path.is_file():
            return None
        if not path.stat().st_size:
            return memoryview(b"")
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def answer(self, request: bytes) -> tuple[bytes, memoryview, float]:
        """Head and body of an answer, and the seconds that it takes."""
        method, target, _ = request.split(b" ", 2)
        data, none = self._open(target), memoryview(b"")
        self.requests += 1
        if data is None:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", none, self._latency
        size, start, stop, status = len(data), 0, len(data), b"200 OK"
        found = b""
        if (wanted := _RANGE.search(request)) is not None:
            first, last = wanted.groups()
            start = int(first) if first else max(0, size - int(last))
            stop = min(int(last) + 1, size) if first and last else size
            status = b"206 Partial Content"
            found = b"Content-Range: bytes %d-%d/%d\r\n" % (start, stop - 1, size)
        head = (
            b"HTTP/1.1 %b\r\nContent-Length: %d\r\nAccept-Ranges: bytes\r\n%b"
            b'ETag: "%d"\r\nLast-Modified: Sun, 29 Nov 2026 00:00:00 GMT\r\n\r\n'
        ) % (status, stop - start, found, size)
        body = none if method == b"HEAD" else data[start:stop]
        self.nbytes += len(body)
        return head, body, self._latency + len(body) / self._rate


class _Connection(asyncio.Protocol):
    def __init__(self, files: SlowFiles) -> None:
        self._files = files
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\r\n\r\n"):
            head, body, seconds = self._files.answer(self._received)
            self._received = b""
            loop = asyncio.get_running_loop()
            loop.call_later(seconds, self._transport.writelines, (head, body))


def start(directory: str, latency: float, rate: float) -> dict[str, Any]:
    """Serve the files of a directory from a thread of this process."""
    loop, files = asyncio.new_event_loop(), SlowFiles(Path(directory), latency, rate)
    server = loop.run_until_complete(files.serve())
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return {"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}


if __name__ == "__main__":
    serve(start)
