"""Tests of reading arrays."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage_backends import errors
from storage_backends.base import ArrayStore
from storage_backends.testing.archives import DTYPES, N_OBS, large_archive, random_ranges
from storage_backends.testing.assertions import assert_reads, assert_same_bits
from storage_backends.testing.harness import INTEGERS, PROPERTY, BackendHarness


class ReadingTests(BackendHarness):
    """Tests that any ranges of arrays are read exactly, and invalid requests are refused."""

    @pytest.mark.parametrize("name", ["data", "indptr", "obsm/X_pca", "graphs/k nn.ü/indices"])
    @pytest.mark.parametrize(
        "ranges",  # negative numbers count from the end: -1 is the position after the last item
        [
            pytest.param([], id="none"),
            pytest.param([(0, 0), (7, 7), (-1, -1)], id="empty"),
            pytest.param([(5, 6)], id="one item"),
            pytest.param([(-2, -1), (0, 1)], id="both ends"),
            pytest.param([(0, -1), (0, -1)], id="all, twice"),
            pytest.param([(900, 950), (3, 8), (400, 1300)], id="unordered"),
            pytest.param([(10, 20), (10, 20), (10, 20)], id="repeated"),
            pytest.param([(0, 600), (100, 700), (50, 60)], id="overlapping"),
            pytest.param([(0, 10), (10, 500), (500, 1500), (1500, -1)], id="adjacent"),
            pytest.param([(3, 4), (9, 9), (3, 4), (-1, -1), (0, 0), (4, 5)], id="empty between"),
        ],
    )
    def test_ranges(self, store: ArrayStore, name: str, ranges: list[tuple[int, int]]) -> None:
        where = np.array(ranges, np.int64).reshape(-1, 2)
        where[where < 0] += store.spec(name).length + 1
        assert_reads(store, name, [(start, stop) for start, stop in where.tolist()])

    @pytest.mark.parametrize("name", ["data", "indices", "obsm/float16x2x2"])
    def test_many_small_ranges(self, store: ArrayStore, name: str) -> None:
        assert_reads(store, name, random_ranges(store.spec(name).length, 10_000, 0))

    @PROPERTY
    @given(data=st.data())
    def test_any_ranges(self, large_path: str, data: st.DataObject) -> None:
        with self.open(large_path) as store:
            name = data.draw(st.sampled_from(sorted(store.arrays)))
            length = store.spec(name).length
            edges = [e for p in range(17) for e in (2**p - 1, 2**p, 2**p + 1) if e <= length]
            bound = st.integers(0, length) | st.sampled_from([0, length, *edges])
            pairs = st.tuples(bound, bound).map(lambda pair: (min(pair), max(pair)))
            assert_reads(store, name, data.draw(st.lists(pairs, max_size=20)))

    def test_read(self, store: ArrayStore) -> None:
        for name, values in large_archive().arrays.items():
            assert_same_bits(store.read(name, 5), values[5:], name)
            assert_same_bits(store.read(name, stop=9), values[:9], name)
            assert_same_bits(store.read(name, 3, 3), values[3:3], name)
        for start, stop in [(-1, None), (5, 3), (0, 2**62), (2**62, None), (0, -1)]:
            with pytest.raises(errors.RangeError, match="data"):
                store.read("data", start, stop)

    @pytest.mark.parametrize("good", [[], [(0, 50), (7, 9)]], ids=["alone", "after others"])
    @pytest.mark.parametrize(
        ("start", "stop"),
        [
            *[(-1, 2), (-5, -5), (5, 4), (-(2**63), 0), (0, 2**63 - 1)],
            *[(N_OBS, N_OBS + 1), (N_OBS + 1, N_OBS + 1), (N_OBS - 2, N_OBS + 1)],
        ],
    )
    def test_out_of_bounds(
        self, store: ArrayStore, good: list[tuple[int, int]], start: int, stop: int
    ) -> None:
        starts, stops = np.array([*good, (start, stop)], np.int64).T.copy()
        out = np.full((min(max(int((stops - starts).sum()), 0), 100), 2), 77, np.float32)
        with pytest.raises(errors.RangeError, match="X_pca"):
            store.read_ranges("obsm/X_pca", starts, stops, out)
        assert (out == 77).all()
        with pytest.raises(errors.RangeError, match="X_pca"):  # more stops than starts
            store.read_ranges("obsm/X_pca", np.array([0]), np.array([1, 1]), out)

    @pytest.mark.parametrize(
        "out",
        [
            *(np.zeros((3, 2), dtype) for dtype in ("f8", "i4", ">f4")),
            *(np.zeros(shape, "f4") for shape in ((2, 2), (4, 2), (6,), (3, 1), (3, 2, 1))),
            np.zeros((2, 3), "f4").T,
            np.zeros((3, 4), "f4")[:, ::2],
            np.frombuffer(bytes(24), "f4").reshape(3, 2),
        ],
        ids=lambda out: f"{out.dtype.str}{out.shape}{out.strides}",
    )
    def test_invalid_output(self, store: ArrayStore, out: NDArray[Any]) -> None:
        with pytest.raises(errors.OutputError, match="X_pca"):
            store.read_ranges("obsm/X_pca", np.array([5]), np.array([8]), out)
        assert not out.any()

    @pytest.mark.parametrize("name", ["nothing", "obs", "obsm/nothing", "obsm"])
    def test_unknown_array(self, store: ArrayStore, name: str) -> None:
        empty = np.zeros(0, np.int64)
        with pytest.raises(errors.ArrayNotFoundError, match=name):
            store.read_ranges(name, empty, empty, empty)
        for call in (store.read, store.spec, store.view):
            with pytest.raises(errors.ArrayNotFoundError, match=name):
                call(name)

    def test_views(self, store: ArrayStore) -> None:
        for name, values in large_archive().arrays.items():
            view = store.view(name)
            if view is not None:
                assert_same_bits(view, values, name)
                with pytest.raises(ValueError, match="read-only"):
                    view[:1] = 0

    @pytest.mark.parametrize("dtype", [dtype for dtype in reversed(DTYPES) if "int" in dtype])
    @pytest.mark.parametrize("name", ["indices", "indptr", *INTEGERS])
    def test_wider_integers(self, store: ArrayStore, name: str, dtype: str) -> None:
        values = large_archive().arrays[name]
        starts, stops = np.array([[900, 3, 400, 7], [950, 8, 1300, 7]], np.int64)
        expected = np.concatenate([values[a:b] for a, b in zip(starts, stops, strict=True)])
        out = np.zeros(expected.shape, dtype)
        if np.can_cast(values.dtype, dtype, "safe"):
            store.read_ranges(name, starts, stops, out)
            np.testing.assert_array_equal(out, expected)
        else:
            with pytest.raises(errors.OutputError, match=re.escape(name)):
                store.read_ranges(name, starts, stops, out)

    def test_lengths_of_chunks(self, store: ArrayStore) -> None:
        for name in store.arrays:
            length = store.chunk_length(name)
            assert isinstance(length, int), name
            assert length >= 1, name

    @PROPERTY
    @given(data=st.data())
    def test_will_need(self, large_path: str, data: st.DataObject) -> None:
        with self.open(large_path) as store:
            name = data.draw(st.sampled_from(sorted(store.arrays)))
            edges = st.integers(0, store.spec(name).length)
            bounds = sorted(data.draw(st.lists(edges, max_size=60)))
            bounds = bounds[: len(bounds) // 2 * 2]
            starts, stops = np.array(bounds, np.int64).reshape(-1, 2).T.copy()
            store.will_need(name, starts, stops)
            assert_reads(store, name, list(zip(bounds[::2], bounds[1::2], strict=True)))

    @PROPERTY
    @given(data=st.data())
    def test_across_archives(self, two_paths: tuple[str, str], data: st.DataObject) -> None:
        """Ranges of several archives, in any order, announced before."""
        with self.open(two_paths[0]) as large, self.open(two_paths[1]) as small:
            stores, n = [large, small, large], data.draw(st.integers(0, 30))
            name = data.draw(st.sampled_from(["data", "indices", "indptr"]))
            which = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
            which = which.astype(np.int64)
            lengths = [stores[i].spec(name).length for i in which.tolist()]
            bounds = [
                sorted((data.draw(st.integers(0, top)), data.draw(st.integers(0, top))))
                for top in lengths
            ]
            starts, stops = np.array(bounds, np.int64).reshape(-1, 2).T.copy()
            kept = type(large).will_need_across(stores, name, which, starts, stops)
            out = np.zeros(int((stops - starts).sum()), large.spec(name).dtype)
            type(large).read_across(stores, name, which, starts, stops, out)
            del kept
            parts = [
                stores[i].read(name, start, stop)
                for i, (start, stop) in zip(which.tolist(), bounds, strict=True)
            ]
            assert_same_bits(out, np.concatenate([*parts, out[:0]]), name)

    def test_across_archives_out_of_bounds(self, two_paths: tuple[str, str]) -> None:
        with self.open(two_paths[0]) as large, self.open(two_paths[1]) as small:
            length = small.spec("data").length
            starts = np.array([0, 0], np.int64)
            for stop in (length + 1, large.spec("data").length):
                stops, out = np.array([2, stop], np.int64), np.zeros(2 + stop, np.float32)
                out = out.astype(large.spec("data").dtype)
                with pytest.raises(errors.RangeError, match="data"):
                    type(large).read_across(
                        [large, small], "data", np.array([0, 1]), starts, stops, out
                    )

    @pytest.mark.parametrize("name", ["nothing", "obs", "obsm/nothing"])
    def test_will_need_and_chunk_length_of_unknown_array(
        self, store: ArrayStore, name: str
    ) -> None:
        empty = np.zeros(0, np.int64)
        with pytest.raises(errors.ArrayNotFoundError, match=name):
            store.will_need(name, empty, empty)
        with pytest.raises(errors.ArrayNotFoundError, match=name):
            store.chunk_length(name)
