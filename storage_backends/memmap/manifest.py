"""The manifest of an archive: what the documented format has no place for.

It is untrusted: all of its entries are checked.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from storage_backends.base import DTYPES, ArraySpec
from storage_backends.directory import files as archive_files
from storage_backends.errors import COPY_AGAIN, ArchiveFormatError, newer_format
from storage_backends.memmap.layout import MATRIX, keeps_sparse

FILE = os.path.join("scdl", "manifest.json")
#: Format of the manifest. Format 2 has tables of cells in several files, of archives that grew.
FORMAT = 2


def entry_of(name: str, spec: ArraySpec) -> dict[str, Any]:
    """Entry of an array in the manifest."""
    return {
        "name": name,
        "dtype": spec.dtype.name,
        "length": spec.length,
        "item_shape": list(spec.item_shape),
    }


def read(path: str) -> Mapping[str, Any]:
    """Read the manifest; it is empty if there is none."""
    file = os.path.join(path, FILE)
    if not os.path.lexists(file):
        return {}
    manifest = parse(archive_files.read_file(path, FILE), file)
    if manifest["format"] > FORMAT:
        raise newer_format(file, manifest["format"], FORMAT)
    return manifest


def current(
    path: str, manifest: Mapping[str, Any], n_obs: int, nnz: int, remarks: list[str]
) -> Mapping[str, Any]:
    """The manifest; empty, with a remark, if another program changed the archive."""
    if not manifest or (stated := (manifest["n_obs"], manifest["nnz"])) == (n_obs, nnz):
        return manifest
    remarks.append(
        f"{path}: another program changed the archive from {stated[0]} to {n_obs} cells; "
        "names, categories, obsm, fields and further graphs no longer match and are ignored"
    )
    return {}


def parse(data: bytes, where: str) -> dict[str, Any]:
    """Parse a manifest and check the types of all entries.

    Raises
    ------
    ArchiveFormatError
        The manifest is invalid; the message begins with `where`.
    """
    try:
        manifest: dict[str, Any] = json.loads(data)
        for key in ("format", "n_obs", "nnz"):
            if type(manifest[key]) is not int:
                raise ValueError(f"bad {key} {manifest[key]!r:.100}")
        array_names = list(map(_check_entry, manifest["arrays"]))
        if len({*array_names}) < len(array_names) or not {*array_names}.isdisjoint(MATRIX):
            raise ValueError("the names of arrays are not unique")
        if not isinstance(manifest.get("documented_graph"), str | None):
            raise ValueError(f"bad documented_graph {manifest['documented_graph']!r:.100}")
        for name, width in manifest.get("sparse", {}).items():
            is_known = keeps_sparse(name, "csr") and f"{name}/indptr" in array_names
            if not is_known or type(width) is not int or width < 0:
                raise ValueError(f"bad sparse matrix {name!r:.100} of {width!r:.100} columns")
        if not isinstance(manifest["attrs"], dict):
            raise ValueError("attrs must be an object")
        for table in manifest["tables"].values():
            columns, parts = table.get("nullable", []), table.get("parts", 1)
            names = [table.get("only_names"), table.get("index_name"), *columns]
            are_names = {str, type(None)}.issuperset(map(type, names))
            if type(parts) is not int or type(columns) is not list or not are_names:
                raise ValueError(f"bad table entry {table!r:.100}")
        for block in manifest["attrs"]["blocks"]:
            if not (type(block["stop"]) is type(block["n_vars"]) is int):
                raise ValueError(f"bad block {block!r:.100}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArchiveFormatError(
            f"{where}: this is not a valid manifest ({error!r:.200}); {COPY_AGAIN}"
        ) from error
    return manifest


def _check_entry(entry: Any) -> str:
    """Check the entry of an array in the manifest and return its name."""
    name, dtype, shape = entry["name"], entry["dtype"], [entry["length"], *entry["item_shape"]]
    is_known = isinstance(name, str) and isinstance(dtype, str) and np.dtype(dtype) in DTYPES
    if not is_known or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"bad array entry {entry!r:.100}")
    # A zero-length dimension would make the product zero and hide the other sizes.
    if math.prod(n for n in shape if n) >= 2**62:
        raise ValueError(f"array entry is too large: {entry!r:.100}")
    assert isinstance(name, str)
    return name


def format_of(tables: Mapping[str, Mapping[str, Any]]) -> int:
    """The first format of manifests that has such tables."""
    return 2 if any(entry.get("parts", 1) > 1 for entry in tables.values()) else 1
