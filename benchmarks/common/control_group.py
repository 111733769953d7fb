"""A control group of Linux that limits the memory of a process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_MOUNTED = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[Callable[[int], None]]:
    """Make a group below that of this process, and remove it at the end.

    The limit includes the pages of files that a process of the group was the first to read. Its
    processes must have ended when the context does.

    Parameters
    ----------
    limit
        Memory of all processes of the group, bytes.

    Yields
    ------
    Callable
        Moves a process into the group, by its id. Memory that it has already is not moved.

    Raises
    ------
    OSError
        This process may not make groups, or the system has none that limit memory.
    """
    parent, file = _own_group()
    group = parent / f"limit-{os.getpid()}"
    group.mkdir()
    try:
        (group / file).write_text(str(limit))
        yield lambda pid: _join(group, pid)
    finally:
        group.rmdir()


def _join(group: Path, pid: int) -> None:
    (group / "cgroup.procs").write_text(str(pid))


def _own_group() -> tuple[Path, str]:
    """The group of this process, and the name of the file that has the limit of one below it."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    groups = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    for names, path in groups.items():
        if "memory" in names.split(","):
            return _MOUNTED / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
    # Version 2 has one hierarchy for all.
    return _MOUNTED / groups.get("", "/").lstrip("/"), "memory.max"
