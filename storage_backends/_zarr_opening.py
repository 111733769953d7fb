"""What is found at a path: a Zarr store, an archive of ours, or something else."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import zarr

from storage_backends import _zarr_layout
from storage_backends._zarr_detection import METADATA_FILES
from storage_backends._zarr_nodes import Node
from storage_backends.errors import ArchiveFormatError, ScdlError, one_line


class Nodes(NamedTuple):
    """What a store has.

    Attributes
    ----------
    attrs
        Attributes of the root.
    by_path
        Every array and group.
    """

    attrs: Mapping[str, Any]
    by_path: dict[str, Node]


def identity(path: str) -> tuple[int, ...] | None:
    """What tells an archive from another that takes its place; None where there is none."""
    try:
        directory = os.stat(path)
        found = [n for n in METADATA_FILES if os.path.isfile(os.path.join(path, n))]
        metadata = os.stat(os.path.join(path, found[0]))
    except (OSError, IndexError):
        return None
    return directory.st_dev, directory.st_ino, metadata.st_ino, metadata.st_mtime_ns


class LocalRoot:
    """The root of a store in a directory, as zarr opens it, once it is used.

    Parameters
    ----------
    path
        The directory.
    opened_as
        Its :func:`identity` when the archive was opened.
    """

    def __init__(self, path: str, opened_as: tuple[int, ...] | None) -> None:
        self.path = path
        self._opened_as = opened_as
        self._group: zarr.Group | None = None

    def check(self) -> None:
        """Arrays are held since the opening, the rest is not: it must be of the same archive."""
        if identity(self.path) != self._opened_as:
            raise ArchiveFormatError(
                f"{self.path}: the archive was replaced since it was opened; open it again"
            )

    def group(self) -> zarr.Group:
        """The group; ArchiveFormatError where there is none."""
        if self._group is None:
            self.check()
            with unreadable(self.path):
                self._group = zarr.open_group(self.path, mode="r")
        return self._group

    def nodes(self) -> Nodes:
        """What the store has.

        Of an archive of ours consolidated metadata tells: zarr makes its objects of all that is in
        a store at once, which takes longer than everything else about opening it.
        """
        if not any(os.path.isfile(os.path.join(self.path, name)) for name in METADATA_FILES):
            raise ArchiveFormatError(
                f"{self.path}: expected a Zarr store, found no zarr.json or .zgroup"
            )
        said = self._metadata()
        attrs, consolidated = said.get("attributes"), said.get("consolidated_metadata")
        ours = isinstance(attrs, dict) and attrs.get(_zarr_layout.ATTRIBUTE) is not None
        if not ours or not isinstance(consolidated, dict):
            return nodes(self.path, self.group())
        with unreadable(self.path):
            found = consolidated["metadata"].items()
            return Nodes(
                said["attributes"],
                {name: Node.from_json(name, meta, partial(self._at, name)) for name, meta in found},
            )

    def _metadata(self) -> dict[str, Any]:
        try:
            with open(os.path.join(self.path, METADATA_FILES[0]), encoding="utf-8") as stream:
                said = json.load(stream)
        except (FileNotFoundError, ValueError, RecursionError):
            # It is of format 2, or zarr says what is wrong.
            return {}
        return said if isinstance(said, dict) else {}

    def _at(self, name: str) -> zarr.Array[Any] | zarr.Group:
        with unreadable(f"{self.path}: {name}"):
            return self.group()[name]


@contextlib.contextmanager
def unreadable(where: str) -> Iterator[None]:
    """Say in one sentence what zarr or anndata say of a damaged store."""
    try:
        with _zarr_layout.quiet():
            yield
    except ScdlError:
        raise
    except Exception as error:
        raise ArchiveFormatError(f"{where}: zarr cannot read it: {one_line(error)}") from error


def own_attribute(path: str, attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an archive of ours says of itself; nothing for an AnnData of others."""
    ours = attrs.get(_zarr_layout.ATTRIBUTE)
    if ours is None:
        if attrs.get("encoding-type") != "anndata":
            found = attrs.get("encoding-type", "none")
            raise ArchiveFormatError(
                f"{path}: a Zarr store, but no AnnData: expected the encoding-type anndata, found "
                f"{found}"
            )
        return {}
    if not isinstance(ours, Mapping) or not isinstance(ours.get("format"), int):
        raise ArchiveFormatError(f"{path}: the attribute {_zarr_layout.ATTRIBUTE} is damaged")
    if ours["format"] > _zarr_layout.FORMAT:
        raise ArchiveFormatError(
            f"{path}: its format {ours['format']} is newer than {_zarr_layout.FORMAT}, which this "
            "release of scdl reads; install a newer one"
        )
    said = ours.get("attrs")
    blocks = said.get("blocks") if isinstance(said, Mapping) else None
    if not blocks or any(not {"stop", "n_vars"} <= set(block) for block in blocks):
        raise ArchiveFormatError(f"{path}: the attribute {_zarr_layout.ATTRIBUTE} is damaged")
    return ours


def nodes(path: str, root: zarr.Group) -> Nodes:
    """Every array and group of a store, as zarr opened them."""
    with unreadable(path):
        members = root.members(max_depth=None)
        return Nodes(root.attrs.asdict(), {name: Node.of(node) for name, node in members})
