"""Arrays of a store that repeat others, and their readers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from storage_backends.base import ArraySpec
from storage_backends.errors import COPY_AGAIN, ArchiveFormatError
from storage_backends.zarr.chunks.files import Files
from storage_backends.zarr.chunks.reading import ZarrArray
from storage_backends.zarr.chunks.repeating import OfReader
from storage_backends.zarr.chunks.shards import ShardedChunks
from storage_backends.zarr.codecs.profiles import SAME
from storage_backends.zarr.codecs.repeating_codec import Repetition
from storage_backends.zarr.nodes import Node

#: Kinds of two types of integers.
_INTEGERS = ("ii", "iu", "ui", "uu")


class Repeated(NamedTuple):
    """An array that repeats another one.

    Attributes
    ----------
    node
        Node of the array.
    how
        What its codec says.
    other
        Name of the other array in the storage interface.
    """

    node: Node
    how: Repetition
    other: str

    @property
    def is_same(self) -> bool:
        """Whether the numbers are those of the other array."""
        return self.how.codec == SAME

    def reader(self, where: str, files: Files, other: ZarrArray) -> ZarrArray:
        """Create the reader of the array, from that of the other one."""
        assert self.node.array is not None
        assert self.node.spec is not None
        grid, spec = self.node.array.grid, self.node.spec
        assert grid is not None
        if self.is_same:
            return ZarrArray(where, spec, other.chunk_rows, other.reader)
        rows = grid.chunk_rows
        if other.chunk_rows != rows:
            raise ArchiveFormatError(
                f"{where}: it has chunks of {rows:,} items, but the array that it repeats has "
                f"chunks of {other.chunk_rows:,}; {COPY_AGAIN}"
            )
        chunks = ShardedChunks(where, files, grid.files, grid.suffix, grid.per_shard, complete=True)
        return ZarrArray(where, spec, rows, OfReader(where, chunks, spec, rows, other.reader))


def repetition_of(node: Node) -> Repetition | None:
    """What an array repeats, if it repeats another one."""
    grid = node.array.grid if node.array is not None else None
    return Repetition.of(grid.codecs[0]) if grid is not None and len(grid.codecs) == 1 else None


def repeated(
    where: str,
    name: str,
    paths: Mapping[str, str],
    nodes: Mapping[str, Node],
    specs: Mapping[str, ArraySpec],
) -> Repeated | None:
    """The array of a name, if it repeats another one.

    Parameters
    ----------
    where
        Start of error messages.
    paths, nodes, specs
        Paths of arrays by name, nodes by path, and specifications by name.
    """
    how = repetition_of(nodes[paths[name]])
    if how is None:
        return None
    path = how.target(paths[name])
    other = next((other for other, at in paths.items() if at == path), None)
    if other is None:
        raise ArchiveFormatError(f"{where}: it repeats {path}, which is missing; {COPY_AGAIN}")
    if repetition_of(nodes[path]) is not None:
        raise ArchiveFormatError(
            f"{where}: it repeats {path}, which repeats another array; {COPY_AGAIN}"
        )
    found, spec = Repeated(nodes[paths[name]], how, other), specs[name]
    expected = specs[other]
    has_type = spec.dtype == expected.dtype or spec.dtype.kind + expected.dtype.kind in _INTEGERS
    if spec.length != expected.length or (found.is_same and not has_type):
        raise ArchiveFormatError(
            f"{where}: it repeats {path}, which has {expected.length:,} numbers of type "
            f"{expected.dtype}, not {spec.length:,} of {spec.dtype}; {COPY_AGAIN}"
        )
    return found
