"""Where the files of the memmap format are, and what they say of themselves.

Everything here reads bytes that somebody else may have written: lengths are checked against the
sizes of the files, and no file name is taken from a file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import DTYPES, ArraySpec
from storage_backends.directory import files as archive_files
from storage_backends.errors import ArchiveFormatError
from storage_backends.memmap.header import Header

HEADER = "header.sch"
MANIFEST = os.path.join("scdl", "manifest.json")
MANIFEST_FORMAT = 1
CHECKSUMS = os.path.join("scdl", "checksums.bin")

#: File and specification of every array by name.
Files = dict[str, tuple[str, ArraySpec]]


class Documented(NamedTuple):
    """An array that the format has a file for."""

    file: str
    header_name: str
    #: Its type in archives that have no header, which were written before 0.1.1.
    headerless: str


MATRIX = {
    "data": Documented("data.npy", "DATA", "<f4"),
    "indptr": Documented("row_ptr.npy", "ROWPTR", "<u8"),
    "indices": Documented("col_ptr.npy", "COLPTR", "<u4"),
}
GRAPH: dict[str, tuple[str, np.dtype[Any]]] = {
    "data": ("neighbor_values.npy", np.dtype("<f4")),
    "indices": ("neighbor_indices.npy", np.dtype("<u4")),
    "indptr": ("neighbor_indptr.npy", np.dtype("<u8")),
}
#: Name of the graph in archives that do not say: the documented default.
DEFAULT_GRAPH = "next_cell_ids"


#: Ends of the names of its files, and directories of which all are.
_ENDINGS = (".npy", ".sch", ".json")
_DIRECTORIES = ("scdl", "var_features", "obs_features", "features")


def reads(key: str) -> bool:
    """Whether a file of that path may be one of an archive."""
    directory, _, name = key.rpartition("/")
    if name.startswith("."):
        return False
    if directory:
        return directory.partition("/")[0] in _DIRECTORIES
    return name.endswith(_ENDINGS)


def map_file(file: str, spec: ArraySpec) -> NDArray[Any]:
    """The array, mapped read-only."""
    shape = (spec.length, *spec.item_shape)
    if spec.nbytes == 0:
        empty = np.empty(shape, spec.dtype)
        empty.flags.writeable = False
        return empty
    try:
        return np.memmap(file, spec.dtype, "r", shape=shape)
    except ValueError as error:
        raise ArchiveFormatError(f"{file}: the file was cut while it was opened") from error


def read_header(path: str) -> Header | None:
    """The header; None where the archive has none."""
    file = os.path.join(path, HEADER)
    if not os.path.lexists(file):
        return None
    header = Header.from_bytes(archive_files.read_file(path, HEADER), file)
    for array in header.arrays:
        if array.name in ("ROWPTR", "COLPTR") and array.dtype.kind != "u":
            raise ArchiveFormatError(
                f"{file}: malformed header: {array.name} is {array.dtype}, not an unsigned type"
            )
    known = {documented.header_name for documented in MATRIX.values()}
    listed = {array.name for array in header.arrays}
    if not known <= listed:
        missing = ", ".join(sorted(known - listed))
        raise ArchiveFormatError(f"{file}: malformed header: it does not list {missing}")
    return header


def matrix_files(path: str, header: Header | None) -> Files:
    """The matrix: dtypes by the header, lengths by the files."""
    dtypes: dict[str, np.dtype[Any]] = {}
    for array in header.arrays if header else ():
        dtypes[array.name] = array.dtype
    return {
        name: _measure_file(
            path,
            documented.file,
            dtypes.get(documented.header_name) or np.dtype(documented.headerless),
        )
        for name, documented in MATRIX.items()
    }


def _measure_file(path: str, name: str, dtype: np.dtype[Any]) -> tuple[str, ArraySpec]:
    file = archive_files.file_path(path, name)
    if not os.path.isfile(file):
        raise ArchiveFormatError(f"{file}: the file is missing; convert the source again")
    size = os.path.getsize(file)
    if size % dtype.itemsize:
        raise ArchiveFormatError(
            f"{file}: {size} bytes are no whole number of {dtype}; the file is truncated"
        )
    return file, ArraySpec(dtype, size // dtype.itemsize)


def graph_files(path: str, manifest: Mapping[str, Any]) -> Files:
    """The documented graph, where all of its files are there."""
    if not any(os.path.lexists(os.path.join(path, file)) for file, _ in GRAPH.values()):
        return {}
    key = manifest.get("documented_graph") or DEFAULT_GRAPH
    return {
        f"graphs/{key}/{part}": _measure_file(path, file, dtype)
        for part, (file, dtype) in GRAPH.items()
    }


def own_files(path: str, manifest: Mapping[str, Any]) -> Files:
    """Arrays in ``scdl/arrays``; the manifest lists them in the order of their numbers."""
    found = {}
    documented = manifest.get("documented_graph")
    for i, entry in enumerate(manifest.get("arrays", [])):
        if documented is not None and entry["name"].startswith(f"graphs/{documented}/"):
            continue
        spec = ArraySpec(np.dtype(entry["dtype"]), entry["length"], tuple(entry["item_shape"]))
        file = archive_files.file_path(path, own_file(i))
        if not os.path.isfile(file) or os.path.getsize(file) != spec.nbytes:
            raise ArchiveFormatError(
                f"{file}: expected {spec.nbytes} bytes for {entry['name']}, "
                f"found {os.path.getsize(file) if os.path.isfile(file) else 'no file'}"
            )
        found[entry["name"]] = (file, spec)
    return found


def own_file(i: int) -> str:
    """Path within the archive of the i-th array that the format has no file for."""
    return os.path.join("scdl", "arrays", f"{i}.bin")


def entry(name: str, spec: ArraySpec) -> dict[str, Any]:
    """What the manifest says of an array."""
    return {
        "name": name,
        "dtype": spec.dtype.name,
        "length": spec.length,
        "item_shape": list(spec.item_shape),
    }


def read_manifest(path: str, n_obs: int, nnz: int, remarks: list[str]) -> Mapping[str, Any]:
    """The manifest, empty where there is none or, with a remark, another program made changes."""
    file = os.path.join(path, MANIFEST)
    if not os.path.lexists(file):
        return {}
    manifest = parse_manifest(archive_files.read_file(path, MANIFEST), file)
    version, describes = manifest["format"], (manifest["n_obs"], manifest["nnz"])
    if version > MANIFEST_FORMAT:
        raise ArchiveFormatError(
            f"{file}: its format is {version}, this release reads up to {MANIFEST_FORMAT}; "
            "upgrade scdl-store"
        )
    if describes != (n_obs, nnz):
        remarks.append(
            f"{path}: another program changed the archive from {describes[0]} to {n_obs} cells; "
            "names, categories, obsm and further graphs no longer fit and are left out"
        )
        return {}
    return manifest


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """The manifest, with everything of the types that are expected.

    Raises
    ------
    ArchiveFormatError
        It is none; the message opens with `where`.
    """
    try:
        manifest: dict[str, Any] = json.loads(data)
        counts = [manifest[key] for key in ("format", "n_obs", "nnz")]
        if not all(type(n) is int for n in counts):
            raise ValueError(f"bad counts {counts!r:.100}")
        names = [_check_entry(entry) for entry in manifest["arrays"]]
        if len(set(names)) < len(names) or not set(names).isdisjoint(MATRIX):
            raise ValueError("names of arrays are not unique")
        if not isinstance(manifest.get("documented_graph"), str | None):
            raise ValueError(f"bad documented_graph {manifest['documented_graph']!r:.100}")
        if not isinstance(manifest["attrs"], dict):
            raise ValueError("attrs must be an object")
        for table in manifest["tables"].values():
            named = table.get("only_names"), table.get("index_name")
            columns = table.get("nullable", [])
            names = [*named, *columns] if isinstance(columns, list) else [columns]
            if not all(isinstance(name, str | None) for name in names):
                raise ValueError(f"bad table entry {table!r:.100}")
        for block in manifest["attrs"]["blocks"]:
            if not (type(block["stop"]) is type(block["n_vars"]) is int):
                raise ValueError(f"bad block {block!r:.100}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArchiveFormatError(f"{where}: not a manifest of scdl ({error!r:.200})") from error
    return manifest


def _check_entry(entry: Any) -> str:
    """The name of an array that the manifest lists."""
    name, dtype, shape = entry["name"], entry["dtype"], [entry["length"], *entry["item_shape"]]
    known = isinstance(name, str) and isinstance(dtype, str) and np.dtype(dtype) in DTYPES
    # An extent of none hides what others say.
    if not known or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"bad array entry {entry!r:.100}")
    if math.prod(n for n in shape if n) >= 2**62:
        raise ValueError(f"too large an array {entry!r:.100}")
    assert isinstance(name, str)
    return name


def dataframe(block: int, n_blocks: int) -> str:
    """File name of a block's table."""
    return f"dataframe_{block:0{len(str(n_blocks))}d}.parquet"


def beside(path: str, table: str, what: str) -> str:
    """Path of the file that holds a table's names or categories."""
    return os.path.join(path, "scdl", f"{table.replace('/', '_')}.{what}.parquet")
