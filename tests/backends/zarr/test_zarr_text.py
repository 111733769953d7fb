"""Text of Zarr arrays that is read without making objects of it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, GzipCodec, ZstdCodec

from storage_backends.zarr.tables import text

TEXTS = ["", "ü", "AAAC-1", "x" * 1_000, "\0", "𝄞", "name"]
COMPRESSORS = [None, ZstdCodec(), GzipCodec(), (ZstdCodec(checksum=True), Crc32cCodec())]


def written(path: Path, texts: list[str], chunk: int, **options: Any) -> zarr.Array[Any]:
    array = zarr.create_array(path, shape=(len(texts),), chunks=(chunk,), dtype=str, **options)
    array[:] = np.array(texts, dtype=object)
    return array


def read(array: zarr.Array[Any], start: int = 0, stop: int | None = None) -> list[str]:
    found = text.reader(array)(start, array.shape[0] if stop is None else stop)
    found.validate(full=True)
    assert str(found.type) == "large_string"
    texts: list[str] = found.to_pylist()
    return texts


def is_direct(array: zarr.Array[Any]) -> bool:
    return getattr(text.reader(array), "func", None) is text._directly


@pytest.mark.parametrize("compressors", COMPRESSORS, ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 7, 9])
def test_every_range(tmp_path: Path, chunk: int, compressors: Any) -> None:
    array = written(tmp_path, TEXTS, chunk, compressors=compressors)
    assert is_direct(array)
    for start in range(len(TEXTS) + 1):
        for stop in range(start, len(TEXTS) + 1):
            assert read(array, start, stop) == TEXTS[start:stop]


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
def test_any_text(texts: list[str]) -> None:
    data = numcodecs.VLenUTF8().encode(np.array(texts, dtype=object))
    assert text._decoded(data, [], len(texts)).to_pylist() == texts


def test_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_WINDOW_CHUNKS", 2)
    assert read(written(tmp_path, TEXTS, 1), 1) == TEXTS[1:]


def test_what_was_not_written(tmp_path: Path) -> None:
    array = written(tmp_path, ["", "", "b", "c"], 2)
    assert not (tmp_path / "c" / "0").exists()
    assert is_direct(array)
    assert read(array) == ["", "", "b", "c"]


@pytest.mark.parametrize(
    "options",
    [{"zarr_format": 2}, {"shards": (4,)}, {"chunk_key_encoding": {"name": "v2"}}],
    ids=["format 2", "shards", "other keys"],
)
def test_anything_else_is_read_by_zarr(tmp_path: Path, options: dict[str, Any]) -> None:
    array = written(tmp_path, TEXTS[:4], 2, **options)
    assert not is_direct(array)
    assert read(array, 1) == TEXTS[1:4]


def encoded(*texts: bytes) -> bytes:
    return b"".join(
        [struct.pack("<I", len(texts)), *(struct.pack("<I", len(t)) + t for t in texts)]
    )


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "expected 2 strings, found 0 in 0 bytes"),
        (encoded(b"a"), "expected 2 strings, found 1"),
        (struct.pack("<II", 2, 0), "expected 2 strings, found 2 in 8 bytes"),
        (struct.pack("<III", 2, 1 << 31, 0), "a string extends beyond the end of the chunk"),
        (encoded(b"a", b"b")[:-1], "a string extends beyond the end of the chunk"),
        (encoded(b"a", b"\xff"), "invalid UTF8"),
    ],
)
def test_damaged(tmp_path: Path, data: bytes, problem: str) -> None:
    array = written(tmp_path, ["a", "b"], 2, compressors=None)
    (tmp_path / "c" / "0").write_bytes(data)
    with pytest.raises(ValueError, match=f"chunk 0: .*(?i:{problem})"):
        read(array)


def test_out_of_proportion(tmp_path: Path) -> None:
    array = written(tmp_path, ["a", "b"], 2, compressors=ZstdCodec())
    bomb = numcodecs.Zstd().encode(bytes(1 << 28))
    (tmp_path / "c" / "0").write_bytes(bomb)
    # Decompressed it would be found to hold no strings.
    with pytest.raises(ValueError, match="chunk 0: its size is not that of a chunk"):
        read(array)
