"""Harm done to a process that writes: at its n-th change of files below a place it is killed, or
the system refuses.

All that scdl, zarr and anndata write goes through functions of ``os``, or through ``open``, which
is replaced by the one of ``_pyio`` that calls those functions. What is written is counted where it
is written: there is no other state of the disk for a killed process to leave.
"""

from __future__ import annotations

import _pyio
import builtins
import errno
import io
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage_backends import publication

KILL, INTERRUPT = "SIGKILL", "SIGINT"
#: What changes files; the system may refuse all but the last three.
CHANGES = (
    *("open", "write", "pwrite", "fsync", "fdatasync", "truncate", "ftruncate", "chmod"),
    *("rename", "replace", "mkdir", "link", "symlink"),
    *("unlink", "remove", "rmdir"),
)
REMOVALS = ("unlink", "remove", "rmdir")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Harm:
    """What happens, and when.

    Attributes
    ----------
    kind
        A signal, ``"SIGKILL"`` or ``"SIGINT"``, or the name of an errno, such as ``"ENOSPC"``.
    n
        Number of the change of files at which it happens, or the next one that can be refused; 0:
        never.
    lasting
        Whether the system refuses everything from then on but to remove.
    """

    kind: str
    n: int
    lasting: bool = False


class Inflicted:
    """A harm in this process, from now on; ``seen`` counts the changes."""

    def __init__(self, harm: Harm, place: str, tell: Callable[[str], object]) -> None:
        self.seen = 0
        self._struck = False
        self._harm, self._place, self._tell = harm, place, tell
        self._lock = threading.Lock()
        self._write = os.write
        for name in CHANGES:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        publication.swap = self._wrapped("rename", publication.swap)
        builtins.open = io.open = _opening(io.open)

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if touched := self._touched(name, arguments, keywords):
                self._count(name, touched, arguments)
            return function(*arguments, **keywords)

        return wrapped

    def _touched(self, name: str, arguments: Any, keywords: Any) -> str | None:
        """The file that a call changes, if it is below the place."""
        if name == "open" and not arguments[1] & _WRITING:
            return None
        for argument in arguments[: 2 if name in ("rename", "replace", "link") else 1]:
            path = _path(argument, keywords.get("dir_fd"))
            if path.startswith(self._place):
                return path
        return None

    def _count(self, name: str, touched: str, arguments: Any) -> None:
        harm = self._harm
        signalled = harm.kind in (KILL, INTERRUPT)
        with self._lock:
            self.seen += 1
            if not harm.n or self.seen < harm.n or (self._struck and not harm.lasting):
                return
            if name in REMOVALS and not signalled:
                return
            if not self._struck:
                self._struck = True
                self._tell(f"{name} {touched.removeprefix(self._place)}")
            if harm.kind == KILL and name == "write":
                # Half of it is there.
                data = memoryview(arguments[1]).cast("B")
                self._write(arguments[0], data[: len(data) // 2])
            if signalled:
                os.kill(os.getpid(), getattr(signal, harm.kind))
                return
        code = getattr(errno, harm.kind)
        raise OSError(code, os.strerror(code), touched)


def _path(argument: Any, dir_fd: int | None) -> str:
    if isinstance(argument, int):
        return os.readlink(f"/proc/self/fd/{argument}")
    path = os.fsdecode(argument)
    if dir_fd is not None and not os.path.isabs(path):
        return os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
    return os.path.abspath(path)


def _opening(usual: Callable[..., Any]) -> Callable[..., Any]:
    def opening(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        writes = not {*mode}.isdisjoint("wxa+")
        return (_pyio.open if writes else usual)(file, mode, *arguments, **keywords)

    return opening
