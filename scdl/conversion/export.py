"""From an archive back to an AnnData: in memory, or as an h5ad file of any size."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem
from numpy.typing import NDArray
from tqdm import tqdm

from scdl.archive import csr
from scdl.archive.features import shared_var, spaces_of
from scdl.archive.frames import frame_of
from scdl.archive.schema import DATA, INDICES, INDPTR, MATRIX, OBS, Info, var_table
from scdl.conversion.convert import write_archive
from scdl.conversion.options import Settings
from scdl.errors import ArchiveExistsError, PathError, ScdlWarning, SourceError
from scdl.sources.anndata_elements import writing_strings
from scdl.sources.archive import ArchiveSource, Elements
from storage_backends import other_formats
from storage_backends.anndata_format.names import encoding
from storage_backends.base import ArrayStore
from storage_backends.capabilities import Sparse
from storage_backends.directory import publication
from storage_backends.errors import refused_write
from storage_backends.paths import Path, absolute, is_url

_AT_ONCE = 1 << 20
_MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp")
#: Tables whose names of rows dataframes elsewhere have.
_NAMED = {"obsm": OBS, "varm": "var", "raw/varm": "raw/var"}


def export(store: ArrayStore, path: Path, *, replace: bool = False, gzip: int | None = 4) -> None:
    """Write an archive as an AnnData: an h5ad file, or a Zarr store.

    Matrices are copied by blocks of rows; tables and what stands in uns go through memory. What is
    written appears when it is complete.

    Parameters
    ----------
    store
        The archive, of one feature block.
    path
        Where it goes. A name that ends in ``.h5ad`` becomes a file; one that ends in ``.zarr`` a
        Zarr store, of the profile ``portable``, which all that reads Zarr v3 can decode. Other
        names are refused.
    replace
        Whether to replace what is there.
    gzip
        Compression level of the matrices of an h5ad file; None: uncompressed.

    Raises
    ------
    SourceError
        The archive has several feature blocks, which share no var.
    PathError
        The name of `path` ends otherwise.
    ArchiveExistsError
        Something is at `path`.
    ArchiveWriteError
        The file cannot be written.
    """
    target = absolute(path, "where the AnnData goes, as a path")
    ending = other_formats.suffix_of(target)
    if is_url(target) or ending not in (".h5ad", ".zarr"):
        raise PathError(
            f"{target}: expected a path that ends in .h5ad, or in .zarr for a Zarr store, found "
            f"{'a URL' if is_url(target) else ending or 'no such end'}"
        )
    if ending == ".zarr":
        _export_zarr(store, target, replace=replace)
        return
    if os.path.lexists(target) and not replace:
        raise ArchiveExistsError(
            f"{target}: something exists here already; give replace=True to replace it, or choose "
            "another path"
        )
    view = _View(store)
    with refused_write(target):
        publication.require_parent(target)
        with publication.new_file(target) as part, h5py.File(part, "w") as file:
            _write(view, file, {} if gzip is None else {"compression": gzip})


def _export_zarr(store: ArrayStore, target: str, *, replace: bool) -> None:
    """Write an archive as an AnnData in a Zarr store that every reader of Zarr v3 decodes."""
    info = Info.of(store)
    blocks = _blocks_of_one_space(store, info, None)
    sources = [ArchiveSource(store, info, block, None) for block in blocks]
    settings = Settings("zarr", None, {"compression": "portable"})
    write_archive(lambda stack: sources, target, settings, tqdm(disable=True), replace=replace)


def to_anndata(store: ArrayStore, rows: NDArray[np.int64] | None = None) -> anndata.AnnData:
    """Cells of an archive as an AnnData in memory; `rows` are positions, None: all."""
    view = _View(store, rows)
    parts: dict[str, dict[str, Any]] = {mapping: {} for mapping in (*_MAPPINGS, "raw")}
    others: dict[str, Any] = {}
    for name in view.names():
        holder, _, key = name.partition("/")
        if key and holder == "uns":
            *above, key = key.split("/")
            group = others.setdefault("uns", {})
            for part in above:
                group = group.setdefault(part, {})
            group[key] = view.read(name)
        else:
            parts.get(holder, others)[key or name] = view.read(name)
    raw = parts.pop("raw")
    adata = anndata.AnnData(**others, **parts)
    if {"X", "var"} <= set(raw):
        varm = {k.removeprefix("varm/"): v for k, v in raw.items() if k.startswith("varm/")}
        names = pd.DataFrame(index=adata.obs_names)
        adata.raw = anndata.AnnData(raw["X"], obs=names, var=raw["var"], varm=varm)
    return adata


class _View(Elements):
    """What an archive holds, in memory.

    Parameters
    ----------
    rows
        Cells to take; None: all.
    """

    def __init__(self, store: ArrayStore, rows: NDArray[np.int64] | None = None) -> None:
        info = Info.from_attrs(store.attrs, store.path)
        self._blocks = _blocks_of_one_space(store, info, rows)
        super().__init__(store, info, self._blocks[0])
        self.rows = rows
        self._indexes: dict[str, pd.Index] = {}

    def read(self, name: str) -> Any:
        """An element, of the chosen cells."""
        if name == OBS:
            return self._obs()
        if name == self.genes:
            return frame_of(shared_var(self.store, self._blocks))
        found = self.sparse(name)
        by_cells = name == "raw/X" or name.startswith(("X", "layers/", "obsm/", "obsp/"))
        rows = self.rows if by_cells else None
        if found is not None and found[1].format == "csr":
            at = np.arange(found[1].shape[0]) if rows is None else rows
            n_columns = found[1].shape[1]
            value: Any = _matrix(sp.csr_matrix, self.csr(name, at), (len(at), n_columns))
        elif found is not None:
            data, indices, indptr = (self.store.read(found[0] + part) for part in MATRIX)
            parts = csr.SparseRows(data, indices, indptr)
            value = _matrix(sp.csc_matrix, parts, found[1].shape)
            value = value if rows is None else value[rows]
        elif name in self.store.arrays:
            value = self._dense(name, rows)
        else:
            value = self[name]
            if rows is not None:
                value = value.iloc[rows] if hasattr(value, "iloc") else value[rows]
            if hasattr(value, "columns") and (named := _NAMED.get(name.rpartition("/")[0])):
                # AnnData compares the types of names too.
                value = value.set_axis(self._index_of(named), axis=0)
        return value[:, rows] if rows is not None and name.startswith("obsp/") else value

    def _index_of(self, table: str) -> pd.Index:
        """Names of the chosen cells, or of genes."""
        if table not in self._indexes:
            self._indexes[table] = self.read(table).index
        return self._indexes[table]

    def _obs(self) -> pd.DataFrame:
        if OBS not in self.store.tables:
            names = range(self.info.n_obs) if self.rows is None else self.rows
            return pd.DataFrame(index=[str(i) for i in names])
        frame = frame_of(self.store.read_table(OBS))
        return frame if self.rows is None else frame.iloc[self.rows]

    def csr(self, name: str, rows: NDArray[np.int64]) -> csr.SparseRows:
        """Rows of a sparse matrix that is stored by rows."""
        found = self.sparse(name)
        assert found is not None
        values = csr.read(self.store, found[0], rows)
        if self.is_sorted(name):
            return values
        return csr.clean(values, found[1].shape[1], self.store.path)

    def _dense(self, name: str, rows: NDArray[np.int64] | None) -> NDArray[Any]:
        if rows is None:
            return self.store.read(name)
        spec = self.store.spec(name)
        out = np.empty((len(rows), *spec.item_shape), spec.dtype)
        self.store.read_ranges(name, rows, rows + 1, out)
        return out


def _blocks_of_one_space(
    store: ArrayStore, info: Info, rows: NDArray[np.int64] | None
) -> Sequence[int]:
    """The feature blocks that some cells are of, at least one, all of the same genes.

    Warns of columns of var in which they differ: an AnnData has one var.
    """
    stops = [block.stop for block in info.blocks]
    taken: Sequence[int] = range(len(stops))
    if len(stops) == 1:
        return taken
    if rows is not None:
        taken = np.unique(np.searchsorted(stops, rows, side="right")).tolist() or [0]
    if len(set(spaces_of(store, info)[np.array(taken)].tolist())) > 1:
        raise SourceError(
            f"{store.path}: its cells have different genes, in {len(stops)} feature blocks, and an "
            "AnnData has one var; take the rows of one block, which end at "
            f"{', '.join(map(str, stops))}, or bring them into one gene space with genes="
        )
    names = {name for i in taken for name in store.table_schema(var_table(i)).names}
    lost = names - set(shared_var(store, taken).schema.names)
    if lost:
        warnings.warn(
            f"{store.path}: columns of var that differ between the sources of its cells are left "
            f"out: {', '.join(sorted(lost))}; var_features() has them for each cell",
            ScdlWarning,
            stacklevel=4,
        )
    return taken


def _matrix(kind: Any, parts: csr.SparseRows, shape: tuple[int, int]) -> Any:
    signed = _index_dtype(len(parts.data), shape)
    data = parts.data.astype(_readable(parts.data.dtype), copy=False)
    return kind((data, parts.indices.astype(signed), parts.indptr.astype(signed)), shape=shape)


def _index_dtype(nnz: int, shape: tuple[int, int]) -> np.dtype[Any]:
    """Scipy computes with signed indices only."""
    return np.dtype(np.int64 if max(nnz, *shape) > np.iinfo(np.int32).max else np.int32)


def _readable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Scipy has no matrices of halves."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def _write(view: _View, file: h5py.File, options: dict[str, Any]) -> None:
    """Write every element, the large ones by blocks."""
    file.attrs.update(encoding("anndata"))
    for mapping in (*_MAPPINGS, "uns"):
        write_elem(file, mapping, {})
    names = view.names()
    if any(name.startswith("raw/") for name in names):
        raw = file.create_group("raw")
        raw.attrs.update(encoding("raw"))
        write_elem(raw, "varm", {})
    with writing_strings():
        for name in names:
            sparse = view.sparse(name)
            if sparse is not None:
                _write_sparse(view, file, name, *sparse, options)
            elif name in view.store.arrays:
                _write_dense(view.store, file, name, options)
            else:
                # anndata takes keys of one part only.
                parent, _, key = name.rpartition("/")
                write_elem(_mapping(file, parent), key, view.read(name))


def _mapping(group: h5py.Group, path: str) -> h5py.Group:
    """A mapping, which may be in others that are made."""
    for name in filter(None, path.split("/")):
        group = group.require_group(name)
        if "encoding-type" not in group.attrs:
            group.attrs.update(encoding("dict"))
    return group


def _write_sparse(
    view: _View,
    file: h5py.File,
    name: str,
    prefix: str,
    sparse: Sparse,
    options: dict[str, Any],
) -> None:
    store = view.store
    group = file.create_group(name)
    group.attrs.update(encoding(f"{sparse.format}_matrix"))
    group.attrs["shape"] = np.array(sparse.shape, np.int64)
    lengths = {part: store.spec(prefix + part).length for part in MATRIX}
    dtypes = {
        DATA: _readable(store.spec(prefix + DATA).dtype),
        INDICES: _index_dtype(lengths[DATA], sparse.shape),
        INDPTR: np.dtype(np.int64),
    }
    sets = {part: _dataset(group, part, (lengths[part],), dtypes[part], options) for part in MATRIX}
    if sparse.format == "csc":
        for part, dataset in sets.items():
            _copy(store, prefix + part, dataset)
        return
    nnz = 0
    for start, stop in csr.row_spans(store, prefix, lengths[INDPTR] - 1, _AT_ONCE):
        rows = view.csr(name, np.arange(start, stop))
        sets[INDPTR][start + 1 : stop + 1] = rows.indptr[1:] + nnz
        first, nnz = nnz, nnz + len(rows.data)
        sets[DATA][first:nnz] = rows.data
        sets[INDICES][first:nnz] = rows.indices
    if nnz < lengths[DATA]:
        # Repeated genes of a cell were summed.
        for part in (DATA, INDICES):
            sets[part].resize((nnz,))


def _write_dense(store: ArrayStore, file: h5py.File, name: str, options: dict[str, Any]) -> None:
    spec = store.spec(name)
    dataset = _dataset(file, name, (spec.length, *spec.item_shape), spec.dtype, options)
    _copy(store, name, dataset)


def _dataset(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any, options: dict[str, Any]
) -> h5py.Dataset:
    # HDF5 cuts nothing into no chunks.
    options = {**options, "maxshape": shape, "chunks": True} if 0 not in shape else {}
    dataset = group.create_dataset(name, shape, dtype, **options)
    dataset.attrs.update(encoding("array"))
    return dataset


def _copy(store: ArrayStore, name: str, dataset: h5py.Dataset) -> None:
    spec = store.spec(name)
    at_once = max(1, _AT_ONCE // max(1, int(np.prod(spec.item_shape))))
    for start in range(0, spec.length, at_once):
        stop = min(start + at_once, spec.length)
        dataset[start:stop] = store.read(name, start, stop)
