"""Filters of cells: compared with pandas, row by row, also where values are missing."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import scdl
from scdl.archive.filters import Filter
from scdl.archive.frames import table_of
from scdl.errors import FeatureNotFoundError, FilterError

N = 24
rng = np.random.default_rng(0)
LABELS = ["T", "B", "it's", "ä"]
GRADES = ["low", "mid", "high"]
OBS = pd.DataFrame(
    {
        "kind": pd.Categorical.from_codes(rng.integers(-1, 4, N), LABELS),
        "grade": pd.Categorical.from_codes(rng.integers(-1, 3, N), GRADES, ordered=True),
        "text": pd.array(rng.choice([*LABELS, None], N), "string"),
        "plate": pd.Categorical(rng.integers(0, 3, N)),
        "n": rng.integers(-5, 5, N),
        "small": rng.integers(0, 3, N).astype(np.uint8),
        "score": np.where(rng.random(N) < 0.2, np.nan, rng.integers(0, 4, N) / 10).astype("f4"),
        "maybe": pd.array(rng.choice([1, 2, None], N), "Int64"),
        "flag": rng.random(N) < 0.5,
        "unsure": pd.array(rng.choice([True, False, None], N), "boolean"),
        "a b": rng.integers(0, 3, N),
    },
    index=[f"c{i}" for i in range(N)],
)
TABLE = table_of(OBS)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "kind": st.sampled_from([*LABELS, "none of them"]),
    "grade": st.sampled_from(GRADES),
    "text": st.sampled_from([*LABELS, ""]),
    "plate": st.integers(-1, 3),
    "n": st.one_of(st.integers(-6, 6), st.just(0.5), st.just(2**40)),
    "small": st.integers(-1, 300),
    "score": st.sampled_from([0, 0.1, 0.2, 0.3, -1.5]),
    "maybe": st.integers(0, 3),
    "a b": st.integers(0, 3),
}
OPERATORS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge,
}  # fmt: skip
#: Three-valued truth of every row, by pandas.
Truth = pd.Series


def column(name: str) -> pd.Series:
    """A column with missing values as None, and ordered categories as their codes."""
    values = OBS[name]
    if name == "grade":
        values = values.cat.codes.replace(-1, None)
    return pd.Series([None if pd.isna(v) else v for v in values], dtype=object)


def truth(name: str, test: Any) -> Truth:
    return pd.Series([None if v is None else bool(test(v)) for v in column(name)], dtype="boolean")


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, Truth]:
    name = draw(st.sampled_from(sorted(VALUES)))
    written = f"`{name}`" if " " in name else name
    form = draw(st.sampled_from(["one", "in", "none", "between"]))
    ordered = name not in ("kind", "plate", "text")
    if form == "in":
        values = draw(st.lists(VALUES[name], max_size=3))
        expected = truth(name, lambda v: any(np.equal(v, known(name, w)) for w in values))
        negated = draw(st.booleans())
        return f"{written} {'not in' if negated else 'in'} {values!r}", (
            ~expected if negated else expected
        )
    if form == "none":
        absent = column(name).isna().astype("boolean")
        negated = draw(st.booleans())
        return f"{written} {'is not' if negated else 'is'} None", ~absent if negated else absent
    if form == "between" and ordered:
        low, high = draw(VALUES[name]), draw(VALUES[name])
        first, second = known(name, low), known(name, high)
        return f"{low!r} <= {written} < {high!r}", truth(name, lambda v: first <= v < second)
    symbol = draw(st.sampled_from(sorted(OPERATORS) if ordered else ["==", "!="]))
    value = draw(VALUES[name])
    compare, other = OPERATORS[symbol], known(name, value)
    return f"{written} {symbol} {value!r}", truth(name, lambda v: compare(v, other))


def known(name: str, value: Any) -> Any:
    """A constant as values of the column are stored."""
    if name == "grade":
        return GRADES.index(value)
    return np.float32(value) if name == "score" else value


def flags(name: str) -> tuple[str, Truth]:
    return name, OBS[name].astype("boolean").reset_index(drop=True)


def joined(two: tuple[tuple[str, Truth], str, tuple[str, Truth]]) -> tuple[str, Truth]:
    (left, one), word, (right, other) = two
    return f"({left} {word} {right})", one & other if word == "and" else one | other


conditions = st.recursive(
    st.one_of(comparisons(), st.sampled_from(["flag", "unsure"]).map(flags)),
    lambda inner: st.one_of(
        inner.map(lambda one: (f"not ({one[0]})", ~one[1])),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(joined),
    ),
    max_leaves=4,
)


@given(conditions)
def test_the_same_cells_as_pandas(condition: tuple[str, Truth]) -> None:
    text, expected = condition
    absent: set[str] = set()
    found = Filter(text).positions(TABLE, absent)
    assert found.dtype == np.int64
    assert found.tolist() == np.flatnonzero(expected.fillna(False)).tolist()
    assert not absent


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (pc.field("kind") == "T", "kind == 'T'"),
        (pc.field("text").isin(["B", "ä"]) & (pc.field("n") > 0), "text in ['B', 'ä'] and n > 0"),
        (~pc.field("unsure") | pc.field("flag"), "not unsure or flag"),
        (pc.field("a b") == pc.field("small"), "`a b` == small"),
    ],
)
def test_expressions_of_arrow(expression: pc.Expression, text: str) -> None:
    chosen = Filter(expression)
    needed = TABLE.select(chosen.columns(TABLE.schema.names))
    found = chosen.positions(needed, set())
    assert len(found)
    assert found.tolist() == Filter(text).positions(TABLE, set()).tolist()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("kind = 'T'", "invalid syntax"),
        ("", "invalid syntax"),
        ("kind == 'T'; n > 1", "invalid syntax"),
        ("__import__('os').system('true')", "is no condition"),
        ("n.real > 1", "'n.real' is neither a column"),
        ("n + 1 > 2", "'n \\+ 1' is neither a column"),
        ("(lambda: n)() > 2", "is neither a column"),
        ("1 == 1", "compared without a column"),
        ("n == None", "use 'is None'"),
        ("n is 3", "compares a column with None only"),
        ("kind in 'T'", "'in' compares a column with a list"),
        ("n in [n]", "'n' is neither a column, nor a number"),
        ("(" * 300 + "n > 1" + ")" * 300, "is not valid"),
        ("not " * 200 + "flag", "nested more than 100 times"),
        ("n" + " + 1" * 2000 + " > 1", "is not valid"),
        (3, "must be text or a pyarrow.compute.Expression"),
        ("kind == 3", "'kind' holds categories of text and is compared with 3"),
        ("n == 'T'", "'n' holds int64 and is compared with 'T'"),
        ("flag > 1", "'flag' holds bool and is compared with 1"),
        ("n", "'n' holds int64, no truth values"),
        ("kind == n", "compared with the column 'n' of int64"),
        ("kind < 'T'", "'kind' is asked for, whose categories have no order"),
        ("grade < 'none'", "no category 'none'; it has: \\['low', 'mid', 'high'\\]"),
        (pc.field("n"), "is int64"),
        (pc.field("n") == "T", "cannot be applied"),
    ],
)  # fmt: skip
def test_what_is_no_condition(condition: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        Filter(condition).positions(TABLE, set())


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("filters")
    (place / "all").mkdir()
    for name, columns in (("one", ["kind", "n"]), ("two.zarr", ["kind", "flag"])):
        source = place / f"{name}.h5ad"
        anndata.AnnData(sparse.eye(N, 3, format="csr"), OBS[columns]).write_h5ad(source)
        scdl.convert(source, place / "all" / name)
    return place / "all"


class TestWhere:
    def test_of_archives_collections_and_views(self, archives: Path) -> None:
        both = scdl.open(archives, label="sample")
        one, two = scdl.open(archives / "one"), scdl.open(archives / "two.zarr")
        is_t = np.flatnonzero(OBS["kind"] == "T")
        expected = [*is_t, *(is_t + N)]
        for cells, rows in ((one, is_t), (two, is_t), (both, expected)):
            for condition in ("kind == 'T'", pc.field("kind") == "T"):
                assert cells.where(condition).tolist() == list(rows)
        view = both.select_genes("union")
        assert view.where("kind == 'T' and sample == 'one'").tolist() == is_t.tolist()
        batch = view.read_rows(both.where("kind == 'T'"), obs="kind")
        assert set(batch.obs["kind"]) == {"T"}

    def test_a_column_that_some_members_lack_is_missing_there(self, archives: Path) -> None:
        both = scdl.open(archives)
        positive = np.flatnonzero(OBS["n"] > 0).tolist()
        assert both.where("n > 0").tolist() == positive
        assert both.where(pc.field("n") > 0).tolist() == positive
        assert both.where("n is None").tolist() == list(range(N, 2 * N))

    def test_a_column_that_does_not_exist(self, archives: Path) -> None:
        for cells in scdl.open(archives), scdl.open(archives / "one"):
            for condition in ("m > 0", pc.field("m") > 0):
                with pytest.raises(FeatureNotFoundError, match=r"'m', which obs lacks; it has: ki"):
                    cells.where(condition)

    def test_in_batches(self, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cells = scdl.open(archives / "one")
        expected = cells.where("n < 0 or kind != 'B'").tolist()
        monkeypatch.setattr("scdl.dataset.opened._ROWS_AT_ONCE", 5)
        assert cells.where("n < 0 or kind != 'B'").tolist() == expected
