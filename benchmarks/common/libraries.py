"""The libraries that write and read archives of one matrix, each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common.annbatch import CELLS_PER_CHUNK, SHARD
from benchmarks.common.child import Child

MEMMAP, ANNBATCH, CELLSTREAM = "memmap", "annbatch", "cellstream"
FRAMES = ("packed", "packed-fast")
"""Profiles of Zarr archives that read single cells."""
BLOCK = 64
"""Cells of a block, of those that are read in random order."""


def fresh_child(name: str, python: Path | None) -> Child:
    """Start the process that reads and writes archives of that name."""
    if name in (ANNBATCH, CELLSTREAM):
        assert python is not None
        return Child(f"benchmarks.common.{name}_child", python)
    return Child("benchmarks.common.scdl_child")


def conversion_options(name: str) -> dict[str, Any]:
    """How the process that writes an archive of that name is asked to."""
    if name == ANNBATCH:
        return {"cells_per_chunk": CELLS_PER_CHUNK, "shard": SHARD}
    return {} if name == CELLSTREAM else {"profile": name}
