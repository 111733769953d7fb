"""What is called what in a Zarr archive: names on the seam, elements of an AnnData, attributes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from zarr.codecs import Crc32cCodec, ZstdCodec

from storage_backends import warning_filters
from storage_backends._zarr_detection import CHECKSUMS
from storage_backends.errors import OutputError

#: Attribute of the root that makes a store an archive of ours.
ATTRIBUTE = "scdl"
#: Version of what that attribute says. Readers refuse a higher one.
FORMAT = 1
#: Where the writer puts the matrix until the commit says what it is.
MATRIX = "matrix.part"
#: Array beside the columns of var that AnnData does not read: original position of each gene.
ORDER = "original_position"

#: Compression of tables and elements. zstd's own checksum is of what it decodes to, and it passes
#: over a bit of its header that means nothing: CRC32C covers every bit of the chunk.
CHECKED = (ZstdCodec(level=3, checksum=True), Crc32cCodec())

#: Group within var of the tables of several feature blocks that share their genes: var itself then
#: has the columns that all of them share, so that the store is an AnnData.
BLOCKS = "_blocks"

MATRIX_PARTS = ("data", "indices", "indptr")
#: Groups of an AnnData, each of which may be empty.
MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp", "uns")
#: Elements below which numbers are arrays on the seam; others are read as a whole.
ARRAY_HOLDERS = ("layers", "obsm", "obsp")

_ENCODINGS = {
    "anndata": "0.1.0",
    "dict": "0.1.0",
    "raw": "0.1.0",
    "csr_matrix": "0.1.0",
    "csc_matrix": "0.1.0",
}


def block_path(table: str, shares_var: bool) -> str:
    """Path of the var table of one of several feature blocks.

    Parameters
    ----------
    table
        Its name on the seam, such as ``var/0``.
    shares_var
        Whether the blocks share their genes, so that var itself is a table.
    """
    return table.replace("var/", f"var/{BLOCKS}/", 1) if shares_var else table


def encoding(kind: str, **more: Any) -> dict[str, Any]:
    """Attributes of an AnnData element. Source: anndata's on-disk format specification."""
    return {"encoding-type": kind, "encoding-version": _ENCODINGS[kind], **more}


def array_path(name: str) -> str:
    """Path of an array while it is written."""
    if name in MATRIX_PARTS:
        return f"{MATRIX}/{name}"
    return element_path(name)


def element_path(name: str) -> str:
    """Path of an element of an AnnData, by its name on the seam."""
    kind, _, key = name.partition("/")
    path = f"obsp/{key}" if kind == "graphs" else name
    parts = path.split("/")
    reserved = {"zarr.json", MATRIX}
    for part in parts:
        if not part.strip(".") or part in reserved or part.startswith("__") or "\\" in part:
            raise OutputError(f"a Zarr store cannot hold {name!r}: {part!r} is no name of a node")
    return path


def seam_name(path: str, sparse: dict[str, Any]) -> str:
    """Name on the seam of an array of a store; graphs are the sparse matrices of obsp by rows."""
    holder, _, part = path.rpartition("/")
    if holder.startswith("obsp/") and holder in sparse and sparse[holder].format == "csr":
        return f"graphs/{holder.removeprefix('obsp/')}/{part}"
    return path


def quiet() -> AbstractContextManager[None]:
    """Without what zarr warns of: codecs and metadata that its specification does not name yet."""
    return warning_filters.quiet(
        "Numcodecs codecs are not in the Zarr",
        r"The data type [\s\S]* does not have a Zarr V3",
        "zarr v3 autosharding",
        f"Object at {CHECKSUMS} is not recognized",
        "Consolidated metadata is currently not part",
    )
