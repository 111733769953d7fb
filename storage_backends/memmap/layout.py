"""Files of the memmap format and their metadata.

The files are untrusted: lengths are checked against the sizes of the files, and file names are
never taken from a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import ArraySpec
from storage_backends.directory import files as archive_files
from storage_backends.directory.mapped_file import MappedFile
from storage_backends.errors import ArchiveFormatError
from storage_backends.memmap.header import Header, HeaderArray, HeaderIndex

HEADER = "header.sch"
CHECKSUMS = os.path.join("scdl", "checksums.bin")
#: Marks an archive to which cells are being added, or were when the writer was killed: its files
#: may be longer than its metadata says.
GROWING = os.path.join("scdl", ".growing")


class ArrayFile(NamedTuple):
    """Path and specification of an array."""

    path: str
    spec: ArraySpec


#: File of every array by name.
Files = dict[str, ArrayFile]


class DocumentedFile(NamedTuple):
    """A file of the documented format that holds an array of the matrix."""

    file: str
    header_name: str
    #: Dtype in archives without a header, written before 0.1.1.
    default_dtype: str


MATRIX = {
    "data": DocumentedFile("data.npy", "DATA", "<f4"),
    "indptr": DocumentedFile("row_ptr.npy", "ROWPTR", "<u8"),
    "indices": DocumentedFile("col_ptr.npy", "COLPTR", "<u4"),
}
GRAPH: dict[str, tuple[str, np.dtype[Any]]] = {
    "data": ("neighbor_values.npy", np.dtype("<f4")),
    "indices": ("neighbor_indices.npy", np.dtype("<u4")),
    "indptr": ("neighbor_indptr.npy", np.dtype("<u8")),
}
_HEADER_NAMES = frozenset(documented.header_name for documented in MATRIX.values())
#: Name of the graph in archives that do not name it: the documented default.
DEFAULT_GRAPH = "next_cell_ids"


#: Suffixes of files in the root directory of an archive, and directories of an archive.
_SUFFIXES = (".npy", ".sch", ".json")
_DIRECTORIES = ("scdl", "var_features", "obs_features", "features")


def reads(key: str) -> bool:
    """Whether an archive may contain a file with that path."""
    directory, _, name = key.rpartition("/")
    if name.startswith("."):
        return False
    if directory:
        return directory.partition("/")[0] in _DIRECTORIES
    return name.endswith(_SUFFIXES)


def map_file(file: str, spec: ArraySpec) -> NDArray[Any]:
    """Map an array read-only, without keeping a file descriptor open."""
    shape = (spec.length, *spec.item_shape)
    if 0 in shape:
        empty = np.empty(shape, spec.dtype)
        empty.flags.writeable = False
        return empty
    data = MappedFile(file).data
    if len(data) < spec.nbytes:
        raise ArchiveFormatError(f"{file}: the file was truncated while it was opened")
    return data[: spec.nbytes].view(spec.dtype).reshape(shape).view(np.memmap)


def read_header(path: str) -> Header | None:
    """Read the header; None if the archive has none."""
    file = os.path.join(path, HEADER)
    if not os.path.lexists(file):
        return None
    header = Header.from_bytes(archive_files.read_file(path, HEADER), file)
    missing = set(_HEADER_NAMES)
    for array in header.arrays:
        missing.discard(array.name)
        if array.name in ("ROWPTR", "COLPTR") and array.dtype.kind != "u":
            raise ArchiveFormatError(
                f"{file}: malformed header: {array.name} is {array.dtype}, not an unsigned type"
            )
    if missing:
        raise ArchiveFormatError(
            f"{file}: malformed header: it does not list {', '.join(sorted(missing))}"
        )
    return header


def header_of(specs: Mapping[str, ArraySpec], indexes: Sequence[HeaderIndex]) -> Header:
    """The header of an archive with these arrays."""
    arrays = [
        HeaderArray(documented.header_name, specs[name].length, specs[name].dtype)
        for name, documented in MATRIX.items()
    ]
    return Header(tuple(arrays), tuple(indexes))


def matrix_files(path: str, header: Header | None, manifest: Mapping[str, Any]) -> Files:
    """Files of the matrix, with dtypes from the header and lengths from file sizes.

    While an archive grows, the offsets still are those of its manifest, which then has the number
    of values.
    """
    dtypes: dict[str, np.dtype[Any]] = {}
    for array in header.arrays if header else ():
        dtypes[array.name] = array.dtype

    def measured(name: str, length: int | None) -> ArrayFile:
        file, header_name, default_dtype = MATRIX[name]
        return _measure_file(path, file, dtypes.get(header_name) or np.dtype(default_dtype), length)

    indptr = measured("indptr", None)
    is_same = bool(manifest) and indptr.spec.length == manifest["n_obs"] + 1
    nnz = manifest["nnz"] if is_same else None
    return {"data": measured("data", nnz), "indptr": indptr, "indices": measured("indices", nnz)}


def _measure_file(path: str, name: str, dtype: np.dtype[Any], published: int | None) -> ArrayFile:
    """A file of numbers; while it grows, its first `published` ones."""
    file = archive_files.file_path(path, name)
    if not os.path.isfile(file):
        raise ArchiveFormatError(f"{file}: the file is missing; convert the source again")
    size = os.path.getsize(file)
    if published is not None and size > published * dtype.itemsize:
        size = _published_size(path, file, size, published * dtype.itemsize)
    if size % dtype.itemsize:
        raise ArchiveFormatError(
            f"{file}: {size} bytes are not a multiple of the size of {dtype}; the file is truncated"
        )
    return ArrayFile(file, ArraySpec(dtype, size // dtype.itemsize))


def _published_size(path: str, file: str, size: int, published: int) -> int:
    """Size of a file that is longer than the archive says: as it says if the archive grows."""
    if os.path.lexists(os.path.join(path, GROWING)):
        return published
    # An append that failed has removed what it added.
    return os.path.getsize(file)


def grows(path: str) -> Callable[[str], bool]:
    """Whether a file of the archive may be longer than published, by its key."""
    if not os.path.lexists(os.path.join(path, GROWING)):
        return lambda key: False
    return lambda key: key.endswith((".npy", ".bin")) and key != "scdl/checksums.bin"


def check_offsets(path: str, files: Files, name: str, indptr: NDArray[Any], n_obs: int) -> None:
    """Check that the arrays of a sparse matrix agree with the one of offsets, called `name`."""
    prefix = name.removesuffix("indptr")
    names = (f"{prefix}data", f"{prefix}indices", name)
    if missing := sorted(set(names).difference(files)):
        raise ArchiveFormatError(f"{path}: {', '.join(missing)} is missing")
    lengths, found = [], []
    for name in names:
        file, spec = files[name]
        if spec.item_shape or (not name.endswith("data") and spec.dtype.kind not in "iu"):
            raise ArchiveFormatError(
                f"{path}: {name} cannot be {spec.dtype} of items of shape {spec.item_shape}; "
                "convert the source again"
            )
        lengths.append(spec.length)
        found.append(f"{os.path.basename(file)} has {spec.length}")
    values, ids, offsets = lengths
    ends = (int(indptr[0]), int(indptr[-1])) if offsets else (0, 0)
    if offsets != n_obs + 1 or offsets == 0 or ends != (0, values) or ids != values:
        raise ArchiveFormatError(
            f"{path}: {', '.join(found)} entries for {n_obs} cells, with offsets from {ends[0]} to "
            f"{ends[1]}; a file is truncated or does not have the dtype of the header, convert the "
            "source again"
        )


def other_files(path: str, manifest: Mapping[str, Any]) -> Files:
    """Files of the documented graph, and of the numbered arrays in ``scdl/arrays``."""
    files: Files = {}
    documented = manifest.get("documented_graph")
    lengths = {entry["name"]: entry["length"] for entry in manifest.get("arrays", [])}
    for found, _ in GRAPH.values():
        if not files and os.path.lexists(os.path.join(path, found)):
            for part, (file, dtype) in GRAPH.items():
                name = f"graphs/{documented or DEFAULT_GRAPH}/{part}"
                files[name] = _measure_file(path, file, dtype, lengths.get(name))
    for i, entry in enumerate(manifest.get("arrays", [])):
        if documented is not None and entry["name"].startswith(f"graphs/{documented}/"):
            continue
        spec = ArraySpec(np.dtype(entry["dtype"]), entry["length"], tuple(entry["item_shape"]))
        file = archive_files.file_path(path, own_file(i))
        size = os.path.getsize(file) if os.path.isfile(file) else None
        if size is not None and size > spec.nbytes:
            size = _published_size(path, file, size, spec.nbytes)
        if size != spec.nbytes:
            raise ArchiveFormatError(
                f"{file}: expected {spec.nbytes} bytes for {entry['name']}, "
                f"found {'no file' if size is None else size}"
            )
        files[entry["name"]] = ArrayFile(file, spec)
    return files


def keeps_sparse(name: str, kind: str) -> bool:
    """Whether an archive can hold a sparse matrix besides its own and graphs: layers by rows."""
    return name.startswith("layers/") and kind == "csr"


def own_file(i: int) -> str:
    """Relative path of the i-th array without a file in the documented format."""
    return os.path.join("scdl", "arrays", f"{i}.bin")


def dataframe(block: int, n_blocks: int) -> str:
    """File name of a block's table."""
    return f"dataframe_{block:0{len(str(n_blocks))}d}.parquet"


def names_part(part: int) -> str:
    """Which file of names a table has for each of its parts; see :func:`side_file`."""
    return f"names.{part}" if part else "names"


def side_file(path: str, table: str, part: str) -> str:
    """Path of the file with the `part` of a table: its ``names`` or ``categories``."""
    return os.path.join(path, "scdl", f"{table.replace('/', '_')}.{part}.parquet")
