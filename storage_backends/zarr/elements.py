"""Elements of an AnnData that anndata itself writes and reads, and whether they come back."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import zarr
from zarr.storage import MemoryStore

from storage_backends.anndata_format.names import encoding
from storage_backends.compute.warning_filters import ignore_warnings
from storage_backends.errors import OutputError, one_line
from storage_backends.zarr import layout

#: How anndata writes arrays, so that damage is found.
_OPTIONS: dict[str, Any] = {"compressors": layout.CHECKED}


def read(node: zarr.Group | zarr.Array[Any]) -> Any:
    """The object that anndata makes of an element; a matrix in coordinate form as one by rows."""
    import anndata

    with ignore_warnings(""):
        if node.attrs.get("encoding-type") != "coo_matrix" or not isinstance(node, zarr.Group):
            return anndata.io.read_elem(node)
    import scipy.sparse as sp

    data, rows, columns = (np.asarray(node[part][:]) for part in ("data", "row", "col"))  # type: ignore[index]
    return sp.coo_matrix((data, (rows, columns)), tuple(node.attrs["shape"])).tocsr()  # type: ignore[arg-type]


def write(root: zarr.Group, path: str, value: Any) -> None:
    """Write an element as anndata does, with the groups above it."""
    import anndata

    parent, _, key = path.rpartition("/")
    with (
        anndata.settings.override(allow_write_nullable_strings=True),
        # A chunk that is lost is then not taken for zeros.
        zarr.config.set({"array.write_empty_chunks": True}),
        ignore_warnings(""),
    ):
        group = root
        for i, name in enumerate(filter(None, parent.split("/"))):
            group = group.require_group(name)
            if i and "encoding-type" not in group.attrs:
                group.attrs.update(encoding("dict"))
        anndata.io.write_elem(group, key, value, dataset_kwargs=_OPTIONS)


def check(where: str, value: Any) -> None:
    """OutputError for a value that does not come back from a Zarr store, or from an h5ad file.

    Parameters
    ----------
    where
        Opens the message.
    """
    if _is_plain(value):
        return
    import anndata

    # Whatever anndata, zarr or HDF5 say: the value is not kept.
    try:
        with anndata.settings.override(allow_write_nullable_strings=True), ignore_warnings(""):
            held: dict[str, Any] = {}
            root = zarr.create_group(MemoryStore(held), zarr_format=3)
            write(root, "value", value)
            for key in held:
                # Also of what zarr takes for metadata, and does not find again.
                path, _, last = key.rpartition("/")
                layout.element_path(path if path and last == "zarr.json" else "value")
            back = anndata.io.read_elem(root["value"])
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
        raise OutputError(f"{where}: it does not come back from a Zarr store as it was")


def _is_plain(value: Any) -> bool:
    """Whether a value is an array of numbers, dense or sparse, which always comes back."""
    dtype = getattr(value, "dtype", None)
    numeric = isinstance(dtype, np.dtype) and dtype.kind in "biuf" and dtype.itemsize <= 8
    return numeric and (
        (type(value) is np.ndarray and value.ndim > 0)
        or getattr(value, "format", "") in ("csr", "csc")
    )


def _is_same(a: h5py.Group | h5py.Dataset, b: h5py.Group | h5py.Dataset) -> bool:
    """Whether two elements of a file say the same."""
    if type(a) is not type(b) or set(a.attrs) != set(b.attrs):
        return False
    if not all(np.array_equal(a.attrs[name], b.attrs[name]) for name in a.attrs):
        return False
    if isinstance(a, h5py.Group):
        return set(a) == set(b) and all(_is_same(a[name], b[name]) for name in a)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.shape is None:
        # Of None there is nothing to read.
        return True
    left, right = a[()], b[()]
    if a.dtype.hasobject:
        return bool(np.array_equal(left, right))
    return bool(np.asarray(left).tobytes() == np.asarray(right).tobytes())
