"""Open the nodes of a Zarr store and check the attribute of archives."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import zarr

from storage_backends import other_formats
from storage_backends.directory import files as archive_files
from storage_backends.errors import ArchiveFormatError, ScdlError, newer_format, one_line
from storage_backends.zarr import layout
from storage_backends.zarr.chunks.files import Files, LocalFiles
from storage_backends.zarr.claims import BoundedStore, check_array
from storage_backends.zarr.detection import METADATA_FILES
from storage_backends.zarr.local_stores import MappedStore
from storage_backends.zarr.nodes import Node

_ROOT, _ROOT_V2 = METADATA_FILES
#: Errors raised by metadata that does not have the form written by scdl.
_OTHERWISE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


class Nodes(NamedTuple):
    """Nodes and root attributes of a store.

    Attributes
    ----------
    attrs
        Attributes of the root.
    by_path
        Every array and group.
    stored
        Returns the size of all files in bytes; effectively unlimited if they cannot be listed.
    in_root
        Whether the metadata of all nodes is in the file of the root.
    """

    attrs: Mapping[str, Any]
    by_path: dict[str, Node]
    stored: Callable[[], int]
    in_root: bool = False


def local_nodes(path: str, files: LocalFiles) -> Nodes:
    """Nodes of a store in a directory.

    Nodes of scdl archives are built from the consolidated metadata without zarr, which would create
    objects for all nodes at once and dominate the time to open an archive.

    Parameters
    ----------
    path
        The directory.
    files
        Reader of all files other than metadata.

    Raises
    ------
    ArchiveFormatError
        There is no store, or a damaged one.
    """
    is_new = os.path.isfile(os.path.join(path, _ROOT))
    if not is_new and not os.path.isfile(os.path.join(path, _ROOT_V2)):
        raise ArchiveFormatError(f"{path}: expected a Zarr store, found no {_ROOT} or {_ROOT_V2}")

    @cache
    def opened() -> Nodes:
        with unreadable(path), layout.ignore_zarr_warnings():
            store = MappedStore(BoundedStore(path, read_only=True), files)
            # Without an explicit format, zarr also looks for files of the other format.
            root = zarr.open_group(store, mode="r", zarr_format=3 if is_new else 2)
            return nodes(path, root, files)

    with contextlib.suppress(*_OTHERWISE):
        root = json.loads(archive_files.read_file(path, _ROOT))
        if layout.ATTRIBUTE in root["attributes"]:
            by_path = {}
            for name, metadata in root["consolidated_metadata"]["metadata"].items():
                by_path[name] = Node.from_json(name, metadata, partial(_opened, opened, name))
            stored = cache(partial(_stored_bytes, files))
            return Nodes(dict(root["attributes"]), by_path, stored, in_root=True)
    # Zarr opens the store or raises an error.
    return opened()


def _opened(nodes: Callable[[], Nodes], name: str) -> zarr.Array[Any] | zarr.Group:
    return nodes().by_path[name].opened()


def nodes(path: str, root: zarr.Group, files: Files) -> Nodes:
    """Every array and group of a store, as zarr opened them."""
    found = Nodes(root.attrs.asdict(), {}, cache(partial(_stored_bytes, files)))
    for name, member in root.members(max_depth=None):
        node = found.by_path[name] = Node.of(member)
        if node.array is not None:
            check_array(f"{path}: {name}", node.array, found.stored)
    return found


def _stored_bytes(files: Files) -> int:
    return files.total("") or 1 << 62


@contextlib.contextmanager
def unreadable(where: str) -> Iterator[None]:
    """Raise errors of zarr and anndata as ArchiveFormatError."""
    try:
        yield
    except ScdlError:
        raise
    except Exception as error:
        raise ArchiveFormatError(f"{where}: zarr cannot read it: {one_line(error)}") from error


def scdl_attribute(path: str, store: Nodes, *, may_be_old: bool) -> Mapping[str, Any]:
    """The scdl attribute of an archive; empty for an AnnData written by other software.

    Parameters
    ----------
    may_be_old
        Whether a store without an encoding type may be from an early release of anndata.
    """
    attrs = store.attrs
    attribute = attrs.get(layout.ATTRIBUTE)
    if attribute is None:
        # anndata before 0.8 wrote no encoding type.
        is_old = may_be_old and {"obs", "var"} <= set(store.by_path)
        if attrs.get("encoding-type") != "anndata" and not is_old:
            kind = attrs.get("encoding-type", "none")
            raise ArchiveFormatError(
                other_formats.zarr_store(path, attrs, store.by_path)
                or f"{path}: a Zarr store, but not an AnnData: expected the encoding-type anndata, "
                f"found {kind}"
            )
        return {}
    damaged = ArchiveFormatError(f"{path}: the attribute {layout.ATTRIBUTE} is damaged")
    if not isinstance(attribute, Mapping) or not isinstance(attribute.get("format"), int):
        raise damaged
    if attribute["format"] > layout.FORMAT:
        raise newer_format(path, attribute["format"], layout.FORMAT)
    try:
        blocks, unsigned = attribute["attrs"]["blocks"], attribute.get("unsigned", [])
        if not isinstance(blocks, list) or not blocks or not isinstance(unsigned, list):
            raise damaged
        if not {str}.issuperset(map(type, unsigned)):
            raise damaged
        for block in blocks:
            if not type(block["stop"]) is type(block["n_vars"]) is int:
                raise damaged
    except (LookupError, TypeError) as error:
        raise damaged from error
    return attribute
