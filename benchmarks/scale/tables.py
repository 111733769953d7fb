"""An archive of many cells with few values each, whose table is large."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from scdl.archive.schema import Block, Info
from storage_backends import registry

_GENES, _DONORS, _TYPES = 100, 500, 40
#: Cells that are made and written together.
_AT_ONCE = 1 << 18


def write_archive(path: Path, cells: int, seed: int = 0) -> None:
    """Write a memmap archive with one value a cell and nine columns of obs, in bounded memory."""
    rng = np.random.default_rng(seed)
    batches = _obs(cells, rng)
    first = next(batches)
    with registry.create(path, registry.backend("memmap")) as writer:
        for start in range(0, cells, _AT_ONCE):
            stop = min(start + _AT_ONCE, cells)
            writer.append("data", np.ones(stop - start, np.float32))
            writer.append("indices", rng.integers(0, _GENES, stop - start).astype(np.uint8))
            writer.append("indptr", np.arange(start + (start > 0), stop + 1, dtype=np.uint64))
        writer.write_table("var/0", pa.table({"_index": _labels("gene", _GENES)}))
        stream = itertools.chain([first], batches)
        writer.write_table("obs", pa.RecordBatchReader.from_batches(first.schema, stream))
        writer.commit(Info((Block(cells, _GENES),), is_sorted=True).to_attrs())


def _labels(name: str, n: int) -> pa.Array:
    return pa.array([f"{name} {i:02}" for i in range(n)], pa.large_string())


def _obs(cells: int, rng: np.random.Generator) -> Iterator[pa.RecordBatch]:
    """Categories, text, numbers, truth values and names, some columns sorted by donor."""
    types, donors = _labels("type", _TYPES), _labels("donor", _DONORS)
    for start in range(0, cells, _AT_ONCE):
        number = np.arange(start, min(start + _AT_ONCE, cells))
        n, donor = len(number), number * _DONORS // cells
        yield pa.RecordBatch.from_pydict(
            {
                "_index": pa.array(np.char.add("CELL", number.astype(str)).astype(object),
                                   pa.large_string()),
                "cell_type": pa.DictionaryArray.from_arrays(
                    pa.array(rng.integers(0, _TYPES, n).astype(np.int8)), types),
                "donor": pa.DictionaryArray.from_arrays(pa.array(donor.astype(np.int16)), donors),
                "age": pa.array(20 + donor % 60),
                "n_genes": pa.array(rng.integers(200, 6_000, n).astype(np.int32)),
                "score": pa.array(rng.random(n).astype(np.float32)),
                "is_primary": pa.array(rng.random(n) < 0.5),
                "batch": pa.array(np.char.add("b", (donor % 7).astype(str)).astype(object),
                                  pa.large_string()),
            }
        )  # fmt: skip
