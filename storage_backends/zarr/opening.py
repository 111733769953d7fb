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
from storage_backends.errors import ArchiveFormatError, ScdlError, one_line
from storage_backends.zarr import layout
from storage_backends.zarr.chunks.files import LocalFiles
from storage_backends.zarr.claims import BoundedStore, check_array
from storage_backends.zarr.detection import METADATA_FILES
from storage_backends.zarr.held_store import HeldStore
from storage_backends.zarr.nodes import Node

#: Errors raised by metadata that does not have the form written by scdl.
_OTHERWISE = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class Nodes(NamedTuple):
    """Nodes and root attributes of a store.

    Attributes
    ----------
    attrs
        Attributes of the root.
    by_path
        Every array and group.
    """

    attrs: Mapping[str, Any]
    by_path: dict[str, Node]


def local_nodes(path: str, files: LocalFiles, stored: Callable[[], int]) -> Nodes:
    """Nodes of a store in a directory.

    Nodes of scdl archives are built from the consolidated metadata without zarr, which would create
    objects for all nodes at once and dominate the time to open an archive.

    Parameters
    ----------
    path
        The directory.
    files
        Reader of all files other than metadata.
    stored
        Bytes of all files.

    Raises
    ------
    ArchiveFormatError
        There is no store, or a damaged one.
    """
    there = [name for name in METADATA_FILES if os.path.isfile(os.path.join(path, name))]
    if not there:
        raise ArchiveFormatError(f"{path}: expected a Zarr store, found no zarr.json or .zgroup")

    @cache
    def opened() -> Nodes:
        with unreadable(path):
            store = HeldStore(BoundedStore(path, read_only=True), files)
            # Without an explicit format, zarr also looks for files of the other format.
            is_new = there[0] == "zarr.json"
            root = zarr.open_group(store, mode="r", zarr_format=3 if is_new else 2)
            return nodes(path, root, stored)

    found = _consolidated(path, lambda name: opened().by_path[name].opened())
    if found is None:
        # Fall back to zarr, which opens the store or raises an error.
        return opened()
    _check_claims(path, found.by_path, stored)
    return found


def _consolidated(
    path: str, open_node: Callable[[str], zarr.Array[Any] | zarr.Group]
) -> Nodes | None:
    """Nodes from the consolidated metadata of an scdl archive; None if it is incomplete."""
    with contextlib.suppress(*_OTHERWISE):
        said = json.loads(archive_files.read_file(path, METADATA_FILES[0]))
        if layout.ATTRIBUTE in said["attributes"]:
            listed = said["consolidated_metadata"]["metadata"]
            by_path = {
                name: Node.from_json(name, metadata, partial(open_node, name))
                for name, metadata in listed.items()
            }
            return Nodes(dict(said["attributes"]), by_path)
    return None


def nodes(path: str, root: zarr.Group, stored: Callable[[], int]) -> Nodes:
    """Every array and group of a store, as zarr opened them."""
    with unreadable(path):
        members = root.members(max_depth=None)
        found = {name: Node.of(node) for name, node in members}
        _check_claims(path, found, stored)
        return Nodes(root.attrs.asdict(), found)


def _check_claims(path: str, found: Mapping[str, Node], stored: Callable[[], int]) -> None:
    for name, node in found.items():
        if node.array is not None:
            check_array(f"{path}: {name}", node.array, stored)


def files_below(root: str) -> Iterator[str]:
    """Keys of all files of a store."""
    for directory, names, files in os.walk(root):
        names.sort()
        prefix = os.path.relpath(directory, root).replace(os.sep, "/")
        for name in sorted(files):
            yield name if prefix == "." else f"{prefix}/{name}"


@contextlib.contextmanager
def unreadable(where: str) -> Iterator[None]:
    """Raise errors of zarr and anndata as ArchiveFormatError."""
    try:
        with layout.quiet():
            yield
    except ScdlError:
        raise
    except Exception as error:
        raise ArchiveFormatError(f"{where}: zarr cannot read it: {one_line(error)}") from error


def own_attribute(path: str, store: Nodes, *, may_be_old: bool) -> Mapping[str, Any]:
    """The scdl attribute of an archive; empty for an AnnData written by other software.

    Parameters
    ----------
    may_be_old
        Whether a store without an encoding type may be from an early release of anndata.
    """
    attrs = store.attrs
    ours = attrs.get(layout.ATTRIBUTE)
    if ours is None:
        # anndata before 0.8 wrote no encoding type.
        is_old = may_be_old and {"obs", "var"} <= set(store.by_path)
        if attrs.get("encoding-type") != "anndata" and not is_old:
            kind = attrs.get("encoding-type", "none")
            raise ArchiveFormatError(
                other_formats.zarr_store(path, attrs, store.by_path)
                or f"{path}: a Zarr store, but no AnnData: expected the encoding-type anndata, "
                f"found {kind}"
            )
        return {}
    if not isinstance(ours, Mapping) or not isinstance(ours.get("format"), int):
        raise ArchiveFormatError(f"{path}: the attribute {layout.ATTRIBUTE} is damaged")
    if ours["format"] > layout.FORMAT:
        raise ArchiveFormatError(
            f"{path}: its format {ours['format']} is newer than {layout.FORMAT}, which this "
            "release of scdl reads; install a newer one"
        )
    said = ours.get("attrs")
    blocks = said.get("blocks") if isinstance(said, Mapping) else None
    unsigned = ours.get("unsigned", [])
    sound = isinstance(blocks, list) and blocks and all(map(_is_block, blocks))
    if not sound or not isinstance(unsigned, list) or not all(isinstance(n, str) for n in unsigned):
        raise ArchiveFormatError(f"{path}: the attribute {layout.ATTRIBUTE} is damaged")
    return ours


def _is_block(block: Any) -> bool:
    return isinstance(block, Mapping) and all(
        type(block.get(key)) is int for key in ("stop", "n_vars")
    )
