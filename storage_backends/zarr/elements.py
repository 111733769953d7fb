"""Elements of an AnnData that anndata itself writes and reads, and a check of their round trip."""

from __future__ import annotations

from typing import Any, NamedTuple

import h5py
import numpy as np
import zarr
from zarr.core.buffer import Buffer
from zarr.core.sync import sync
from zarr.storage import MemoryStore, StorePath

from storage_backends.anndata_format.names import encoding
from storage_backends.compute.warning_filters import ignore_warnings
from storage_backends.errors import OutputError, one_line
from storage_backends.zarr import layout

#: Options for arrays written by anndata: compression with checksums.
_OPTIONS: dict[str, Any] = {"compressors": layout.CHECKED}
#: Key of an element in the store in memory that it is checked in.
_KEY = "value"


class Encoded(NamedTuple):
    """An element as anndata wrote it: the content of its files, by path below its own."""

    files: dict[str, Buffer]


def read(node: zarr.Group | zarr.Array[Any]) -> Any:
    """Read an element with anndata; a COO matrix is returned as CSR."""
    import anndata

    with ignore_warnings(""):
        if node.attrs.get("encoding-type") != "coo_matrix" or not isinstance(node, zarr.Group):
            return anndata.io.read_elem(node)
    import scipy.sparse as sp

    data, rows, columns = (np.asarray(node[part][:]) for part in ("data", "row", "col"))  # type: ignore[index]
    return sp.coo_matrix((data, (rows, columns)), tuple(node.attrs["shape"])).tocsr()  # type: ignore[arg-type]


def write(root: zarr.Group, path: str, value: Any) -> None:
    """Write an element as anndata does, or :class:`Encoded`, with the groups above it."""
    import anndata

    parent, _, key = path.rpartition("/")
    with (
        anndata.settings.override(allow_write_nullable_strings=True),
        # A missing chunk can then be distinguished from a chunk of zeros.
        zarr.config.set({"array.write_empty_chunks": True}),
        ignore_warnings(""),
    ):
        group = root
        for i, name in enumerate(filter(None, parent.split("/"))):
            group = group.require_group(name)
            if i and "encoding-type" not in group.attrs:
                group.attrs.update(encoding("dict"))
        if isinstance(value, Encoded):
            sync(_place(group.store_path / key, value.files))
        else:
            anndata.io.write_elem(group, key, value, dataset_kwargs=_OPTIONS)


async def _place(where: StorePath, files: dict[str, Buffer]) -> None:
    for path, content in files.items():
        await (where / path).set(content)


def check(where: str, value: Any) -> Any:
    """Raise OutputError if a value does not survive a round trip through Zarr and h5ad.

    Parameters
    ----------
    where
        Start of error messages.

    Returns
    -------
    object
        What :func:`write` takes for the value: :class:`Encoded`, or numeric arrays as they are.
    """
    if _is_plain(value):
        return value
    import anndata

    # Any error of anndata, zarr or HDF5 means that the value cannot be stored.
    try:
        with anndata.settings.override(allow_write_nullable_strings=True), ignore_warnings(""):
            stored: dict[str, Buffer] = {}
            root = zarr.create_group(MemoryStore(stored), zarr_format=3)
            write(root, _KEY, value)
            for key in stored:
                # This includes keys that zarr would take for metadata.
                path, _, last = key.rpartition("/")
                layout.element_path(path if path and last == "zarr.json" else _KEY)
            back = anndata.io.read_elem(root[_KEY])
            with h5py.File("value", "w", driver="core", backing_store=False) as file:
                anndata.io.write_elem(file, "given", value)
                anndata.io.write_elem(file, "back", back)
                anndata.io.read_elem(file["given"])
                alike = _is_same(file["given"], file["back"])
    except OutputError:
        raise
    except Exception as error:
        raise OutputError(f"{where}: anndata cannot write it: {one_line(error):.300}") from error
    if not alike:
        raise OutputError(f"{where}: it changes in a round trip through a Zarr store")
    below = f"{_KEY}/"
    return Encoded({k.removeprefix(below): v for k, v in stored.items() if k.startswith(below)})


def _is_plain(value: Any) -> bool:
    """Whether a value is a numeric array, dense or sparse, which always round-trips."""
    dtype = getattr(value, "dtype", None)
    numeric = isinstance(dtype, np.dtype) and dtype.kind in "biuf" and dtype.itemsize <= 8
    return numeric and (
        (type(value) is np.ndarray and value.ndim > 0)
        or getattr(value, "format", "") in ("csr", "csc")
    )


def _is_same(a: h5py.Group | h5py.Dataset, b: h5py.Group | h5py.Dataset) -> bool:
    """Whether two elements of a file are equal."""
    if type(a) is not type(b) or set(a.attrs) != set(b.attrs):
        return False
    if not all(np.array_equal(a.attrs[name], b.attrs[name]) for name in a.attrs):
        return False
    if isinstance(a, h5py.Group):
        return set(a) == set(b) and all(_is_same(a[name], b[name]) for name in a)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.shape is None:
        # Empty dataspaces have no data to compare.
        return True
    left, right = a[()], b[()]
    if a.dtype.hasobject:
        return bool(np.array_equal(left, right))
    return bool(np.asarray(left).tobytes() == np.asarray(right).tobytes())
