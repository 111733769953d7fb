"""Metadata of Zarr nodes, and the readers of arrays built from it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import zarr

from storage_backends.base import DTYPES, ArraySpec
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr.chunks.files import Files
from storage_backends.zarr.chunks.reading import (
    ChunkCache,
    DirectReader,
    ZarrArray,
)
from storage_backends.zarr.chunks.shards import ShardedChunks
from storage_backends.zarr.chunks.through_zarr import ZarrReader
from storage_backends.zarr.codecs.chain import Chain
from storage_backends.zarr.codecs.profiles import Codec

_SHARDING = "sharding_indexed"
#: How an index of a shard is written that is read here without zarr-python.
_INDEX_CODECS = ["bytes", "crc32c"]
_NUMBERS = {dtype.name: dtype for dtype in DTYPES}


class Grid(NamedTuple):
    """Chunks along the first axis, and codecs, of an array of format 3.

    Attributes
    ----------
    chunk_rows, per_shard
        Items of a chunk, and chunks of a shard; 0 without shards.
    codecs
        Of a chunk.
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
    dtype
        Type of the items; None if only zarr can determine it.
    shape, chunks, shards
        Of the array, of what is decoded at once, and of what is stored together; None without
        shards.
    fill
        Fill value of chunks that are not stored.
    grid
        Chunk grid; None if this module does not support it.
    """

    dtype: np.dtype[Any] | None
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
    opened
        Returns the zarr object.
    """

    path: str
    attrs: Mapping[str, Any]
    array: ArrayMetadata | None
    opened: Callable[[], zarr.Array[Any] | zarr.Group]

    @classmethod
    def of(cls, node: zarr.Array[Any] | zarr.Group) -> Self:
        """Create a node from a zarr object."""
        array = None
        if isinstance(node, zarr.Array):
            shape, chunks = tuple(map(int, node.shape)), tuple(map(int, node.chunks))
            shards = node.shards and tuple(map(int, node.shards))
            metadata: Mapping[str, Any] = node.metadata.to_dict()
            grid = _grid_of(node.path, shape, chunks, shards, metadata)
            array = ArrayMetadata(
                np.dtype(node.dtype), shape, chunks, shards, node.fill_value, grid
            )
        return cls(node.path, node.attrs.asdict(), array, lambda: node)

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
        is_array = metadata["node_type"] == "array"
        array = _array_from_json(path, metadata) if is_array else None
        return cls(path, dict(metadata.get("attributes", {})), array, opened)


def _array_from_json(path: str, metadata: Mapping[str, Any]) -> ArrayMetadata:
    regular, codecs = metadata["chunk_grid"], metadata["codecs"]
    if regular["name"] != "regular" or not all(isinstance(codec, dict) for codec in codecs):
        raise ValueError("of another kind than archives have")
    shape = _extents(metadata["shape"])
    chunks, shards = _extents(regular["configuration"]["chunk_shape"]), None
    if codecs[0]["name"] == _SHARDING:
        chunks, shards = _extents(codecs[0]["configuration"]["chunk_shape"]), chunks
    whole = shards is None or not any(n % c for n, c in zip(shards, chunks, strict=True))
    if len(shape) != len(chunks) or 0 in chunks or 0 in (shards or ()) or not whole:
        raise ValueError(f"shape {shape}, chunks {chunks}, shards {shards}")
    # Data types with a configuration are not numeric.
    kind = metadata["data_type"]
    dtype = _NUMBERS.get(kind) if shape and isinstance(kind, str) else None
    fill = None if dtype is None else dtype.type(metadata["fill_value"])
    grid = _grid_of(path, shape, chunks, shards, metadata)
    return ArrayMetadata(dtype, shape, chunks, shards, fill, grid)


def _extents(listed: Any) -> tuple[int, ...]:
    found = tuple(map(operator.index, listed))
    if min(found, default=0) < 0:
        raise ValueError(f"negative extents {found}")
    return found


def is_numeric(node: Node | None) -> bool:
    """Whether a node is an array of a numeric type that archives support."""
    if node is None or node.array is None or node.array.dtype is None:
        return False
    dtype = node.array.dtype
    return len(node.array.shape) > 0 and dtype.kind in "iuf" and dtype.newbyteorder("=") in DTYPES


def array_of(
    where: str,
    node: Node,
    name: str,
    files: Files,
    cache: ChunkCache,
    *,
    complete: bool,
) -> ZarrArray:
    """Create the reader of an array.

    Parameters
    ----------
    where
        Opens the message of an error.
    node
        One of numbers.
    name
        Of its chunks in the cache.
    complete
        Whether every chunk must exist.
    """
    assert node.array is not None
    assert node.array.dtype is not None
    dtype = node.array.dtype.newbyteorder("=")
    spec = ArraySpec(dtype, node.array.shape[0], node.array.shape[1:])
    grid = node.array.grid
    chain = Chain.of(grid.codecs, dtype) if grid is not None else None
    if complete and spec.nbytes and (grid is None or chain is None):
        # Zarr raises a more specific error if it cannot open the array either.
        node.opened()
        raise ArchiveFormatError(f"{where}: it is not stored as archives are; convert it again")
    if grid is None or chain is None:
        rows = node.array.chunks[0]
        return ZarrArray(where, name, spec, rows, ZarrReader(where, array_at(node), rows), cache)
    chunks = ShardedChunks(where, files, grid.files, grid.suffix, grid.per_shard, complete=complete)
    reader = DirectReader(where, files, chunks, chain, node.array.fill)
    return ZarrArray(where, name, spec, grid.chunk_rows, reader, cache)


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
    codecs: Sequence[Codec] = metadata["codecs"]
    sharded = codecs[0]["name"] == _SHARDING
    if sharded:
        settings = codecs[0]["configuration"]
        codecs = settings["codecs"]
        index = [codec["name"] for codec in settings["index_codecs"]]
        if index != _INDEX_CODECS or settings.get("index_location", "end") != "end":
            return None
        if len(metadata["codecs"]) > 1:
            return None
    if outer[1:] != inner[1:] or shape[1:] != inner[1:]:
        return None
    suffix = "/0" * (len(shape) - 1)
    per_shard = outer[0] // inner[0] if sharded else 0
    return Grid(inner[0], per_shard, codecs, f"{path}/c/", suffix)


def shard_keys(node: Node) -> Iterator[str]:
    """Keys of all files of an array that is read directly."""
    if node.array is not None and node.array.grid is not None:
        grid = node.array.grid
        rows = grid.chunk_rows * max(grid.per_shard, 1)
        for i in range(-(-node.array.shape[0] // rows)):
            yield f"{grid.files}{i}{grid.suffix}"


def describe(array: zarr.Array[Any]) -> str:
    """Codecs, chunks and shards, for people."""
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
