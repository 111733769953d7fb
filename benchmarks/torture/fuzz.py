"""Inputs that nobody wrote, on every parser of what others wrote."""

from __future__ import annotations

import os

from benchmarks.fuzz import workers
from benchmarks.fuzz.targets import TARGETS
from benchmarks.common.report import Outcome
from benchmarks.torture.setting import Setting, all_of

#: Of each target, with --quick.
_FEW = 100


def survived(setting: Setting) -> list[Outcome]:
    """Inputs that end in an ScdlError or are read, in time and in little memory."""
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
