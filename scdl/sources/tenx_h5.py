"""HDF5 files of 10x Genomics' Cell Ranger, versions 2 and 3 and newer.

Source: "HDF5 Feature-Barcode Matrix Format" of the documentation of Cell Ranger, and for version 2
the files that it wrote, with one group for each genome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Unpack

import h5py
import pyarrow as pa

from scdl.archive.schema import INDEX, MATRIX
from scdl.errors import OptionError, SourceError
from scdl.sources import hdf5_guard
from scdl.sources.base import Source
from scdl.sources.dataframes import H5Frame, H5Table
from scdl.sources.hdf5 import open_file, readable, readers
from scdl.sources.matrices import Csr
from scdl.sources.tenx import Features, TenxOptions, TenxSource
from storage_backends import other_formats
from storage_backends.anndata_format.dataframes import Column, as_text
from storage_backends.anndata_format.names import COLUMN_ORDER
from storage_backends.compute import arrow

FILES = ("*.h5",)
#: Group of the matrix since version 3, and of its features.
_MATRIX, _FEATURES = "matrix", "features"
#: Dataset with the names of cells.
_BARCODES = "barcodes"
#: Datasets of features that scanpy names differently, of genes and of probes.
_OF_GENES = {"id": "gene_ids", "feature_type": "feature_types"}
_OF_PROBES = {"gene_id": "gene_ids", "id": "probe_ids", "feature_type": "feature_types"}
#: Whether each barcode is that of a cell, in files of probes.
_FILTERED = "filtered_barcodes"


def is_tenx(path: str) -> bool:
    """Whether a path is an HDF5 file of Cell Ranger."""
    # No search in h5ad files, which are far more frequent.
    if path.endswith(".h5ad") or not other_formats.is_hdf5(path):
        return False
    try:
        with h5py.File(path) as file:
            return bool(_matrices(file))
    except Exception:  # noqa: BLE001 - opening it as an h5ad file says what is wrong
        return False


def _matrices(file: h5py.File) -> list[str]:
    """Names of the groups that are matrices: ``matrix``, or genomes in version 2."""
    groups = {name: hdf5_guard.group(file, name) for name in file}
    names = [n for n, group in groups.items() if isinstance(group, h5py.Group)
             and {_BARCODES, "indptr"} <= group.keys()]  # fmt: skip
    return [_MATRIX] if _MATRIX in names else names


def open_sources(
    path: str, matrix: str | None, stack: ExitStack, **options: Unpack[TenxOptions]
) -> list[Source]:
    """Open a file as a source; see :func:`scdl.convert` for the options.

    Raises
    ------
    SourceError
        The file is damaged, or has the matrices of several genomes.
    OptionError
        There is no such genome or feature type.
    """
    file = stack.enter_context(open_file(path))
    with readable(path):
        names = _matrices(file)
        name = names[0]
        if name != _MATRIX:
            name = _genome_of(path, names, options.get("genome"))
        where, group = f"{path}: {name}", hdf5_guard.group(file, name)
        cells = H5Table(where, group, _Cells)
        label, columns, outside = _columns(where, group, name)
        features = Features(path, label, columns, **options)
        shape = cells.num_rows, features.n_all
        found = tuple(int(n) for n in _dataset(where, group, "shape")[()])
        if found != shape[::-1]:
            raise SourceError(
                f"{where}: its shape is {found}, expected {shape[::-1]} for {shape[1]} genes and "
                f"{shape[0]} barcodes; the file is damaged"
            )
        # Columns of the file are cells.
        values = Csr(where, readers(where, group, *MATRIX), shape)
        if _FILTERED in cells.unread:
            outside = [*outside, _FILTERED]
        return [TenxSource(path, matrix, features, cells, values, outside)]


class _Cells(H5Frame):
    """The barcodes of a matrix as the index of a data frame."""

    @property
    def attributes(self) -> Any:
        return {COLUMN_ORDER: [_FILTERED] if _FILTERED in self.group else []}

    def index_name(self, attributes: Any) -> str:
        return INDEX

    def index(self, name: str) -> Column:
        found = self.find(_BARCODES)
        if found is None:
            raise SourceError(f"{self.where}: expected a list {_BARCODES}; the file is damaged")
        return as_text(found)


def _genome_of(path: str, names: Sequence[str], genome: str | None) -> str:
    """The group of a genome in a file of version 2."""
    if genome is None and len(names) > 1:
        raise SourceError(
            f"{path}: the file has the matrices of several genomes; choose one with genome=: "
            f"{', '.join(names)}"
        )
    if genome is not None and genome not in names:
        raise OptionError(
            f"{path}: there is no genome {genome!r}; the file has: {', '.join(names)}"
        )
    return genome or names[0]


def _columns(
    where: str, group: h5py.Group, name: str
) -> tuple[pa.Array, Mapping[str, pa.Array], Sequence[str]]:
    """Names of the features, the other columns of var, and names of what is no column."""
    if name != _MATRIX:
        ids = _texts(where, group, "genes")
        genome = pa.array([name] * len(ids), pa.large_string())
        return _texts(where, group, "gene_names"), {"gene_ids": ids, "genome": genome}, []
    features = hdf5_guard.group(group, _FEATURES)
    where = f"{where}/{_FEATURES}"
    if not isinstance(features, h5py.Group):
        raise SourceError(f"{where} is missing; the file is damaged")
    renamed = _OF_PROBES if "gene_id" in features else _OF_GENES
    # Datasets that begin with "_" list the tags, which are datasets too.
    others = [n for n in features if n not in ("name", *renamed) and not n.startswith("_")]
    # A targeted panel is a group with the numbers of its features.
    groups = [n for n in others if isinstance(hdf5_guard.group(features, n), h5py.Group)]
    columns = {renamed.get(n, n): _values(where, features, n)
               for n in (*renamed, *others) if n not in groups}  # fmt: skip
    return _texts(where, features, "name"), columns, [f"{_FEATURES}/{n}" for n in groups]


def _texts(where: str, group: h5py.Group, name: str) -> pa.Array:
    return arrow.text(_dataset(where, group, name)[()].tolist())


def _values(where: str, group: h5py.Group, name: str) -> pa.Array:
    """A column of text, numbers or truth values."""
    dataset = _dataset(where, group, name)
    is_text = dataset.dtype.kind not in "biuf"
    return _texts(where, group, name) if is_text else arrow.numbers(dataset[()])


def _dataset(where: str, group: h5py.Group, name: str) -> h5py.Dataset:
    dataset = hdf5_guard.element(group.file, f"{group.name}/{name}")
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1:
        raise SourceError(f"{where}: expected a list {name}, found {dataset}; the file is damaged")
    return dataset
