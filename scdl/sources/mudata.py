"""MuData as sources: ``.h5mu`` files, Zarr stores, and objects in memory.

Each modality is an AnnData, of which one is converted. Source: specification of the H5MU format,
and the functions of mudata that write it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from scdl.archive.tables import NoTable
from scdl.errors import ArchiveFormatError, SourceError
from scdl.sources import archive, hdf5_guard
from scdl.sources.anndata_elements import read_element
from scdl.sources.anndata_object import AnnDataObject, storable
from scdl.sources.base import Source
from scdl.sources.damage import readable_by
from scdl.sources.dataframes import H5Table
from scdl.sources.h5ad import H5adFile
from scdl.sources.hdf5 import open_file, readable
from scdl.sources.mudata_tables import MODALITIES, Whole
from storage_backends.anndata_format.names import COLUMN_ORDER, text
from storage_backends.compute.claims import check_claim
from storage_backends.errors import one_line
from storage_backends.paths import Path, path_of

if TYPE_CHECKING:
    from mudata import MuData

OPTIONS = ("modality",)
FILES = ("*.h5mu",)
#: Begins the files that mudata writes.
_MAGIC = b"MuData"
#: Attribute with the order of the modalities.
_ORDER = "mod-order"
#: What a MuData has besides its modalities, the tables, and the positions of their rows.
_MAPPINGS = ("obsm", "varm", "obsp", "varp", "uns")
#: Files of a group in a Zarr store, of format 3 and 2.
_ZARR_GROUPS = ("zarr.json", ".zgroup")


def is_mudata(path: str) -> bool:
    """Whether a path is a file or a Zarr store of mudata."""
    if os.path.isdir(path):
        inside = (os.path.join(path, MODALITIES, name) for name in _ZARR_GROUPS)
        return any(map(os.path.isfile, inside)) and not os.path.exists(os.path.join(path, "X"))
    if path.endswith(".h5mu"):
        # Opening a damaged one says what is wrong.
        return os.path.isfile(path)
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def is_object(source: object) -> bool:
    """Whether an object is a MuData; does not import mudata."""
    module = sys.modules.get("mudata")
    return module is not None and isinstance(source, module.MuData)


def open_sources(
    path: str, matrix: str | None, stack: ExitStack, *, modality: str | None = None
) -> list[Source]:
    """Open a modality of a file or a Zarr store as a source.

    Raises
    ------
    SourceError
        It is damaged, is not MuData, or has several modalities and none is chosen.
    OptionError
        There is no such modality.
    """
    if os.path.isdir(path):
        with _zarr_readable(path):
            root = _opened(path)
            _check_sizes(path, root, "obs", "obsmap")
            whole = _whole_of_store(path, root)
            name = whole.choose(modality)
            (source,) = archive.open_sources(os.path.join(path, MODALITIES, name), matrix, stack)
            places = root.get(f"obsmap/{name}")
            return [whole.join(source, name, None if places is None else np.asarray(places[:]))]
    file = stack.enter_context(open_file(path))
    with readable(path):
        whole = _whole_of_file(path, file)
        name = whole.choose(modality)
        group = hdf5_guard.group(file, f"{MODALITIES}/{name}")
        if not isinstance(group, h5py.Group):
            raise SourceError(f"{path}: {MODALITIES}/{name}: expected an AnnData, found an array")
        places = hdf5_guard.element(file, f"obsmap/{name}")
        known = places[()] if isinstance(places, h5py.Dataset) else None
        return [whole.join(H5adFile(path, matrix, group), name, known)]


def open_object(
    mdata: MuData, matrix: str | None, stack: ExitStack, *, modality: str | None = None
) -> list[Source]:
    """Open a modality of an object as a source; raises as :func:`open_sources`."""
    names = list(mdata.mod)
    obs, unread = storable("obs", mdata.obs)
    elements = [f"{n}/{key}" for n in _MAPPINGS for key in getattr(mdata, n) if key not in names]
    genes = [*map(str, mdata.var.columns)]
    whole = Whole(f"MuData of {mdata.n_obs} cells", names, obs, genes, elements + unread)
    name = whole.choose(modality)
    return [whole.join(AnnDataObject(mdata.mod[name], matrix), name, mdata.obsmap.get(name))]


def modalities(source: Path | MuData) -> list[str]:
    """Names of the modalities of a MuData, in order.

    Parameters
    ----------
    source
        Path of an ``.h5mu`` file or of a Zarr store of mudata, or a MuData object.

    Raises
    ------
    SourceNotFoundError
        The file does not exist.
    SourceError
        It is not MuData, or is damaged.

    Examples
    --------
    >>> import mudata
    >>> rna = ad.read_h5ad("cells.h5ad")
    >>> protein = ad.AnnData(np.ones((6, 2), np.float32), obs=rna.obs)
    >>> protein.var_names = ["ADT-CD3", "ADT-CD19"]
    >>> with mudata.set_options(pull_on_update=False):
    ...     mudata.MuData({"rna": rna, "protein": protein}).write("cells.h5mu")
    >>> for name in scdl.modalities("cells.h5mu"):
    ...     print(scdl.convert("cells.h5mu", f"{name}.scdl", modality=name).n_vars)
    [4]
    [2]
    """
    if is_object(source):
        return list(source.mod)  # type: ignore[union-attr]
    path = path_of(source, "a MuData, or the path of one")
    if os.path.isdir(path) and is_mudata(path):
        with _zarr_readable(path):
            return _modalities_of(_opened(path))
    with open_file(path) as file, readable(path):
        return list(_whole_of_file(path, file).modalities)


def _in_order(names: list[str], attributes: Mapping[str, Any]) -> list[str]:
    order = [text(name) for name in attributes.get(_ORDER, ())]
    return order if sorted(order) == sorted(names) else names


def _columns(table: Any) -> list[str]:
    """Names of the columns of a data frame in a group."""
    return [text(name) for name in getattr(table, "attrs", {}).get(COLUMN_ORDER, ())]


# -- HDF5 files ----------------------------------------------------------------------------------


def _whole_of_file(path: str, file: h5py.File) -> Whole:
    group = hdf5_guard.group(file, MODALITIES)
    if not isinstance(group, h5py.Group):
        found = ", ".join(file) or "nothing"
        raise SourceError(
            f"{path}: not a MuData file: expected the group {MODALITIES}, found {found}"
        )
    hdf5_guard.check_attributes(group)
    names = _in_order(list(group), group.attrs)
    obs, var = (hdf5_guard.group(file, table) for table in ("obs", "var"))
    mappings = {name: hdf5_guard.group(file, name) for name in _MAPPINGS}
    elements = [
        f"{name}/{key}"
        for name, mapping in mappings.items()
        if isinstance(mapping, h5py.Group)
        for key in mapping
        if key not in names
    ]
    table = NoTable(0) if obs is None else H5Table(f"{path}: obs", obs)
    return Whole(path, names, table, _columns(var), elements)


# -- Zarr stores ---------------------------------------------------------------------------------


def _opened(path: str) -> Any:
    import zarr

    # Without an explicit format, zarr also looks for files of the other format.
    is_new = os.path.isfile(os.path.join(path, _ZARR_GROUPS[0]))
    return zarr.open_group(path, mode="r", zarr_format=3 if is_new else 2)


def _modalities_of(root: Any) -> list[str]:
    group = root[MODALITIES]
    return _in_order(sorted(group.group_keys()), group.attrs.asdict())


def _whole_of_store(path: str, root: Any) -> Whole:
    names, genes = _modalities_of(root), _columns(root.get("var"))
    elements = [f"{n}/{key}" for n in _MAPPINGS if n in root for key in root[n] if key not in names]
    if "obs" not in root:
        return Whole(path, names, NoTable(0), genes, elements)
    obs, unread = storable("obs", read_element(root["obs"]))
    return Whole(path, names, obs, genes, elements + unread)


def _check_sizes(path: str, root: Any, *names: str) -> None:
    """Raise ArchiveFormatError if arrays declare sizes out of proportion to the files."""
    for name in names:
        top = os.path.join(path, name)
        paths = (os.path.join(at, file) for at, _, files in os.walk(top) for file in files)
        size = sum(map(os.path.getsize, paths))
        for below, array in root[name].members(max_depth=None) if name in root else ():
            if hasattr(array, "shape"):
                itemsize = max(1, array.dtype.itemsize)
                check_claim(f"{top}: {below}", array.shape, itemsize, partial(int, size))


@contextmanager
def _zarr_readable(path: str) -> Iterator[None]:
    """Convert errors of Zarr, as for damaged stores, to a SourceError with one sentence."""
    try:
        with readable_by("zarr cannot read it", path):
            yield
    except ArchiveFormatError as error:
        raise SourceError(one_line(error)) from error
