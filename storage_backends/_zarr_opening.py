"""What is found at a path: a Zarr store, an archive of ours, or something else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import zarr

from storage_backends import _zarr_layout
from storage_backends._held_store import HeldStore
from storage_backends._shards import LocalFiles
from storage_backends._zarr_claims import BoundedStore
from storage_backends._zarr_detection import METADATA_FILES
from storage_backends.errors import ArchiveFormatError, ScdlError, one_line


def identity(path: str) -> tuple[int, ...] | None:
    """What tells an archive from another that takes its place; None where there is none."""
    try:
        directory = os.stat(path)
        found = [n for n in METADATA_FILES if os.path.isfile(os.path.join(path, n))]
        metadata = os.stat(os.path.join(path, found[0]))
    except (OSError, IndexError):
        return None
    return directory.st_dev, directory.st_ino, metadata.st_ino, metadata.st_mtime_ns


def is_still(path: str, before: tuple[int, ...] | None) -> bool:
    """Whether an archive is the one at a path still, by its :func:`identity` at the opening."""
    return identity(path) == before


def open_local(path: str, files: LocalFiles) -> zarr.Group:
    """The root of a store in a directory; ArchiveFormatError where there is none.

    What is held in `files` is read from there.
    """
    if not any(os.path.isfile(os.path.join(path, name)) for name in METADATA_FILES):
        raise ArchiveFormatError(f"{path}: expected a Zarr store, found no zarr.json or .zgroup")
    with unreadable(path):
        return zarr.open_group(HeldStore(BoundedStore(path, read_only=True), files), mode="r")


def files_below(root: str) -> Iterator[str]:
    """Keys of all files of a store."""
    for directory, names, files in os.walk(root):
        names.sort()
        prefix = os.path.relpath(directory, root).replace(os.sep, "/")
        for name in sorted(files):
            yield name if prefix == "." else f"{prefix}/{name}"


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
    unsigned = ours.get("unsigned", [])
    sound = isinstance(blocks, list) and blocks and all(map(_is_block, blocks))
    if not sound or not isinstance(unsigned, list) or not all(isinstance(n, str) for n in unsigned):
        raise ArchiveFormatError(f"{path}: the attribute {_zarr_layout.ATTRIBUTE} is damaged")
    return ours


def _is_block(block: Any) -> bool:
    return isinstance(block, Mapping) and all(
        type(block.get(key)) is int for key in ("stop", "n_vars")
    )


def members(path: str, root: zarr.Group) -> list[tuple[str, zarr.Array[Any] | zarr.Group]]:
    """Every array and group of a store, by path."""
    with unreadable(path):
        return list(root.members(max_depth=None))
