"""Chunks of Zarr arrays: planning, codecs, shards; and their kernels against NumPy."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import twins
import zarr
from budget import sample
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import csr_rows
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from storage_backends.compute import rowsort
from storage_backends.compute.caching import LRUCache
from storage_backends.directory.content import Content, checksum
from storage_backends.directory.recorder import Recorder
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr import plan
from storage_backends.zarr.chunks import decoded, reading, spans
from storage_backends.zarr.chunks.files import LocalFiles, Pieces
from storage_backends.zarr.chunks.page_cache import PageCache
from storage_backends.zarr.chunks.reading import ZarrArray
from storage_backends.zarr.chunks.remote_files import RemoteFiles
from storage_backends.zarr.chunks.writing import ArrayBuilder
from storage_backends.zarr.codecs import blosc, chain
from storage_backends.zarr.codecs.chain import Chain
from storage_backends.zarr.codecs.chunk_errors import DamagedChunkError
from storage_backends.zarr.codecs.profiles import DRAFT, PROFILES, Profile
from storage_backends.zarr.layout import ignore_zarr_warnings
from storage_backends.zarr.nodes import Node, array_of
from storage_backends.zarr.plan import Bound
from storage_backends.zarr.zipped import ZippedFiles

DTYPES = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
SMALL = {name: Profile(64, p.compressor, p.by_detection, p.portable)
         for name, p in {**PROFILES, "draft": DRAFT}.items()}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")


# -- kernels -------------------------------------------------------------------------------


@given(csr_rows())
def test_sort_rows(rows):
    data, indices, indptr, n_vars = rows
    results = []
    for sort in (rowsort.sort_rows, twins.sort_rows):
        out = np.empty_like(data), np.empty_like(indices)
        results.append((sort(data, indices, indptr, n_vars, *out), *out))
    ours, theirs = results
    assert ours[0] == theirs[0]
    if ours[0] >= 0:
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])


@pytest.mark.parametrize("column", [-1, 5, 2**40])
def test_sort_rows_refuses_other_columns(column):
    indices = np.array([3, column, 1], np.int64)
    for sort in (rowsort.sort_rows, twins.sort_rows):
        out = np.empty(3), np.empty(3, np.int64)
        assert sort(np.ones(3), indices, np.array([0, 3]), 5, *out) == rowsort.OUT_OF_RANGE


def test_sort_rows_in_threads(monkeypatch):
    monkeypatch.setattr(rowsort, "_MIN_VALUES", 10)
    monkeypatch.setattr(rowsort, "n_threads", lambda: 3)
    rng = np.random.default_rng(0)
    indices = np.concatenate([rng.permutation(200)[:50] for _ in range(40)])
    indptr = np.arange(41) * 50
    results = []
    for sort in (rowsort.sort_rows, twins.sort_rows):
        out = np.empty(2000), np.empty_like(indices)
        assert sort(np.arange(2000.0), indices, indptr, 200, *out) == 40
        results.append(out)
    np.testing.assert_array_equal(results[0], results[1])


ranges = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 90)), max_size=8)


def ranges_of(pairs):
    """Ranges, and where each begins if the outputs follow one another."""
    starts, lengths = np.array(pairs, np.int64).reshape(-1, 2).T
    return starts, starts + lengths, np.cumsum(lengths) - lengths


@given(ranges, st.integers(1, 120))
def test_plan(pairs, chunk_length):
    ours = plan.plan(*ranges_of(pairs), chunk_length)
    theirs = twins.plan(*ranges_of(pairs), chunk_length)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@given(ranges, st.integers(1, 120))
def test_needed_numbers_of_chunks(pairs, chunk_length):
    starts, stops, targets = ranges_of(pairs)
    todo = plan.plan(starts, stops, targets, chunk_length)
    covered = {int(i) for a, b in zip(starts, stops, strict=True) for i in range(a, b)}
    for chunk, needed in zip(todo.chunks, todo.needed, strict=True):
        assert needed == max(i for i in covered if i // chunk_length == chunk) % chunk_length + 1


@pytest.mark.parametrize("dtype", sample(["i2", "i4", "i8"], 2))
def test_negative_ids_are_out_of_bounds(dtype):
    chunks = np.array([[0, 3, 1, 2], [0, 3, -1, 2]], dtype)
    where = [np.array(n) for n in ([0, 1, 2], [0, 0], [0, 4], [4, 4])]
    for bound in (Bound.of(4), Bound.of(mapping=np.arange(4, dtype=dtype))):
        for place in (plan.place, twins.place):
            assert place(chunks, *where, bound, np.zeros(8, dtype)) == 1
            assert place(chunks[:1], *where, bound, np.zeros(8, dtype)) == -1


@given(ranges, st.integers(50, 400), st.sampled_from(["u2", "f4"]))
def test_place(pairs, chunk_length, dtype):
    numbers = np.random.default_rng(0).integers(0, 400, 400).astype("u2")
    mapping = np.random.default_rng(1).permutation(400).astype("u2")
    starts, stops, targets = ranges_of(pairs)
    todo = plan.plan(starts, stops, targets, chunk_length)
    chunks = np.resize(numbers, (400 // chunk_length + 1, chunk_length))[todo.chunks]
    outs = [np.zeros(int((stops - starts).sum()), dtype) for _ in range(2)]
    bounds = [Bound.of(), Bound.of(400), Bound.of(300)]
    bounds += [Bound.of(mapping=mapping), Bound.of(mapping=mapping[:300])]
    for bound in bounds:
        where = todo.bounds, todo.sources, todo.targets, todo.lengths, bound
        found = plan.place(chunks, *where, outs[0])
        assert found == twins.place(chunks, *where, outs[1])
        if found < 0:
            np.testing.assert_array_equal(*outs)
    plan.place(chunks, *where[:4], Bound.of(), outs[0])
    expected = [numbers[a:b] for a, b in zip(starts, stops, strict=True)]
    np.testing.assert_array_equal(outs[0], np.concatenate([*expected, numbers[:0]]))


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8"])
def test_undo_delta(dtype):
    values = np.frombuffer(np.random.default_rng(0).bytes(3 * 40 * 8), dtype)[: 3 * 40]
    ours, theirs = values.reshape(3, 40).copy(), values.reshape(3, 40).copy()
    chain.undo_delta(ours)
    twins.undo_delta(theirs)
    np.testing.assert_array_equal(ours, theirs)


class Bytes(MemoryStore):
    """A store that counts requests for ranges."""

    requests = 0

    async def get(self, *arguments, **options):
        self.requests += 1
        return await super().get(*arguments, **options)


pieces = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 190_000), st.integers(0, 60_000)), min_size=1
)


@pytest.mark.parametrize("is_cached", [False, True])
@given(
    announced=pieces,
    also=pieces,
    read=pieces,
    gap=st.integers(0, 1 << 17),
    request_bytes=st.integers(1, 1 << 18),
)
def test_pieces_of_remote_files(
    tmp_path_factory, is_cached, announced, also, read, gap, request_bytes
):
    data = np.random.default_rng(0).bytes(200_000), np.random.default_rng(1).bytes(250_000)
    store = Bytes({f"f{i}": cpu.Buffer.from_bytes(bytes(d)) for i, d in enumerate(data)})
    cache = PageCache(str(tmp_path_factory.mktemp("c")), b"", 9, 1 << 12) if is_cached else None
    files = RemoteFiles(store, "memory://", cache)

    def pieces_of(parts):
        places = [(i, start, min(n, len(data[i]) - start)) for i, start, n in parts]
        return Pieces([(files, "f0"), (files, "f1")], *np.array(places).T)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "GAP_BYTES", gap)
        patch.setattr(spans, "REQUEST_BYTES", request_bytes)
        for span in files.will_need(pieces_of(also)):
            span.wait()
        # Some of these were just dropped; with a cache, they are in the directory.
        kept = files.will_need(pieces_of(announced))
        for span in kept:
            span.wait()
        before = store.requests
        found = files.fetch(pieces_of(announced))
        # What was announced is not requested again.
        assert store.requests == before
        found = files.fetch(pieces_of(read))
        for (i, start, n), copy in zip(read, found.copies(), strict=True):
            assert copy == data[i][start : start + n]
    of_files = [s.reference for s in (*kept, *found.owners[0])]
    del kept, found, span
    # Threads that wrote pages into the directory may refer to one a little longer.
    deadline = time.monotonic() + 5
    while any(reference() for reference in of_files) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not any(reference() for reference in of_files)


#: Numbers of any size, up to what the index of a shard can claim.
claims = st.integers(0, 63).flatmap(lambda bits: st.integers(2**bits // 2, 2**bits - 1))


@given(start=claims, n=claims.filter(bool), k=st.integers(0, 1))
@example(19_990, 11, 0)
@example(0, 20_001, 1)
@example(16_384, 5_000, 0)
@example(2**26 + 1, 0, 0)
@example(2**52, 1, 0)
@example(0, 2**40, 1)
def test_pieces_after_the_end_of_a_remote_file(start, n, k):
    content = [bytes([i + 1]) * 20_000 for i in range(2)]
    store = MemoryStore({f"f{i}": cpu.Buffer.from_bytes(one) for i, one in enumerate(content)})
    files = RemoteFiles(store, "memory://")
    wanted = Pieces([(files, "f0"), (files, "f1")], np.array([k]), np.array([start]), np.array([n]))
    if start + n > 20_000:
        with pytest.raises(ArchiveFormatError, match=f"the file f{k} is truncated"):
            files.fetch(wanted)
    else:
        assert [*files.fetch(wanted).copies()] == [content[k][start : start + n]]


def test_no_pieces_have_places_of_one_type(tmp_path):
    """Other types would compile kernels once more."""
    path = str(tmp_path / "a.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zarr.json", "{}")
    none = np.empty(0, np.int64)
    readers = LocalFiles(str(tmp_path)), ZippedFiles(path), RemoteFiles(MemoryStore(), "memory://")
    for files in readers:
        found = files.fetch(Pieces([], none, none, none))
        assert found.addresses.dtype == found.lengths.dtype == np.int64


# -- arrays --------------------------------------------------------------------------------


def values_of(dtype: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    size = int(np.prod(shape))
    if kind == "counts":
        return rng.geometric(0.3, size).astype(dtype).reshape(shape)
    if kind == "late":
        values = rng.geometric(0.3, size).astype(dtype)
        values[-3] = -0.0 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
        return values.reshape(shape)
    return np.frombuffer(rng.bytes(size * np.dtype(dtype).itemsize), dtype).reshape(shape)


def build(root: Path, name: str, values: np.ndarray, profile: Profile) -> zarr.Group:
    group = zarr.create_group(root, zarr_format=3)
    builder = ArrayBuilder(Recorder(str(root)), name, name, values, profile)
    for piece in np.array_split(values, 7):
        builder.append(piece)
    builder.close()
    with ignore_zarr_warnings():
        builder.write_metadata(group)
    return group


def opened(root: Path, group: zarr.Group, name: str) -> ZarrArray:
    with ignore_zarr_warnings():
        return array_of("here", Node.of(group[name]), LocalFiles(str(root)), complete=True)


def read(array: ZarrArray) -> np.ndarray:
    out = np.empty((array.spec.length, *array.spec.item_shape), array.spec.dtype)
    array.read(np.array([0]), np.array([array.spec.length]), out)
    return out


@pytest.mark.parametrize("dtype", ["i8", "u8", "i4", "f8"])
@given(
    start=st.sampled_from([0, -5, 2**32 - 700, 2**40]),
    at=st.lists(st.integers(0, 4_999), min_size=1, max_size=99),
)
def test_offsets_are_read_through_the_cache(tmp_path_factory, dtype, start, at):
    start = max(start, 0) if dtype == "u8" else start % 999 if dtype == "i4" else start
    values = start + np.arange(5_000).astype(dtype)
    root = tmp_path_factory.mktemp("offsets")
    with ignore_zarr_warnings():
        array = opened(root, build(root, "p", values, SMALL["balanced"]), "p")
    array.is_offsets = True
    starts = np.array(at, np.int64)
    for _ in range(2):
        out = np.empty(len(at), dtype)
        array.read(starts, starts + 1, out)
        same_bits(out, values[starts])
    # All chunks are decoded: nothing is left to announce.
    zeros = np.zeros(len(at), np.int64)
    assert reading.will_need([array], zeros, starts, starts + 1) is False
    array.forget()
    assert not any(key[0] is array.key for key in decoded.CHUNKS._items)


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    np.testing.assert_array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{a.itemsize}"))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", ["counts", "late", "noise"])
@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "obsm/x"])
@pytest.mark.parametrize("profile", SMALL)
def test_every_reader_gets_what_was_written(tmp_path, monkeypatch, profile, name, kind, native):
    monkeypatch.setattr(blosc, "AVAILABLE", native and blosc.AVAILABLE)
    for dtype in DTYPES if native else ["u2", "f4"]:
        shape = (300, 3) if name == "obsm/x" else (1000,)
        values = values_of(dtype, shape, kind)
        root = tmp_path / dtype
        group = build(root, name, values, SMALL[profile])
        # Small reads go through the cache, large ones past it.
        array = opened(root, group, name)
        same_bits(read(array), values)
        out = np.empty((20, *shape[1:]), dtype)
        for _ in range(2):
            array.read(np.array([5]), np.array([25]), out)
            same_bits(out, values[5:25])
        same_bits(np.asarray(group[name][:]), values)


def test_values_are_narrow_until_one_does_not_fit(tmp_path):
    for kind, narrow in [("counts", True), ("late", False)]:
        group = build(tmp_path / kind, "X/data", values_of("f4", (1000,), kind), SMALL["fast"])
        codecs = group["X/data"].metadata.to_dict()["codecs"][0]["configuration"]["codecs"]
        assert ("numcodecs.astype" in [codec["name"] for codec in codecs]) == narrow


@pytest.mark.parametrize("profile", SMALL)
@pytest.mark.parametrize("name", ["X/data", "X/indices"])
def test_no_flipped_bit_goes_unnoticed(tmp_path, profile, name):
    values = values_of("u2", (400,), "counts")
    group = build(tmp_path / "a", name, values, SMALL[profile])
    file = tmp_path / "a" / name / "c" / "0"
    sound = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.permutation(len(sound))[:60].tolist():
        damaged = bytearray(sound)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(ArchiveFormatError, match=r"here: (chunk \d+ is damaged|the index of)"):
            read(opened(tmp_path / "a", group, name))
    for length in (0, 1, len(sound) // 2, len(sound) - 1):
        file.write_bytes(sound[:length])
        with pytest.raises(ArchiveFormatError):
            read(opened(tmp_path / "a", group, name))
    file.unlink()
    with pytest.raises(ArchiveFormatError, match="missing"):
        read(opened(tmp_path / "a", group, name))


def test_unknown_chains_are_left_to_zarr():
    known = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    assert Chain.of(known, np.dtype("f4")) is not None
    for codecs in (
        [{"name": "bytes", "configuration": {"endian": "big"}}],
        [{"name": "transpose", "configuration": {"order": [0]}}, *known],
        [*known, {"name": "numcodecs.lzma", "configuration": {}}],
        [known[1], known[0]],
    ):
        assert Chain.of(codecs, np.dtype("f4")) is None


def test_the_damaged_chunk_of_several_is_named():
    """Its checksum is right, and the package decodes several chunks at once."""
    pcodec = [{"name": "numcodecs.pcodec", "configuration": {"level": 8}}, {"name": "crc32c"}]
    codecs = Chain.of(pcodec, np.dtype("f8"))
    values = np.random.default_rng(0).random((3, 1000))
    files = [codecs.encode(chunk) for chunk in values]
    damaged = files[1][:-44] + b"\0"
    files[1] = damaged + checksum(damaged)
    owners = [np.frombuffer(file, np.uint8) for file in files]
    places = (np.array([owner.ctypes.data for owner in owners]), np.array([*map(len, files)]))
    out = np.empty_like(values)
    with pytest.raises(DamagedChunkError) as raised:
        codecs.decode(Content(*places, owners), np.full(3, 1000), out)
    assert raised.value.position == 1
    codecs.decode(Content(*(part[::2] for part in places), owners), np.full(2, 1000), out[:2])
    np.testing.assert_array_equal(out[:2], values[::2])


def test_cache_is_bounded():
    cache = LRUCache[tuple[str, int], np.ndarray](100, lambda chunk: chunk.nbytes)
    for number in range(10):
        cache.setdefault(("a", number), np.zeros(30, np.uint8))
        assert len(cache) * 30 <= 100
    # Those used last stay; an eighth more than must be goes.
    assert [cache.get(("a", number)) is not None for number in range(10)] == [False] * 8 + [
        True
    ] * 2
    cache.setdefault(("a", 99), np.zeros(200, np.uint8))
    assert cache.get(("a", 99)) is None
    cache.remove(lambda key: key[0] == "a")
    assert len(cache) == 0
    cache.setdefault(("b", 0), np.zeros(100, np.uint8))
    assert len(cache) == 1
