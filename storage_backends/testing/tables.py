"""Tests of tables."""

from __future__ import annotations

import os

import pyarrow as pa
import pytest

from storage_backends import errors
from storage_backends.base import ArrayStore
from storage_backends.compute.steps import result
from storage_backends.testing.archives import (
    N_OBS,
    Contents,
    every_type,
    index_column,
    large_archive,
    small_archive,
    stream,
)
from storage_backends.testing.assertions import assert_holds, assert_same_table
from storage_backends.testing.harness import BackendHarness

#: Types that are none of an AnnData's columns.
OTHER_TYPES = [
    pa.timestamp("ns"),
    pa.date32(),
    pa.duration("s"),
    pa.binary(),
    pa.decimal128(5, 2),
    pa.list_(pa.int8()),
    pa.struct([("a", pa.int8())]),
    pa.null(),
]


class TableTests(BackendHarness):
    """Tests that tables are stored and read exactly."""

    @pytest.mark.parametrize("name", every_type(0).column_names)
    def test_every_column_type(self, store: ArrayStore, name: str) -> None:
        table = large_archive().tables["obs"].select([name])
        assert store.table_schema("obs").field(name).type == table.schema.field(name).type
        assert_same_table(store.read_table("obs", [name]), table)

    def test_columns_in_the_requested_order(self, store: ArrayStore) -> None:
        obs = large_archive().tables["obs"]
        assert store.table_schema("obs").names == obs.column_names
        for columns in (["int8", "_index", "ordered.ü"], ["bool"], obs.column_names[::-1]):
            assert_same_table(store.read_table("obs", columns), obs.select(columns))

    @pytest.mark.parametrize("columns", [None, ["categories", "_index"], ["_index"], []], ids=str)
    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, 0), (0, 1), (0, None), (700, 1300), (5, None), (N_OBS - 1, N_OBS), (N_OBS, None)],
    )
    def test_rows(
        self, store: ArrayStore, start: int, stop: int | None, columns: list[str] | None
    ) -> None:
        obs = large_archive().tables["obs"]
        expected = obs.slice(start, (N_OBS if stop is None else stop) - start)
        table = store.read_table("obs", columns, start, stop)
        assert_same_table(table, expected.select(obs.column_names if columns is None else columns))
        if (start, stop) == (0, None):
            assert_same_table(result(store.reading("obs", columns)), table)

    @pytest.mark.parametrize("columns", [None, ["int8"], []], ids=str)
    @pytest.mark.parametrize(
        ("start", "stop"), [(-1, None), (0, -1), (5, 3), (0, N_OBS + 1), (N_OBS + 1, None)]
    )
    def test_rows_out_of_bounds(
        self, store: ArrayStore, start: int, stop: int | None, columns: list[str] | None
    ) -> None:
        with pytest.raises(errors.RangeError, match="obs"):
            store.read_table("obs", columns, start, stop)

    @pytest.mark.parametrize(
        "name", ["nothing", "data", "var", "var/7", "var/x", "var/-1", "var/00"]
    )
    def test_unknown_table_or_column(self, store: ArrayStore, name: str) -> None:
        for read in (store.read_table, store.table_schema):
            with pytest.raises(errors.ArrayNotFoundError, match=name):
                read(name)
        for columns in ([name], ["_index", name]):
            with pytest.raises(errors.ArrayNotFoundError, match=name):
                store.read_table("obs", columns)

    def test_tables_without_the_rest(self, path: str) -> None:
        """A backend may open the tables of a known archive alone, and never those of another."""
        contents = small_archive()
        fingerprint = self.write(path, contents).fingerprint
        if fingerprint is None:
            pytest.skip("the backend has no fingerprints")
        store_class, lengths = self.backend.store, (N_OBS, len(contents.arrays["data"]))
        real = os.path.realpath(path)
        assert store_class.has_content(real, fingerprint)
        tables = store_class.open_tables(real, fingerprint, *lengths)
        if tables is not None:
            for name, table in contents.tables.items():
                assert tables.table_schema(name).equals(table.schema)
                assert_same_table(tables.read_table(name), table)
                assert_same_table(tables.read_table(name, ["_index"]), table.select(["_index"]))
                assert_same_table(result(tables.reading(name)), table)
                with pytest.raises(errors.ArrayNotFoundError):
                    tables.read_table(name, ["nothing"])
        changed = small_archive(parts={"var/0": contents.tables["var/0"].select(["_index"])})
        self.write(path, changed, replace=True)
        assert not store_class.has_content(real, fingerprint)
        assert store_class.open_tables(real, fingerprint, *lengths) is None
        if tables is not None:
            with pytest.raises(errors.ArchiveChangedError):
                tables.read_table("obs")

    @pytest.mark.parametrize("has_obs", [True, False])
    def test_tables_of_an_archive_that_is_replaced(self, path: str, has_obs: bool) -> None:
        """The error says so, whatever is missing from, or does not fit to the other archive."""
        contents, other = small_archive(), small_archive(7)
        if not has_obs:
            other = Contents(other.arrays, {"var/0": other.tables["var/0"]}, other.attrs)
        real, lengths = os.path.realpath(path), (60, len(contents.arrays["data"]))
        for n_steps in range(3):
            fingerprint = self.write(path, contents, replace=True).fingerprint
            opened = fingerprint and self.backend.store.open_tables(real, fingerprint, *lengths)
            if not opened:
                pytest.skip("the backend does not open tables alone")
            reading = opened.reading("obs")
            if len([*zip(range(n_steps), reading, strict=False)]) < n_steps:
                return
            self.write(path, other, replace=True)
            with pytest.raises(errors.ArchiveChangedError, match="open it again"):
                result(reading)

    @pytest.mark.parametrize("batch", [0, 1, 17, 1000])
    def test_stream(self, path: str, batch: int) -> None:
        obs = every_type(60) if batch else every_type(0).select(["_index", "string", "bool"])
        contents = small_archive(obs.num_rows, parts={"obs": obs})
        rest = Contents(contents.arrays, {"var/0": contents.tables["var/0"]}, contents.attrs)
        batches = iter(obs.to_batches(max_chunksize=batch)) if batch else iter(())
        with self.writing(path, rest) as writer:
            writer.write_table("obs", stream(batches, obs.schema))
        assert_holds(self.open(path), contents)

    def test_chunks_with_different_categories(self, path: str) -> None:
        chunks = [pa.array(list(text)).dictionary_encode() for text in ("abcab", "cxxab")]
        obs = pa.table({**index_column(10), "kind": pa.chunked_array(chunks)})
        store = self.write(path, small_archive(10, parts={"obs": obs}))
        kind = store.read_table("obs", ["kind"], 2, 8)["kind"]
        assert kind.type == obs.schema.field("kind").type
        assert kind.to_pylist() == list("cabcxx")

    @pytest.mark.parametrize("table", ["obs", "var/0"])
    @pytest.mark.parametrize("type_", OTHER_TYPES, ids=str)
    def test_other_column_types(self, path: str, table: str, type_: pa.DataType) -> None:
        contents = small_archive()
        rest = {name: t for name, t in contents.tables.items() if name != table}
        columns = contents.tables[table]
        with self.writing(path, Contents(contents.arrays, rest, contents.attrs)) as writer:
            for odd in (type_, pa.dictionary(pa.int8(), type_)):
                values = columns.append_column("odd", pa.nulls(len(columns), odd))
                for given in (values, values.to_reader()):
                    with pytest.raises(errors.OutputError, match=r"'odd'.* numbers, booleans"):
                        writer.write_table(table, given)
            repeated = columns.append_column("_index", columns["_index"])
            with pytest.raises(errors.OutputError, match="'_index'"):
                writer.write_table(table, repeated)
            writer.write_table(table, columns)
        assert_holds(self.open(path), contents)

    def test_table_is_written_once(self, path: str) -> None:
        contents = small_archive()
        with self.writing(path, contents) as writer:
            for name, table in contents.tables.items():
                with pytest.raises(errors.ScdlError, match=name):
                    writer.write_table(name, table)
        assert_holds(self.open(path), contents)
