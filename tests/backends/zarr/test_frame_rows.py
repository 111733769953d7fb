"""Rows whose values and ids are in frames, read together, and blocks of every width."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import packed_reader as reader
import pytest
import scipy.sparse
from budget import examples, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_chunks import decoded

import scdl
from scdl.errors import ArchiveFormatError
from storage_backends.capabilities import RowsRead
from storage_backends.directory.content import checksum
from storage_backends.zarr.store import ZarrStore

#: Empty and short rows that share frames, rows of several frames, and rows that chunks cut.
LENGTHS = (0, 1, 5, 31, 127, 128, 900, 4_096, 4_097, 9_000)
N_VARS = 9_500


def matrix(rng: np.random.Generator, n: int, dtype: str) -> scipy.sparse.csr_matrix:
    lengths = rng.choice(LENGTHS, n, p=[0.15, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.05, 0.05, 0.05])
    indptr = np.append(0, np.cumsum(lengths))
    indices = np.concatenate([np.sort(rng.permutation(N_VARS)[:k]) for k in lengths])
    values = rng.negative_binomial(1, 0.3, len(indices)) + 1
    data = values.astype(dtype) if dtype != "f8" else np.log1p(values / 7)
    return scipy.sparse.csr_matrix((data, indices, indptr), (n, N_VARS))


@pytest.fixture(scope="module", params=sample(["packed f4", "packed f8", "packed-fast u2"], 2))
def archives(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Path], list[scipy.sparse.csr_matrix]]:
    (profile, dtype), rng = request.param.split(), np.random.default_rng(0)
    directory, paths, matrices = tmp_path_factory.mktemp("rows"), [], []
    for n in (150, 40):
        matrices.append(matrix(rng, n, dtype))
        paths.append(directory / f"{n}.zarr")
        scdl.convert(anndata.AnnData(matrices[-1]), paths[-1], compression=profile)
    return paths, matrices


@given(data=st.data())
@settings(max_examples=examples(60), deadline=None)
def test_rows(
    archives: tuple[list[Path], list[scipy.sparse.csr_matrix]], data: st.DataObject
) -> None:
    (path, _), (expected, _) = archives
    cells = scdl.open(path)
    chosen = st.lists(st.integers(0, len(cells) - 1), max_size=40)
    rows = data.draw(chosen | st.just(list(range(len(cells)))))
    dtype = data.draw(st.sampled_from(sample([None, np.int32, np.int64], 2)))
    batch = cells.read_rows(rows, index_dtype=dtype)
    part = expected[rows]
    np.testing.assert_array_equal(batch.indptr, part.indptr)
    np.testing.assert_array_equal(batch.indices, part.indices)
    assert batch.data.tobytes() == part.data.tobytes()
    assert dtype is None or batch.indices.dtype == dtype
    unordered = cells.read_rows(rows, ordered=False)
    assert (unordered.to_scipy() != part).nnz == 0


@given(data=st.data())
@settings(max_examples=examples(40), deadline=None)
def test_rows_of_several_archives(
    archives: tuple[list[Path], list[scipy.sparse.csr_matrix]], data: st.DataObject
) -> None:
    paths, matrices = archives
    stores = [scdl.open(path).store for path in paths]
    n = data.draw(st.integers(1, 30))
    which = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), np.int64)
    rows = [data.draw(st.integers(0, matrices[k].shape[0] - 1)) for k in which.tolist()]
    pairs = list(zip(which.tolist(), rows, strict=True))
    ends = np.array([matrices[k].indptr[r : r + 2] for k, r in pairs], np.int64).reshape(-1, 2)
    starts, stops = np.ascontiguousarray(ends.T)
    total = int((stops - starts).sum())
    specs = stores[0].contents.arrays
    out = np.empty(total, specs["data"].dtype), np.empty(total, np.int64)
    found = ZarrStore.read_rows_across(stores, "", which, starts, stops, out, ordered=False)
    is_reordered = stores[0].group.order is not None
    # Each archive has an order of its own, so that those of `packed` cannot be read together; rows
    # without values are sorted.
    as_read = RowsRead.AS_STORED if total else RowsRead.SORTED
    assert found == (RowsRead.NOTHING if is_reordered else as_read)
    if found == RowsRead.AS_STORED:
        expected = scipy.sparse.vstack([matrices[k][r] for k, r in pairs]).tocsr()
        np.testing.assert_array_equal(out[1], expected.indices)
        np.testing.assert_array_equal(out[0], expected.data)


def test_damaged_rows(
    archives: tuple[list[Path], list[scipy.sparse.csr_matrix]], tmp_path: Path
) -> None:
    """The error names the array and the chunk, whichever is damaged; other rows are read."""
    _, matrices = archives
    profile = scdl.open(archives[0][0]).store.options["compression"]
    for name in ("data", "indices"):
        path = tmp_path / f"{name}.zarr"
        scdl.convert(anndata.AnnData(matrices[0]), path, compression=profile)
        file = path / "X" / name / "c" / "0"
        content = bytearray(file.read_bytes())
        content[2] ^= 1
        file.write_bytes(content)
        cells = scdl.open(path)
        first = int(np.flatnonzero(np.diff(matrices[0].indptr))[0])
        for rows in ([first], list(range(len(cells)))):
            with pytest.raises(ArchiveFormatError, match=rf"{name}: chunk 0 is damaged"):
                cells.read_rows(rows)
        last = len(cells) - 1
        assert (cells.read_rows([last]).to_scipy() != matrices[0][last]).nnz == 0


def test_repeated_genes_are_summed(tmp_path: Path) -> None:
    """Sorting rows while they are decoded finds them, and leaves them to those who sum."""
    path = tmp_path / "cells.zarr"
    X = matrix(np.random.default_rng(1), 60, "f4")
    scdl.convert(anndata.AnnData(X), path, compression="packed")
    store = scdl.open(path).store
    starts, stops = X.indptr[:-1].astype(np.int64), X.indptr[1:].astype(np.int64)
    # One row more, that is the end of a row and the beginning of the next.
    starts, stops = np.append(starts, starts[20]), np.append(stops, stops[30])
    total = int((stops - starts).sum())
    out = np.empty(total, np.float32), np.empty(total, np.uint32)
    which = np.zeros(len(starts), np.int64)
    found = ZarrStore.read_rows_across([store], "", which, starts, stops, out, ordered=True)
    assert found == RowsRead.AS_STORED
    assert sorted(out[1][-int(stops[-1] - starts[-1]) :]) == sorted(
        X.indices[starts[20] : stops[30]]
    )


def test_blocks_of_every_width() -> None:
    rng = np.random.default_rng(0)
    for dtype, bits in (("u1", 8), ("u2", 16), ("u4", 32), ("u8", 64), ("f4", 24), ("f8", 53)):
        for width in range(bits + 1):
            for kind, n in ((0, 100), (1, 64), (1, 97)):
                if width > (40 if kind == 0 else bits):
                    continue
                chunk, items = block(kind, width, n, dtype, rng)
                if items is not None:
                    assert decoded(chunk, dtype, n).tobytes() == items.tobytes(), (dtype, width)


def block(
    kind: int, width: int, n: int, dtype: str, rng: np.random.Generator
) -> tuple[bytes, np.ndarray | None]:
    """A chunk of numbers of one width, and what the second reader decodes; None if none fits."""
    top = (1 << width) - 1
    numbers = [int(rng.integers(0, top, endpoint=True, dtype=np.uint64)) for _ in range(n)]
    numbers[-1] = top
    packed = b""
    for first in range(0, n, 32):
        part = numbers[first : first + 32]
        joined = sum(number << (width * k) for k, number in enumerate(part))
        packed += joined.to_bytes((width * len(part) + 7) // 8, "little")
    head = bytes([kind | 8]) + (b"\0" if kind == 1 else b"") + bytes([width]) * -(-n // 32)
    chunk = reader.seal([(n, head + packed)])
    try:
        return chunk, reader.decode(chunk, dtype)
    except ValueError:
        return chunk, None


def test_empty_rows(archives: tuple[list[Path], list[scipy.sparse.csr_matrix]]) -> None:
    (path, _), (expected, _) = archives
    cells, empty = scdl.open(path), np.flatnonzero(np.diff(expected.indptr) == 0)
    assert len(empty) > 1
    for rows in ([], empty[:1], empty):
        batch = cells.read_rows(rows)
        assert batch.data.size == batch.indices.size == 0
        assert batch.indptr.tolist() == [0] * (len(rows) + 1)


def test_archives_of_other_programs_may_lack_chunks(tmp_path: Path) -> None:
    """Chunks of zeros, which Zarr may leave out; complete archives are read apart from these."""
    X = matrix(np.random.default_rng(2), 60, "f4")
    ours, other = tmp_path / "ours.zarr", tmp_path / "other.zarr"
    scdl.convert(anndata.AnnData(X), ours, compression="packed-fast")
    array = scdl.open(ours).store.group.array("data")
    shutil.copytree(ours, other)
    root = json.loads((other / "zarr.json").read_text())
    del root["attributes"]["scdl"]
    (other / "zarr.json").write_text(json.dumps(root))
    file = other / "X" / "data" / "c" / "0"
    content, size = file.read_bytes(), 16 * array.reader.grid.per_file + 4
    index = np.frombuffer(content[-size:-4], "<u8").reshape(-1, 2).copy()
    index[1] = 2**64 - 1
    file.write_bytes(content[:-size] + index.tobytes() + checksum(index.tobytes()))
    expected = X.data.copy()
    expected[array.chunk_rows : 2 * array.chunk_rows] = 0
    values = {ours: X.data, other: expected}
    for paths in ([ours, other], [other, ours]):
        stores, nnz = [ZarrStore.open(str(path)) for path in paths], np.full(2, X.nnz)
        out = np.empty(2 * X.nnz, np.float32)
        ZarrStore.read_across(stores, "data", np.arange(2), 0 * nnz, nnz, out)
        np.testing.assert_array_equal(out, np.concatenate([values[path] for path in paths]))
