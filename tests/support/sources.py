"""h5ad files in every encoding that users have, and what they mean.

Matrices are written with h5py alone, since anndata writes few of the encodings that it and other
tools read; what they mean is computed by scipy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem
from hypothesis import strategies as st

INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
FLOATS = ["f2", "f4", "f8"]
DTYPES = ["?", *(order + name for name in INTEGERS + FLOATS for order in "<>")]


@dataclass(frozen=True)
class Cells:
    """Stored values in the order in which a file keeps them; positions may repeat."""

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    shape: tuple[int, int]

    def csr(self, dtype: Any = np.float32) -> sp.csr_array:
        """What the values mean: sorted by gene, repeated positions summed."""
        wide = np.result_type(self.values.dtype.newbyteorder("="), np.float64)
        triplets = (self.values.astype(wide), (self.rows, self.columns))
        matrix = sp.coo_array(triplets, shape=self.shape).tocsr()
        matrix.sum_duplicates()
        matrix.sort_indices()
        return sp.csr_array(
            (matrix.data.astype(dtype), matrix.indices, matrix.indptr), shape=self.shape
        )

    def astype(self, dtype: Any) -> Cells:
        return Cells(self.rows, self.columns, self.values.astype(dtype), self.shape)


def random_cells(
    n_obs: int,
    n_vars: int,
    *,
    density: float = 0.4,
    dtype: Any = "<f4",
    seed: int = 0,
    is_sorted: bool = True,
    repeated: bool = False,
) -> Cells:
    """Cells of small values, which every dtype holds exactly, as do sums of a few of them."""
    rng = np.random.default_rng(seed)
    flat = np.flatnonzero(rng.random(n_obs * n_vars) < density)
    if repeated and len(flat):
        flat = np.sort(
            np.append(flat, rng.choice(flat, size=max(1, len(flat) // 4), replace=False))
        )
    if not is_sorted:
        flat = rng.permutation(flat)
    dtype = np.dtype(dtype)
    values = rng.integers(1, 20, len(flat)).astype(np.float64)
    if dtype.kind in "if" and not repeated:
        values *= rng.choice([-1, 1], len(flat))
    if dtype.kind == "f":
        values /= 4
    rows, columns = np.divmod(flat, max(n_vars, 1))
    return Cells(rows, columns, values.astype(dtype), (n_obs, n_vars))


@dataclass(frozen=True)
class Encoding:
    """How a matrix lies in a file."""

    layout: str = "csr"
    index_dtype: str = "<i4"
    indptr_dtype: str = "<i4"
    storage: Mapping[str, Any] = field(default_factory=dict)


def write_matrix(
    parent: h5py.Group, name: str, cells: Cells, encoding: Encoding | None = None
) -> None:
    """Write a matrix as anndata's on-disk format describes it."""
    encoding = encoding or Encoding()
    if encoding.layout == "dense":
        full = np.zeros(cells.shape, cells.values.dtype)
        np.add.at(full, (cells.rows, cells.columns), cells.values)
        target = _dataset(parent, name, full, encoding.storage)
        target.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return
    group = parent.create_group(name)
    group.attrs.update({"encoding-type": f"{encoding.layout}_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array(cells.shape, np.int64)
    if encoding.layout == "coo":
        _dataset(group, "row", cells.rows.astype(encoding.index_dtype), encoding.storage)
        _dataset(group, "col", cells.columns.astype(encoding.index_dtype), encoding.storage)
        _dataset(group, "data", cells.values, encoding.storage)
        return
    by_row = encoding.layout == "csr"
    major, minor = (cells.rows, cells.columns) if by_row else (cells.columns, cells.rows)
    order = np.argsort(major, kind="stable")
    counts = np.bincount(major, minlength=cells.shape[0 if by_row else 1])
    indptr = np.append(0, np.cumsum(counts))
    _dataset(group, "data", cells.values[order], encoding.storage)
    _dataset(group, "indices", minor[order].astype(encoding.index_dtype), encoding.storage)
    _dataset(group, "indptr", indptr.astype(encoding.indptr_dtype), encoding.storage)


def _dataset(
    parent: h5py.Group, name: str, values: np.ndarray, storage: Mapping[str, Any]
) -> h5py.Dataset:
    options = dict(storage)
    if options:
        options["maxshape"] = (None,) * values.ndim
        chunk = options.pop("chunk", None)
        options["chunks"] = True if chunk is None else (chunk,) * values.ndim
    return parent.create_dataset(name, data=values, **options)


def names(prefix: str, n: int) -> pd.Index:
    return pd.Index([f"{prefix}{i}" for i in range(n)])


def write_h5ad(
    path: Path,
    cells: Cells | None,
    encoding: Encoding | None = None,
    *,
    obs: pd.DataFrame | None = None,
    var: pd.DataFrame | None = None,
    raw: tuple[Cells, pd.DataFrame] | None = None,
    layers: Mapping[str, Cells] | None = None,
    obsm: Mapping[str, np.ndarray] | None = None,
    obsp: Mapping[str, Cells] | None = None,
    obsp_encoding: Encoding | None = None,
) -> Path:
    """Write a file; `raw`, `layers` and `obsp` are encoded as X is, `obsp` unless told."""
    shape = cells.shape if cells is not None else (len(obs), len(var))
    with h5py.File(path, "w") as file, writing_strings():
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        if cells is not None:
            write_matrix(file, "X", cells, encoding)
        write_elem(file, "obs", pd.DataFrame(index=names("cell", shape[0])) if obs is None else obs)
        write_elem(file, "var", pd.DataFrame(index=names("gene", shape[1])) if var is None else var)
        if raw is not None:
            group = file.create_group("raw")
            group.attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})
            write_matrix(group, "X", raw[0], encoding)
            write_elem(group, "var", raw[1])
        for name, layer in (layers or {}).items():
            write_matrix(file.require_group("layers"), name, layer, encoding)
        for name, graph in (obsp or {}).items():
            write_matrix(file.require_group("obsp"), name, graph, obsp_encoding or encoding)
        for name, vectors in (obsm or {}).items():
            write_elem(file.require_group("obsm"), name, vectors)
    return path


def writing_strings() -> Any:
    """Let anndata write columns of strings with nulls."""
    return anndata.settings.override(allow_write_nullable_strings=True)


@st.composite
def storages(draw: st.DrawFn) -> dict[str, Any]:
    """Contiguous, or chunked with some compression."""
    kind = draw(st.sampled_from(["contiguous", "chunked", "gzip", "gzip+shuffle", "lzf"]))
    if kind == "contiguous":
        return {}
    storage: dict[str, Any] = {"chunk": draw(st.sampled_from([1, 2, 3, 7, 64]))}
    if kind.startswith("gzip"):
        storage |= {"compression": "gzip", "compression_opts": draw(st.sampled_from([0, 1, 4, 9]))}
        storage |= {"shuffle": kind == "gzip+shuffle"}
    elif kind == "lzf":
        storage |= {"compression": "lzf", "shuffle": draw(st.booleans())}
    storage["fletcher32"] = draw(st.booleans())
    return storage


@st.composite
def encodings(draw: st.DrawFn, layouts: tuple[str, ...] = ("csr", "csc", "dense")) -> Encoding:
    integers = st.sampled_from(["<i4", "<i8", ">i4", "<u4", "<u8"])
    return Encoding(
        draw(st.sampled_from(layouts)), draw(integers), draw(integers), draw(storages())
    )


@st.composite
def cells(
    draw: st.DrawFn, *, square: bool = False, unique: bool = False, dtypes: tuple[str, ...] = ()
) -> Cells:
    n_obs = draw(st.integers(0, 12))
    n_vars = n_obs if square else draw(st.integers(1, 9))
    dtype = draw(st.sampled_from(dtypes or DTYPES))
    return random_cells(
        n_obs,
        n_vars,
        density=draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        dtype=dtype,
        seed=draw(st.integers(0, 2**32 - 1)),
        is_sorted=draw(st.booleans()),
        # Bools do not add up.
        repeated=not unique and dtype != "?" and draw(st.booleans()),
    )
