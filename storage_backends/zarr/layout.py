"""Names in a Zarr archive: backend array names, AnnData elements and attributes.

The matrix is ``X`` (or ``raw/X``, if an AnnData has both), in sharded arrays::

    zarr.json                        all metadata, consolidated; the attribute ``scdl``
    scdl.checksums                   checksums of all other files
    X/data  X/indices  X/indptr      shards ``c/0``, ``c/1`` and so on
    obs/  var/                       dataframes; ``var/0``, ``var/1`` … of several feature blocks
    obsp/<key>/  obsm/<key>          graphs and dense vectors
    layers/  varm/  varp/  uns/  raw/    the other elements of an AnnData
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from zarr.codecs import Crc32cCodec, ZstdCodec

from storage_backends.compute import warning_filters
from storage_backends.errors import OutputError
from storage_backends.zarr.detection import CHECKSUMS

if TYPE_CHECKING:
    from storage_backends.zarr.nodes import Node

#: Root attribute that marks a store as an scdl archive.
ATTRIBUTE = "scdl"
#: Version of that attribute. Readers refuse a higher one.
FORMAT = 1
#: Group of the matrix until the commit determines its element.
MATRIX = "matrix.part"
#: Array among the columns of var, which AnnData ignores: original position of each gene.
ORDER = "original_position"

#: Compression of tables and elements. The checksum of zstd covers the decoded data but not an
#: unused bit of the header; CRC32C covers every bit of the chunk.
CHECKED = (ZstdCodec(level=3, checksum=True), Crc32cCodec())

#: Group within var of the tables of several feature blocks that share their genes: var itself then
#: has the columns that all of them share, so that the store is an AnnData.
BLOCKS = "_blocks"

MATRIX_PARTS = ("data", "indices", "indptr")
#: Groups of an AnnData, each of which may be empty.
MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp", "uns")
#: Elements whose numeric members are arrays of the storage interface; others are read as a whole.
ARRAY_HOLDERS = ("layers", "obsm", "obsp")

#: Maximum bytes of a file name, with room for suffixes that stores append.
_LONGEST_PART = 200


def block_path(table: str, shares_var: bool) -> str:
    """Path of the var table of one of several feature blocks.

    Parameters
    ----------
    table
        Its name in the storage interface, such as ``var/0``.
    shares_var
        Whether the blocks share their genes, so that var itself is a table.
    """
    return table.replace("var/", f"var/{BLOCKS}/", 1) if shares_var else table


def array_path(name: str) -> str:
    """Path of an array while it is written."""
    if name in MATRIX_PARTS:
        return f"{MATRIX}/{name}"
    return element_path(name)


def element_path(name: str) -> str:
    """Path of an element of an AnnData, by its name in the storage interface."""
    kind, _, key = name.partition("/")
    path = f"obsp/{key}" if kind == "graphs" else name
    parts = path.split("/")
    for part in parts:
        odd = not part.strip(".") or part == "zarr.json" or part.startswith("__") or "\\" in part
        if odd or len(os.fsencode(part)) > _LONGEST_PART:
            raise OutputError(
                f"a Zarr store cannot hold {name!r:.300}: {part!r:.300} is not a valid node name"
            )
    return path


def interface_name(path: str, sparse: dict[str, Any]) -> str:
    """Name of an array of a store in the storage interface; CSR matrices of obsp are graphs."""
    holder, _, part = path.rpartition("/")
    if holder.startswith("obsp/") and holder in sparse and sparse[holder].format == "csr":
        return f"graphs/{holder.removeprefix('obsp/')}/{part}"
    return path


def leaves(nodes: Mapping[str, Node], path: str) -> list[str]:
    """Paths below a mapping, recursively, that are not mappings themselves or are empty ones."""
    attrs = nodes[path].attrs if path in nodes else {}
    below = [name for name in nodes if name.rpartition("/")[0] == path]
    is_mapping = attrs.get("encoding-type", "dict") == "dict" and "h5sparse_format" not in attrs
    if not below or not is_mapping:
        return [path]
    return [leaf for name in below for leaf in leaves(nodes, name)]


def moved(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Nodes of an AnnData, with graphs moved to their path since anndata 0.7."""
    found = dict(nodes)
    for key in ("connectivities", "distances"):
        old, new = f"uns/neighbors/{key}", f"obsp/{key}"
        graph = nodes.get(old)
        is_sparse = graph is not None and len(graph.attrs.get("shape", ())) == 2
        is_dense = graph is not None and graph.array is not None and len(graph.array.shape) == 2
        if new not in nodes and (is_sparse or is_dense):
            for path in [path for path in nodes if f"{path}/".startswith(f"{old}/")]:
                found[path.replace(old, new, 1)] = found.pop(path)
    return found


def ignore_zarr_warnings() -> AbstractContextManager[None]:
    """Ignore warnings of zarr about codecs and metadata not yet in its specification."""
    return warning_filters.ignore_warnings(
        "Numcodecs codecs are not in the Zarr",
        r"The data type [\s\S]* does not have a Zarr V3",
        "zarr v3 autosharding",
        f"Object at {CHECKSUMS} is not recognized",
        "Consolidated metadata is currently not part",
    )
