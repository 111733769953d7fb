"""Run as a script: writers that are killed at every access to the file system, or at any moment.

Each writer is a fork of this process, which has imported everything and done nothing. What happened
is printed as JSON, for test_crash.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet  # noqa: F401 - imported before the forks, as what follows
from anndata.io import read_elem  # noqa: F401

import scdl
import scdl.concatenate
import scdl.conversion
import scdl.dataset
from scdl import _kernels
from storage_backends import _gather

EVENTS = ("os.", "shutil.", "tempfile.", "fcntl.", "open")
SURVIVED, FAILED, INTERRUPTED = 0, 1, 130


def load_kernels() -> None:
    """Load what every fork would otherwise load anew; this starts no threads."""
    offsets = np.zeros(2, np.int64)
    for name in ("u1", "u2", "u4", "u8"):
        empty, one = np.zeros(1, name), np.zeros(1, name)
        _gather.gather(empty, offsets[:1], offsets[:1] + 1, one)
        _kernels.row_order(offsets, empty[:0], 1, offsets[:0])


def fork(action: Callable[[], object]) -> int:
    """Start `action` in a child, which ends with it."""
    pid = os.fork()
    if pid:
        return pid
    code = FAILED
    try:
        code = int(action() or SURVIVED)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:  # noqa: BLE001 - the parent goes on
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float = 60) -> int:
    """How a child ended: its exit code, or minus the signal; one that hangs is ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError("a writer hangs")


def die_at(n: int, place: str) -> None:
    """Kill this process at the n-th event that touches the file system below `place`."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == n:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        touches = event.startswith(EVENTS) and any(place in str(a) for a in arguments)
        if touches or (event == "ctypes.dlsym" and "renameat2" in arguments):
            count()

    flush = os.fsync

    def fsync(descriptor: int) -> None:
        count()
        flush(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def digest(path: str) -> list[object]:
    ds = scdl.open(path)
    values = np.asarray(ds.data, np.float64).sum(), np.asarray(ds.col_index, np.int64).sum()
    return [len(ds), ds.dtypes["data.npy"], *map(float, values), len(ds.obs)]


def state(place: Path, result: str) -> object:
    """What stands at `result`: a digest, "absent", or the error; looked at in a child."""
    told = place.parent / "told.json"

    def tell() -> None:
        try:
            found: object = digest(result)
        except scdl.errors.ArchiveNotFoundError:
            found = "absent"
        except Exception as error:  # noqa: BLE001 - the test shall see it
            found = repr(error)
        told.write_text(json.dumps(found))

    if wait(fork(tell)) != SURVIVED:
        return "the reader died"
    return json.loads(told.read_text())


def listing(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def report(**facts: object) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201


def main(mode: str, how: str, place: Path) -> None:
    """`place` is empty; beside it are ``pristine``, an archive, and ``cells.h5ad``."""
    source, result = str(place.parent / "cells.h5ad"), str(place / "archive")
    pristine = place.parent / "pristine"

    def prepare() -> None:
        for path in place.iterdir():
            shutil.rmtree(path)
        if not mode.startswith("convert"):
            shutil.copytree(pristine, result)

    def act() -> None:
        if mode == "convert":
            scdl.convert(source, result, block_values=20_000)
        elif mode == "convert to zarr":
            options = {"backend": "zarr", "compression": "archive"}
            scdl.convert(source, result, block_values=20_000, **options)
        elif mode == "cast":
            scdl.open(result).cast_data_to_dtype("float64")
        elif mode == "concat":
            scdl.open(result).concat(scdl.open(pristine))

    def retry() -> None:
        if mode.startswith("convert") and os.path.exists(result):
            return
        act()

    def record(ended: int) -> None:
        facts = {"ended": ended, "state": state(place, result), "after": listing(place)}
        facts["retry"] = wait(fork(retry))
        report(**facts, retried=listing(place))

    load_kernels()
    if mode == "convert to zarr":
        # Imported before the forks; its threads start when they are first used.
        import storage_backends.zarr  # noqa: F401
    prepare()
    report(before=state(place, result))
    began = time.monotonic()
    assert wait(fork(act)) == SURVIVED
    whole = time.monotonic() - began
    report(done=state(place, result))
    if how == "events":
        # Changes in place write as conversions do, and differ in how they replace at the end.
        for n in range(1, 500, 3 if mode == "convert" else 5):
            prepare()
            ended = wait(fork(lambda n=n: (die_at(n, str(place)), act())[1]))
            record(ended)
            if ended == SURVIVED:
                return
    for share in np.linspace(0.02, 1.0, 8):
        prepare()
        pid = fork(act)
        time.sleep(whole * share)
        os.kill(pid, getattr(signal, how))
        record(wait(pid))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
