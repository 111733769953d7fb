"""Take away what Windows lacks, as far as that shows on Linux: run before anything is imported."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
from typing import Any

_open = os.open


def _open_file(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
    """``os.open`` of Windows, which opens no directories."""
    if isinstance(path, str | bytes | os.PathLike) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return _open(path, flags, *args, **kwargs)


class _NoLibrary:
    def __init__(self, name: Any, *_: Any, **__: Any) -> None:
        if name is None:
            raise TypeError("argument of type 'NoneType' is not iterable")
        raise OSError(f"there is no library {name}")


def take_away() -> None:
    """Make calls and modules of POSIX unavailable in this process."""
    for module in ("fcntl", "resource", "pwd", "grp", "termios"):
        sys.modules[module] = None  # type: ignore[assignment]
    for name in (
        *("O_NONBLOCK", "O_DIRECT", "O_DIRECTORY", "O_NOFOLLOW", "fork", "register_at_fork"),
        *(
            "preadv",
            "pread",
            "pwritev",
            "pwrite",
            "writev",
            "posix_fadvise",
            "posix_fallocate",
            "mkfifo",
        ),
        *("sched_getaffinity", "sysconf", "statvfs", "getuid", "geteuid", "fchmod", "fchown"),
        *("chown", "killpg", "setsid", "sync"),
    ):
        if hasattr(os, name):
            delattr(os, name)
    for name in [n for n in vars(mmap) if n.startswith(("MADV_", "MAP_", "PROT_"))]:
        delattr(mmap, name)
    for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM"):
        delattr(signal, name)
    os.open = _open_file
    sys.platform = "win32"
    # Of the C library only: packages load libraries of their own by path.
    for kind in ("CDLL", "PyDLL"):
        whole = getattr(ctypes, kind)

        def load(name: Any, *args: Any, whole: Any = whole, **kwargs: Any) -> Any:
            return _NoLibrary(name) if name is None else whole(name, *args, **kwargs)

        setattr(ctypes, kind, load)
