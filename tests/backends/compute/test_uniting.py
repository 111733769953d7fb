"""Columns of obs of several files as one: the values are those that anndata.concat has."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from budget import examples, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import names, random_cells, write_h5ad

import scdl
from scdl.archive.frames import frame_of, table_of
from scdl.archive.tables import TableSource
from scdl.conversion.tables import United
from scdl.errors import ScdlWarning

LARGE = 2**53 + 1

#: Columns of two cells.
COLUMNS: dict[str, Any] = {
    "nothing": np.array([np.nan, np.nan]),
    "floats": np.array([0.5, np.nan]),
    "whole floats": np.array([1.0, 2.0]),
    "float32": np.array([0.25, 8], "f4"),
    "float16": np.array([0.25, np.nan], "f2"),
    "ints": np.array([1, -2]),
    "int8": np.array([1, 100], "i1"),
    "uint64": np.array([1, 2], "u8"),
    "large ints": np.array([LARGE, -LARGE]),
    "huge ints": np.array([2**63 + 5, 3], "u8"),
    "bools": np.array([True, False]),
    "text": np.array(["a", "nan"], object),
    "no text": pd.array([None, None], "string"),
    "text with nulls": pd.array(["b", None], "string"),
    "nullable ints": pd.array([1, None], "Int64"),
    "nullable bools": pd.array([None, True], "boolean"),
    "categories": pd.Categorical(["a", "b"]),
    "categories with nulls": pd.Categorical(["c", None]),
    "unused categories": pd.Categorical([None, None], ["x"]),
    "no categories": pd.Categorical([None, None], pd.Index([], dtype=object)),
    "no numeric categories": pd.Categorical([np.nan, np.nan]),
    "numeric categories": pd.Categorical([1, 3]),
    "float categories": pd.Categorical([1.5, np.nan]),
    "boolean categories": pd.Categorical([True, False]),
    "ordered": pd.Categorical(["h", "l"], list("lmh"), ordered=True),
    "ordered otherwise": pd.Categorical(["h", "l"], list("hml"), ordered=True),
}


#: Those of which files are written, two by two.
PAIRS = [
    ("nothing", "categories"), ("nothing", "text"), ("nothing", "bools"), ("text", "nothing"),
    ("no text", "ints"), ("no categories", "floats"), ("unused categories", "ints"),
    ("bools", "ints"), ("ints", "bools"), ("bools", "floats"), ("ints", "floats"),
    ("nullable bools", "nullable ints"), ("int8", "float16"), ("large ints", "floats"),
    ("ints", "uint64"), ("large ints", "huge ints"), ("text", "categories with nulls"),
    ("categories", "categories with nulls"), ("numeric categories", "float categories"),
    ("numeric categories", "ints"), ("categories", "boolean categories"), ("bools", "text"),
    ("ordered", "categories"), ("ordered", "ordered otherwise"), ("whole floats", "text"),
]  # fmt: skip


def assert_values(found: pd.Series, expected: pd.Series, *, changed: bool) -> None:
    """The same values missing, the others equal; as text where the column is told of."""
    assert found.isna().tolist() == expected.isna().tolist()
    for one, other in zip(found.dropna(), expected.dropna(), strict=True):
        if one != other:
            # As text; or exactly what pandas rounds, 64-bit integers with and without a sign.
            assert changed or isinstance(one, int | np.integer)
            assert one == str(other) or float(one) == float(other)


def told_of(messages: Sequence[Any]) -> set[str]:
    """Columns that warnings name, without a trace of others."""
    text = " ".join(str(w.message) for w in messages if issubclass(w.category, ScdlWarning))
    return set(re.findall(r"(\S+) \([^()]* (?:become|no longer ordered)", text))


def united_by_anndata(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.concat([anndata.AnnData(obs=frame) for frame in frames], join="outer").obs


@pytest.fixture(scope="module")
def frames() -> list[pd.DataFrame]:
    """Two tables, with a column for every two of those above."""
    return [
        pd.DataFrame(
            {"|".join(pair).replace(" ", "-"): COLUMNS[pair[i]] for pair in PAIRS},
            index=names(f"c{i}-", 2),
        )
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def files(frames: list[pd.DataFrame], tmp_path_factory: Any) -> list[Path]:
    place = tmp_path_factory.mktemp("pairs")
    return [
        write_h5ad(place / f"{i}.h5ad", random_cells(2, 3), obs=frame)
        for i, frame in enumerate(frames)
    ]


class TestEveryPair:
    @pytest.mark.parametrize(
        "how", sample(["x", "x.zarr", "parts", "collection", "flat.zarr", "concat"], 4)
    )
    def test_as_anndata(
        self, frames: list[pd.DataFrame], files: list[Path], tmp_path: Path, how: str
    ) -> None:
        reported: set[str] | None = None
        with warnings.catch_warnings(record=True) as messages:
            warnings.simplefilter("always")
            (tmp_path / "of").mkdir()
            if how in ("collection", "flat.zarr", "concat"):
                for path in files:
                    scdl.convert(path, tmp_path / "of" / path.stem)
            if how == "concat":
                data = scdl.open(tmp_path / "of" / "0")
                data.concat(scdl.open(tmp_path / "of" / "1"))
            elif how == "collection":
                data = scdl.open(tmp_path / "of")
            elif how == "flat.zarr":
                data = scdl.open(tmp_path / "of").flatten(tmp_path / how, destroy_on_copy=True)
                data = scdl.open(tmp_path / how)
            else:
                run = scdl.convert_in_parts if how == "parts" else scdl.convert
                report = run(files, tmp_path / how)
                reported = {text.split(" (")[0] for text in report.changed_columns}
                assert all(text in str(report) for text in report.changed_columns)
                data = scdl.open(tmp_path / how)
            obs = data.obs
        told = told_of(messages)
        assert reported in (None, {f"obs/{name}" for name in told})
        expected = united_by_anndata(frames)
        assert obs.columns.tolist() == frames[0].columns.tolist()
        for name in obs:
            assert_values(obs[name], expected[name], changed=name in told)
            if isinstance(obs[name].dtype, pd.CategoricalDtype):
                assert not {"nan", "<NA>", "None"} & set(map(str, obs[name].cat.categories))
        assert {"bools|ints", "ordered|categories", "large-ints|huge-ints"} <= told
        assert not {"ints|floats", "nothing|text", "text|categories-with-nulls"} & told

    def test_labels_of_a_loader(self, files: list[Path], tmp_path: Path) -> None:
        """A missing value is -1 or NaN, and never a label."""
        pytest.importorskip("torch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScdlWarning)
            scdl.convert(files, tmp_path / "x")
        data = scdl.open(tmp_path / "x")
        obs = data.obs
        columns = [name for name in obs if "huge" not in name and "large" not in name]
        loader = scdl.SingleCellLoader(data, 4, obs=columns, order="sequential")
        (batch,) = loader
        for name in columns:
            values = batch.obs[name].numpy()
            labels = loader.vocabulary.get(name)
            missing = np.isnan(values) if labels is None else values == -1
            assert missing.tolist() == obs[name].isna().tolist()
            found = values[~missing].tolist()
            found = found if labels is None else [labels[code] for code in found]
            assert found == obs[name].dropna().tolist()


@pytest.mark.parametrize("name", COLUMNS)
def test_two_tables(name: str) -> None:
    """Every column after every other."""
    for other in sample(COLUMNS, 8):
        frames = [
            pd.DataFrame({"x": COLUMNS[n]}, index=names(f"c{i}-", 2))
            for i, n in enumerate((name, other))
        ]
        united = United([Frame(frame) for frame in frames])
        found = frame_of(united.reader().read_all())
        assert_values(found["x"], united_by_anndata(frames)["x"], changed=bool(united.changes))
        if isinstance(found["x"].dtype, pd.CategoricalDtype):
            assert not {"nan", "<NA>", "None"} & set(map(str, found["x"].cat.categories))


@pytest.mark.parametrize("numbers", [[], [0, 3]])
def test_categories_that_are_equal_as_numbers(numbers: list[int]) -> None:
    """anndata.concat loses the second column."""
    columns = [pd.Categorical(numbers, range(4)), pd.Categorical([False, True])]
    frames = [
        pd.DataFrame({"x": column}, index=names(f"c{i}-", len(column)))
        for i, column in enumerate(columns)
    ]
    united = United([Frame(frame) for frame in frames])
    assert frame_of(united.reader().read_all())["x"].tolist() == [*numbers, False, True]
    assert bool(united.changes) == bool(numbers)


#: Columns of any length, without what anndata and Arrow write otherwise as text.
def _columns(n: int) -> st.SearchStrategy[Any]:
    def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
        return st.lists(values, min_size=n, max_size=n)

    words, maybe = st.sampled_from("abc"), lambda values: st.none() | values
    return st.one_of(
        some(st.just(np.nan)).map(lambda v: np.array(v, float)),
        some(st.sampled_from([0.5, np.nan, 3.0])).map(lambda v: np.array(v, float)),
        some(st.integers(-5, 5)).map(lambda v: np.array(v, np.int64)),
        some(st.integers(0, 5)).map(lambda v: np.array(v, np.uint64)),
        some(st.booleans()).map(lambda v: np.array(v, bool)),
        some(words).map(lambda v: np.array(v, object)),
        some(maybe(words)).map(lambda v: pd.array(v, "string")),
        some(maybe(st.integers(0, 9))).map(lambda v: pd.array(v, "Int64")),
        some(maybe(st.booleans())).map(lambda v: pd.array(v, "boolean")),
        some(maybe(words)).map(lambda v: pd.Categorical(v, list("cab"))),
        some(maybe(words)).map(lambda v: pd.Categorical(v, list("cab"), ordered=True)),
        # Neither 0 nor 1, which anndata takes for False and True, and loses.
        some(maybe(st.integers(2, 5))).map(lambda v: pd.Categorical(v, range(2, 6))),
        some(maybe(st.booleans())).map(lambda v: pd.Categorical(v, [True, False])),
    )


@given(st.data())
@settings(max_examples=examples(60), deadline=None)
def test_several_tables(data: st.DataObject) -> None:
    """Some of which lack a column, or have no cells."""
    frames = []
    for i in range(data.draw(st.integers(2, 4), label="tables")):
        n = data.draw(st.integers(0, 3), label="cells")
        there = data.draw(st.sets(st.sampled_from("xyz")), label="columns")
        columns = {name: data.draw(_columns(n), label=name) for name in sorted(there)}
        frames.append(pd.DataFrame(columns, index=names(f"c{i}-", n)))
    united = United([Frame(frame) for frame in frames])
    table = united.reader().read_all()
    assert table.schema == united.schema
    found, expected = frame_of(table), united_by_anndata(frames)
    assert found.index.tolist() == expected.index.tolist()
    assert set(found.columns) == set(expected.columns)
    told = {text.split(" (")[0] for text in united.changes}
    for name in found:
        assert_values(found[name], expected[name], changed=name in told)


class Frame(TableSource):
    """A dataframe as a table."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.num_rows = len(frame)
        self._table = table_of(frame).combine_chunks().unify_dictionaries()
        self.schema = self._table.schema
        self.categories = {
            name: self._table[name].combine_chunks().dictionary
            for name in self.schema.names
            if pa.types.is_dictionary(self.schema.field(name).type)
        }

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        part = self._table.slice(start, stop - start)
        columns = [part[name].combine_chunks() for name in self.schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)
