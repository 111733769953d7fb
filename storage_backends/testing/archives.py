"""Example archives for the conformance suite, and damage to them."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage_backends.base import ArrayWriter

UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
FLOATS = ("float16", "float32", "float64")
DTYPES = (*UNSIGNED, "int8", "int16", "int32", "int64", *FLOATS)
ITEM_SHAPES = ((), (1,), (3,), (2, 2))
ODD_KEYS = ("X_pca", "X pca.ü", "X%20pca.ü", "X+pca", ".x", "data", "x.npy", "k" * 150)
N_OBS = 2000

# -- well-formed archives ------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """Contents of an example archive.

    Examples
    --------
    >>> from storage_backends import registry
    >>> from storage_backends.testing import small_archive
    >>> contents = small_archive()
    >>> with registry.create("example.scdl", registry.backend("memmap")) as writer:
    ...     contents.write(writer, pieces=2)
    ...     writer.commit(contents.attrs)
    """

    arrays: Mapping[str, NDArray[Any]]
    tables: Mapping[str, pa.Table]
    attrs: Mapping[str, Any]

    def write(self, writer: ArrayWriter, pieces: int = 1) -> None:
        """Write arrays, interleaved and in `pieces` pieces, and tables; do not commit."""
        for piece in range(pieces):
            for name, values in self.arrays.items():
                writer.append(name, np.array_split(values, pieces)[piece])
        for name, table in self.tables.items():
            writer.write_table(name, table)


def random_numbers(dtype: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[Any]:
    """Extreme values of the dtype, then random bits, which include NaNs with any payload."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64))
    values = np.frombuffer(np.random.default_rng(seed).bytes(size * kind.itemsize), kind).copy()
    if kind.kind == "f":
        info = np.finfo(kind)
        extremes = [-0.0, np.inf, -np.inf, np.nan, info.max, info.min, info.smallest_subnormal]
    else:
        extremes = [np.iinfo(kind).min, np.iinfo(kind).max]
    values[: len(extremes)] = np.array(extremes, kind)[:size]
    return values.reshape(shape)


def every_array(n_obs: int) -> dict[str, NDArray[Any]]:
    """Make an array of every dtype and item shape, such as ``obsm/float32x2x2``."""
    kinds = [(dtype, shape) for dtype in DTYPES for shape in ITEM_SHAPES]
    return {
        f"obsm/{'x'.join(map(str, (d, *shape)))}": random_numbers(d, (n_obs, *shape), seed)
        for seed, (d, shape) in enumerate(kinds)
    }


def index_column(n: int) -> dict[str, pa.Array]:
    """Make the index column of a table; some names are duplicates."""
    return {"_index": pa.array([f"ü{i - (i % 10 == 1)}" for i in range(n)], pa.string())}


def every_type(n: int) -> pa.Table:
    """Make a table of `n` rows with a column of every type that a backend must support."""

    def column(kind: Any, *values: Any) -> pa.Array:
        return pa.array([values[i % len(values)] for i in range(n)], kind)

    def coded(codes: Any, kind: Any, *categories: Any, ordered: bool = False) -> pa.Array:
        indices = column(codes, *range(len(categories) - 1), None)  # the last category is unused
        return pa.DictionaryArray.from_arrays(indices, pa.array(categories, kind), ordered=ordered)

    limits = {name: np.iinfo(name) for name in DTYPES if "int" in name}
    return pa.table(
        {
            **index_column(n),
            "string": column(pa.string(), "b", "", "ü", None, "a\0\nb"),
            "large_string": column(pa.large_string(), "b", None, ""),
            "no value": column(pa.string(), None),
            **{k: column(k, v.min, v.max, None, 1) for k, v in limits.items()},
            "float16": column("float16", *np.array([0.5, -0.0, np.inf, 6e-8], "f2")),
            "float32": column("float32", 0.1, float("nan"), None, -0.0, float("inf")),
            "float64": column("float64", 0.1, float("nan"), None, -0.0, 5e-324),
            "plain float": column("float64", 0.1, float("nan")),
            "bool": column("bool", True, False, None),
            "plain bool": column("bool", True, False),
            "categories": coded("int8", pa.string(), "b", "a", "ü", "unused"),
            "ordered.ü": coded("int32", pa.string(), "low", "high", "", ordered=True),
            "numbers as categories": coded("int16", pa.int64(), 10, -5, 7, 0),
            "floats as categories": coded("int8", pa.float64(), 0.5, -1.5, 0.0),
            "truths as categories": coded("int8", pa.bool_(), True, False),
            "no category": coded("int8", pa.string(), ""),
            "index": column("int64", *range(7)),
        }
    )


def small_archive(
    n_obs: int = 60,
    n_vars: int = 40,
    parts: Mapping[str, Any] | None = None,
    *,
    density: float = 0.3,
    dtypes: tuple[str, str, str] = ("float32", "uint16", "uint32"),
) -> Contents:
    """Make a minimal archive.

    `dtypes` are those of data, indices and indptr. `parts` are arrays, tables or attributes to add
    or replace, by name.

    Examples
    --------
    >>> from storage_backends.testing import small_archive
    >>> contents = small_archive(n_obs=5, n_vars=3)
    >>> sorted(contents.arrays), sorted(contents.tables)
    (['data', 'indices', 'indptr'], ['obs', 'var/0'])
    """
    stored = np.random.default_rng(n_obs).random((n_obs, n_vars)) < density
    indptr = np.concatenate([[0], np.cumsum(stored.sum(axis=1))])
    everything = {
        "data": random_numbers(dtypes[0], (int(indptr[-1]),)),
        "indices": np.nonzero(stored)[1].astype(dtypes[1]),
        "indptr": indptr.astype(dtypes[2]),
        "obs": pa.table(index_column(n_obs)),
        "var/0": pa.table({**index_column(n_vars), "n": pa.array(range(n_vars), pa.int32())}),
        "blocks": [{"stop": n_obs, "n_vars": n_vars, "label": "a.h5ad"}],
        **(parts or {}),
    }
    arrays = {k: v for k, v in everything.items() if isinstance(v, np.ndarray)}
    tables = {k: v for k, v in everything.items() if isinstance(v, pa.Table)}
    attrs = {k: v for k, v in everything.items() if k not in {*arrays, *tables}}
    return Contents(arrays, tables, attrs)


@functools.cache
def large_archive() -> Contents:
    """Make an archive with every dtype, item shape, odd name and column type, in several chunks."""
    parts: dict[str, Any] = {"obs": every_type(N_OBS), **every_array(N_OBS)}
    parts |= {
        f"obsm/{key}": random_numbers("float32", (N_OBS, 2), i) for i, key in enumerate(ODD_KEYS)
    }
    documented, other = ("float32", "uint32", "uint64"), ("float64", "uint16", "uint32")
    for key, dtypes in {"next_cell_ids": documented, "k nn.ü": other}.items():
        graph = small_archive(N_OBS, N_OBS, density=0.004, dtypes=dtypes).arrays
        parts |= {f"graphs/{key}/{part}": values for part, values in graph.items()}
    parts["nested"] = {"ü": [1, 1.0, None, True, {"": []}], "float": [0.1, 5e-324, -0.0]}
    parts["large"] = [2**53 + 1, -(2**63), 2**64 + 1]
    return small_archive(N_OBS, 300, parts, density=0.2)


def without_values(n_obs: int, n_vars: int) -> Contents:
    """Make an archive of a matrix without stored values."""
    parts = {"obs": every_type(n_obs), **every_array(n_obs)}
    return small_archive(n_obs, n_vars, parts, density=0)


def counts(odd: float) -> Contents:
    """Make an archive of small counts with one `odd` value among the last."""
    data = np.random.default_rng(0).geometric(0.4, 400 * 50).astype("float32")
    data[-5] = odd
    return small_archive(400, 50, {"data": data}, density=1)


def unsorted_rows() -> Contents:
    """Make an archive with unsorted and repeated column ids."""
    indices = np.random.default_rng(0).integers(0, 40, 60 * 40).astype("uint16")
    return small_archive(parts={"indices": indices}, density=1)


def two_blocks() -> Contents:
    """Make an archive of two blocks with different columns; the second has no label."""
    ends = [(20, 40, "a.h5ad"), (60, 3, None)]
    blocks = [dict(zip(("stop", "n_vars", "label"), end, strict=True)) for end in ends]
    indices = small_archive().arrays["indices"] % 3
    return small_archive(
        parts={"indices": indices, "var/1": pa.table(index_column(3)), "blocks": blocks}
    )


def tables_of(*columns: str) -> Contents:
    """Make an archive whose tables have only these columns."""
    obs, var = (every_type(n).select(columns) for n in (60, 40))
    return small_archive(parts={"obs": obs, "var/0": var})


#: Functions that make the archives of the round-trip tests, by name.
ROUND_TRIPS: dict[str, Callable[[], Contents]] = {
    **{
        f"{n_obs} x {n_vars}": functools.partial(without_values, n_obs, n_vars)
        for n_obs, n_vars in [(0, 0), (0, 5), (5, 0), (5, 5), (1, 1)]
    },
    **{
        f"counts and {odd}": functools.partial(counts, odd)
        for odd in (1.0, -0.0, 0.5, -1.0, np.nan, np.inf, 2.0**24 + 2, 1e30)
    },
    **{
        f"tables of {columns}": functools.partial(tables_of, *columns)
        for columns in (["int8", "string"], ["categories"], ["_index"], ["_index", "index"])
    },
    "unsorted rows": unsorted_rows,
    "two blocks": two_blocks,
}


# -- requests and streams -------------------------------------------------------------------


def random_ranges(length: int, n: int, seed: int) -> list[tuple[int, int]]:
    """Draw `n` short ranges."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, length + 1, n)
    stops = np.minimum(starts + rng.integers(0, 6, n), length)
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def broken(error: type[BaseException]) -> Iterator[pa.RecordBatch]:
    """Yield a batch of the index column, then raise `error`."""
    yield from pa.table(index_column(3)).to_batches()
    raise error


def stream(batches: Iterator[pa.RecordBatch], schema: pa.Schema = None) -> pa.RecordBatchReader:
    """Make a stream of `batches`; by default they have only the index column."""
    schema = pa.schema([("_index", pa.string())]) if schema is None else schema
    return pa.RecordBatchReader.from_batches(schema, batches)


# -- damage --------------------------------------------------------------------------------


def files_of(path: str) -> list[str]:
    """List the files of an archive that are not empty."""
    if os.path.isfile(path):
        return [path]
    files = (
        os.path.join(directory, name) for directory, _, names in os.walk(path) for name in names
    )
    return sorted(file for file in files if os.path.getsize(file))


@contextlib.contextmanager
def one_bit_flipped(file: str, offset: int) -> Iterator[None]:
    """Context manager that flips a bit of a file, and flips it back at the end."""
    flip_bit(file, offset, offset % 8)
    try:
        yield
    finally:
        flip_bit(file, offset, offset % 8)


def flip_bit(file: str, offset: int, bit: int) -> None:
    """Flip one bit of a file."""
    with open(file, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1 << bit]))
