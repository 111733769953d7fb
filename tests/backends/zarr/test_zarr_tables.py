"""Tables in Zarr groups: what Arrow has, and what AnnData sees of it."""

from __future__ import annotations

import base64
import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import zarr
from anndata.io import read_elem, write_elem
from hypothesis import given
from hypothesis import strategies as st
from sources import writing_strings

from storage_backends.errors import (
    ArchiveFormatError,
    ArchiveWriteError,
    ArrayNotFoundError,
    OutputError,
    RangeError,
)
from storage_backends.testing.archives import every_type, index_column, stream
from storage_backends.testing.assertions import assert_same_table
from storage_backends.zarr.tables import columns as column_writing
from storage_backends.zarr.tables import writing
from storage_backends.zarr.tables.reading import ZarrTable
from storage_backends.zarr.tables.writing import write

# anndata: of its own defaults
pytestmark = pytest.mark.filterwarnings(
    "ignore:zarr v3 autosharding:UserWarning", "ignore:Writing zarr v2 data:UserWarning"
)
WHERE = "PATH: the table obs"


def new_group(directory: Path | str, zarr_format: Any = 3) -> zarr.Group:
    return zarr.open_group(str(directory), mode="w", zarr_format=zarr_format)


def opened(group: zarr.Group) -> ZarrTable:
    """As another process would."""
    path = str(group.store_path).removeprefix("file://")
    return ZarrTable(WHERE, zarr.open_group(f"{path}/obs", mode="r"))


def written(group: zarr.Group, table: Any) -> ZarrTable:
    expected = table.num_rows if isinstance(table, pa.Table) else None
    n = write(group, "obs", table)
    assert expected in (n, None)
    table = opened(group)
    assert table.num_rows == n
    assert not table.unread
    return table


def assert_holds(table: ZarrTable, expected: pa.Table) -> None:
    assert table.num_rows == expected.num_rows
    assert_same_table(table.read(None, 0, None), expected)
    assert table.schema.equals(expected.schema.remove_metadata())


def seen(group: zarr.Group) -> pd.DataFrame:
    frame = read_elem(group["obs"])
    assert isinstance(frame, pd.DataFrame)
    return frame


def encodings(group: zarr.Group) -> dict[str, str]:
    obs = group["obs"]
    names = [obs.attrs["_index"], *obs.attrs["column-order"]]
    return {name: obs[name].attrs["encoding-type"] for name in names}


@pytest.fixture
def group(tmp_path: Path) -> zarr.Group:
    return new_group(tmp_path / "group.zarr")


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_ROWS", 7)


# -- what Arrow has ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 7, 30])
@pytest.mark.parametrize("piece", [None, 1, 10])
@pytest.mark.usefixtures("short_chunks")
def test_every_type(group: zarr.Group, n: int, piece: int | None) -> None:
    table = every_type(n)
    source = table if piece is None else table.to_reader(piece)
    if n == 0 and piece is not None:
        source = stream(
            iter(
                [
                    pa.RecordBatch.from_arrays(
                        [c.chunk(0) for c in table.columns], schema=table.schema
                    )
                ]
            ),
            table.schema,
        )
    found = written(group, source)
    assert_holds(found, table)
    frame = seen(group)
    assert frame.columns.tolist() == [name for name in table.column_names if name != "_index"]
    assert frame.index.tolist() == table["_index"].to_pylist()


def test_long_table_in_chunks_of_the_default(group: zarr.Group) -> None:
    n = 2 * writing._ROWS + 5
    table = every_type(n)
    assert_holds(written(group, table.to_reader(50_000)), table)
    assert group["obs/int8/values"].chunks == (writing._ROWS,)
    assert group["obs/int8/values"].nchunks == 3
    assert len(seen(group)) == n


TIMES = [
    pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"),
    pa.duration("s"), pa.duration("ns"), pa.timestamp("s"), pa.timestamp("ns", "Europe/Berlin"),
]  # fmt: skip


def of_an_earlier_release(group: zarr.Group, table: pa.Table, **types: pa.DataType) -> ZarrTable:
    """What was written when columns could be of more types, which only the attribute knows."""
    write(group, "obs", table)
    ours = dict(group["obs"].attrs["scdl_table"])
    fields = [pa.field(f.name, types.get(f.name, f.type)) for f in table.schema]
    ours["schema"] = base64.b64encode(pa.schema(fields).serialize().to_pybytes()).decode()
    group["obs"].attrs["scdl_table"] = ours
    return opened(group)


@pytest.mark.parametrize("type_", [*TIMES, pa.null()], ids=str)
def test_types_of_earlier_releases(group: zarr.Group, type_: pa.DataType) -> None:
    day = 86_400_000
    width = 0 if pa.types.is_null(type_) else type_.bit_width
    stored = pa.array([day, None, 0, 2 * day, 0], f"int{width}") if width else pa.nulls(5, "bool")
    codes = pa.array([1, None, 0, 1, 1], "int8") if width else pa.nulls(5, "int8")
    categories = stored[2:4] if width else stored[:0]
    coded = pa.DictionaryArray.from_arrays(codes, categories)
    columns = {"values": stored, "some": stored if not width else stored.fill_null(0)}
    table = pa.table({**index_column(5), **columns, "coded": coded})
    kinds = {"values": type_, "some": type_, "coded": pa.dictionary(pa.int8(), type_)}
    found = of_an_earlier_release(group, table, **kinds)
    times = {name: a.view(type_) if width else pa.nulls(5) for name, a in columns.items()}
    categories = categories.view(type_) if width else pa.nulls(0)
    expected = {**times, "coded": pa.DictionaryArray.from_arrays(codes, categories)}
    assert_holds(found, pa.table({**index_column(5), **expected}))


def test_categories_of_halves(group: zarr.Group) -> None:
    """Of which pandas has none; those of earlier releases stay what they are."""
    halves = pa.array(np.array([0.5, 2], "f2"))
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0, None], "int8"), halves)
    found = written(group, pa.table({"c": column}))
    assert_holds(found, pa.table({"c": column}))
    assert seen(group)["c"].cat.categories.tolist() == [0.5, 2]


def test_text_of_another_layout(group: zarr.Group) -> None:
    table = pa.table({**index_column(3), "s": pa.array(["a", None, "ü" * 20], pa.string_view())})
    assert_holds(written(group, table), table)
    assert seen(group)["s"].tolist()[::2] == ["a", "ü" * 20]


@pytest.mark.parametrize("index", ["int8", "uint8", "uint16", "uint32", "uint64", "int64"])
def test_types_of_codes(group: zarr.Group, index: str) -> None:
    codes = pa.array([0, None, 199 if index != "int8" else 127, 3], index)
    texts = pa.array([str(i) for i in range(200 if index != "int8" else 128)], pa.large_string())
    table = pa.table({"c": pa.DictionaryArray.from_arrays(codes, texts)})
    assert_holds(written(group, table), table)
    assert seen(group)["c"].tolist() == ["0", np.nan, texts[-1].as_py(), "3"]


@pytest.mark.parametrize(
    "categories",
    [[0.5, float("nan")], [0.0, -0.0], [1.5, float("inf")], [True, False], [2**63 - 1, 0]],
)
def test_categories_of_numbers(group: zarr.Group, categories: list[Any]) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([1, None, 0], "int8"), pa.array(categories))
    found = written(group, pa.table({"c": column})).read(None, 0, None)["c"].chunk(0)
    # Which is what pandas takes.
    expected = [c for c in dict.fromkeys(categories) if c == c]
    assert repr(found.dictionary.to_pylist()) == repr(expected)
    values = [categories[1], None, categories[0]]
    assert found.to_pylist() == [v if v == v else None for v in values]
    assert seen(group)["c"].cat.categories.tolist() == expected


def test_categories_differ_between_chunks(group: zarr.Group) -> None:
    """What is there twice is there once."""
    texts = [["b", "a"], ["a", "c"], ["c", "b", "c"], []]
    codes = [[0, 1, None], [0, 1, None], [2, 1, 0], [None]]
    arrays = [
        pa.DictionaryArray.from_arrays(pa.array(c, "int8"), pa.array(t, pa.string()))
        for c, t in zip(codes, texts, strict=True)
    ]
    batches = [pa.record_batch({"c": array}) for array in arrays]
    table = pa.Table.from_batches(batches)
    expected = ["b", "a", None, "a", "c", None, "c", "b", "c", None]
    found = written(group, table).read(None, 0, None)
    assert found["c"].to_pylist() == expected
    assert found["c"].chunk(0).dictionary.to_pylist() == ["b", "a", "c"]
    with pytest.raises(OutputError, match=r"^/.*/stream: batches of column 'c' differ"):
        write(group, "stream", stream(iter(batches), table.schema))


def test_more_categories_than_codes(group: zarr.Group) -> None:
    codes = pa.array(range(100), "int8")
    names = [pa.array([str(i) for i in range(a, a + 100)]) for a in (0, 100)]
    chunks = [pa.DictionaryArray.from_arrays(codes, texts) for texts in names]
    with pytest.raises(OutputError, match=r"^/.*/obs: categories of its chunks cannot be joined"):
        write(group, "obs", pa.table({"c": pa.chunked_array(chunks)}))


def test_a_null_among_categories(group: zarr.Group) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0], "int8"), pa.array(["a", None]))
    found = written(group, pa.table({"c": column})).read(None, 0, None)["c"].chunk(0)
    assert (found.to_pylist(), found.dictionary.to_pylist()) == ([None, "a"], ["a"])


@pytest.mark.usefixtures("short_chunks")
def test_categories_are_in_every_chunk(group: zarr.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    table = every_type(60).select(["categories", "ordered.ü"])
    found = written(group, table)
    monkeypatch.setattr("storage_backends.zarr.tables.reading._PIECE", 9)
    for start, stop in [(0, 60), (5, 5), (60, 60), (3, 33)]:
        part = found.read(None, start, stop)
        assert_same_table(part, table.slice(start, stop - start))
        for column, whole in zip(part.columns, table.columns, strict=True):
            assert column.num_chunks >= 1
            for chunk in column.chunks:
                assert chunk.dictionary.equals(whole.chunk(0).dictionary)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("at", [0, 7, 29])
@pytest.mark.parametrize("type_", ["int32", "uint8", "bool", "string", "large_string", "float32"])
def test_first_null_of_a_stream(group: zarr.Group, type_: str, at: int) -> None:
    """What was written as if there were none gets another encoding."""
    values = [str(i) if "string" in type_ else i % 2 if type_ == "bool" else i for i in range(30)]
    values = [bool(v) for v in values] if type_ == "bool" else values
    plain = pa.array(values, type_)
    mask = pa.array(np.arange(30) != at)
    table = pa.table(
        {
            "_index": index_column(30)["_index"],
            "column": pc.if_else(mask, plain, pa.scalar(None, plain.type)),
        }
    )
    assert_holds(written(group, table.to_reader(4)), table)
    frame = seen(group)
    assert np.flatnonzero(frame["column"].isna()).tolist() == [at]
    write(group, "whole", table)
    pd.testing.assert_frame_equal(read_elem(group["whole"]), frame)
    assert set(group["obs"].group_keys()) <= {"column", "scdl"}


TEXT = st.text(st.characters(codec="utf-8"), max_size=4)
VALUES = {
    pa.string(): TEXT,
    pa.large_string(): TEXT,
    pa.int8(): st.integers(-128, 127),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    n = draw(st.integers(0, 25))
    columns = {}
    for name in draw(st.lists(TEXT | st.just("_index"), max_size=6, unique=True)):
        type_ = draw(st.sampled_from(list(VALUES)))
        drawn = draw(st.lists(VALUES[type_] | st.none(), min_size=n, max_size=n))
        column = pa.array(drawn, type_)
        if draw(st.booleans()) and pa.types.is_large_string(type_):
            column = column.dictionary_encode()
        columns[name] = column
    metadata = draw(st.none() | TEXT)
    schema = pa.schema(
        [pa.field(name, column.type) for name, column in columns.items()],
        metadata=None if metadata is None else {"index_name": metadata},
    )
    return pa.table(columns, schema=schema)


@given(tables(), st.lists(st.integers(0, 25), max_size=5), st.booleans())
def test_arbitrary_tables_in_arbitrary_pieces(
    table: pa.Table, cuts: list[int], is_stream: bool
) -> None:
    ends = sorted({0, table.num_rows, *(c for c in cuts if c < table.num_rows)})
    pieces = [table.slice(a, b - a) for a, b in itertools.pairwise(ends)] or [table]
    batches = [batch for piece in pieces for batch in piece.to_batches()]
    source = stream(iter(batches), table.schema) if is_stream else pa.concat_tables(pieces)
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_ROWS", 8)
        group = new_group(place)
        found = written(group, source)
        assert_holds(found, table)
        assert found.schema.metadata == table.schema.metadata
        frame = seen(group)
        shown = [n for n in table.column_names if n in frame.columns]
        assert frame.columns.tolist() == shown
        for name in shown:
            absent = pc.is_null(table[name], nan_is_null=True)
            assert frame[name].isna().tolist() == absent.to_pylist()
        for cut in ends:
            assert_same_table(found.read(None, 0, cut), table.slice(0, cut))
            assert_same_table(found.read(None, cut, None), table.slice(cut))


# -- what AnnData sees ---------------------------------------------------------------------


def test_encodings(group: zarr.Group) -> None:
    table = every_type(20)
    write(group, "obs", table)
    nullable = {name: "nullable-integer" for name in table.column_names if "int" in name}
    assert encodings(group) == nullable | {
        "_index": "string-array",
        "string": "nullable-string-array",
        "large_string": "nullable-string-array",
        "no value": "nullable-string-array",
        "float16": "array",
        "float32": "array",
        "float64": "array",
        "plain float": "array",
        "bool": "nullable-boolean",
        "plain bool": "array",
        **dict.fromkeys(
            [
                "categories",
                "ordered.ü",
                "numbers as categories",
                "floats as categories",
                "truths as categories",
                "no category",
            ],
            "categorical",
        ),
        "index": "array",
    }
    frame = seen(group)
    assert frame["uint8"].dtype == pd.UInt8Dtype()
    assert frame["float32"].dtype == np.float32
    assert frame["bool"].dtype == pd.BooleanDtype()
    assert frame["ordered.ü"].cat.ordered
    assert frame["ordered.ü"].cat.categories.tolist() == ["low", "high", ""]
    assert frame["categories"].tolist()[:4] == ["b", "a", "ü", np.nan]
    assert frame["numbers as categories"].cat.categories.tolist() == [10, -5, 7, 0]
    assert frame["string"].tolist()[:3] == ["b", "", "ü"]
    for name in ("string", "int8", "float32", "bool", "categories"):
        assert frame[name].isna().sum() >= table[name].null_count > 0


def test_same_arrays_as_anndata(group: zarr.Group) -> None:
    """Those who read one read the other."""
    strings = pd.Series(["a", "", "ü"], ["p", "q", "r"], dtype=object)
    frame = pd.DataFrame(
        {"s": strings, "c": pd.Categorical(["x", None, "y"]), "i": [1, 2, 3],
         "n": pd.array([1, None, 3], "Int8"), "b": pd.array([True, None, False], "boolean")},
        index=pd.Index(["p", "q", "r"], dtype=object),
    )  # fmt: skip
    with writing_strings():
        write_elem(group, "theirs", frame)
    write(group, "ours", ZarrTable(WHERE, group["theirs"]).read(None, 0, None))
    ours, theirs = (dict(group[key].members(max_depth=None)) for key in ("ours", "theirs"))
    assert set(ours) == set(theirs)
    for name, element in theirs.items():
        assert ours[name].attrs.asdict() == element.attrs.asdict(), name
        if isinstance(element, zarr.Array) and name != "c/codes":
            assert ours[name].metadata.data_type == element.metadata.data_type, name
            assert ours[name].metadata.chunk_grid == element.metadata.chunk_grid, name
            assert ours[name].metadata.fill_value == element.metadata.fill_value, name


@pytest.mark.parametrize("nulls", [False, True])
def test_long_text_that_compresses_well(group: zarr.Group, nulls: bool) -> None:
    """Beyond what zstd makes of text in proportion, a chunk would be taken for a bomb."""
    notes = ["Cells were dissociated. " * 42] * 70_000
    table = pa.table({"note": pa.array(notes, pa.large_string()), "n": np.arange(70_000)})
    if nulls:
        table = table.set_column(
            0, "note", pc.if_else(pc.less(table["n"], 69_999), table["note"], None)
        )
    found = written(group, table)
    assert found.read(["note"], 69_990, None).equals(table.select(["note"]).slice(69_990))
    assert found.read(None, 0, None).equals(table)


def test_text_that_no_chunk_takes(group: zarr.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    long = pa.array(["b" * (1 << 25)], pa.large_string())
    with pytest.raises(OutputError, match="'note' has 33,554,436 bytes of text in 1 rows"):
        written(group, pa.table({"note": long}))
    # After rows that are short, in chunks of two rows.
    monkeypatch.setattr(writing, "_ROWS", 2)
    table = pa.table({"name": pa.chunked_array([pa.array(["a"] * 2, pa.large_string()), long])})
    with pytest.raises(OutputError, match="'name' has 33,554,436 bytes of text in 2 rows"):
        written(group.create_group("more"), table)


def test_no_names_of_rows(group: zarr.Group) -> None:
    table = pa.table({"a": [5, 6, 7]})
    assert_holds(written(group, table), table)
    assert seen(group).index.tolist() == ["0", "1", "2"]
    assert seen(group).columns.tolist() == ["a"]


@pytest.mark.parametrize("columns", [[], ["_index"], ["int8"], ["_index", "index"]])
@pytest.mark.parametrize("n", [0, 3])
def test_few_columns(group: zarr.Group, columns: list[str], n: int) -> None:
    table = every_type(n).select(columns)
    assert_holds(written(group, table), table)
    assert seen(group).shape == (n, len({*columns} - {"_index"}))
    write(group, "stream", table.to_reader())
    assert ZarrTable(WHERE, group["stream"]).num_rows == n


ODD = ["a/b", "", ".", "..", "/", "a\\b", "zarr.json", "c", "x" * 300, "nul\0", "scdl", "scdl_"]
SHOWN = [
    "...",
    "__x",
    "ä",
    " ",
    "%",
    "a\nb",
    "index",
    "c",
    "0",
    "values",
    "scdl",
    "scdl_",
    "k" * 150,
]


@pytest.mark.parametrize("as_stream", [False, True])
def test_odd_names(group: zarr.Group, as_stream: bool) -> None:
    names = list(dict.fromkeys(["_index", *ODD, *SHOWN]))
    kinds = itertools.cycle(["float32", "string", "categories", "int8", "index"])
    table = every_type(9)
    table = pa.table({name: table[kind] for name, kind in zip(names, kinds, strict=False)})
    table = table.set_column(0, "_index", every_type(9)["_index"])
    assert_holds(written(group, table.to_reader(2) if as_stream else table), table)
    assert set(seen(group).columns) == {*SHOWN}


def test_no_column_but_hidden_ones(group: zarr.Group) -> None:
    table = pa.table({"a/b": [1.5, None]})
    assert_holds(written(group, table), table)
    assert seen(group).shape == (2, 0)


@pytest.mark.parametrize("name", ["cell", "index", "ü", "_index", "", "a/b", "..", "taken", "scdl"])
def test_name_of_the_index(group: zarr.Group, name: str) -> None:
    table = pa.table({"taken": [1, 2], "_index": ["p", "q"]})
    named = table.replace_schema_metadata({"index_name": name, "other": "x"})
    found = written(group, named)
    assert_holds(found, table)
    assert found.schema.metadata == {b"index_name": name.encode()}
    assert found.read(["taken"], 0, 1).schema.metadata == found.schema.metadata
    frame = seen(group)
    assert frame.index.tolist() == ["p", "q"]
    assert frame.columns.tolist() == ["taken"]
    assert frame.index.name == (name if name in ("cell", "index", "ü", "scdl") else None)


@pytest.mark.parametrize("column", ["int8", "float32", "categories", "string", "bool"])
def test_names_of_rows_that_are_no_text(group: zarr.Group, column: str) -> None:
    table = pa.table({"x": range(9), "_index": every_type(9)[column]})
    assert_holds(written(group, table), table)
    assert seen(group).columns.tolist() == ["x"]
    assert len(seen(group).index) == 9


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_consolidated_metadata(group: zarr.Group) -> None:
    table = every_type(9).append_column("a/b", every_type(9)["categories"])
    write(group, "obs", table)
    zarr.consolidate_metadata(group.store)
    group = zarr.open_group(group.store, mode="r", use_consolidated=True)
    assert_holds(ZarrTable(WHERE, group["obs"]), table)


def test_rewritten_by_anndata(group: zarr.Group) -> None:
    write(group, "obs", every_type(9))
    frame = seen(group)[["uint16", "categories"]]
    write_elem(group, "obs", frame)
    table = opened(group)
    assert table.schema.names == ["_index", "uint16", "categories"]
    assert table.read(["uint16"], 0, 3)["uint16"].to_pylist() == [0, 65535, None]


# -- dataframes of anndata -----------------------------------------------------------------

N = 6
FRAME = pd.DataFrame(
    {
        "floats": np.array([0.5, np.nan, -1, np.inf, 0, 1e300]),
        "float16": np.arange(N, dtype="f2"),
        "int8": np.arange(N, dtype="i1"),
        "uint64": np.arange(N, dtype="u8") + np.uint64(2**63),
        "bools": np.array([True, False, True, True, False, False]),
        "categories": pd.Categorical(list("ababab"), categories=list("zyxba")),
        "ordered": pd.Categorical(list("lmhlmh"), categories=list("lmh"), ordered=True),
        "categories with nulls": pd.Categorical(["a", None, "b", None, "a", "a"]),
        "no categories": pd.Categorical([None] * N, categories=pd.Index([], dtype=object)),
        "numeric categories": pd.Categorical([3, 1, 3, 1, 3, 1]),
        "boolean categories": pd.Categorical([True, False] * 3),
        "nullable ints": pd.array([1, None, 3, None, 2**60, -1], dtype="Int64"),
        "nullable uint8": pd.array([1, None, 3, None, 255, 0], dtype="UInt8"),
        "nullable bools": pd.array([True, None, False, None, True, True], dtype="boolean"),
        "strings": pd.Series(["a", "", "ccc", "ä", "日本", "a\nb"], dtype=object),
        "strings with nulls": pd.array(["a", None, "", "b", None, "c"], dtype="string"),
    }
)  # fmt: skip
TYPES = {
    "floats": pa.float64(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "uint64": pa.uint64(),
    "bools": pa.bool_(),
    "ordered": pa.dictionary(pa.int32(), pa.large_string(), ordered=True),
    "numeric categories": pa.dictionary(pa.int32(), pa.int64()),
    "boolean categories": pa.dictionary(pa.int32(), pa.bool_()),
    "nullable ints": pa.int64(),
    "nullable uint8": pa.uint8(),
    "nullable bools": pa.bool_(),
    "strings": pa.large_string(),
    "strings with nulls": pa.large_string(),
}


def assert_agrees(table: pa.Table, frame: pd.DataFrame) -> None:
    for name in frame.columns:
        expected = [None if pd.isna(v) and name != "floats" else v for v in frame[name]]
        found = table[name]
        np.testing.assert_equal(found.to_pylist(), expected, err_msg=name)
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            (chunk,) = found.chunks
            assert chunk.dictionary.to_pylist() == frame[name].cat.categories.tolist()
            assert chunk.type.ordered == frame[name].cat.ordered


@pytest.mark.parametrize("index_name", [None, "cell", "ü", "strings"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_dataframe_of_anndata(tmp_path: Path, zarr_format: int, index_name: str | None) -> None:
    group = new_group(tmp_path / "group", zarr_format)
    texts = FRAME["strings"].tolist() if index_name == "strings" else [f"ü{i}" for i in range(N)]
    frame = FRAME.set_index(pd.Index(texts, dtype=object, name=index_name))
    with writing_strings():
        write_elem(group, "obs", frame)
    table = opened(group)
    assert not table.unread
    assert table.num_rows == N
    assert table.schema.names == ["_index", *frame.columns]
    assert {name: table.schema.field(name).type for name in TYPES} == TYPES
    expected = None if index_name is None else {b"index_name": index_name.encode()}
    assert table.schema.metadata == expected
    whole = table.read(None, 0, None)
    assert whole.schema.equals(table.schema)
    assert whole["_index"].to_pylist() == texts
    assert_agrees(whole, frame)
    assert_agrees(table.read(None, 2, 5), frame[2:5])
    assert_agrees(table.read(None, 2, 2), frame[2:2])
    # And back: what was read from there is what it is, and AnnData sees it again.
    ours = new_group(tmp_path / "ours")
    assert_holds(written(ours, whole), whole)
    again = seen(ours)
    if index_name != "strings":
        assert again.index.name == index_name
    pd.testing.assert_frame_equal(again, read_elem(group["obs"]), check_names=False)


def test_anndata_with_consolidated_metadata(tmp_path: Path) -> None:
    obs = FRAME.drop(columns="strings with nulls").set_index(pd.Index(list("pqrstu"), dtype=object))
    with writing_strings():
        anndata.AnnData(obs=obs).write_zarr(tmp_path / "a.zarr")
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="r", use_consolidated=True)
    assert_agrees(ZarrTable(WHERE, root["obs"]).read(None, 0, None), obs)
    assert ZarrTable(WHERE, root["var"]).read(None, 0, None).num_rows == 0


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
def test_other_encodings(tmp_path: Path, zarr_format: int) -> None:
    """Text of fixed width, other byte order, version 0.1.0, and what is not known."""
    group = new_group(tmp_path / "group", zarr_format)
    obs = group.create_group("obs")

    def add(path: str, values: Any, **attributes: Any) -> None:
        values = np.array(values)
        array = obs.create_array(path, shape=values.shape, dtype=values.dtype)
        array[...] = values
        array.attrs.update(attributes)

    add("names", ["p", "q", "ü"])
    add("bytes", [b"a", b"b", "ü".encode()])
    add("big", np.array([1, 2, -3], ">i4"))
    add("type", np.array([1, -1, 0], "i1"), categories="__categories/type")
    add("__categories/type", ["lo", "hi"], ordered=True)
    add("complex", np.array([1, 2, 3j]))
    add("matrix", np.zeros((3, 2)))
    obs.create_group("group", attributes={"encoding-type": "new"})
    obs.create_group("coded", attributes={"encoding-type": "categorical"})
    add("coded/codes", [0.5, 1, 1])
    add("coded/categories", ["a", "b"])
    add("_index", [1, 2, 3])
    order = ["big", "bytes", "type", "complex", "matrix", "group", "coded", "_index", "big"]
    obs.attrs.update({"_index": "names", "column-order": order})
    table = opened(group)
    assert table.unread == ["complex", "matrix", "group", "coded", "_index", "big"]
    assert table.read(None, 0, None).to_pydict() == {
        "_index": ["p", "q", "ü"],
        "big": [1, 2, -3],
        "bytes": ["a", "b", "ü"],
        "type": ["hi", None, "lo"],
    }
    assert table.schema.field("type").type.ordered


@pytest.mark.parametrize("names", [[7, 8], pd.Categorical(["a", "b"])])
def test_names_of_rows_become_text(group: zarr.Group, names: Any) -> None:
    write_elem(group, "obs", pd.DataFrame({"x": [1, 2]}, index=pd.Index(names)))
    found = opened(group).read(None, 0, None)["_index"]
    assert found.type == pa.large_string()
    assert found.to_pylist() == [str(name) for name in names]


# -- errors --------------------------------------------------------------------------------


def test_ranges(group: zarr.Group) -> None:
    table = every_type(20)
    found = written(group, table)
    for start, stop in [(0, 0), (3, 9), (20, 20), (19, None)]:
        end = 20 if stop is None else stop
        assert_same_table(found.read(None, start, stop), table.slice(start, end - start))
    for start, stop in [(-1, 5), (5, 4), (0, 21), (21, None)]:
        with pytest.raises(RangeError, match=r"PATH: the table obs: rows .* not within \[0, 20\]"):
            found.read(None, start, stop)
    picked = ["string", "_index", "float32"]
    assert_same_table(found.read(picked, 2, 4), table.select(picked).slice(2, 2))
    assert found.read([], 2, 4).num_rows == 2
    with pytest.raises(ArrayNotFoundError, match=r"the table obs has no column 'nope'; .*string"):
        found.read(["string", "nope"], 0, 0)


def test_refused_tables(group: zarr.Group) -> None:
    binary = pa.array([b"x"])
    for table, message in [
        (pa.table([[1], [2], [3]], names=["a", "b", "a"]), "duplicate column names: 'a'"),
        (pa.table({"b": binary}), "cannot store column 'b' of binary"),
    ]:
        with pytest.raises(OutputError, match=message):
            write(group, "obs", table)
        assert "obs" not in group


def test_errors_of_the_stream_pass(group: zarr.Group) -> None:
    def batches(error: Exception) -> Iterator[pa.RecordBatch]:
        yield from pa.table(index_column(3)).to_batches()
        raise error

    for i, error in enumerate([KeyError("mine"), OSError(5, "mine")]):
        with pytest.raises(type(error), match="mine") as caught:
            write(group, str(i), stream(batches(error)))
        assert not isinstance(caught.value, ArchiveWriteError)


def test_refused_write(group: zarr.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(column_writing, "_append", full)
    with pytest.raises(ArchiveWriteError, match=r"obs: cannot write: No space") as caught:
        write(group, "obs", every_type(3))
    assert caught.value.errno == 28


DAMAGED = ["_index", "int8", "index", "string", "plain float", "categories"]


@contextlib.contextmanager
def damaged(group: zarr.Group, message: str, column: str | None = None) -> Iterator[None]:
    write(group, "obs", every_type(20).select(DAMAGED))
    yield
    with pytest.raises(ArchiveFormatError, match=f"PATH: the table obs: .*{message}"):
        opened(group).read(None if column is None else [column], 0, None)


def test_damaged_tables(tmp_path: Path) -> None:
    def fresh() -> tuple[zarr.Group, Path]:
        place = Path(tempfile.mkdtemp(dir=tmp_path))
        return new_group(place), place / "obs"

    group, _ = fresh()
    with damaged(group, "column 'int8' should be int8, but is missing"):
        del group["obs/int8"]
    group, _ = fresh()
    with damaged(group, "'int8' should be int8, but is missing, or of"):
        del group["obs/int8/mask"]
    group, _ = fresh()
    with damaged(group, "'index' has 19 rows, expected 20"):
        group["obs/index"].resize((19,))
    group, _ = fresh()
    with damaged(group, "expected a mask of 20 values, found 21"):
        group["obs/int8/mask"].resize((21,))
    group, _ = fresh()
    with damaged(group, "'index' should be int64, but is double", "index"):
        del group["obs/index"]
        group["obs"].create_array("index", shape=(20,), dtype="f8")
    group, _ = fresh()
    with damaged(group, "'index' should be int64, but is missing, or of another", "index"):
        del group["obs/index"]
        group["obs"].create_group("index")
    group, _ = fresh()
    with damaged(
        group, "'categories' cannot be read .*codes from -1 to 3, found codes from -1 to 4"
    ):
        group["obs/categories/codes"][3] = 4
    group, _ = fresh()
    with damaged(group, "its attribute 'scdl_table' is damaged"):
        group["obs"].attrs["scdl_table"] = {"schema": "AAAA"}
    group, _ = fresh()
    with damaged(group, "its attribute 'scdl_table' is damaged"):
        group["obs"].attrs["scdl_table"] = 7
    for column in ("plain float", "string/values", "categories/categories", "_index"):
        group, place = fresh()
        with damaged(group, f"{column.split('/')[0]!r} cannot be read"):
            chunk = place / column / "c" / "0"
            raw = bytearray(chunk.read_bytes())
            raw[len(raw) // 2] ^= 255
            chunk.write_bytes(raw)
        group, place = fresh()
        with damaged(group, f"{column.split('/')[0]!r} should be .*, but is missing"):
            (place / column / "zarr.json").write_text('{"zarr_format": 3, "node_type": "array"}')


def test_damaged_foreign_tables(group: zarr.Group) -> None:
    def again() -> zarr.Group:
        frame = pd.DataFrame({"a": [1, 2], "c": pd.Categorical(["x", "y"])}, index=["p", "q"])
        frame.index = frame.index.astype(object)
        write_elem(group, "obs", frame)
        return group["obs"]

    del again()["_index"]
    with pytest.raises(ArchiveFormatError, match="its index '_index' is missing"):
        opened(group)
    for path in ("a", "c/codes", "c/categories"):
        del again()[path]
        table = opened(group)
        assert table.unread == [path[0]]
        assert table.schema.names == ["_index", *{"a", "c"} - {path[0]}]
    again()["a"].resize((3,))
    with pytest.raises(ArchiveFormatError, match="column 'a' has 3 rows, expected 2"):
        opened(group)
    again().attrs["_index"] = "c/none"
    with pytest.raises(ArchiveFormatError, match="its index 'c/none' is missing"):
        opened(group)
    again().create_array("matrix", shape=(2, 2), dtype="i1")
    group["obs"].attrs["_index"] = "matrix"
    with pytest.raises(ArchiveFormatError, match="its index 'matrix' is missing, or not a column"):
        opened(group)
