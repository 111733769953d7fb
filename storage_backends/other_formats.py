"""Recognition of files and directories of other formats, with advice how to convert them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from storage_backends.errors import PathError
from storage_backends.paths import is_url

__all__ = [
    "check_target",
    "described",
    "hdf5",
    "is_file_name",
    "is_hdf5",
    "missing",
    "sentence",
    "suffix_of",
    "zarr_store",
]


class Format(NamedTuple):
    """Description of a format, and advice how to convert it."""

    name: str
    advice: str


_H5AD = Format("an h5ad file", "convert it first, with scdl.convert or `scdl convert`")
_HDF5 = Format("an HDF5 file", "if it is an AnnData file, convert it first, with scdl.convert")
_MUDATA = Format(
    "MuData, several AnnData in one",
    "name it .h5mu, and convert one modality with scdl.convert(path, target, modality=NAME)",
)
_LOOM = Format("a Loom file", "name it .loom, and convert it with scdl.convert")
_SEURAT = Format(
    "a file of Seurat or R",
    "write it in R as an h5ad file, with anndataR or zellkonverter; docs/from-r.md shows how",
)
_TEXT = Format("a text table", "read it with scanpy.read_text and write it with write_h5ad")
_TABLE = Format(
    "a columnar table",
    "scdl.convert takes those whose rows are cells, with a list of genes and one of their values",
)
_ARRAYS = Format("a file of arrays", "create an AnnData from them and write it with write_h5ad")
_PICKLE = Format(
    "a pickle, which can run any code when it is read", "use write_h5ad where it was created"
)
_MARKET = Format(
    "a matrix in Matrix Market form",
    "if genes and barcodes lie beside it, convert its directory first, with scdl.convert",
)
_10X = Format(
    "a matrix of 10x Genomics' Cell Ranger",
    "convert it first, with scdl.convert or `scdl convert`",
)
_MOLECULES = Format(
    "10x Genomics' list of molecules",
    "convert filtered_feature_bc_matrix.h5 in the same directory, with scdl.convert",
)
_SOMA = Format("a TileDB-SOMA store", "convert it first, with scdl.convert or `scdl convert`")
_DATASET = Format(
    "a data set of Hugging Face or Arrow",
    "scdl.convert takes the directory of one split, as save_to_disk wrote it, if its rows are "
    "cells, with a list of genes and one of their values",
)
_PACKED = Format(
    "a compressed file",
    "unpack it first, with gunzip if it ends in .gz, and convert what was in it",
)
_ZIP = Format("a zip file", "unpack it first")
_ZIPPED = Format("a Zarr store in one zip file", "unpack it first")
_LFS = Format("a pointer of Git LFS, not the file itself", "fetch it with `git lfs pull`")
_PAGE = Format("a web page", "download the file itself, which the page may link to")
_EMPTY = Format("an empty file", "copy or download it again")
_FILES = Format(
    "a directory of h5ad files",
    "convert each with scdl.convert_directory or `scdl convert DIRECTORY DEST`, or pass a list of "
    "files to convert them to one archive",
)
_OTHER = Format("a file of an unknown format", "")

_BY_SUFFIX = {
    ".h5ad": _H5AD,
    **dict.fromkeys((".h5", ".hdf5", ".hdf", ".he5"), _HDF5),
    ".h5mu": _MUDATA,
    ".loom": _LOOM,
    **dict.fromkeys((".h5seurat", ".rds", ".rdata", ".rda", ".qs", ".qs2"), _SEURAT),
    **dict.fromkeys((".csv", ".tsv", ".txt", ".tab", ".xlsx", ".xls"), _TEXT),
    **dict.fromkeys((".parquet", ".feather", ".arrow", ".ipc"), _TABLE),
    **dict.fromkeys((".npz", ".npy", ".mat", ".pt", ".safetensors"), _ARRAYS),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), _PICKLE),
    ".mtx": _MARKET,
    ".soma": _SOMA,
    ".zip": _ZIP,
    ".zarr.zip": _ZIPPED,
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".lz4", ".tar", ".tgz", ".7z"), _PACKED),
    **dict.fromkeys((".json", ".yaml", ".yml", ".md", ".pdf", ".log"), _OTHER),
}
#: Formats that are recognized when compressed by gzip.
_GZIPPED = (_TEXT, _MARKET)
#: First bytes of files, by format.
_MAGIC = {
    b"PAR1": _TABLE,
    b"ARROW1": _TABLE,
    b"%%MatrixMarket": _MARKET,
    b"\x93NUMPY": _ARRAYS,
    b"RDX": _SEURAT,
    b"X\n\0\0\0": _SEURAT,
    b"PK\x03\x04": _ZIP,
    b"\x1f\x8b": _PACKED,
    b"BZh": _PACKED,
    b"\xfd7zXZ": _PACKED,
    b"\x28\xb5\x2f\xfd": _PACKED,
    b"version https://git-lfs": _LFS,
    b"<!DOCTYPE": _PAGE,
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
    b"<HTML": _PAGE,
    b"<?xml": _PAGE,
}
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def suffix_of(path: str) -> str:
    """The suffix that determines a format, in lower case; two parts for names like ``.x.gz``."""
    place = path.partition("?")[0] if is_url(path) else path
    name = os.path.basename(place.rstrip("/"))
    stem, last = os.path.splitext(name.lower())
    before = os.path.splitext(stem)[1]
    is_double = before + last in _BY_SUFFIX or (
        last == ".gz" and _BY_SUFFIX.get(before) in _GZIPPED
    )
    return before + last if is_double else last


def _by_name(path: str) -> Format | None:
    suffix = suffix_of(path)
    return _BY_SUFFIX.get(suffix) or _BY_SUFFIX.get(suffix.removesuffix(".gz"))


def is_file_name(path: str) -> bool:
    """Whether the suffix of a name is that of a known file format."""
    return _by_name(path) is not None


def is_hdf5(path: str) -> bool:
    """Whether a file has the HDF5 signature at one of the first offsets allowed for it."""
    try:
        return any(_begins(path, at).startswith(_HDF5_MAGIC) for at in (0, 512, 1024, 2048))
    except OSError:
        return False


def described(path: str) -> str | None:
    """Describe what is at a path, with advice, as a sentence; None if it is unknown.

    None for HDF5 files too, whose content :func:`hdf5` recognizes.
    """
    if is_url(path):
        found = _by_name(path)
        if found is None:
            return None
        advice = "only Zarr stores can be read from a URL: download it"
        return f"{path}: this is {found.name}; {advice}, and give the path of the file"
    found = _directory(path) if os.path.isdir(path) else _file(path)
    return None if found is None else sentence(path, found)


def sentence(path: str, found: Format) -> str:
    """Format a description and its advice as a sentence."""
    return f"{path}: this is {found.name}, not an AnnData file or an archive; {found.advice}"


def _file(path: str) -> Format | None:
    try:
        if not os.path.isfile(path) or is_hdf5(path):
            return None
        if os.path.getsize(path) == 0:
            return _EMPTY
        start = _begins(path)
    except OSError:
        # Opening the file reports why it cannot be read.
        return None
    by_name = _by_name(path)
    by_content = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if by_content in (_PACKED, _ZIP) and by_name not in (None, _H5AD, _HDF5):
        # R and other programs compress their files.
        return by_name
    if by_content is not None or by_name not in (_H5AD, _HDF5, _OTHER, _MUDATA, _LOOM):
        return by_content or by_name
    return None


def _begins(path: str, at: int = 0) -> bytes:
    with open(path, "rb") as file:
        file.seek(at)
        return file.read(64)


def _directory(path: str) -> Format | None:
    try:
        names = set(os.listdir(path))
    except OSError:
        return None
    if any(name.endswith(".h5ad") for name in names):
        return _FILES
    if any(name.endswith(("matrix.mtx", "matrix.mtx.gz")) for name in names):
        return _MARKET._replace(name="a directory with a matrix in Matrix Market form")
    cell_ranger = [name for name in names if name.endswith("feature_bc_matrix.h5")]
    if cell_ranger:
        return _10X._replace(
            name="a directory of 10x Genomics' Cell Ranger",
            advice=f"convert {min(cell_ranger)} in it, with scdl.convert",
        )
    if names & {"__tiledb_group.tdb", "__tiledb_array_schema.tdb", "__group", "__schema"}:
        return _SOMA
    if names & {"dataset_info.json", "dataset_dict.json"}:
        return _DATASET
    if names and all(name.endswith((".parquet", ".arrow", ".feather")) for name in names):
        return _TABLE._replace(name="a directory of columnar tables")
    return None


def hdf5(names: Iterable[str]) -> Format | None:
    """Format of an HDF5 file with groups and datasets of these names, at the root or below."""
    present = set(names)
    if "mod" in present:
        return _MUDATA
    if present & {"row_attrs", "col_attrs"}:
        return _LOOM
    if {"assays", "cell.names"} <= present:
        return _SEURAT
    if present & {"barcode_idx", "molecule_info"}:
        return _MOLECULES
    return _10X if "barcodes" in present or "matrix" in present else None


def zarr_store(path: str, attrs: Mapping[str, Any], names: Collection[str]) -> str | None:
    """Describe a Zarr store that is not an AnnData, as a sentence; None if it is unknown.

    Parameters
    ----------
    attrs
        Attributes of the root.
    names
        Paths of all arrays and groups.
    """
    tables = [name for name in names if name.startswith(("tables/", "table/"))]
    tables = sorted(f"{path}/{name}" for name in tables if name.count("/") == 1)
    if tables:
        return (
            f"{path}: this is a SpatialData store, whose tables are AnnData; give the path of a "
            f"table: {', '.join(tables)}"
        )
    inside = sorted(f"{path}/{n}" for n in names if n.startswith("mod/") and n.count("/") == 1)
    if inside and path.lower().endswith(".zip"):
        return f"{path}: this is MuData in a zip file; unpack it first"
    if inside:
        return f"{path}: this is MuData; give the path of a modality: {', '.join(inside)}"
    if "multiscales" in attrs or "ome" in attrs or "images" in names:
        return f"{path}: this is a Zarr store of images, with no table of cells"
    return None


def missing(path: str) -> str:
    """Message for a path that does not exist, or is a broken link."""
    if os.path.islink(path):
        return f"{path}: this is a broken link to {os.path.realpath(path)}"
    return f"{path}: there is no such file"


def check_target(path: str, own: str | None = None) -> None:
    """Raise PathError if the name of an archive has the suffix of another format.

    Parameters
    ----------
    path
        Path of the archive to write; an existing one may be replaced.
    own
        Suffix of its backend.
    """
    suffix = suffix_of(path)
    if suffix == own or _by_name(path) is None or os.path.isdir(path):
        return
    if suffix in (".h5ad", ".h5", ".hdf5"):
        advice = "`scdl export ARCHIVE FILE.h5ad` writes an archive as an h5ad file"
    elif suffix.endswith(".zip") and os.path.isfile(path):
        raise PathError(f"{path}: a zip file cannot be changed; unpack it first")
    elif suffix == ".zarr.zip":
        advice = "write an archive that ends in .zarr, and zip it"
    else:
        advice = "choose a name that ends in .scdl or .zarr"
    raise PathError(
        f"{path}: an archive is a directory, but {suffix} is the suffix of another format; {advice}"
    )
