"""Conformance suite for storage backends.

A backend conforms if a subclass of :class:`BackendTests` passes under pytest; hypothesis is
required, too::

    # test_my_backend.py
    import pytest

    pytest.register_assert_rewrite("storage_backends.testing")  # detailed failure messages

    from my_package import BACKEND  # a storage_backends.base.Backend
    from storage_backends.testing import BackendTests


    class TestMyBackend(BackendTests):
        backend = BACKEND

This suffices for archives that are files or directories. Other backends set ``local = False`` and
override :meth:`BackendTests.make_path` and, if they can list their archives,
:meth:`BackendTests.standing`. Backends whose archives exist in one process only set
``cross_process = False``.

All archives of the suite follow the schema, as some formats require it: a CSR matrix, ``obs``, a
``var/<i>`` for every block, the attribute ``blocks``, and arrays named ``obsm/<key>`` and
``graphs/<key>/data|indices|indptr``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage_backends import errors
from storage_backends.base import ArrayStore
from storage_backends.capabilities import Sparse
from storage_backends.testing.archives import (
    DTYPES,
    FLOATS,
    ITEM_SHAPES,
    N_OBS,
    ODD_KEYS,
    ROUND_TRIPS,
    UNSIGNED,
    every_array,
    large_archive,
    random_numbers,
    random_ranges,
    small_archive,
)
from storage_backends.testing.assertions import (
    assert_holds,
    assert_reads,
    assert_same_bits,
    assert_same_table,
)
from storage_backends.testing.directories import PublicationTests
from storage_backends.testing.growing import GrowingTests
from storage_backends.testing.harness import PROPERTY
from storage_backends.testing.reading import ReadingTests
from storage_backends.testing.tables import TableTests


class BackendTests(ReadingTests, TableTests, PublicationTests, GrowingTests):
    """Subclass this, and set ``backend``.

    Examples
    --------
    >>> from storage_backends import registry
    >>> from storage_backends.testing import BackendTests
    >>> class TestMine(BackendTests):
    ...     backend = registry.backend("memmap")
    """

    @pytest.mark.parametrize("data", [*UNSIGNED, *FLOATS])
    @pytest.mark.parametrize("ids", UNSIGNED)
    def test_round_trip_of_types(self, path: str, data: str, ids: str) -> None:
        contents = small_archive(dtypes=(data, ids, ids), density=0.08)
        with self.write(path, contents) as store:
            assert_holds(store, contents)

    @pytest.mark.parametrize("case", ROUND_TRIPS)
    def test_round_trip(self, path: str, case: str) -> None:
        contents = ROUND_TRIPS[case]()
        with self.write(path, contents) as store:
            assert_holds(store, contents)

    @pytest.mark.parametrize("name", [*every_array(0), *(f"obsm/{key}" for key in ODD_KEYS)])
    def test_every_array(self, store: ArrayStore, name: str) -> None:
        values = large_archive().arrays[name]
        assert (store.spec(name).dtype, store.spec(name).length) == (values.dtype, N_OBS)
        assert store.spec(name).item_shape == values.shape[1:]
        assert_same_bits(store.read(name), values, name)

    @pytest.mark.parametrize("key", ["", ".", "..", "../x", "../../x", "/x", "a\\b"])
    def test_dangerous_names_are_kept_or_refused(self, path: str, key: str) -> None:
        contents = small_archive(parts={f"obsm/{key}": np.zeros(60, "float32")})
        is_kept = False
        with contextlib.suppress(errors.ScdlError):
            assert_holds(self.write(path, contents), contents)
            is_kept = True
        assert self.standing(path) == [path] * is_kept

    def test_stored_bytes(self, store: ArrayStore) -> None:
        # The backend may not know any sizes.
        assert set(store.stored_bytes) in (set(), {*store.arrays, *store.tables})
        assert all(size > 0 for size in store.stored_bytes.values())

    @settings(PROPERTY, max_examples=15)
    @given(data=st.data())
    def test_any_pieces(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        kind, shape = data.draw(st.tuples(st.sampled_from(DTYPES), st.sampled_from(ITEM_SHAPES)))
        sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=8))
        values = random_numbers(kind, (sum(sizes), *shape))
        path = self.make_path(tmp_path_factory.mktemp("pieces"))
        pieces = data.draw(st.integers(1, 90))
        with self.writing(path, small_archive(len(values)), pieces=pieces) as writer:
            for piece in np.split(values, np.cumsum(sizes)[:-1]):
                writer.append("obsm/x", piece)
        with self.open(path) as store:
            assert_holds(store, small_archive(len(values), parts={"obsm/x": values}))

    @pytest.mark.parametrize("dtype", [">f4", ">u2", ">i8"])
    def test_other_layouts(self, path: str, dtype: str) -> None:
        values = np.arange(240).reshape(60, 4).astype(dtype)
        native = values.astype(values.dtype.newbyteorder("<"))
        layouts = {"swapped": values, "reversed": values[::-1], "columns": native[:, ::2]}
        layouts |= {"fortran": np.asfortranarray(native)}
        with self.writing(path, small_archive()) as writer:
            for name, layout in layouts.items():
                writer.append(f"obsm/{name}", layout)
            for piece in (values[:20], native[20:40], values[40:]):
                writer.append("obsm/mixed", piece)
        with self.open(path) as store:
            for name, layout in {**layouts, "mixed": values}.items():
                assert store.spec(f"obsm/{name}").dtype == native.dtype
                assert_same_bits(store.read(f"obsm/{name}"), layout, name)

    def test_caller_may_reuse_appended_memory(self, path: str) -> None:
        contents = small_archive()
        buffer = np.zeros((30, 2), np.float32)
        with self.writing(path, contents) as writer:
            for _ in range(3):
                writer.append("obsm/x", buffer[:20])
                buffer += 1
        contents.attrs["blocks"].clear()
        values = np.repeat(np.array([[0, 0], [1, 1], [2, 2]], np.float32), 20, axis=0)
        assert_holds(self.open(path), small_archive(parts={"obsm/x": values}))

    @pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
    def test_append_of_another_dtype_or_shape(self, path: str, dtype: str) -> None:
        contents = small_archive(parts={"obsm/x": random_numbers("float32", (60, 2))})
        wrong = [np.zeros(s, dtype) for s in ((2, 2), (0, 2), (2, 3), (0, 3), (2,), (2, 2, 1))]
        with self.writing(path, contents) as writer:
            for values in wrong[2:] if dtype == "f4" else wrong:
                with pytest.raises(errors.OutputError, match="obsm/x"):
                    writer.append("obsm/x", values)
        assert_holds(self.open(path), contents)

    @pytest.mark.parametrize(
        "values", [np.array(1.0), np.array([None]), np.array(["a"]), np.array([1j])], ids=repr
    )
    def test_append_of_unsupported_dtype(self, path: str, values: NDArray[Any]) -> None:
        contents = small_archive()
        error = pytest.raises(errors.OutputError, match="obsm/x")
        with self.writing(path, contents) as writer, error:
            writer.append("obsm/x", values)
        assert_holds(self.open(path), contents)

    def test_layers_are_kept_or_refused(self, path: str) -> None:
        contents, name, sparse = small_archive(), "layers/a b.ü", Sparse("csr", (60, 40))
        layer = small_archive(density=0.5, dtypes=("int32", "uint8", "uint16")).arrays
        parts = {f"{name}/{part}": values for part, values in layer.items()}
        with self.writing(path, contents) as writer:
            try:
                writer.write_sparse(name, sparse)
            except errors.OutputError:
                pytest.skip("the backend keeps no layers")
            for part, values in parts.items():
                writer.append(part, values)
        with self.open(path) as store:
            assert dict(store.sparse) == {name: sparse}
            for part, values in parts.items():
                assert_same_bits(store.read(part), values, part)

    def test_close(self, large_path: str) -> None:
        contents = large_archive()
        with self.open(large_path) as store:
            arrays = [
                (name, read(name)) for read in (store.view, store.read) for name in store.arrays
            ]
            table = store.read_table("obs")
        store.close()
        empty = np.zeros(0, np.int64)
        with pytest.raises(errors.ArchiveClosedError):
            store.read_ranges("data", empty, empty, np.zeros(0, np.float32))
        for use in (store.read, store.view):
            with pytest.raises(errors.ArchiveClosedError):
                use("data")
        with pytest.raises(errors.ArchiveClosedError):
            store.read_table("obs")
        assert_same_table(table, contents.tables["obs"])
        for name, values in arrays:
            if values is not None:
                assert_same_bits(values, contents.arrays[name], name)

    @pytest.mark.parametrize("hold", [True, False])
    def test_open_with_and_without_hold(self, large_path: str, hold: bool) -> None:
        with self.backend.store.open(large_path, hold=hold) as store:
            assert_holds(store, large_archive())

    def test_contents(self, store: ArrayStore) -> None:
        contents, expected = store.contents, large_archive()
        assert set(contents.arrays) == set(expected.arrays)
        assert set(contents.tables) == set(expected.tables)
        assert contents.attrs["blocks"] == expected.attrs["blocks"]
        for name, table in expected.tables.items():
            assert contents.tables[name].names == table.schema.names

    def test_pickle(self, store: ArrayStore) -> None:
        assert_holds(store, large_archive())
        pickled = pickle.dumps(store)
        assert len(pickled) < 10_000
        with pickle.loads(pickled) as again:  # noqa: S301 - our own
            assert again.path == store.path
            assert_holds(again, large_archive())

    def test_spawned_process(self, store: ArrayStore) -> None:
        if not self.cross_process:
            pytest.skip("archives live in one process")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(assert_holds, store, large_archive()).result(timeout=120)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_forked_process(self, store: ArrayStore) -> None:
        assert_holds(store, large_archive())
        context: Any = multiprocessing.get_context("fork")
        child = context.Process(target=assert_holds, args=(store, large_archive()))
        child.start()
        child.join(60)
        if child.exitcode is None:
            child.kill()
        assert child.exitcode == 0

    def test_threads(self, store: ArrayStore) -> None:
        names = sorted(store.arrays)
        obs = large_archive().tables["obs"].select(["categories", "_index"])
        barrier = threading.Barrier(8)

        def reads(seed: int) -> None:
            barrier.wait()
            for step in range(30):
                name = ["data", "indices", names[(7 * seed + step) % len(names)]][step % 3]
                ranges = random_ranges(store.spec(name).length, 200, 100 * seed + step)
                assert_reads(store, name, ranges)
            assert_same_table(store.read_table("obs", obs.column_names, seed), obs.slice(seed))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(reads, range(8)))
