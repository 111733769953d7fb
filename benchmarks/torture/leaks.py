"""What readers of an archive hold after many epochs, beside a writer that changes it."""

from __future__ import annotations

from benchmarks.outcomes import Outcome
from benchmarks.soak import soak
from benchmarks.torture.setting import Setting


def leak(setting: Setting) -> list[Outcome]:
    """The soak test on both backends."""
    epochs, times, cells = (2, 5, 60) if setting.quick else (50, 1_000, 5_000)
    outcomes = []
    for kind in ("memmap", "zarr"):
        (place := setting.place / f"soak-{kind}").mkdir()
        (place / kind).mkdir()
        outcomes += soak(place, kind, epochs, times, cells)
    return outcomes
