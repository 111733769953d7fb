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
import itertools
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scdl.conversion.many import worker_process
from storage_backends.directory import publication, recorder

KILL, INTERRUPT = _SIGNALS = "SIGKILL", "SIGINT"
#: What changes files; the system may refuse all but the last three.
CHANGES = (
    *("open", "write", "writev", "pwrite", "fsync", "fdatasync", "truncate", "ftruncate", "chmod"),
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
    victim
        Process that a signal is sent to; 0: the one whose change it is.
    """

    kind: str
    n: int
    lasting: bool = False
    victim: int = 0


class Inflicted:
    """A harm in this process, from now on.

    Parameters
    ----------
    harm
        May be replaced by another one.
    place
        Directory below which changes of files are counted.
    tell
        Is told of the change at which it happens.
    number
        Gives each change its number; default: from 1 on.
    """

    def __init__(
        self,
        harm: Harm,
        place: str,
        tell: Callable[[str], object],
        number: Callable[[], int] | None = None,
    ) -> None:
        self.harm, self.seen = harm, 0
        self._struck = False
        self._place, self._tell = place, tell
        self._number = number or itertools.count(1).__next__
        self._lock = threading.Lock()
        self._write = os.write
        # Files of tests are small, and would be written in one piece.
        recorder._UNIT = 1 << 12
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
        harm = self.harm
        signalled = harm.kind in _SIGNALS
        with self._lock:
            self.seen = self._number()
            if not self._is_due() or (name in REMOVALS and not signalled):
                return
            if not self._struck or signalled:
                self._struck = True
                self._tell(f"{name} {touched.removeprefix(self._place)}")
            victim = harm.victim or os.getpid()
            if harm.kind == KILL and name in ("write", "writev") and victim == os.getpid():
                # Half of it is there.
                parts = arguments[1] if name == "writev" else arguments[1:]
                data = b"".join(map(bytes, parts))
                self._write(arguments[0], data[: len(data) // 2])
            if signalled:
                os.kill(victim, getattr(signal, harm.kind))
                return
        code = getattr(errno, harm.kind)
        raise OSError(code, os.strerror(code), touched)

    def _is_due(self) -> bool:
        harm = self.harm
        if harm.kind in _SIGNALS:
            return self.seen == harm.n
        return 0 < harm.n <= self.seen and (harm.lasting or not self._struck)


#: Of this process, where it is one of several.
_inflicted: Inflicted | None = None


@dataclass(frozen=True)
class Shared:
    """A harm to processes that work together, and whose changes are counted together.

    Attributes
    ----------
    harm
        What happens at the n-th change of them all.
    place
        Directory below which changes of files are counted.
    count
        File that grows by a byte with each change; beside it, in ``.at``, stands where it happened.
    """

    harm: Harm
    place: str
    count: str

    def inflict(self) -> None:
        """Have this process take part, from now on or again."""
        global _inflicted
        if _inflicted is not None:
            _inflicted.harm = self.harm
            return
        write, file = os.write, os.open(self.count, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def number() -> int:
            write(file, b".")
            # What is appended is appended in one step, and this is where it ends.
            return os.lseek(file, 0, os.SEEK_CUR)

        _inflicted = Inflicted(self.harm, self.place, Path(f"{self.count}.at").write_text, number)

    def begin(self, *setting: Any, _usual: Callable[..., None] = worker_process.begin) -> None:
        """In place of what begins a worker process: the same, and the harm."""
        _usual(*setting)
        self.inflict()


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
