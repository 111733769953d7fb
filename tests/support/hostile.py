"""Archives and files that mean harm, and what reading them may take."""

from __future__ import annotations

import json
import os
import signal
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

import scdl
from scdl.errors import ScdlError

#: Content of a file outside of every archive, which nothing may read.
SECRET = b"nobody may read this" * 64


@contextmanager
def bounded(mebibytes: int = 128, seconds: int = 30) -> Iterator[None]:
    """Fail where memory grows by more, or the time is over; Linux tells the former."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    start = _peak(reset=True)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    grown = _peak() - start
    assert grown < mebibytes << 20, f"memory grew by {grown >> 20} MiB"


def _peak(*, reset: bool = False) -> int:
    """Most memory that the process had since the last reset, in bytes; 0 where nobody tells."""
    with suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return 0


def read_all(path: Path) -> None:
    """Read whatever an archive holds, by all ways there are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = scdl.open(path)
        for name in ds.store.arrays:
            ds.store.read(name)
        for name in ds.store.tables:
            ds.store.read_table(name)
        for name in ds.store.elements:
            ds.store.read_element(name)
        ds.read_rows(np.arange(len(ds)))
        ds.var_features().lookup(0)
        str(ds.store.attrs), ds.store.nbytes


def refusal(work: Callable[[], object], **bounds: int) -> ScdlError | None:
    """How something is refused; None where it is done. Nothing else may be raised."""
    found: ScdlError | None = None
    with bounded(**bounds):
        try:
            work()
        except ScdlError as error:
            found = error
    assert SECRET.decode() not in str(found)
    assert len(str(found)) < 2_000
    return found


def verified(path: Path) -> None:
    """Look at an archive with ``verify``, which tells what is wrong and raises for no archive."""
    with bounded(), suppress(ScdlError):
        str(scdl.verify(path, deep=True))


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place; `change` may return another document."""
    document = json.loads(path.read_bytes())
    changed = change(document)
    path.write_text(json.dumps(document if changed is None else changed))


def npy(descr: str, shape: str, payload: bytes = b"", extra: str = "") -> bytes:
    """An npy file by hand."""
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}{extra}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + payload


def with_checksum(data: bytes) -> bytes:
    """Bytes and their CRC32C, as Zarr has it: who means harm gets it right."""
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def zstd_frame(claimed: int) -> bytes:
    """A frame that says it holds so many bytes, of which there are none."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", claimed) + b"\x01\0\0"


def replace_by_link(path: Path, target: Path) -> None:
    """Put a link in the place of a file or directory."""
    os.rename(path, f"{path}.aside")
    path.symlink_to(target)


class Runs:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)
