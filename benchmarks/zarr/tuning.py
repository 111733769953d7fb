"""Rates of annbatch over the settings that its user can choose."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.annbatch import CELLS_PER_CHUNK, PRELOAD_CELLS
from benchmarks.common.child import Child
from benchmarks.common.libraries import BLOCK
from benchmarks.common.measure import epoch_rate, spreads
from benchmarks.common.report import with_spread

_CHUNKS = (4, 8, 16, 32, 64, 128, 256)
_SHARDS = ("1GB", "64MB")
_PRELOADS = (16, 64, 256, 400)


def tune(child: Child, source: Path, directory: Path, repeats: int) -> None:
    """Print a table of rates."""
    stores = [(chunk, _SHARDS[0]) for chunk in _CHUNKS]
    stores += [(CELLS_PER_CHUNK, shard) for shard in _SHARDS[1:]]
    measures: dict[Any, Any] = {}
    for chunk, shard in stores:
        path = directory / f"tune-{chunk}-{shard}.zarr"
        shutil.rmtree(path, ignore_errors=True)
        child.ask("convert", source=source, target=path, cells_per_chunk=chunk, shard=shard)
        for preload in _PRELOADS:
            measures[chunk, shard, preload] = partial(_rate, child, path, BLOCK, preload, None)
        measures[chunk, shard, "random"] = partial(_rate, child, path, 1, PRELOAD_CELLS, 8)
    rates = spreads(measures, repeats)
    table = Table("cells of a chunk", "shard", *map(str, _PRELOADS), "random cells")
    table.title = f"annbatch, k cells/s by blocks of {BLOCK} taken at a time"
    for chunk, shard in stores:
        columns = (rates[chunk, shard, key] for key in (*_PRELOADS, "random"))
        table.add_row(str(chunk), shard, *map(with_spread, columns))
    Console().print(table)


def _rate(child: Child, path: Path, block: int, preload: int, limit: int | None) -> float:
    settings = {"path": path, "block": block, "preload": preload, "batch": 1_024, "limit": limit}
    return epoch_rate(partial(child.ask, "epoch", **settings), 0.0)
