"""annbatch from outside: an environment of its own, and the settings at which it is fastest."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.measure import Spread, take_turns
from benchmarks.common.report import number
from benchmarks.common.child import Child

# pcodec is what it needs to read archives of scdl in two of the profiles.
PACKAGES = (
    "annbatch==0.3.1", "anndata==0.13.4", "zarr==3.4.2", "zarrs==0.2.3", "pcodec==1.1.0"
)  # fmt: skip

# Thousands of cells a second that --tune found, over cells a chunk (rows) and blocks of 64 that
# the loader takes at a time (columns; 400 are all cells of the data); medians of 3 to 5:
#
#           16     64    256    400    random cells, 4,096 at a time
#     4    100    123    123    127      8
#     8    107    131    131    139     11
#    16    116    138    132    142     10
#    32    102    120    123    120      7.5
#    64     93    106     69     85      4.7    annbatch's default chunk
#   128     79     88     89     96      3.0
#   256     61     61     41     55      1.8
#
# Shards of 16 MB to 256 MB instead of 1 GB, its default, change nothing beyond the noise, which is
# 10 % and more. Without compression it reaches 180, and takes 48 bits a value.
CELLS_PER_CHUNK = 16
SHARD = "1GB"
PRELOAD = 64
PRELOAD_CELLS = 4_096
"""Of single random cells, which the loader takes at a time."""

_TRIED_CHUNKS = (4, 8, 16, 32, 64, 128, 256)
_TRIED_SHARDS = ("1GB", "64MB")
_TRIED_PRELOADS = (16, 64, 256, 400)


def annbatch_python(environment: Path, *, make: bool) -> tuple[Path | None, str]:
    """Find the interpreter of annbatch, and `make` its environment where there is none.

    Returns
    -------
    tuple
        The interpreter, or None and the reason.
    """
    python = environment.absolute() / "bin/python"
    installed = environment / ".installed"
    if installed.is_file() and installed.read_text().split() == list(PACKAGES):
        return python, ""
    if not make:
        return None, f"{environment.name} does not have {PACKAGES[0]}"
    base = _newer_python()
    if base is None:
        return None, "it needs Python 3.12 or newer, and there is none on this machine"
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES]
    for command in ([base, "-m", "venv", "--clear", environment], install):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip() or "no message").splitlines()[-1]
            return None, f"its environment cannot be made: {why}"
    installed.write_text("\n".join(PACKAGES) + "\n")
    return python, ""


def _newer_python() -> str | None:
    """As the target test-next of the Makefile finds one, up to the versions annbatch supports."""
    root = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    for version in ("3.13", "3.12"):
        found = [
            shutil.which(f"python{version}"),
            *glob.glob(f"{root}/versions/{version}.*/bin/python"),
        ]
        for python in filter(None, found):
            # pyenv's shims answer to versions that are not active.
            if not subprocess.run(
                [python, "-c", "import ensurepip"], capture_output=True
            ).returncode:
                return python
    return None


def tune(child: Child, source: Path, directory: Path, repeats: int, console: Console) -> None:
    """Print the rate of annbatch over the settings that its user can choose."""
    stores = [(chunk, _TRIED_SHARDS[0]) for chunk in _TRIED_CHUNKS]
    stores += [(CELLS_PER_CHUNK, shard) for shard in _TRIED_SHARDS[1:]]
    measures: dict[Any, Any] = {}
    for chunk, shard in stores:
        path = directory / f"tune-{chunk}-{shard}.zarr"
        shutil.rmtree(path, ignore_errors=True)
        child.ask("convert", source=source, target=path, cells_per_chunk=chunk, shard=shard)
        for preload in _TRIED_PRELOADS:
            measures[chunk, shard, preload] = _rate(child, path, 64, preload, None)
        measures[chunk, shard, "random"] = _rate(child, path, 1, PRELOAD_CELLS, 8)
    take_turns(measures, 1)
    rates = take_turns(measures, repeats)
    table = Table("cells a chunk", "shard", *map(str, _TRIED_PRELOADS), "random cells")
    table.title = "annbatch, k cells/s over blocks of 64 taken at a time"
    for chunk, shard in stores:
        columns = (Spread.of(rates[chunk, shard, key]) for key in (*_TRIED_PRELOADS, "random"))
        table.add_row(str(chunk), shard, *(_short(spread) for spread in columns))
    console.print(table)


def _rate(child: Child, path: Path, block: int, preload: int, limit: int | None) -> Any:
    settings = {"block": block, "preload": preload, "batch": 1_024, "limit": limit}

    def measure() -> float:
        answer = child.ask("epoch", path=path, **settings)
        return float(answer["cells"] / answer["seconds"] / 1e3)

    return measure


def _short(spread: Spread) -> str:
    return f"{number(spread.median)} ({number(spread.low)} to {number(spread.high)})"
