"""Files of tables: their hashes, and damaged headers of pages, which no checksum covers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scdl.sources.gene_tables import read_parquet
from storage_backends.errors import ArchiveFormatError
from storage_backends.memmap.parquet import ParquetFile

VALUES = np.arange(100)
#: Bytes of a file that hold its mark and the header of the first page.
HEADER = range(4, 40)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "table.parquet"
    table = pa.table({"value": VALUES})
    pq.write_table(table, path, use_dictionary=False, write_page_checksum=True)
    return path


def test_skipped_pages_of_archives(path: Path) -> None:
    data, skipped = path.read_bytes(), 0
    for bit in range(8 * HEADER.start, 8 * HEADER.stop):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = ParquetFile(str(path), {}).read(["value"], 0, len(VALUES))
        except ArchiveFormatError as error:
            skipped += "expected 100 rows, found 0" in str(error)
            continue
        np.testing.assert_array_equal(found["value"], VALUES)
    assert skipped
    path.write_bytes(data)


def test_skipped_pages_of_tables_of_genes(path: Path) -> None:
    data, refused = path.read_bytes(), 0
    for bit in range(8 * HEADER.start, 8 * HEADER.stop):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = read_parquet(str(path))
        except (pa.ArrowException, OSError, ValueError) as error:
            refused += "expected 100 rows, found 0" in str(error)
            continue
        np.testing.assert_array_equal(found["value"], VALUES)
    assert refused


@pytest.mark.parametrize("size", [0, 1, 1 << 10, (1 << 22) + 1])
def test_hashes_of_files_of_one_size(tmp_path: Path, size: int) -> None:
    """Contents are compared with those of other files before they are hashed."""
    first = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    for content in (first, first, first[:-1] + b"x" * bool(size), first, bytes(size)):
        (tmp_path / "x").write_bytes(content)
        assert ParquetFile(str(tmp_path / "x"), {}).content == hashlib.sha256(content).digest()
