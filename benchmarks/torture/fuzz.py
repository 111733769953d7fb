"""Mutated inputs, on every parser of untrusted data."""

from __future__ import annotations

import os

from benchmarks.common.report import Outcome
from benchmarks.fuzz import workers
from benchmarks.fuzz.targets import TARGETS
from benchmarks.torture.setting import Setting, all_of

#: Of each target, with --quick.
_FEW = 100


def survived(setting: Setting) -> list[Outcome]:
    """Count inputs that are read or end in an ScdlError, in bounded time and memory."""
    outcomes = []
    for name, target in TARGETS.items():
        required = _FEW if setting.quick else target.required
        run = workers.run(name, required, float("inf"), os.cpu_count() or 1)
        found = "".join(f"; input {f.number}: {f.what}" for f in run.findings[:3])
        note = f"{run.refused:,} refused, {run.tried / run.seconds:,.0f} a second{found}"
        outcomes.append(
            all_of(
                f"hostile inputs survived, {name}", required, run.tried - len(run.findings), note
            )
        )
    return outcomes
