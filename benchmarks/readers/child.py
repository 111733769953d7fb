"""One conversion by either library; see `benchmarks.common.child`."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.common.child import anonymous_bytes, serve
from benchmarks.common.peers import PEERS, Scdl

_syncing = 0.0
_fsync = os.fsync


def _timed_fsync(descriptor: Any) -> None:
    global _syncing
    start = time.perf_counter()
    _fsync(descriptor)
    _syncing += time.perf_counter() - start


@functools.cache
def _prepared(name: str) -> tuple[Scdl, int | None]:
    """The library, imported, and the memory of this process after that."""
    PEERS[name].prepare()
    return PEERS[name], anonymous_bytes()


def convert(peer: str, source: str, target: str) -> dict[str, Any]:
    """Write an archive of the raw counts; tell also how long ``os.fsync`` took."""
    library, imported = _prepared(peer)
    start, before = time.perf_counter(), _syncing
    library.convert(Path(source), Path(target))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "sync_seconds": _syncing - before, "imported": imported}


if __name__ == "__main__":
    os.fsync = _timed_fsync
    serve(convert)
