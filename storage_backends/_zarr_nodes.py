"""From the metadata of a Zarr array to how its chunks are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import zarr
from numpy.typing import NDArray

from storage_backends._shards import Files, ShardedChunks
from storage_backends._zarr_arrays import (
    ChunkCache,
    ChunkReader,
    Chunks,
    DirectReader,
    ZarrArray,
)
from storage_backends._zarr_codecs import Chain
from storage_backends._zarr_profiles import Codec
from storage_backends.base import DTYPES, ArraySpec
from storage_backends.errors import ArchiveFormatError, ScdlError, one_line

_SHARDING = "sharding_indexed"
#: How an index of a shard is written that is read here without zarr-python.
_INDEX_CODECS = ["bytes", "crc32c"]


class Grid(NamedTuple):
    """How an array is cut, and compressed."""

    chunk_rows: int
    per_shard: int
    codecs: Sequence[Codec]
    files: str
    suffix: str


def is_numeric(node: Any) -> TypeGuard[zarr.Array[Any]]:
    """Whether a node is an array whose numbers an archive can give."""
    if not isinstance(node, zarr.Array):
        return False
    dtype = np.dtype(node.dtype)
    return node.ndim > 0 and dtype.kind in "iuf" and dtype.newbyteorder("=") in DTYPES


def array_of(
    where: str,
    array: zarr.Array[Any],
    name: str,
    files: Files,
    cache: ChunkCache,
    *,
    complete: bool,
) -> ZarrArray:
    """How to read an array.

    Parameters
    ----------
    where
        Opens the message of an error.
    name
        Of its chunks in the cache.
    complete
        Whether every chunk must be there.
    """
    dtype = np.dtype(array.dtype).newbyteorder("=")
    spec = ArraySpec(dtype, int(array.shape[0]), tuple(int(n) for n in array.shape[1:]))
    grid = grid_of(array)
    chain = Chain.of(grid.codecs, dtype) if grid is not None else None
    if complete and spec.nbytes and (grid is None or chain is None):
        raise ArchiveFormatError(f"{where}: it is not stored as archives are; convert it again")
    if grid is None or chain is None:
        rows = int(array.chunks[0])
        return ZarrArray(where, name, spec, rows, _SlowReader(where, array, rows), cache)
    chunks = ShardedChunks(where, files, grid.files, grid.suffix, grid.per_shard, complete=complete)
    reader = DirectReader(where, files, chunks, chain, array.fill_value)
    return ZarrArray(where, name, spec, grid.chunk_rows, reader, cache)


def grid_of(array: zarr.Array[Any]) -> Grid | None:
    """How an array of format 3 is cut along its first axis; None where it is cut otherwise."""
    metadata: Mapping[str, Any] = array.metadata.to_dict()
    keys = metadata.get("chunk_key_encoding", {})
    separator = keys.get("configuration", {}).get("separator", "/")
    if metadata["zarr_format"] != 3 or (keys["name"], separator) != ("default", "/"):
        return None
    if metadata["chunk_grid"]["name"] != "regular":
        return None
    outer = inner = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
    codecs: Sequence[Codec] = metadata["codecs"]
    sharded = codecs[0]["name"] == _SHARDING
    if sharded:
        settings = codecs[0]["configuration"]
        inner, codecs = tuple(settings["chunk_shape"]), settings["codecs"]
        index = [codec["name"] for codec in settings["index_codecs"]]
        if index != _INDEX_CODECS or settings.get("index_location", "end") != "end":
            return None
        if len(metadata["codecs"]) > 1:
            return None
    if outer[1:] != inner[1:] or any(
        n > c for n, c in zip(array.shape[1:], inner[1:], strict=True)
    ):
        return None
    if tuple(max(1, n) for n in array.shape[1:]) != inner[1:] or 0 in array.shape[1:]:
        return None
    suffix = "/0" * (array.ndim - 1)
    per_shard = outer[0] // inner[0] if sharded else 0
    return Grid(inner[0], per_shard, codecs, f"{array.path}/c/", suffix)


def shard_keys(array: zarr.Array[Any]) -> list[str]:
    """Keys of all files of an array that is read directly."""
    grid = grid_of(array) if array.ndim else None
    if grid is None:
        return []
    rows = grid.chunk_rows * max(grid.per_shard, 1)
    return [f"{grid.files}{i}{grid.suffix}" for i in range(-(-int(array.shape[0]) // rows))]


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


class _SlowReader(ChunkReader):
    """Reads chunks through zarr-python: any codec, either format, any grid."""

    def __init__(self, where: str, array: zarr.Array[Any], chunk_rows: int) -> None:
        self._where, self._array, self._rows = where, array, chunk_rows
        self.dtype = np.dtype(array.dtype).newbyteorder("=")

    def fetch(self, chunks: NDArray[np.int64]) -> Chunks:
        return _SlowChunks(self, chunks)

    def read(self, chunk: int) -> NDArray[Any]:
        """The numbers of a chunk, fewer at the end of the array."""
        start = chunk * self._rows
        try:
            return np.asarray(self._array[start : start + self._rows])
        except ScdlError:
            raise
        except Exception as error:
            raise ArchiveFormatError(
                f"{self._where}: zarr cannot read chunk {chunk}: {one_line(error)}"
            ) from error


class _SlowChunks(Chunks):
    def __init__(self, reader: _SlowReader, chunks: NDArray[np.int64]) -> None:
        self._reader, self._chunks = reader, chunks

    def decode(self, start: int, stop: int, out: NDArray[Any]) -> None:
        for chunk, row in zip(self._chunks[start:stop].tolist(), out, strict=True):
            values = self._reader.read(chunk)
            row[: values.size] = values.reshape(-1)
