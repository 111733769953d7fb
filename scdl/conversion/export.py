"""Export of an archive to AnnData: in memory, as an h5ad file or as a Zarr store."""

from __future__ import annotations

from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.casting import computable
from scdl.archive.schema import DATA, INDICES, INDPTR, MATRIX, Info
from scdl.conversion.exported_view import ArchiveView, blocks_of_one_space
from scdl.conversion.options import Settings
from scdl.conversion.writing import write_archive
from scdl.errors import PathError
from scdl.sources.anndata_elements import writing_strings
from scdl.sources.archive import ArchiveSource, stored_array
from scdl.sources.matrices import pieces
from storage_backends import other_formats
from storage_backends.anndata_format.names import encoding
from storage_backends.base import ArrayStore
from storage_backends.capabilities import Sparse
from storage_backends.directory import publication
from storage_backends.errors import refused_write
from storage_backends.paths import Path, absolute, is_url

_AT_ONCE = 1 << 20
_MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp")


def export(store: ArrayStore, path: Path, *, replace: bool = False, gzip: int | None = 4) -> None:
    """Write an archive as an AnnData: an h5ad file or a Zarr store.

    Matrices are copied in blocks of rows; tables and uns are read into memory. The output appears
    only when it is complete.

    Parameters
    ----------
    store
        The archive; all its feature blocks must have the same genes.
    path
        Path of the output. The suffix ``.h5ad`` writes an HDF5 file, ``.zarr`` a Zarr store with
        the compression profile ``portable``, which every reader of Zarr v3 can decode. Other
        suffixes are errors.
    replace
        Whether to replace an existing output.
    gzip
        Compression level of the matrices of an h5ad file; None: uncompressed.

    Raises
    ------
    SourceError
        The feature blocks of the archive have different genes.
    PathError
        `path` has another suffix.
    ArchiveExistsError
        Something exists at `path`, and `replace` is False.
    ArchiveWriteError
        The output cannot be written.
    """
    target = absolute(path, "the path of the output")
    ending = other_formats.suffix_of(target)
    if is_url(target) or ending not in (".h5ad", ".zarr"):
        raise PathError(
            f"{target}: expected a path that ends in .h5ad, or in .zarr for a Zarr store, found "
            f"{'a URL' if is_url(target) else ending or 'no suffix'}"
        )
    if ending == ".zarr":
        info = Info.of(store)
        blocks = blocks_of_one_space(store, info, None)
        sources = [ArchiveSource(store, info, block, None) for block in blocks]
        settings = Settings("zarr", None, {"compression": "portable"})
        write_archive(lambda stack: sources, target, settings, replace=replace)
        return
    publication.require_absent(target, replace=replace)
    view = ArchiveView(store)
    with refused_write(target):
        publication.require_parent(target)
        with publication.new_file(target) as part, h5py.File(part, "w") as file:
            _write(view, file, {} if gzip is None else {"compression": gzip})


def to_anndata(store: ArrayStore, rows: NDArray[np.int64] | None = None) -> anndata.AnnData:
    """Cells of an archive as an AnnData in memory; `rows` are positions, None: all."""
    view = ArchiveView(store, rows)
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


def _write(view: ArchiveView, file: h5py.File, options: dict[str, Any]) -> None:
    """Write every element, large ones in blocks."""
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
                spec = view.store.spec(name)
                shape = (spec.length, *spec.item_shape)
                _copy(view.store, name, _dataset(file, name, shape, spec.dtype, options))
            else:
                # write_elem does not accept keys with slashes.
                parent, _, key = name.rpartition("/")
                write_elem(_mapping(file, parent), key, view.read(name))


def _mapping(group: h5py.Group, path: str) -> h5py.Group:
    """Get the group of a mapping; create it and its parents if they are missing."""
    for name in filter(None, path.split("/")):
        group = group.require_group(name)
        if "encoding-type" not in group.attrs:
            group.attrs.update(encoding("dict"))
    return group


def _write_sparse(
    view: ArchiveView,
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
        DATA: computable(store.spec(prefix + DATA).dtype),
        INDICES: csr.index_dtype(lengths[DATA], sparse.shape),
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
        # Repeated genes of a cell were summed, so fewer values than reserved were written.
        for part in (DATA, INDICES):
            sets[part].resize((nnz,))


def _dataset(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any, options: dict[str, Any]
) -> h5py.Dataset:
    # HDF5 cannot chunk empty datasets.
    options = {**options, "maxshape": shape, "chunks": True} if 0 not in shape else {}
    dataset = group.create_dataset(name, shape, dtype, **options)
    dataset.attrs.update(encoding("array"))
    return dataset


def _copy(store: ArrayStore, name: str, dataset: h5py.Dataset) -> None:
    start = 0
    for values in pieces(stored_array(store, name), _AT_ONCE):
        dataset[start : start + len(values)] = values
        start += len(values)
