"""Cells as lists, in Parquet files and data sets of Hugging Face; pyarrow tells what they hold."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from budget import examples
from hostile import bounded
from hypothesis import given, settings
from hypothesis import strategies as st
from lists import GENES, IDS, dense, save_to_disk, some_cells, write_vocabulary
from sources import random_cells, write_h5ad

import scdl
from scdl.errors import (
    CastError,
    ConversionFailedError,
    GeneError,
    GeneListNotFoundError,
    OptionError,
    ScdlError,
    SourceError,
)
from scdl.sources import columnar_obs

#: Ids in the order of columns, and the names of these genes.
SORTED = sorted(IDS)
NAMES = [GENES[IDS.index(i)] for i in SORTED]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    return write_vocabulary(tmp_path / "genes.parquet")


def check(path: Path | str, table: pa.Table, **expected: Any) -> Any:
    """An archive holds the cells of a table; returns it open."""
    ds = scdl.open(path)
    np.testing.assert_array_equal(ds.read_rows(slice(None)).to_dense(), dense(table, SORTED))
    assert ds.var_names.tolist() == NAMES
    for name in expected.get("columns", ["drug", "plate"]):
        assert ds.obs[name].tolist() == table[name].to_pylist()
    return ds


@pytest.mark.parametrize("target", ["a.scdl", "a.zarr"])
def test_a_file_like_those_of_tahoe(tmp_path: Path, vocabulary: Path, target: str) -> None:
    table = some_cells(50, marker=True)
    pq.write_table(table, tmp_path / "cells.parquet", row_group_size=7)
    options = {"vocabulary": vocabulary, "obs_names": "BARCODE_SUB_LIB_ID"}
    with pytest.raises(SourceError, match=r"row 0 has the id 1 in genes.*unknown_genes='drop'"):
        scdl.convert(tmp_path / "cells.parquet", tmp_path / target, **options)
    assert not (tmp_path / target).exists()
    report = scdl.convert(
        tmp_path / "cells.parquet", tmp_path / target, **options, unknown_genes="drop"
    )
    ds = check(tmp_path / target, table)
    assert ds.obs_names.tolist() == table["BARCODE_SUB_LIB_ID"].to_pylist()
    assert ds.obs.index.name == "BARCODE_SUB_LIB_ID"
    assert list(ds.obs.columns) == ["drug", "plate"]
    assert ds.var["token_id"].tolist() == SORTED
    assert ds.var.index.name == "gene_symbol"
    assert report.not_carried == ("50 values of ids that are not in the vocabulary, such as 1",)
    assert report.rows_sorted > 0


LISTS = {
    "list": pa.list_,
    "large": pa.large_list,
    "view": pa.list_view,
    "large view": pa.large_list_view,
    "fixed": lambda type_: pa.list_(type_, 2),
}
NUMBERS = [pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64(), pa.float32(), pa.float64()]


@given(st.data())
@settings(max_examples=examples(100), deadline=None)
def test_any_lists(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Of all types, in any order, with repeated genes, empty and missing lists, in any files."""
    place = tmp_path_factory.mktemp("lists")
    kind = data.draw(st.sampled_from([*LISTS]))
    n = data.draw(st.integers(0, 9))
    length = st.just(2) if kind == "fixed" else st.integers(0, 6)
    with_names = data.draw(st.booleans())
    ids = NAMES if with_names else SORTED
    cells: list[Any] = []
    for _ in range(n):
        size = data.draw(length)
        cell = [data.draw(st.sampled_from(ids)) for _ in range(size)]
        values = [data.draw(st.integers(0, 9)) for _ in range(size)]
        cells.append((None, None) if data.draw(st.integers(0, 9)) == 0 else (cell, values))
    id_type = data.draw(st.sampled_from([t for t in NUMBERS if pa.types.is_integer(t)]))
    value_type = data.draw(st.sampled_from(NUMBERS))
    if with_names:
        id_type = data.draw(st.sampled_from([pa.string(), pa.large_string()]))
    table = pa.table(
        {
            "genes": pa.array([cell for cell, _ in cells], LISTS[kind](id_type)),
            "expressions": pa.array([values for _, values in cells], LISTS[kind](value_type)),
            "plate": pa.array(range(n), pa.int32()),
        }
    )
    rows = data.draw(st.integers(1, 4))
    if data.draw(st.booleans()):
        pq.write_table(table, place / "in", row_group_size=rows)
    elif data.draw(st.booleans()):
        save_to_disk(place / "in", table.slice(0, n // 2), table.slice(n // 2), rows=rows)
    else:
        (place / "in").mkdir()
        for i in range(0, max(n, 1), 4):
            pq.write_table(table.slice(i, 4), place / "in" / f"{i}.parquet", row_group_size=rows)
    report = scdl.convert(
        place / "in",
        place / "out",
        vocabulary=write_vocabulary(place / "genes.parquet"),
        gene_ids="genes",
        gene_values="expressions",
        block_values=data.draw(st.integers(1, 20)),
        data_dtype="f8",
    )
    ds = scdl.open(place / "out")
    # The order of genes is that of the ids, or of the vocabulary.
    wanted = GENES if with_names else SORTED
    found = ds.read_rows(slice(None)).to_dense()
    np.testing.assert_array_equal(found, dense(table, wanted))
    assert ds.obs["plate"].tolist() == [*range(n)]
    assert ds.obs_names.tolist() == [str(i) for i in range(n)]
    assert report.duplicates_summed == sum(len(c) - len({*c}) for c, _ in cells if c)


def test_names_without_a_vocabulary(tmp_path: Path) -> None:
    lists = [["b", "a"], [], ["c"], None, ["a"]]
    values = [[1, 2], [], [3], None, [4]]
    for name, type_ in {
        "text": pa.list_(pa.string()),
        "labels": pa.list_(pa.dictionary(pa.int8(), pa.string())),
    }.items():
        table = pa.table({"names": pa.array(lists, type_), "counts": values, "n": range(5)})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
        save_to_disk(tmp_path / f"{name}.dir", table)
        for source in (tmp_path / f"{name}.parquet", tmp_path / f"{name}.dir"):
            scdl.convert(source, tmp_path / "out", replace=True)
            ds = scdl.open(tmp_path / "out")
            assert ds.var_names.tolist() == ["a", "b", "c"]
            expected = [[2, 1, 0], [0, 0, 0], [0, 0, 3], [0, 0, 0], [4, 0, 0]]
            np.testing.assert_array_equal(ds.read_rows(slice(None)).to_dense(), expected)
            assert ds.obs["n"].tolist() == [*range(5)]


def by_id(**more: int) -> dict[str, int]:
    return {**dict(zip(GENES, IDS, strict=True)), **more}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.json", json.dumps(by_id(**{"<pad>": 0, "<cls>": 1}))),
        ("v.json", json.dumps([{"id": i, "name": n} for n, i in by_id().items()])),
        ("v.jsonl", "\n".join(json.dumps({"id": i, "n": n}) for n, i in by_id().items()) + "\n"),
        ("v.csv", "name,id\n" + "".join(f"{n},{i}\n" for n, i in by_id().items())),
        ("v.tsv", "id\tname\n" + "".join(f"{i}\t{n}\n" for n, i in by_id().items())),
        ("v.txt", "".join(f"{dict(zip(IDS, GENES, strict=True)).get(i, '<none>')}\n"
                          for i in range(13))),
    ],
)  # fmt: skip
def test_vocabularies(tmp_path: Path, name: str, content: str) -> None:
    table = some_cells(9)
    pq.write_table(table, tmp_path / "cells.parquet")
    (tmp_path / name).write_text(content, encoding="utf-8")
    scdl.convert(tmp_path / "cells.parquet", tmp_path / "a", vocabulary=tmp_path / name)
    check(tmp_path / "a", table)


def test_vocabularies_in_memory_and_with_large_ids(tmp_path: Path) -> None:
    table = some_cells(9)
    pq.write_table(table, tmp_path / "cells.parquet")
    scdl.convert(tmp_path / "cells.parquet", tmp_path / "a", vocabulary=by_id())
    check(tmp_path / "a", table)
    names = [dict(zip(IDS, GENES, strict=True)).get(i, "<none>") for i in range(13)]
    scdl.convert(tmp_path / "cells.parquet", tmp_path / "b", vocabulary=names)
    check(tmp_path / "b", table)
    large = {name: (1 << 62) + number for name, number in by_id().items()}
    lists = [[(1 << 62) + i for i in cell] + [5] for cell in table["genes"].to_pylist()]
    values = [[*cell, 9.0] for cell in table["expressions"].to_pylist()]
    more = table.drop_columns(["genes", "expressions"])
    for type_ in (pa.int64(), pa.uint64()):
        more = more.select(["drug", "plate"]).append_column(
            "genes", pa.array(lists, pa.list_(type_))
        )
        more = more.append_column("values", pa.array(values, pa.list_(pa.float32())))
        pq.write_table(more, tmp_path / "large.parquet")
        report = scdl.convert(
            tmp_path / "large.parquet", tmp_path / "c", vocabulary=large, unknown_genes="drop",
            replace=True,
        )  # fmt: skip
        check(tmp_path / "c", table)
        assert report.not_carried[0].startswith("9 values of ids")


def test_columns_that_decide_what_genes_are_called(tmp_path: Path, vocabulary: Path) -> None:
    table = some_cells(9)
    pq.write_table(table, tmp_path / "cells.parquet")
    source = tmp_path / "cells.parquet"
    scdl.convert(source, tmp_path / "a", vocabulary=vocabulary, var_names="ensembl_id")
    ds = scdl.open(tmp_path / "a")
    assert ds.var["gene_symbol"].tolist() == NAMES
    assert ds.var_names[0].startswith("ENSG")
    two = pq.read_table(vocabulary).append_column("length", pa.array([5] * 5))
    pq.write_table(two, vocabulary)
    with pytest.raises(OptionError, match="choose one with vocabulary_ids=: token_id, length"):
        scdl.convert(source, tmp_path / "b", vocabulary=vocabulary)
    with pytest.raises(GeneError, match="the id 5 stands for several genes"):
        scdl.convert(source, tmp_path / "b", vocabulary=vocabulary, vocabulary_ids="length")
    scdl.convert(source, tmp_path / "b", vocabulary=vocabulary, vocabulary_ids="token_id")
    check(tmp_path / "b", table)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("v.txt", None, GeneListNotFoundError, "does not exist"),
        ("v.txt", "", GeneError, "there is no gene"),
        ("v.txt", "a\n\nb\n", GeneError, "expected a name for each gene"),
        ("v.txt", "a\nb\n", SourceError, r"row 1 has the id 4 in genes, which is not in the voc"),
        ("v.csv", "gene\na\nb\n", OptionError, "the first line may be a heading"),
        ("v.csv", "0,a\n1,b\n", GeneError, "expected names of columns in its first line, found"),
        ("v.csv", "gene,id\na,1\nb\n", SourceError, "v.csv: the file cannot be read"),
        ("v.json", "{", GeneError, "expected UTF-8 text of genes"),
        ("v.json", '{"a": "b"}', GeneError, "expected an id for each gene, found 'a': 'b'"),
        ("v.json", '{"a": -1}', GeneError, "expected an id for each gene, found 'a': -1"),
        ("v.json", '{"a": 1, "b": 1}', GeneError, "the id 1 stands for several genes"),
        ("v.json", "3", GeneError, "expected a name for each gene"),
        ("v.pkl", "x", OptionError, "a pickle can run any code"),
        ("v.parquet", "PAR1 not", SourceError, "v.parquet: the file cannot be read"),
    ],
)
def test_vocabularies_that_do_not_fit(
    tmp_path: Path, name: str, content: str | None, error: type[Exception], message: str
) -> None:
    pq.write_table(some_cells(9), tmp_path / "cells.pq")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        scdl.convert(tmp_path / "cells.pq", tmp_path / "a", vocabulary=tmp_path / name)
    assert not (tmp_path / "a").exists()


def test_columns_of_obs(tmp_path: Path, vocabulary: Path) -> None:
    """Their types, the index of pandas, and those that archives do not store."""
    table = some_cells(6)
    frame = table.drop_columns(["drug"]).to_pandas().set_index("BARCODE_SUB_LIB_ID")
    frame["coded"] = pd.Categorical([*"abba", None, "c"], categories=[*"cabd"], ordered=True)
    frame["when"] = pd.Timestamp("2025-01-01")
    frame["flag"] = [True, False] * 3
    frame["nothing"] = None
    frame["some"] = pd.array([1, None, 3, 4, 5, 6], "Int64")
    frame["matrix"] = [[1.0, 2.0]] * 6
    frame.to_parquet(tmp_path / "cells.parquet", row_group_size=2)
    report = scdl.convert(
        tmp_path / "cells.parquet", tmp_path / "a", vocabulary=vocabulary, gene_values="expressions"
    )
    ds = check(tmp_path / "a", table, columns=["plate"])
    assert report.not_carried == ("obs/when", "obs/nothing", "obs/matrix")
    assert ds.obs_names.tolist() == table["BARCODE_SUB_LIB_ID"].to_pylist()
    coded = ds.obs["coded"]
    assert coded.astype(object).where(coded.notna(), None).tolist() == [*"abba", None, "c"]
    assert coded.dtype == frame["coded"].dtype
    assert ds.obs["flag"].tolist() == [True, False] * 3
    assert ds.obs["some"].isna().tolist() == [False, True, *[False] * 4]


def test_categories_differ_among_parts(tmp_path: Path, vocabulary: Path) -> None:
    table = some_cells(9).drop_columns(["drug"])
    labels = [*"abcabdaxa"]
    parts = []
    for start in range(0, 9, 3):
        column = pa.array(labels[start : start + 3]).dictionary_encode()
        parts.append(table.slice(start, 3).append_column("drug", column))
    directory = tmp_path / "flat"
    directory.mkdir()
    for i, part in enumerate(parts):
        pq.write_table(part, directory / f"{i}.parquet")
    whole = table.append_column("drug", pa.array(labels))
    save_to_disk(tmp_path / "saved", *parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar_obs, "ROWS_AT_ONCE", 2)
        for source in (directory, tmp_path / "saved"):
            scdl.convert(source, tmp_path / "a", vocabulary=vocabulary, replace=True)
            ds = check(tmp_path / "a", whole)
            assert ds.obs["drug"].cat.categories.tolist() == ["a", "b", "c", "d", "x"]
            assert not ds.obs["drug"].cat.ordered


def test_directories_that_name_values(tmp_path: Path, vocabulary: Path) -> None:
    root, tables = tmp_path / "in", []
    for name in ("drug=b/plate=2", "drug=a%20b/plate=1", "drug=__HIVE_DEFAULT_PARTITION__/plate=1"):
        tables.append(some_cells(4, len(tables)).drop_columns(["drug", "plate"]))
        (root / name).mkdir(parents=True)
        pq.write_table(tables[-1], root / name / "0.parquet")
    (root / "_SUCCESS").write_text("")
    assert pq.read_table(root).num_rows == 12
    scdl.convert(root, tmp_path / "a", vocabulary=vocabulary)
    order = [2, 1, 0]
    ds = check(tmp_path / "a", pa.concat_tables([tables[i] for i in order]), columns=[])
    assert ds.obs["plate"].tolist() == ["1"] * 8 + ["2"] * 4
    assert ds.obs["drug"].tolist()[4:] == ["a b"] * 4 + ["b"] * 4
    assert ds.obs["drug"].isna().tolist() == [True] * 4 + [False] * 8


def test_files_whose_types_differ(tmp_path: Path, vocabulary: Path) -> None:
    (tmp_path / "in").mkdir()
    one, two = some_cells(3), some_cells(4, 1)
    pq.write_table(one, tmp_path / "in" / "a.parquet")
    wide = pa.large_list(pa.float64())
    other = two.set_column(1, "expressions", two["expressions"].cast(wide))
    other = other.set_column(4, "plate", two["plate"].cast(pa.int64()))
    other = other.set_column(2, "drug", pa.nulls(4)).append_column("more", pa.array([0.5] * 4))
    pq.write_table(other, tmp_path / "in" / "b.parquet")
    scdl.convert(tmp_path / "in", tmp_path / "a", vocabulary=vocabulary)
    whole = pa.concat_tables([one, two])
    ds = check(tmp_path / "a", whole, columns=["plate"])
    assert ds.obs["drug"].tolist()[:3] == one["drug"].to_pylist()
    assert ds.obs["drug"].isna().sum() == 4
    assert ds.obs["more"].isna().tolist() == [True] * 3 + [False] * 4
    bad = two.set_column(4, "plate", pa.array(["x"] * 4))
    pq.write_table(bad, tmp_path / "in" / "c.parquet")
    with pytest.raises(
        SourceError, match=r"'plate' has types without a common one: int16 in .*a\."
    ):
        scdl.convert(tmp_path / "in", tmp_path / "b", vocabulary=vocabulary)
    # One by one, they become text, as in other conversions of several sources.
    files = [tmp_path / "in" / f"{name}.parquet" for name in "abc"]
    with pytest.warns(UserWarning, match="plate"):
        scdl.convert(files, tmp_path / "b", vocabulary=vocabulary)
    assert len(scdl.open(tmp_path / "b")) == 11


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"expressions": [[1.0], [], [2.0, 3.0]]}, "row 1 has 1 genes and 0 expressions"),
        ({"expressions": [[1.0], None, [2.0, 3.0]]}, "row 1 has 1 genes and 0 expressions"),
        ({"expressions": [[1.0], [1.0], [2.0, None]]}, "row 2 has a missing value in expressions"),
        ({"genes": [[3], [None], [4, 5]]}, "row 1 has a missing value in genes"),
        ({"genes": [[3], [4], [4, -1]]}, "row 2 has the id -1 in genes"),
        ({"genes": [[3], [1 << 40], [4, 5]]}, "row 1 has the id 1099511627776"),
        ({"genes": None}, "expected a column of lists of genes .*, found expressions"),
        ({"expressions": None}, "and one of lists of their values .*found genes"),
        (
            {"expressions": [["a"], ["b"], ["c", "d"]]},
            "row 0 has the id a in expressions",
        ),
        ({"more": [[1], [1], [2, 3]]}, "several columns could hold the genes .*: genes .*more"),
    ],
)
def test_lists_that_do_not_fit(
    tmp_path: Path, vocabulary: Path, changed: dict[str, Any], message: str
) -> None:
    columns = {"genes": [[3], [4], [4, 5]], "expressions": [[1.0], [1.0], [2.0, 3.0]]}
    columns = {name: value for name, value in {**columns, **changed}.items() if value is not None}
    pq.write_table(pa.table(columns), tmp_path / "cells.parquet")
    with pytest.raises((SourceError, OptionError), match=message) as raised:
        scdl.convert(tmp_path / "cells.parquet", tmp_path / "a", vocabulary=vocabulary)
    assert "cells.parquet" in str(raised.value)
    assert not (tmp_path / "a").exists()


def test_options_that_do_not_fit(tmp_path: Path, vocabulary: Path) -> None:
    source = tmp_path / "cells.parquet"
    pq.write_table(some_cells(9, marker=True), source)
    for options, error, message in [
        ({}, OptionError, "numbers of genes, not their names; .*vocabulary="),
        ({"gene_ids": "drug"}, OptionError, r"not a column of lists; there are: genes \(list<"),
        ({"vocabulary_ids": "x"}, OptionError, "not one of its columns: gene_symbol, ensembl_id"),
        ({"vocabulary_ids": "ensembl_id"}, OptionError, "but the lists hold integers"),
        ({"var_names": "x"}, OptionError, "var_names='x' is not one of its columns"),
        ({"obs_names": "genes"}, OptionError, "could name cells; there are: drug, BARCODE_SUB_L"),
        ({"unknown_genes": "skip"}, OptionError, "must be 'error' or 'drop', not 'skip'"),
        ({"matrix": "raw/X"}, SourceError, "there is no matrix raw/X"),
        ({"genome": "x"}, OptionError, "but this is Parquet or Arrow"),
    ]:
        if options:
            options = {"vocabulary": vocabulary, **options}
        with pytest.raises(error, match=message):
            scdl.convert(source, tmp_path / "a", **options)
    bad = some_cells(9).set_column(1, "expressions", pa.array([[-1.0]] * 9))
    bad = bad.set_column(0, "genes", pa.array([[3]] * 9))
    pq.write_table(bad, source)
    with pytest.raises(CastError, match="uint16"):
        scdl.convert(source, tmp_path / "a", vocabulary=vocabulary, data_dtype="u2")
    assert not (tmp_path / "a").exists()
    assert not scdl.convert(source, tmp_path / "a", vocabulary=vocabulary).is_counts


@pytest.mark.parametrize("saved", [False, True])
def test_files_that_are_damaged(tmp_path: Path, vocabulary: Path, saved: bool) -> None:
    """Wherever a file is cut, or a byte changed: the same cells, or a sentence that names it."""
    table = some_cells(40)
    if saved:
        path = save_to_disk(tmp_path / "in", table, rows=8) / "data-00000-of-00001.arrow"
    else:
        path = tmp_path / "cells.parquet"
        pq.write_table(table, path, row_group_size=8, write_page_checksum=True)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    cuts = [0, 1, 8, len(whole) - 8, len(whole) - 1, *rng.integers(0, len(whole), 15).tolist()]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ScdlError, match=path.name):
            scdl.convert(path, tmp_path / "a", vocabulary=vocabulary)
        assert not (tmp_path / "a").exists()
    for at in rng.integers(0, len(whole), examples(150)).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        with suppress(ScdlError):
            scdl.convert(path, tmp_path / "a", vocabulary=vocabulary, replace=True)
    path.write_bytes(whole)
    scdl.convert(path, tmp_path / "a", vocabulary=vocabulary, replace=True)
    check(tmp_path / "a", table)


def test_a_stream_cut_between_batches(tmp_path: Path, vocabulary: Path) -> None:
    """Arrow itself takes it for a shorter one."""
    table = some_cells(9)
    directory = save_to_disk(tmp_path / "in", table, rows=3)
    path = directory / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert pa.ipc.open_stream(path.read_bytes()).read_all().num_rows == 9
    with pytest.raises(SourceError, match="cut short: the mark of its end is missing"):
        scdl.convert(directory, tmp_path / "a", vocabulary=vocabulary)


def test_data_sets_that_are_selections(tmp_path: Path, vocabulary: Path) -> None:
    directory = save_to_disk(tmp_path / "in", some_cells(3))
    state = json.loads((directory / "state.json").read_text())
    for change in ({"_indices_data_files": [{"filename": "i"}]}, {"_data_files": []},
                   {"_data_files": [{"filename": "../x.arrow"}]}, {"_data_files": 3}):  # fmt: skip
        (directory / "state.json").write_text(json.dumps({**state, **change}))
        with pytest.raises(SourceError, match=r"state\.json"):
            scdl.convert(directory, tmp_path / "a", vocabulary=vocabulary)
    missing = {"_data_files": [{"filename": "missing.arrow"}]}
    (directory / "state.json").write_text(json.dumps(missing))
    with pytest.raises(SourceError, match=r"missing\.arrow"):
        scdl.convert(directory, tmp_path / "a", vocabulary=vocabulary)


def test_one_file_of_arrow(tmp_path: Path, vocabulary: Path) -> None:
    table = some_cells(9)
    import pyarrow.feather

    pyarrow.feather.write_feather(table, str(tmp_path / "a.feather"), chunksize=2)
    directory = save_to_disk(tmp_path / "in", table)
    (directory / "data-00000-of-00001.arrow").rename(tmp_path / "b.arrow")
    for name in ("a.feather", "b.arrow"):
        scdl.convert(tmp_path / name, tmp_path / "out", vocabulary=vocabulary, replace=True)
        check(tmp_path / "out", table)


def test_directories_of_sources(tmp_path: Path, vocabulary: Path) -> None:
    """A directory of Parquet files is one source; those in archives, and tables, are none."""
    root, tables = tmp_path / "in", [some_cells(4, i) for i in range(4)]
    for name in ("flat", "mixed", "hive/plate=1", "hive/plate=2", ".hidden", "tables"):
        (root / name).mkdir(parents=True)
    for i in range(2):
        pq.write_table(tables[i], root / "flat" / f"{i}.parquet")
        pq.write_table(tables[i], root / "mixed" / f"{i}.parquet")
        pq.write_table(tables[i], root / "hive" / f"plate={i + 1}" / "0.parquet")
    pq.write_table(tables[0], root / ".hidden" / "x.parquet")
    pq.write_table(pa.table({"gene": ["a"]}), root / "tables" / "genes.parquet")
    (root / "loop").symlink_to(root)
    save_to_disk(root / "saved.data", tables[2], tables[3])
    options = {"vocabulary": vocabulary, "workers": 1}
    report = scdl.convert_directory(root, tmp_path / "out", **options)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["flat.scdl", "hive.scdl", "mixed.scdl", "saved.scdl"]
    assert len(report.archives) == 4
    check(tmp_path / "out" / "flat.scdl", pa.concat_tables(tables[:2]))
    check(tmp_path / "out" / "saved.scdl", pa.concat_tables(tables[2:]))
    # Archives have Parquet files, too.
    report = scdl.convert_directory(root / "flat", tmp_path / "one", **options)
    assert [*report.archives.values()] == [str(tmp_path / "one" / "flat.scdl")]
    report = scdl.convert_directory(root / "flat", tmp_path / "one", resume=True, **options)
    assert len(report.archives) == 1
    assert not report.reports
    scdl.convert(root / "flat", root / "a.scdl", vocabulary=vocabulary)
    scdl.convert(root / "flat", root / "a.zarr", vocabulary=vocabulary)
    # Beside other sources, each file is one.
    write_h5ad(root / "mixed" / "a.h5ad", random_cells(3, 2))
    with pytest.raises(ConversionFailedError, match=r"a\.h5ad: the option vocabulary is for Parq"):
        scdl.convert_directory(root, tmp_path / "again", **options)
    names = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert names == [
        "flat.scdl", "hive.scdl", "mixed_0.scdl", "mixed_1.scdl", "saved.scdl"
    ]  # fmt: skip


def test_directories_divided_among_workers(tmp_path: Path, vocabulary: Path) -> None:
    root = tmp_path / "in"
    (root / "a").mkdir(parents=True)
    table = some_cells(30, marker=True)
    pq.write_table(table, root / "a" / "0.parquet", row_group_size=5)
    options = {"vocabulary": vocabulary, "unknown_genes": "drop", "split_bytes": 100}
    report = scdl.convert_directory(
        root, tmp_path / "out", workers=2, use_processes=False, **options
    )
    check(tmp_path / "out" / "a.scdl", table)
    (converted,) = report.reports.values()
    assert converted.not_carried[0].startswith("30 values of ids")


def test_files_that_do_not_belong_together(tmp_path: Path, vocabulary: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(some_cells(4), tmp_path / "in" / "a.parquet")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "in" / "b.parquet")
    with pytest.raises(SourceError, match=r"b\.parquet: expected lists in a column 'genes', found"):
        scdl.convert(tmp_path / "in", tmp_path / "a", vocabulary=vocabulary)
    # The vocabulary may lie beside the cells.
    (tmp_path / "in" / "b.parquet").unlink()
    inside = write_vocabulary(tmp_path / "in" / "b.parquet")
    scdl.convert(tmp_path / "in", tmp_path / "a", vocabulary=inside)
    check(tmp_path / "a", some_cells(4))


def test_memory_does_not_grow_with_the_cells(tmp_path: Path) -> None:
    """Of one row group, too, which Arrow would read as a whole."""
    rng = np.random.default_rng(0)
    n = 20_000
    offsets = np.arange(0, n * 200 + 1, 200, dtype=np.int32)
    ids = pa.ListArray.from_arrays(offsets, np.tile(np.arange(200), n))
    values = pa.ListArray.from_arrays(offsets, rng.random(n * 200, np.float32))
    table = pa.table({"genes": ids, "expressions": values})
    options = {"vocabulary": [f"g{i}" for i in range(200)], "block_values": 1 << 16}
    for name, rows in {"few": n // 10, "many": n}.items():
        pq.write_table(
            table.slice(0, rows), tmp_path / name, n, use_dictionary=False, compression="NONE"
        )
    del table, ids, values
    scdl.convert(tmp_path / "few", tmp_path / "a", **options)
    pa.default_memory_pool().release_unused()
    with bounded(24):
        scdl.convert(tmp_path / "many", tmp_path / "b", **options)
    assert (tmp_path / "many").stat().st_size > 40e6
