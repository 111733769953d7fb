"""Tests of adding cells to archives."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage_backends import errors
from storage_backends.base import ArrayStore, ArrayWriter
from storage_backends.capabilities import Verdict
from storage_backends.testing.archives import (
    Contents,
    every_array,
    every_type,
    random_numbers,
    small_archive,
)
from storage_backends.testing.assertions import assert_holds
from storage_backends.testing.harness import PROPERTY, BackendHarness

_VECTORS = ("obsm/float32", "obsm/float16x3", "obsm/int64x2x2")
#: Columns of a table that is longer than a chunk of it.
_COLUMNS = ("_index", "string", "int8", "float32", "plain float", "bool", "categories")


def cells(n_obs: int = 60) -> Contents:
    """Make an archive with columns of every type, vectors and graphs."""
    parts: dict[str, Any] = {"obs": every_type(n_obs)}
    parts |= {name: every_array(n_obs)[name] for name in _VECTORS}
    documented, other = ("float32", "uint32", "uint64"), ("float64", "uint16", "uint32")
    for key, dtypes in {"next_cell_ids": documented, "k nn.ü": other}.items():
        graph = small_archive(n_obs, n_obs, density=0.1, dtypes=dtypes).arrays
        parts |= {f"graphs/{key}/{part}": values for part, values in graph.items()}
    return small_archive(n_obs, parts=parts)


def part_of(contents: Contents, start: int | None, stop: int) -> Contents:
    """Cells ``[start, stop)``, to add to an archive of those before; None: a whole archive."""
    first = start or 0

    def part(name: str, values: NDArray[np.generic]) -> NDArray[np.generic]:
        holder, _, last = name.rpartition("/")
        prefix = f"{holder}/" if holder else ""
        is_sparse = not holder or holder.startswith("graphs/")
        if is_sparse and last == "indptr":
            return values[0 if start is None else start + 1 : stop + 1]
        offsets = contents.arrays[f"{prefix}indptr"] if is_sparse else np.arange(stop + 1)
        return values[int(offsets[first]) : int(offsets[stop])]

    arrays = {name: part(name, values) for name, values in contents.arrays.items()}
    tables = {**contents.tables, "obs": contents.tables["obs"].slice(first, stop - first)}
    *blocks, last = contents.attrs["blocks"]
    return Contents(arrays, tables, {**contents.attrs, "blocks": [*blocks, {**last, "stop": stop}]})


def add(writer: ArrayWriter, part: Contents) -> None:
    """Add cells, without a commit."""
    for name, values in part.arrays.items():
        writer.append(name, values)
    writer.extend_table("obs", part.tables["obs"].to_reader())


class GrowingTests(BackendHarness):
    """Tests of backends that add cells to an archive without rewriting it."""

    def begin(self, store: ArrayStore) -> ArrayWriter:
        writer = store.grow()
        if writer is None:
            pytest.skip("archives of this backend are rewritten")
        return writer

    def grow(self, path: str, contents: Contents, edges: list[int]) -> None:
        """Add cells between successive edges."""
        for start, stop in itertools.pairwise(edges):
            part = part_of(contents, start, stop)
            with self.open(path) as store, self.begin(store) as writer:
                add(writer, part)
                writer.commit(part.attrs)

    def assert_sound(self, path: str) -> None:
        examined = self.backend.store.examine(path)
        checked = [piece.check() for piece in examined.pieces]
        assert [f for f in (*examined.findings, *checked) if f is not None] == []
        assert examined.has_checksums

    @settings(PROPERTY, max_examples=3)
    @given(cuts=st.lists(st.integers(0, 60), min_size=1, max_size=3))
    def test_any_parts(self, tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
        contents, edges = cells(), [*sorted(cuts), 60]
        path = self.make_path(tmp_path_factory.mktemp("parts"))
        self.write(path, part_of(contents, None, edges[0])).close()
        self.grow(path, contents, edges)
        with self.open(path) as store:
            assert_holds(store, contents)
        self.assert_sound(path)

    def test_long_table(self, path: str) -> None:
        n_obs = 70_000
        table = every_type(n_obs).select(_COLUMNS)
        contents = small_archive(n_obs, 2, {"obs": table}, density=0.1)
        self.write(path, part_of(contents, None, 66_000)).close()
        self.grow(path, contents, [66_000, 66_001, 70_000])
        with self.open(path) as store:
            assert_holds(store, contents)
        self.assert_sound(path)

    def test_table_that_is_replaced(self, path: str) -> None:
        contents = cells()
        self.write(path, part_of(contents, None, 40)).close()
        table = pa.table({"other": pa.array(range(60))})
        rest = part_of(contents, 40, 60)
        with self.open(path) as store, self.begin(store) as writer:
            for name, values in rest.arrays.items():
                writer.append(name, values)
            writer.write_table("obs", table)
            writer.commit(rest.attrs)
        tables = {**contents.tables, "obs": table}
        assert_holds(self.open(path), Contents(contents.arrays, tables, contents.attrs))
        self.assert_sound(path)

    @pytest.mark.parametrize("column", ["categories", "floats as categories"])
    def test_new_categories(self, path: str, column: str) -> None:
        contents = cells()
        old = contents.tables["obs"][column].combine_chunks()
        more = pa.array(["new"] if column == "categories" else [9.5], old.type.value_type)
        every = pa.concat_arrays([old.dictionary, more])
        codes = pa.array([len(every) - 1] * 20, old.type.index_type)
        rest = part_of(contents, 40, 60)
        added = pa.DictionaryArray.from_arrays(codes, every, ordered=old.type.ordered)
        field, at = rest.tables["obs"].schema.field(column), contents.tables["obs"].schema.names
        rows = rest.tables["obs"].set_column(at.index(column), field, added)
        self.write(path, part_of(contents, None, 40)).close()
        with self.open(path) as store, self.begin(store) as writer:
            add(writer, Contents(rest.arrays, {"obs": rows}, rest.attrs))
            writer.commit(rest.attrs)
        found = self.open(path).read_table("obs", [column])[column].to_pylist()
        assert found == [*old.to_pylist()[:40], *[more[0].as_py()] * 20]

    def test_wider_offsets(self, path: str) -> None:
        contents = cells()
        self.write(path, part_of(contents, None, 40)).close()
        rest = part_of(contents, 40, 60)
        arrays = {**rest.arrays, "indptr": rest.arrays["indptr"].astype(np.uint64)}
        with self.open(path) as store, self.begin(store) as writer:
            add(writer, Contents(arrays, rest.tables, rest.attrs))
            writer.commit(rest.attrs)
        arrays = {**contents.arrays, "indptr": contents.arrays["indptr"].astype(np.uint64)}
        assert_holds(self.open(path), Contents(arrays, contents.tables, contents.attrs))

    def test_array_that_is_written_anew(self, path: str) -> None:
        contents, name = cells(), "obsm/float16x3"
        self.write(path, part_of(contents, None, 40)).close()
        rest, vectors = part_of(contents, 40, 60), random_numbers("float64", (60, 5))
        with self.open(path) as store, self.begin(store) as writer:
            writer.restart(name, vectors.dtype, (5,))
            add(writer, Contents({**rest.arrays, name: vectors}, rest.tables, rest.attrs))
            for wrong in (name, "obsm/float32", "data", "obsm/none"):
                with pytest.raises(errors.OutputError, match=wrong):
                    writer.restart(wrong, vectors.dtype)
            assert_holds(store, part_of(contents, None, 40))
            writer.commit(rest.attrs)
        arrays = {**contents.arrays, name: vectors}
        assert_holds(self.open(path), Contents(arrays, contents.tables, contents.attrs))
        self.assert_sound(path)

    @pytest.mark.parametrize("commits", [True, False])
    def test_element_that_is_written_anew(self, path: str, *, commits: bool) -> None:
        if not self.backend.writer.keeps_elements:
            pytest.skip("archives of this backend have no other elements")
        contents = cells()
        before, rest = part_of(contents, None, 40), part_of(contents, 40, 60)
        with self.writing(path, before) as writer:
            writer.write_element("obsm/truth", np.ones((40, 2), bool))
        with self.open(path) as store:
            with self.begin(store) as writer:
                add(writer, rest)
                with pytest.raises(errors.OutputError, match="obsm/other"):
                    writer.write_element("obsm/other", np.ones((60, 2), bool))
                writer.write_element("obsm/truth", np.zeros((60, 3), bool))
                if commits:
                    writer.commit(rest.attrs)
            assert store.read_element("obsm/truth").tolist() == [[True] * 2] * 40
        expected = [[False] * 3] * 60 if commits else [[True] * 2] * 40
        assert self.open(path).read_element("obsm/truth").tolist() == expected
        self.assert_sound(path)

    @pytest.mark.parametrize("commits", [True, False])
    def test_open_archive_and_copies_stay_as_they_are(
        self, local_path: str, tmp_path: Path, *, commits: bool
    ) -> None:
        contents = cells()
        before = part_of(contents, None, 40)
        self.write(local_path, before).close()
        rest, linked = part_of(contents, 40, 60), f"{self.make_path(tmp_path / 'linked')}"
        os.makedirs(os.path.dirname(linked))
        for is_linked in (False, True):
            if is_linked:
                # A copy of hard links shares the content of all files.
                self.write(local_path, before, replace=True).close()
                shutil.copytree(local_path, linked, copy_function=os.link)
            with self.open(local_path) as store:
                with self.begin(store) as writer:
                    add(writer, rest)
                    assert_holds(store, before)
                    assert_holds(self.open(local_path), before)
                    findings = self.backend.store.examine(local_path).findings
                    assert {finding.verdict for finding in findings} <= {Verdict.SOUND}
                    if commits:
                        writer.commit(rest.attrs)
                assert_holds(store, before)
            assert_holds(self.open(local_path), contents if commits else before)
            self.assert_sound(local_path)
        assert_holds(self.open(linked), before)
        self.assert_sound(linked)
        assert sorted(map(str, Path(local_path).parent.glob("*"))) == sorted(
            {local_path, str(tmp_path / "linked")}
        )

    def test_what_cannot_be_added(self, path: str) -> None:
        contents = cells()
        before = part_of(contents, None, 40)
        self.write(path, before).close()
        rest = part_of(contents, 40, 60)
        with self.open(path) as store, self.begin(store) as writer:
            with pytest.raises(errors.OutputError, match="obsm/other"):
                writer.append("obsm/other", random_numbers("float32", (20, 2)))
            with pytest.raises(errors.OutputError, match="obsm/float32"):
                writer.append("obsm/float32", random_numbers("float64", (20,)))
            with pytest.raises(errors.OutputError, match="var/0"):
                writer.write_table("var/0", contents.tables["var/0"])
            with pytest.raises(errors.OutputError, match="var/0"):
                writer.extend_table("var/0", contents.tables["var/0"].to_reader())
            for name in ("data", "indices", "indptr"):
                writer.append(name, rest.arrays[name])
            writer.extend_table("obs", rest.tables["obs"].to_reader())
            with pytest.raises(errors.OutputError, match=r"obsm/|graphs/"):
                writer.commit(rest.attrs)
        assert_holds(self.open(path), before)
        self.assert_sound(path)

    def test_only_one_adds(self, path: str) -> None:
        contents = cells()
        self.write(path, part_of(contents, None, 40)).close()
        with self.open(path) as store, self.open(path) as late:
            with self.begin(store) as writer:
                with pytest.raises(errors.ArchiveLockedError):
                    late.grow()
                rest = part_of(contents, 40, 60)
                add(writer, rest)
                writer.commit(rest.attrs)
            with pytest.raises(errors.ArchiveChangedError):
                late.grow()
        assert_holds(self.open(path), contents)

    def test_a_stream_that_fails(self, path: str) -> None:
        contents = cells()
        before = part_of(contents, None, 40)
        self.write(path, before).close()
        schema = contents.tables["obs"].schema

        def rows() -> Iterator[pa.RecordBatch]:
            yield from before.tables["obs"].to_batches()
            raise RuntimeError("of the stream")

        stream, failure = pa.RecordBatchReader.from_batches(schema, rows()), "of the stream"
        error = pytest.raises(RuntimeError, match=failure)
        with self.open(path) as store, self.begin(store) as writer, error:
            writer.extend_table("obs", stream)
        assert_holds(self.open(path), before)
