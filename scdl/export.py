"""From an archive back to an AnnData: in memory, or as an h5ad file of any size."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem
from numpy.typing import NDArray

from scdl import csr
from scdl.errors import ArchiveExistsError, SourceError
from scdl.features import frame_of
from scdl.schema import DATA, INDPTR, MATRIX, OBS, Info, graph_array, keys, var_table
from storage_backends.base import ArrayStore, Sparse
from storage_backends.errors import refused_write

Path = str | os.PathLike[str]

_AT_ONCE = 1 << 20
_MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp")


def export(store: ArrayStore, path: Path, *, replace: bool = False, gzip: int | None = 4) -> None:
    """Write an archive as an h5ad file.

    Matrices are copied by blocks of rows; tables and what stands in uns go through memory. The file
    appears when it is complete.

    Parameters
    ----------
    store
        The archive, of one feature block.
    path
        Where the file goes.
    replace
        Whether to replace what is there.
    gzip
        Compression level of the matrices; None: uncompressed.

    Raises
    ------
    SourceError
        The archive has several feature blocks, which share no var.
    ArchiveExistsError
        Something is at `path`.
    ArchiveWriteError
        The file cannot be written.
    """
    target = os.path.abspath(path)
    if os.path.lexists(target) and not replace:
        raise ArchiveExistsError(
            f"{target}: something exists here already; choose another path or remove it"
        )
    view = _AnnDataView(store)
    with refused_write(target):
        handle, part = tempfile.mkstemp(dir=os.path.dirname(target), suffix=".h5ad-part")
        os.close(handle)
        try:
            with h5py.File(part, "w") as file:
                _write(view, file, {} if gzip is None else {"compression": gzip})
            os.chmod(part, 0o666 & ~_umask())
            os.replace(part, target)
        finally:
            with suppress(FileNotFoundError):
                os.remove(part)


def to_anndata(store: ArrayStore, rows: NDArray[np.int64] | None = None) -> anndata.AnnData:
    """Cells of an archive as an AnnData in memory; `rows` are positions, None: all."""
    view = _AnnDataView(store, rows)
    parts: dict[str, dict[str, Any]] = {mapping: {} for mapping in _MAPPINGS}
    others: dict[str, Any] = {}
    for name in view.names():
        holder, _, key = name.partition("/")
        if holder in parts:
            parts[holder][key] = view.read(name)
        else:
            others[name] = view.read(name)
    raw_varm = {k.removeprefix("raw/varm/"): v for k, v in others.items() if "raw/varm/" in k}
    adata = anndata.AnnData(
        X=others.get("X"),
        obs=others["obs"],
        var=others["var"],
        uns=others.get("uns"),
        **parts,
    )
    if "raw/X" in others:
        raw = {"X": others["raw/X"], "var": others["raw/var"], "varm": raw_varm}
        adata.raw = anndata.AnnData(**raw, obs=pd.DataFrame(index=adata.obs_names))
    return adata


class _AnnDataView:
    """What an archive holds, by the names that AnnData has for it.

    Parameters
    ----------
    rows
        Cells to take; None: all.
    """

    def __init__(self, store: ArrayStore, rows: NDArray[np.int64] | None = None) -> None:
        self.store, self.rows = store, rows
        self.info = Info.from_attrs(store.attrs, store.path)
        self._block = self._only_block()
        self.n_obs = self.info.n_obs if rows is None else len(rows)

    def _only_block(self) -> int:
        blocks = self.info.blocks
        if len(blocks) == 1:
            return 0
        stops = [block.stop for block in blocks]
        taken = (
            range(len(blocks))
            if self.rows is None
            else np.unique(np.searchsorted(stops, self.rows, side="right")).tolist()
        )
        if len(taken) != 1:
            raise SourceError(
                f"{self.store.path}: its cells are of {len(blocks)} feature blocks, each with "
                "genes of its own, and an AnnData has one var; take the rows of one block, which "
                f"end at {', '.join(map(str, stops))}"
            )
        return int(taken[0])

    @property
    def n_vars(self) -> int:
        """Genes of the matrix."""
        return self.info.blocks[self._block].n_vars

    def names(self) -> Iterator[str]:
        """Every element."""
        element, store = self.info.element, self.store
        yield from ("obs", "raw/var" if element == "raw/X" else "var", element)
        within = {f"{name}/{part}" for name in store.sparse for part in MATRIX}
        graphs = [f"graphs/{key}" for key in keys(store.arrays, "graphs")]
        for name in dict.fromkeys([*store.sparse, *graphs]):
            yield name.replace("graphs/", "obsp/", 1)
        for name in store.arrays:
            if name not in within and name not in MATRIX and not name.startswith("graphs/"):
                yield name
        yield from store.elements
        if element == "raw/X" and "var" not in store.elements:
            yield "var"

    def sparse(self, name: str) -> tuple[str, Sparse] | None:
        """Prefix of the arrays of a sparse element, and what it is; None where it is none."""
        if name == self.info.element:
            return "", Sparse("csr", (self.info.n_obs, self.n_vars))
        graph = name.replace("obsp/", "graphs/", 1)
        if graph_array(graph.removeprefix("graphs/"), DATA) in self.store.arrays:
            return f"{graph}/", Sparse("csr", (self.info.n_obs, self.info.n_obs))
        return (f"{name}/", self.store.sparse[name]) if name in self.store.sparse else None

    def read(self, name: str) -> Any:
        """An element in memory, of the chosen cells."""
        found = self.sparse(name)
        by_cells = name.startswith(("obs", "layers/", "raw/X")) or name == "X"
        if name == "obs":
            value: Any = self._obs()
            return value
        if name == ("raw/var" if self.info.element == "raw/X" else "var"):
            return frame_of(self.store.read_table(var_table(self._block)))
        if found is not None and found[1].format == "csr":
            value = self._rows(*found)
        elif found is not None:
            value = self._whole(*found)
            value = value if self.rows is None or not by_cells else value[self.rows]
        elif name in self.store.arrays:
            value = self._dense(name)
        elif name in self.store.elements:
            value = self.store.read_element(name)
            if self.rows is not None and by_cells:
                value = value.iloc[self.rows] if hasattr(value, "iloc") else value[self.rows]
        else:
            return None
        if name.startswith("obsp/") and self.rows is not None:
            value = value[:, self.rows]
        return value

    def _obs(self) -> pd.DataFrame:
        if OBS not in self.store.tables:
            names = range(self.info.n_obs) if self.rows is None else self.rows
            return pd.DataFrame(index=[str(i) for i in names])
        frame = frame_of(self.store.read_table(OBS))
        return frame if self.rows is None else frame.iloc[self.rows]

    def _rows(self, prefix: str, sparse: Sparse) -> sp.csr_matrix:
        rows = np.arange(sparse.shape[0]) if self.rows is None else self.rows
        found = csr.read(self.store, prefix, rows)
        if not self.info.is_sorted:
            found = csr.clean(found, sparse.shape[1], self.store.path)
        return _matrix(sp.csr_matrix, found.data, found.indices, found.indptr,
                       (len(rows), sparse.shape[1]))  # fmt: skip

    def _whole(self, prefix: str, sparse: Sparse) -> Any:
        kind = sp.csr_matrix if sparse.format == "csr" else sp.csc_matrix
        return _matrix(kind, *(self.store.read(prefix + part) for part in MATRIX), sparse.shape)

    def _dense(self, name: str) -> NDArray[Any]:
        if self.rows is None:
            return self.store.read(name)
        spec = self.store.spec(name)
        out = np.empty((len(self.rows), *spec.item_shape), spec.dtype)
        self.store.read_ranges(name, self.rows, self.rows + 1, out)
        return out


def _matrix(
    kind: Any,
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    shape: tuple[int, int],
) -> Any:
    # scipy computes with signed indices only, and not with halves.
    signed = np.int64 if max(len(data), *shape) > np.iinfo(np.int32).max else np.int32
    data = data.astype(np.float32) if data.dtype == np.float16 else data
    return kind((data, indices.astype(signed), indptr.astype(signed)), shape=shape)


def _write(view: _AnnDataView, file: h5py.File, options: dict[str, Any]) -> None:
    """Write every element, the large ones by blocks."""
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for mapping in (*_MAPPINGS, "uns"):
        write_elem(file, mapping, {})
    names = list(view.names())
    if any(name.startswith("raw/") for name in names):
        raw = file.create_group("raw")
        raw.attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})
        write_elem(raw, "varm", {})
    for name in names:
        found = view.sparse(name)
        if found is not None:
            _write_sparse(view, file, name, *found, options)
        elif name in view.store.arrays:
            _write_dense(view.store, file, name, options)
        else:
            value = view.read(name)
            if value is None:
                value = pd.DataFrame(index=[])
            if name in file:
                del file[name]
            write_elem(file, name, value)


def _write_sparse(
    view: _AnnDataView,
    file: h5py.File,
    name: str,
    prefix: str,
    sparse: Sparse,
    options: dict[str, Any],
) -> None:
    store = view.store
    group = file.create_group(name)
    group.attrs.update({"encoding-type": f"{sparse.format}_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array(sparse.shape, np.int64)
    nnz, n = store.spec(prefix + DATA).length, store.spec(prefix + INDPTR).length
    signed = np.int64 if max(nnz, *sparse.shape) > np.iinfo(np.int32).max else np.int32
    dtypes = {"data": store.spec(prefix + DATA).dtype, "indices": signed}
    if dtypes["data"] == np.float16:
        dtypes["data"] = np.dtype(np.float32)
    sets = {part: _dataset(group, part, (nnz,), dtype, options) for part, dtype in dtypes.items()}
    group.create_dataset("indptr", (n,), np.int64)
    for part in ("data", "indices", "indptr"):
        group[part].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    _copy(store, prefix + INDPTR, group["indptr"])
    if sparse.format == "csc":
        for part, dataset in sets.items():
            _copy(store, prefix + part, dataset)
        return
    for start, stop in csr.row_spans(store, prefix, n - 1, _AT_ONCE):
        rows = csr.read(store, prefix, np.arange(start, stop))
        if not view.info.is_sorted:
            rows = csr.clean(rows, sparse.shape[1], store.path)
        first = int(store.read(prefix + INDPTR, start, start + 1)[0])
        sets["data"][first : first + len(rows.data)] = rows.data
        sets["indices"][first : first + len(rows.data)] = rows.indices


def _write_dense(store: ArrayStore, file: h5py.File, name: str, options: dict[str, Any]) -> None:
    spec = store.spec(name)
    dataset = _dataset(file, name, (spec.length, *spec.item_shape), spec.dtype, options)
    dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    _copy(store, name, dataset)


def _dataset(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any, options: dict[str, Any]
) -> h5py.Dataset:
    # HDF5 cuts nothing into no chunks.
    return group.create_dataset(name, shape, dtype, **(options if 0 not in shape else {}))


def _copy(store: ArrayStore, name: str, dataset: h5py.Dataset) -> None:
    spec = store.spec(name)
    at_once = max(1, _AT_ONCE // max(1, int(np.prod(spec.item_shape))))
    for start in range(0, spec.length, at_once):
        stop = min(start + at_once, spec.length)
        dataset[start:stop] = store.read(name, start, stop)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
