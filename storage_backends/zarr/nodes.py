"""Metadata of Zarr nodes, and the readers of arrays built from it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import zarr

from storage_backends.base import DTYPES, ArraySpec
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr.chunks.fetching import DirectReader
from storage_backends.zarr.chunks.files import Files
from storage_backends.zarr.chunks.reading import ZarrArray
from storage_backends.zarr.chunks.shards import ShardedChunks
from storage_backends.zarr.chunks.through_zarr import ZarrReader
from storage_backends.zarr.codecs.chain import Chain
from storage_backends.zarr.codecs.profiles import OF, Codec

_SHARDING = "sharding_indexed"
#: Codecs of shard indexes that can be read without zarr-python.
_INDEX_CODECS = ["bytes", "crc32c"]
_NUMBERS = {dtype.name: dtype for dtype in DTYPES}
_NAME = operator.itemgetter("name")


class Grid(NamedTuple):
    """Chunks along the first axis, and codecs, of an array of format 3.

    Attributes
    ----------
    chunk_rows, per_shard
        Items per chunk, and chunks per shard; 0 without shards.
    codecs
        Codecs of a chunk.
    files, suffix
        Text before and after the number of a file in its key.
    """

    chunk_rows: int
    per_shard: int
    codecs: Sequence[Codec]
    files: str
    suffix: str


class ArrayMetadata(NamedTuple):
    """Metadata of an array.

    Attributes
    ----------
    itemsize
        Size of an item in bytes; 1 if only zarr knows the type.
    shape, chunks, shards
        Shapes of the array, of a chunk, and of a shard; the last is None without shards.
    fill
        Fill value of chunks that are not stored.
    grid
        Chunk grid; None if this module does not support it.
    """

    itemsize: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    fill: Any
    grid: Grid | None


class Node(NamedTuple):
    """An array or a group of a store.

    Attributes
    ----------
    path
        Path in the store.
    attrs
        Its attributes.
    array
        Metadata of an array; None for a group.
    spec
        Specification of an array of numbers that archives can have; None for others.
    opened
        Returns the zarr object.
    """

    path: str
    attrs: Mapping[str, Any]
    array: ArrayMetadata | None
    spec: ArraySpec | None
    opened: Callable[[], zarr.Array[Any] | zarr.Group]

    @classmethod
    def of(cls, node: zarr.Array[Any] | zarr.Group) -> Self:
        """Create a node from a zarr object."""
        array = spec = None
        if isinstance(node, zarr.Array):
            shape, chunks = tuple(map(int, node.shape)), tuple(map(int, node.chunks))
            shards = node.shards and tuple(map(int, node.shards))
            metadata: Mapping[str, Any] = node.metadata.to_dict()
            pieces = _pieces_of(metadata.get("codecs", ()))
            if shards is None and pieces is not None:
                chunks, shards = pieces, chunks
            dtype = np.dtype(node.dtype)
            is_number = dtype.kind in "iuf" and dtype.newbyteorder("=") in DTYPES
            if shape and is_number:
                spec = ArraySpec(dtype.newbyteorder("="), shape[0], shape[1:])
            grid = _grid_of(node.path, shape, chunks, shards, metadata)
            sizes = shape, chunks, shards
            array = ArrayMetadata(max(1, dtype.itemsize), *sizes, node.fill_value, grid)
        return cls(node.path, node.attrs.asdict(), array, spec, lambda: node)

    @classmethod
    def from_json(
        cls,
        path: str,
        metadata: Mapping[str, Any],
        opened: Callable[[], zarr.Array[Any] | zarr.Group],
    ) -> Self:
        """Create a node from metadata of format 3, in the form that archives use.

        Raises
        ------
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError
            The metadata has another form, which zarr may support.
        """
        if metadata["zarr_format"] != 3 or metadata["node_type"] not in ("array", "group"):
            raise ValueError(f"{path} is no array or group of format 3")
        attrs = dict(metadata.get("attributes", {}))
        if metadata["node_type"] == "group":
            return cls(path, attrs, None, None, opened)
        regular, codecs = metadata["chunk_grid"], metadata["codecs"]
        shape = tuple(map(operator.index, metadata["shape"]))
        chunks = tuple(map(operator.index, regular["configuration"]["chunk_shape"]))
        # Codecs may also be given by their names alone, which raises a TypeError here.
        shards, pieces = None, _pieces_of(codecs)
        if pieces is not None:
            shards, chunks = chunks, pieces
        steps = chunks + (shards or ())
        if regular["name"] != "regular" or not len(shape) == len(chunks) == len(shards or shape):
            raise ValueError("not in the form that archives use")
        if min(shape, default=0) < 0 or min(steps, default=1) < 1:
            raise ValueError(f"shape {shape}, chunks {chunks}, shards {shards}")
        if any(map(operator.mod, shards or (), chunks)):
            raise ValueError(f"chunks {chunks} do not fill shards {shards}")
        grid = _grid_of(path, shape, chunks, shards, metadata)
        kind, spec, fill, itemsize = metadata["data_type"], None, None, 1
        # Data types with a configuration are not numeric.
        if shape and isinstance(kind, str) and kind in _NUMBERS:
            spec = ArraySpec(_NUMBERS[kind], shape[0], shape[1:])
            fill, itemsize = spec.dtype.type(metadata["fill_value"]), spec.dtype.itemsize
        array = ArrayMetadata(itemsize, shape, chunks, shards, fill, grid)
        return cls(path, attrs, array, spec, opened)


def _pieces_of(codecs: Sequence[Codec]) -> tuple[int, ...] | None:
    """Shape of the pieces of chunks, in which they are encoded; None if they are not in pieces."""
    names = list(map(_NAME, codecs))
    if not names or names[0] not in (_SHARDING, OF):
        return None
    return tuple(map(operator.index, codecs[0]["configuration"]["chunk_shape"]))


def array_of(
    where: str,
    node: Node,
    files: Files,
    *,
    complete: bool,
) -> ZarrArray:
    """Create the reader of an array.

    Parameters
    ----------
    where
        Start of error messages.
    node
        Node of a numeric array.
    complete
        Whether every chunk must exist.
    """
    assert node.array is not None
    assert node.spec is not None
    spec, grid = node.spec, node.array.grid
    chain = Chain.of(grid.codecs, spec.dtype) if grid is not None else None
    if complete and spec.nbytes and (grid is None or chain is None):
        # Zarr raises a more specific error if it cannot open the array either.
        node.opened()
        raise ArchiveFormatError(f"{where}: its layout is not that of an archive; convert it again")
    if grid is None or chain is None:
        rows = node.array.chunks[0]
        return ZarrArray(where, spec, rows, ZarrReader(where, array_at(node), rows))
    chunks = ShardedChunks(where, files, grid.files, grid.suffix, grid.per_shard, complete=complete)
    reader = DirectReader(where, chunks, chain, node.array.fill)
    return ZarrArray(where, spec, grid.chunk_rows, reader)


def array_at(node: Node) -> zarr.Array[Any]:
    """The zarr array of a node."""
    opened = node.opened()
    assert isinstance(opened, zarr.Array)
    return opened


def _grid_of(
    path: str,
    shape: tuple[int, ...],
    inner: tuple[int, ...],
    shards: tuple[int, ...] | None,
    metadata: Mapping[str, Any],
) -> Grid | None:
    if not shape:
        return None
    outer = shards or inner
    keys = metadata.get("chunk_key_encoding", {})
    separator = keys.get("configuration", {}).get("separator", "/")
    if metadata["zarr_format"] != 3 or (keys["name"], separator) != ("default", "/"):
        return None
    if metadata["chunk_grid"]["name"] != "regular":
        return None
    if outer[1:] != inner[1:] or shape[1:] != inner[1:]:
        return None
    suffix = "/0" * (len(shape) - 1)
    codecs: Sequence[Codec] = metadata["codecs"]
    if codecs[0]["name"] == OF:
        return Grid(inner[0], outer[0] // inner[0], codecs, f"{path}/c/", suffix)
    if codecs[0]["name"] != _SHARDING:
        return Grid(inner[0], 0, codecs, f"{path}/c/", suffix)
    settings = codecs[0]["configuration"]
    index = list(map(_NAME, settings["index_codecs"]))
    at_end = settings.get("index_location", "end") == "end"
    if index != _INDEX_CODECS or not at_end or len(codecs) > 1:
        return None
    return Grid(inner[0], outer[0] // inner[0], settings["codecs"], f"{path}/c/", suffix)


def shard_keys(node: Node) -> Iterator[str]:
    """Keys of all files of an array that is read directly."""
    if node.array is not None and node.array.grid is not None:
        grid = node.array.grid
        rows = grid.chunk_rows * max(grid.per_shard, 1)
        for i in range(-(-node.array.shape[0] // rows)):
            yield f"{grid.files}{i}{grid.suffix}"


def describe(array: zarr.Array[Any]) -> str:
    """Codecs, chunks and shards, for display."""
    metadata: Mapping[str, Any] = array.metadata.to_dict()
    if metadata["zarr_format"] != 3:
        return f"Zarr v2, {array.compressors}, chunks of {array.chunks[0]:,}"
    codecs = metadata["codecs"]
    sharded = codecs[0]["name"] == _SHARDING
    inner = codecs[0]["configuration"]["codecs"] if sharded else codecs
    named = " + ".join(map(_codec_name, inner))
    shards = f", shards of {array.shards[0]:,}" if array.shards else ""
    return f"{named}, chunks of {array.chunks[0]:,}{shards}"


def _codec_name(codec: Codec) -> str:
    name = str(codec["name"]).removeprefix("numcodecs.")
    settings = codec.get("configuration", {})
    if name == "blosc":
        return f"blosc {settings['cname']} {settings['clevel']} {settings['shuffle']}"
    if name == "pcodec":
        return f"pcodec {settings['level']}"
    return f"astype {settings['encode_dtype']}" if name == "astype" else name
