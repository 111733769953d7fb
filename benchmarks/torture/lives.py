"""Writers that are killed, or refused by the system, at changes of files: how many came through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.outcomes import Outcome
from benchmarks.torture.setting import Setting, all_of

_HARNESS = Path(__file__).parents[2] / "tests" / "dying.py"
_KINDS = ("memmap", "zarr")
#: Names of operations to try; none: all.
_OPERATIONS: Sequence[str] = ()
#: Changes of files at which each operation is killed; more than there are: at each.
_POINTS = 40
#: The same for each errno, of which the last ones go on.
_FAULTS = {"ENOSPC": 8, "EIO": 8, "EACCES": 8, "ENOSPC+": 8, "EIO+": 8}


def killed(setting: Setting) -> list[Outcome]:
    """Kills in every operation, on both backends."""
    return [_count(setting, kind, "kill points survived", {"SIGKILL": _POINTS}) for kind in _KINDS]


def refused(setting: Setting) -> list[Outcome]:
    """Errors of the system in every operation, on both backends."""
    return [_count(setting, kind, "injected I/O faults survived", _FAULTS) for kind in _KINDS]


def _count(setting: Setting, kind: str, what: str, harms: dict[str, int]) -> Outcome:
    # All harms that are tried as often are tried by one process.
    by_points: dict[int, list[str]] = {}
    for harm, points in harms.items():
        by_points.setdefault(1 if setting.quick else points, []).append(harm)
    lived = [
        life
        for points, some in by_points.items()
        for life in lives(kind, some, points, _OPERATIONS)
    ]
    struck = [life for life in lived if "at" in life]
    wrong = [life for life in lived if life["wrong"]]
    counted = Counter(life["operation"] for life in struck)
    note = ", ".join(f"{name} {n}" for name, n in counted.items())
    note += "".join(f"; {_told(life)}" for life in wrong[:3])
    return all_of(f"{what}, {kind}", len(struck), len(struck) - len(wrong), note)


def _told(life: dict[str, Any]) -> str:
    where = f"{life['operation']}, {life['harm']} at {life.get('at')} ({life['n']})"
    return f"{where}: {life['wrong'][0].splitlines()[0]}"


def lives(
    kind: str, harms: Sequence[str], points: int, operations: Sequence[str]
) -> list[dict[str, Any]]:
    """What the harness tells of each writer."""
    # In memory, where there is such a place: what is flushed is not waited for.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root = _HARNESS.parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{_HARNESS.parent}"}
    with tempfile.TemporaryDirectory(prefix="dying-", dir=memory) as place:
        flags = {"kinds": kind, "harms": ",".join(harms), "points": points}
        if operations:
            flags["operations"] = ",".join(operations)
        done = subprocess.run(
            [sys.executable, _HARNESS, place, *(f"--{k}={v}" for k, v in flags.items())],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return [json.loads(line) for line in done.stdout.splitlines()]
