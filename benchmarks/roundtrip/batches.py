"""Many cases, in several processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmarks.roundtrip import compare, files
from benchmarks.roundtrip.cases import try_case
from benchmarks.roundtrip.generate import PLAIN

#: Cases of a batch, tried one after the other in one process.
_AT_ONCE = 50


class Sources(NamedTuple):
    """Which program writes the sources, and in which format.

    Attributes
    ----------
    zarr_format
        Format of Zarr stores; None: h5ad files.
    writer
        Python of another environment that writes them; None: this one.
    """

    zarr_format: int | None = None
    writer: str | None = None


def tried(
    seeds: range, backend: str, sources: Sources, workers: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the problems of each wrong case."""
    batches = [seeds[i : i + _AT_ONCE] for i in range(0, len(seeds), _AT_ONCE)]
    work = partial(try_batch, backend=backend, sources=sources)
    # Processes are replaced now and then, so that leftovers do not add up. An executor that does so
    # hangs in Python 3.11 (cpython issue 115634).
    with get_context("spawn").Pool(workers, maxtasksperchild=4) as pool:
        for found in pool.imap(work, batches):
            yield from found


def try_batch(seeds: range, backend: str, sources: Sources) -> list[tuple[int, list[str]]]:
    """Number and problems of each wrong case of a batch."""
    files.settings(sources.zarr_format)
    compare.ANY_TEXT = bool(sources.writer) or int(pd.__version__.partition(".")[0]) >= 3
    found = []
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        if sources.writer:
            _write_elsewhere(sources.writer, directory, seeds, sources.zarr_format)
        for seed in seeds:
            if not sources.writer:
                files.write(directory, seed, sources.zarr_format)
            path = directory / f"{seed}{'.zarr' if sources.zarr_format else '.h5ad'}"
            if said := try_case(path, seed, backend):
                found.append((seed, said))
            for left in directory.glob(f"{seed}.*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return found


def _write_elsewhere(python: str, place: Path, seeds: range, zarr_format: int | None) -> None:
    options = ["--zarr", str(zarr_format)] if zarr_format else []
    command = [python, "-m", "benchmarks.roundtrip.files", str(place)]
    command += [str(seeds.start), str(len(seeds)), *options]
    root = Path(__file__).parents[2]
    plain = {} if find_spec("awkward") else {PLAIN: "1"}
    subprocess.run(
        command, check=True, cwd=root, stdout=subprocess.DEVNULL, env={**os.environ, **plain}
    )
