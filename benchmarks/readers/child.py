"""One conversion in a fresh process, started by `benchmarks.common.measure.run_child`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.measure import anonymous_bytes
from benchmarks.common.peers import PEERS


class SyncClock:
    """Adds up the time spent in ``os.fsync``, by standing in for it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, fsync: Callable[[Any], None]) -> Callable[[Any], None]:
        def timed_fsync(descriptor: Any) -> None:
            start = time.perf_counter()
            fsync(descriptor)
            self.seconds += time.perf_counter() - start

        return timed_fsync


def main() -> None:
    """Convert ``source`` to ``target`` with the library ``peer``: the three arguments.

    A few cells are converted before, from the fourth, so that the measured conversion meets
    modules loaded and kernels compiled, and its baseline of memory has both.
    """
    peer, source, target, few_cells = PEERS[sys.argv[1]], *map(Path, sys.argv[2:5])
    peer.prepare()
    imported = anonymous_bytes(os.getpid())
    with tempfile.TemporaryDirectory() as scratch:
        peer.convert(few_cells, Path(scratch) / "few")
    clock = SyncClock()
    os.fsync = clock.wrap(os.fsync)  # type: ignore[assignment]
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    peer.convert(source, target)
    seconds = time.perf_counter() - start
    report = {"seconds": seconds, "sync_seconds": clock.seconds, "imported": imported}
    print(json.dumps(report), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
