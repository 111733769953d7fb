"""Writers that are killed, hit by I/O errors, or short of disk space: how many survived."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.report import Outcome
from benchmarks.torture.setting import Setting, all_of

_TESTS = Path(__file__).parents[2] / "tests" / "support"
_KINDS = ("memmap", "zarr")
#: Names of operations to try; empty: all.
_OPERATIONS: Sequence[str] = ()
#: Most changes of files at which each operation is killed.
_POINTS = 40
#: The same for conversions by several processes, for each kind of pool and each victim.
_CONVERSIONS = ("directory", "parts")
_CREWS = ("processes", "dask")
_CREW_POINTS = 6
#: The same for each errno; "+" marks errors that persist.
_FAULTS = {"ENOSPC": 8, "EIO": 8, "EACCES": 8, "ENOSPC+": 8, "EIO+": 8}
#: Sizes of file systems that are too small, for each operation.
_ROOMS = 8
#: Runs a command that may mount.
_MOUNTING = ("unshare", "--map-root-user", "--mount")


def killed(setting: Setting) -> list[Outcome]:
    """Kill every operation, and one of several processes that convert, on both backends."""
    points, of_crew = (1, 1) if setting.quick else (_POINTS, _CREW_POINTS)
    return [
        *_rows("kill points survived", lambda k: lives(k, ["SIGKILL"], points, _OPERATIONS)),
        *_rows(
            "kill points of several processes survived",
            lambda k: crew_lives(k, of_crew, _CREWS, _CONVERSIONS),
        ),
    ]


def refused(setting: Setting) -> list[Outcome]:
    """Inject I/O errors in every operation, on both backends."""
    # One process tries all errors that are injected at the same number of points.
    by_points: dict[int, list[str]] = {}
    for harm, points in _FAULTS.items():
        by_points.setdefault(1 if setting.quick else points, []).append(harm)
    return _rows(
        "injected I/O faults survived",
        lambda kind: [
            life
            for points, some in by_points.items()
            for life in lives(kind, some, points, _OPERATIONS)
        ],
    )


def cramped(setting: Setting) -> list[Outcome]:
    """Run every operation on a file system that is too small, where one can be mounted."""
    if (why := refusal_to_mount()) is not None:
        print(f"full: skipped, since no file system can be mounted here ({why})")
        return []
    rooms = 1 if setting.quick else _ROOMS
    return _rows(
        "operations on a full file system survived",
        lambda kind: cramped_lives(kind, rooms, _OPERATIONS),
    )


def _rows(what: str, lived_by: Callable[[str], list[dict[str, Any]]]) -> list[Outcome]:
    return [_row(f"{what}, {kind}", lived_by(kind)) for kind in _KINDS]


def _row(what: str, lived: list[dict[str, Any]]) -> Outcome:
    struck = [life for life in lived if "at" in life]
    wrong = [life for life in lived if life["wrong"]]
    counted = Counter(life["operation"] for life in struck)
    note = ", ".join(f"{name} {n}" for name, n in counted.items())
    note += "".join(f"; {_described(life)}" for life in wrong[:3])
    return all_of(what, len(struck), len(struck) - len(wrong), note)


def _described(life: dict[str, Any]) -> str:
    where = f"{life['operation']}, {life['harm']} at {life.get('at')} ({life['n']})"
    return f"{where}: {life['wrong'][0].splitlines()[0]}"


def lives(
    kind: str, harms: Sequence[str], points: int, operations: Sequence[str]
) -> list[dict[str, Any]]:
    """Results of the harness, for each writer that is killed or refused."""
    return _lives("dying.py", kinds=[kind], harms=harms, points=[points], operations=operations)


def crew_lives(
    kind: str, points: int, crews: Sequence[str], conversions: Sequence[str]
) -> list[dict[str, Any]]:
    """Results of the harness, for conversions by several processes of which one is killed."""
    return _lives(
        "dying_workers.py", kinds=[kind], points=[points], crews=crews, operations=conversions
    )


def cramped_lives(kind: str, rooms: int, operations: Sequence[str]) -> list[dict[str, Any]]:
    """Results of the harness, for each writer with too little disk space."""
    return _lives("dying_full.py", _MOUNTING, kinds=[kind], points=[rooms], operations=operations)


def refusal_to_mount() -> str | None:
    """Why no file system can be mounted here; None where one can."""
    with tempfile.TemporaryDirectory() as place:
        command = [*_MOUNTING, "mount", "-t", "tmpfs", "tmpfs", place]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            return " ".join(str(error.stderr).split())
        except OSError as error:
            return str(error)
    return None


def _lives(
    harness: str, within: Sequence[str] = (), **options: Sequence[object]
) -> list[dict[str, Any]]:
    # In memory where possible, so that flushing takes no time.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    flags = [f"--{name}={','.join(map(str, some))}" for name, some in options.items() if some]
    with tempfile.TemporaryDirectory(prefix="dying-", dir=memory) as place:
        done = subprocess.run(
            [*within, sys.executable, _TESTS / harness, place, *flags],
            env=os.environ
            | {
                "PYTHONPATH": f"{_TESTS.parents[1]}{os.pathsep}{_TESTS}",
                # Processes that clean up after killed ones warn.
                "PYTHONWARNINGS": "ignore",
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return [json.loads(line) for line in done.stdout.splitlines()]
