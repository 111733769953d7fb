"""What BioNeMo-SCDL 0.1.3 gets wrong, one test each; here it must be right.

The reference is not needed: each test states what is right. test_compatibility.py is where the two
meet.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from places import GOLDEN
from reading import assert_same, row_of
from sources import Cells, Encoding, names, random_cells, write_h5ad

import scdl

CELLS = random_cells(9, 9, dtype="<u2", seed=1)


def convert(place: Path, name: str = "a", cells: Cells = CELLS, **parts: Any) -> Any:
    source = write_h5ad(place / f"{name}.h5ad", cells, **parts)
    return scdl.SingleCellMemMapDataset(place / name, source)


def test_cast_after_reopening_is_right_when_reopened_again(tmp_path: Path) -> None:
    convert(tmp_path)
    scdl.SingleCellMemMapDataset(tmp_path / "a").cast_data_to_dtype("uint16")
    assert_same(scdl.SingleCellMemMapDataset(tmp_path / "a"), CELLS.csr("u2"))


def test_concat_after_reopening_is_right_when_reopened_again(tmp_path: Path) -> None:
    convert(tmp_path, "a")
    convert(tmp_path, "b")
    ds = scdl.SingleCellMemMapDataset(tmp_path / "a")
    ds.concat(scdl.SingleCellMemMapDataset(tmp_path / "b"))
    ds.save()
    expected = sp.csr_array(sp.vstack([CELLS.csr(), CELLS.csr()]))
    assert_same(scdl.SingleCellMemMapDataset(tmp_path / "a"), expected)


def test_eleven_files_of_different_genes_keep_their_names_after_reloading(tmp_path: Path) -> None:
    members = []
    for i in range(11):
        var = pd.DataFrame({"feature_id": [f"file{i}-{j}" for j in range(3)]}, index=names("g", 3))
        members.append(convert(tmp_path, f"member{i}", random_cells(2, 3, seed=i), var=var))
    members[0].concat(members[1:])
    ds = scdl.SingleCellMemMapDataset(tmp_path / "member0")
    for row in range(22):
        (genes,) = ds.get_row(row, True, ["feature_id"])[1]
        assert genes.tolist() == [f"file{row // 2}-{j}" for j in range(3)]


def test_raw_comes_with_its_own_var(tmp_path: Path) -> None:
    raw_var = pd.DataFrame({"feature_id": [f"raw{j}" for j in range(12)]}, index=names("raw", 12))
    ds = convert(tmp_path, raw=(random_cells(9, 12), raw_var))
    assert ds.number_of_variables() == [12]
    assert ds.get_row(0, True, ["feature_id"])[1][0].tolist() == raw_var["feature_id"].tolist()


@pytest.mark.parametrize("layout", ["csc", "dense"])
def test_csc_and_dense_are_not_read_as_csr_or_refused(tmp_path: Path, layout: str) -> None:
    assert_same(convert(tmp_path, encoding=Encoding(layout)), CELLS.csr())


def test_csr_arrays_are_no_dense_arrays(tmp_path: Path) -> None:
    import anndata

    x = sp.csr_array(CELLS.csr())
    anndata.AnnData(x).write_h5ad(tmp_path / "a.h5ad")
    ds = scdl.SingleCellMemMapDataset(tmp_path / "a", tmp_path / "a.h5ad")
    assert_same(ds, CELLS.csr())


def test_a_square_csc_graph_is_not_transposed(tmp_path: Path) -> None:
    graph = random_cells(9, 9, density=0.3, seed=5)
    encoding = Encoding("csc")
    write_h5ad(tmp_path / "a.h5ad", CELLS, obsp={"next_cell_ids": graph}, obsp_encoding=encoding)
    ds = scdl.SingleCellMemMapDataset(tmp_path / "a", tmp_path / "a.h5ad", load_neighbors=True)
    for i in range(9):
        weights, neighbors = row_of(graph.csr(), i)
        assert ds.get_neighbor_indices_for_cell(i).tolist() == neighbors.tolist()
        assert ds.get_neighbor_weights_for_cell(i).tolist() == weights.tolist()


def test_concat_keeps_graphs_and_the_types_of_obs(tmp_path: Path) -> None:
    obs = pd.DataFrame(
        {"n": np.arange(9), "type": pd.Categorical(list("abcabcabc"), ordered=True)},
        index=names("cell", 9),
    )
    datasets = []
    for name in "ab":
        graph = random_cells(9, 9, density=0.3, seed=ord(name))
        source = write_h5ad(
            tmp_path / f"{name}.h5ad", CELLS, obs=obs, obsp={"next_cell_ids": graph}
        )
        datasets.append(scdl.SingleCellMemMapDataset(tmp_path / name, source, load_neighbors=True))
    datasets[0].concat(datasets[1])
    ds = scdl.SingleCellMemMapDataset(tmp_path / "a", load_neighbors=True)
    assert ds.obs["n"].dtype == np.int64
    assert ds.obs["type"].dtype == obs["type"].dtype
    second = random_cells(9, 9, density=0.3, seed=ord("b")).csr()
    for i in range(9):
        neighbors = ds.get_neighbor_indices_for_cell(9 + i)
        assert neighbors.tolist() == (row_of(second, i)[1] + 9).tolist()


def test_names_stay_where_there_are_columns(tmp_path: Path) -> None:
    obs = pd.DataFrame({"age": range(9)}, index=names("cell", 9))
    var = pd.DataFrame({"length": range(9)}, index=names("gene", 9))
    ds = convert(tmp_path, obs=obs, var=var)
    assert list(ds.obs_names) == obs.index.tolist()
    assert list(ds.var_names) == var.index.tolist()


def test_negative_rows_are_no_empty_rows(tmp_path: Path) -> None:
    ds = convert(tmp_path)
    values, columns = row_of(CELLS.csr(), 8)
    for last in (-1, np.int64(-1), np.int8(8)):
        (found, ids), _ = ds.get_row(last)
        assert (found.tolist(), ids.tolist()) == (values.tolist(), columns.tolist())
    for row in (9, -10, np.int64(9)):
        with pytest.raises(IndexError):
            ds.get_row(row)
    for rows in (slice(2, 5), [2, 3, 4], np.arange(9) // 3 == 1):
        assert len(ds.read_rows(rows)) == 3


def test_a_column_of_an_unsorted_row(tmp_path: Path) -> None:
    unsorted = random_cells(9, 9, density=0.9, is_sorted=False)
    ds = convert(tmp_path, cells=unsorted)
    for i in range(9):
        for j in range(9):
            assert ds.get_row_column(i, j) == unsorted.csr()[i, j]
    assert all((np.diff(ds.get_row(i)[0][1].astype(int)) > 0).all() for i in range(9))


def test_a_column_of_an_unsorted_row_of_the_reference() -> None:
    ds = scdl.open(GOLDEN / "pbmc68k_v013")
    dense = ds.read_rows([0]).to_dense()[0]
    assert [ds.get_row_column(0, j) for j in range(765)] == dense.tolist()


@pytest.mark.parametrize("value", [300.0, -1.0])
def test_overflow_and_negative_values_do_not_wrap(tmp_path: Path, value: float) -> None:
    cells = Cells(np.zeros(1, int), np.zeros(1, int), np.array([value], "f4"), (1, 1))
    source = write_h5ad(tmp_path / "a.h5ad", cells)
    with pytest.raises(scdl.errors.CastError):
        scdl.SingleCellMemMapDataset(tmp_path / "a", source, data_dtype="uint8")
    ds = scdl.SingleCellMemMapDataset(tmp_path / "a", source)
    with pytest.raises(scdl.errors.CastError):
        ds.cast_data_to_dtype("uint8")
    assert ds.data.tolist() == [value]


def test_batches_are_as_wide_as_there_are_genes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    cells = Cells(np.array([0, 1]), np.array([0, 2]), np.ones(2, "f4"), (2, 50))
    graph = random_cells(2, 2, density=1.0)
    source = write_h5ad(tmp_path / "a.h5ad", cells, obsp={"next_cell_ids": graph})
    ds = scdl.SingleCellMemMapDataset(tmp_path / "a", source, load_neighbors=True)
    assert tuple(scdl.collate_sparse_matrix_batch([ds[0], ds[1]]).shape) == (2, 50)
    pairs = [ds.get_row_with_neighbor(i) for i in (0, 1)]
    batch = scdl.collate_neighbor_sparse_matrix_batch(pairs)
    assert tuple(batch["current_cells"].shape) == tuple(batch["next_cells"].shape) == (2, 50)
    assert ds.read_rows([0]).to_scipy().shape == (1, 50)


def test_pickles_do_not_hold_the_data(tmp_path: Path) -> None:
    cells = random_cells(3_000, 50, density=0.5)
    ds = convert(tmp_path, cells=cells)
    assert (tmp_path / "a" / "data.npy").stat().st_size > 100_000
    assert len(pickle.dumps(ds)) < 10_000


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    for place, n in (("one", 3), ("two", 4)):
        (tmp_path / place).mkdir()
        write_h5ad(tmp_path / place / "same.h5ad", random_cells(n, 5, seed=n))
    scdl.convert([tmp_path / "one/same.h5ad", tmp_path / "two/same.h5ad"], tmp_path / "joined")
    expected = sp.vstack([random_cells(n, 5, seed=n).csr() for n in (3, 4)])
    assert_same(scdl.open(tmp_path / "joined"), sp.csr_array(expected))


def test_the_order_of_arguments_of_0_1_3_is_not_taken_for_another(tmp_path: Path) -> None:
    convert(tmp_path)
    given = ("feature_id", "obs_feature_id", True)
    with pytest.raises(scdl.errors.OptionError, match="obs_feature_index_name"):
        scdl.SingleCellMemMapDataset(
            tmp_path / "a", None, None, None, "r+", 10_000, 1_000_000, *given
        )


def test_rows_cannot_edit_the_archive(tmp_path: Path) -> None:
    ds = convert(tmp_path)
    (values, _), _ = ds.get_row(0)
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 99
    assert_same(scdl.open(tmp_path / "a"), CELLS.csr())


def test_opening_opens_no_file_for_writing(tmp_path: Path, run_python: Any) -> None:
    convert(tmp_path)
    code = """
import os, sys
opened = []
flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
sys.addaudithook(lambda event, args: event == "open" and opened.append(args))
import scdl
ds = scdl.SingleCellMemMapDataset("a")
ds.get_row(0, return_features=True); ds.read_rows([1, 0]); ds.obs
ours = [args for args in opened if os.path.abspath("a") in os.path.abspath(str(args[0]))]
assert ours
print([args for args in ours if args[2] & flags])
"""
    done = run_python("-c", code)
    assert done.stdout == "[]\n", done.stderr


def test_a_failed_conversion_does_not_block_the_retry(tmp_path: Path) -> None:
    source = write_h5ad(tmp_path / "a.h5ad", CELLS)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(scdl.errors.SourceError):
        scdl.SingleCellMemMapDataset(tmp_path / "a", source)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]
    source.write_bytes(whole)
    assert_same(scdl.SingleCellMemMapDataset(tmp_path / "a", source), CELLS.csr())


@pytest.mark.parametrize("shape", [(5, 4), (0, 4)])
def test_nothing_stored_and_no_cells(tmp_path: Path, shape: tuple[int, int]) -> None:
    assert_same(
        convert(tmp_path, cells=random_cells(*shape, density=0)), sp.csr_array(shape, dtype="f4")
    )
