"""The documented names do what users of BioNeMo-SCDL expect: every test runs on both packages.

Where the two differ on purpose, docs/migrate.md says so, and test_reference_faults.py holds what is
right.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from reading import row_of
from sources import Cells, names, random_cells, write_h5ad

import scdl

torch = pytest.importorskip("torch")

pytestmark = [
    # What the reference warns of is its own affair.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:bionemo"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

N_OBS, N_VARS = 9, 6
#: Sorted rows, some of them empty, each gene once.
CELLS = random_cells(N_OBS, N_VARS, density=0.4, seed=8, dtype="<f4")
GRAPH = random_cells(N_OBS, N_OBS, density=0.3, seed=2)
OBS = pd.DataFrame(
    {"donor": [f"d{i % 3}" for i in range(N_OBS)], "age": np.arange(N_OBS)},
    index=names("cell", N_OBS),
)
VAR = pd.DataFrame(
    {"symbol": [f"S{j}" for j in range(N_VARS)], "length": np.arange(N_VARS) * 10},
    index=names("gene", N_VARS),
)
DENSE = CELLS.csr().toarray()


def of_reference() -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        io = pytest.importorskip("bionemo.scdl.io.single_cell_memmap_dataset")
        collection = pytest.importorskip("bionemo.scdl.io.single_cell_collection")
        util = pytest.importorskip("bionemo.scdl.util.torch_dataloader_utils")
    return SimpleNamespace(
        SingleCellMemMapDataset=io.SingleCellMemMapDataset,
        NeighborSamplingStrategy=io.NeighborSamplingStrategy,
        SingleCellCollection=collection.SingleCellCollection,
        collate_sparse_matrix_batch=util.collate_sparse_matrix_batch,
        collate_neighbor_sparse_matrix_batch=util.collate_neighbor_sparse_matrix_batch,
    )


@pytest.fixture(params=["ours", "reference"])
def package(request: pytest.FixtureRequest) -> Any:
    return scdl if request.param == "ours" else of_reference()


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("names")
    return write_h5ad(place / "a.h5ad", CELLS, obs=OBS, var=VAR, obsp={"next_cell_ids": GRAPH})


@pytest.fixture
def make(package: Any, tmp_path: Path, h5ad: Path) -> Any:
    """Make an archive of a file, by default that of `h5ad`."""

    def make(name: str = "archive", source: Path = h5ad, **options: Any) -> Any:
        options = {"use_X_not_raw": True, **options}
        return package.SingleCellMemMapDataset(str(tmp_path / name), str(source), **options)

    return make


def write(path: Path, cells: Cells, **parts: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    return write_h5ad(path, cells, **parts)


class TestOneArchive:
    def test_numbers(self, make: Any) -> None:
        ds, nnz = make(), CELLS.csr().nnz
        assert len(ds) == ds.number_of_rows() == N_OBS
        assert ds.number_of_variables() == [N_VARS]
        assert ds.shape() == (N_OBS, [N_VARS])
        assert ds.number_of_values() == N_OBS * N_VARS
        assert ds.number_nonzero_values() == nnz
        assert ds.sparsity() == pytest.approx(1 - nnz / (N_OBS * N_VARS))
        assert isinstance(ds.version(), str)

    def test_saved_and_opened_again(self, package: Any, make: Any) -> None:
        made = make()
        assert made.save() is True
        ds = package.SingleCellMemMapDataset(made.data_path)
        matrix = CELLS.csr()
        np.testing.assert_array_equal(ds.row_index, matrix.indptr)
        np.testing.assert_array_equal(ds.col_index, matrix.indices)
        np.testing.assert_array_equal(ds.data, matrix.data)
        expected = {"data.npy": "float32", "col_ptr.npy": "uint8", "row_ptr.npy": "uint8"}
        assert {name: ds.dtypes[name] for name in expected} == expected
        assert ds.metadata == {"num_rows": N_OBS}
        assert Path(ds.header_path).read_bytes()[:4] == b"SCDL"

    def test_options_of_both_versions(self, package: Any, make: Any) -> None:
        path = make(paginated_load_cutoff=0, load_block_row_size=2, data_dtype_tolerance=1e-6)
        ds = package.SingleCellMemMapDataset(
            path.data_path,
            mode="r+",
            load_neighbors=True,
            neighbor_key="next_cell_ids",
            neighbor_sampling_strategy="first",
            fallback_to_identity=False,
        )
        assert ds.mode == "r+"
        assert ds.load_neighbors is True
        assert ds.neighbor_key == "next_cell_ids"
        assert ds.neighbor_sampling_strategy == "first"
        assert ds.fallback_to_identity is False
        np.testing.assert_array_equal(ds.data, CELLS.csr().data)

    def test_rows(self, make: Any) -> None:
        ds = make()
        for i in range(N_OBS):
            expected = [part.tolist() for part in row_of(CELLS.csr(), i)]
            (values, columns), *_ = ds.get_row(i)
            assert [values.tolist(), columns.tolist()] == expected
            assert ds[i].tolist() == expected
            assert ds.get_row_padded(i)[0].tolist() == DENSE[i].tolist()

    def test_single_values(self, make: Any) -> None:
        ds = make()
        for i in range(N_OBS):
            for j in range(N_VARS):
                stored = DENSE[i, j] != 0
                assert ds.get_row_column(i, j) == DENSE[i, j]
                found = ds.get_row_column(i, j, impute_missing_zeros=False)
                assert found == DENSE[i, j] if stored else found is None

    @pytest.mark.parametrize("method", ["get_row", "get_row_padded"])
    def test_features_as_0_1_3_asks_for_them(self, make: Any, method: str) -> None:
        get = getattr(make(), method)
        _, var, obs = get(
            4,
            return_var_features=True,
            var_feature_names=["symbol"],
            return_obs_features=True,
            obs_feature_names=["age", "donor"],
        )
        assert [column.tolist() for column in var] == [VAR["symbol"].tolist()]
        assert obs == [4, "d1"]
        _, var, obs = get(4, True, ["length"], True, ["donor"])
        assert ([column.tolist() for column in var], obs) == ([VAR["length"].tolist()], ["d1"])
        _, var, obs = get(4, return_var_features=True, return_obs_features=True)
        assert [column.tolist() for column in var] == [VAR[name].tolist() for name in VAR]
        assert obs == OBS.iloc[4].tolist()
        _, var, obs = get(4, return_var_features=True, return_obs_features=False)
        assert (len(var), obs) == (2, None)
        _, var, obs = get(4, return_var_features=False, obs_feature_names=["age"])
        assert var is obs is None
        with pytest.raises(ValueError, match="nope"):
            get(4, return_var_features=True, var_feature_names=["nope"])
        with pytest.raises(ValueError, match="nope"):
            get(4, return_obs_features=True, obs_feature_names=["nope"])

    def test_names_where_there_are_no_columns(self, make: Any, tmp_path: Path) -> None:
        ds = make(source=write(tmp_path / "bare.h5ad", random_cells(3, 2, density=0.9)))
        _, (genes,), (cell,) = ds.get_row(
            1,
            return_var_features=True,
            var_feature_names=["var_feature_id"],
            return_obs_features=True,
            obs_feature_names=["obs_feature_id"],
        )
        assert (genes.tolist(), cell) == (["gene0", "gene1"], "cell1")

    def test_raw(self, make: Any, tmp_path: Path) -> None:
        raw = random_cells(N_OBS, N_VARS, density=0.5, seed=3)
        source = write(tmp_path / "raw.h5ad", CELLS, var=VAR, raw=(raw, VAR))
        for use_x, cells in ((False, raw), (True, CELLS)):
            ds = make(f"raw{use_x}", source, use_X_not_raw=use_x)
            np.testing.assert_array_equal(ds.data, cells.csr().data)

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "float64"])
    def test_data_dtype(self, make: Any, tmp_path: Path, dtype: str) -> None:
        cells = random_cells(N_OBS, N_VARS, density=0.5, dtype="<u2")
        ds = make(source=write(tmp_path / "counts.h5ad", cells), data_dtype=dtype)
        assert ds.dtypes["data.npy"] == dtype
        np.testing.assert_array_equal(ds.data, cells.csr().data)

    def test_cast(self, package: Any, make: Any) -> None:
        ds = make()
        ds.cast_data_to_dtype("float64")
        again = package.SingleCellMemMapDataset(ds.data_path)
        assert again.dtypes["data.npy"] == "float64"
        np.testing.assert_array_equal(again.data, CELLS.csr().data)

    def test_what_is_there_is_not_made_again(self, make: Any) -> None:
        make()
        with pytest.raises(FileExistsError):
            make()

    def test_a_missing_source(self, make: Any, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"none\.h5ad"):
            make(source=tmp_path / "none.h5ad")


class TestFeatureIndexes:
    def test_of_one_block(self, make: Any) -> None:
        ds = make()
        for index, width in ((ds.var_features(), N_VARS), (ds.obs_features(), OBS.shape[1])):
            assert len(index) == 1
            assert index.number_of_rows() == N_OBS
            assert index.column_dims() == [width]
            assert index.number_of_values() == [N_OBS * width]
            assert [index.number_vars_at_row(i) for i in range(N_OBS)] == [width] * N_OBS
            assert isinstance(index.version(), str)
            with pytest.raises(IndexError):
                index.lookup(N_OBS)

    def test_of_several_blocks(self, package: Any, make: Any, tmp_path: Path) -> None:
        """What the reference reads from archives that we write, too."""
        ds = make("several")
        wide = pd.DataFrame({"symbol": list("abcdefg")}, index=names("gene", 7))
        other = random_cells(2, 7, density=0.9)
        source = write(tmp_path / "b.h5ad", other, obs=OBS[:2], var=wide)
        ds.concat(make("other", source))
        var, obs = ds.var_features(), ds.obs_features()
        assert len(var) == len(var.column_dims()) == 2
        assert var.column_dims() == ds.number_of_variables() == [N_VARS, 7]
        assert var.number_of_values() == [N_OBS * N_VARS, 2 * 7]
        assert [var.number_vars_at_row(i) for i in (0, N_OBS - 1, N_OBS)] == [N_VARS, N_VARS, 7]
        assert len(obs) == len(obs.column_dims()) == 1
        assert obs.number_of_values() == [(N_OBS + 2) * 2]
        assert [obs.number_vars_at_row(i) for i in (0, N_OBS)] == [2, 2]

    def test_lookup(self, make: Any, h5ad: Path) -> None:
        ds = make()
        columns, label = ds.var_features().lookup(3, select_features=["length"])
        assert [column.tolist() for column in columns] == [VAR["length"].tolist()]
        assert str(label) == str(h5ad)
        values, label = ds.obs_features().lookup(3, select_features=["age"])
        assert (values, str(label)) == ([3], str(h5ad))
        for index in (ds.var_features(), ds.obs_features()):
            assert index.lookup(0, select_features=[])[0] == []
            with pytest.raises(ValueError, match="nope"):
                index.lookup(0, select_features=["nope"])

    def test_obs_by_position(self, make: Any, h5ad: Path) -> None:
        obs = make().obs_features()
        for i in (0, 5, -1):
            values, label = obs[i]
            assert (values, str(label)) == (OBS.iloc[i].tolist(), str(h5ad))
        for rows in (slice(2, 5), slice(0, N_OBS, 2), slice(-2, None)):
            (found,), (label,) = obs[rows]
            assert str(label) == str(h5ad)
            assert {name: list(values) for name, values in found.items()} == {
                name: OBS[name].iloc[rows].tolist() for name in OBS
            }


class TestConcat:
    @pytest.mark.parametrize("extend_copy_size", [1, 10 * 1024 * 1024])
    def test_arrays(self, make: Any, extend_copy_size: int) -> None:
        first, second = make("first"), make("second")
        rows = np.append(first.row_index, second.row_index[1:] + len(first.data))
        columns, data = (np.append(first.col_index, second.col_index), np.tile(first.data, 2))
        first.concat(second, extend_copy_size)
        np.testing.assert_array_equal(first.row_index, rows)
        np.testing.assert_array_equal(first.col_index, columns)
        np.testing.assert_array_equal(first.data, data)
        assert first.number_of_rows() == 2 * N_OBS
        assert first.number_of_values() == 2 * N_OBS * N_VARS

    def test_a_list_or_one_by_one(self, make: Any) -> None:
        a, b, c, d = map(make, "abcd")
        a.concat(b)
        a.concat(c)
        d.concat([b, c])
        for one, other in ((a.data, d.data), (a.row_index, d.row_index), (a.dtypes, d.dtypes)):
            np.testing.assert_equal(one, other)

    def test_nothing(self, make: Any) -> None:
        ds = make()
        ds.concat([])
        np.testing.assert_array_equal(ds.data, CELLS.csr().data)

    def test_offsets_grow(self, make: Any, tmp_path: Path) -> None:
        cells = random_cells(40, 5, density=0.9)
        assert 128 < cells.csr().nnz < 256
        source = write(tmp_path / "many.h5ad", cells)
        ds = make("a", source)
        assert ds.dtypes["row_ptr.npy"] == "uint8"
        ds.concat(make("b", source))
        assert ds.dtypes["row_ptr.npy"] == "uint16"
        assert ds.row_index[-1] == 2 * cells.csr().nnz


class TestCollection:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        for i in range(3):
            var = pd.DataFrame({"symbol": list("abcde")[: i + 2]}, index=names("g", i + 2))
            path = tmp_path / "h5ad" / f"{i}.h5ad"
            write(path, random_cells(4, i + 2, density=0.9, seed=i), obs=OBS[:4], var=var)
        return tmp_path / "h5ad"

    def test_empty(self, package: Any, tmp_path: Path) -> None:
        collection = package.SingleCellCollection(str(tmp_path / "none"))
        assert len(collection.fname_to_mmap) == 0
        assert collection.number_of_rows() == collection.number_of_values() == 0
        assert collection.number_of_variables() == [0]
        assert collection.number_nonzero_values() == 0
        assert collection.data_path == str(tmp_path / "none")

    def test_of_a_directory(self, package: Any, directory: Path, tmp_path: Path) -> None:
        collection = package.SingleCellCollection(str(tmp_path / "members"))
        collection.load_h5ad_multi(str(directory), max_workers=2, use_X_not_raw=True)
        assert sorted(map(str, collection.fname_to_mmap)) == [
            str(tmp_path / "members" / str(i)) for i in range(3)
        ]
        assert collection.shape() == (12, [2, 3, 4])
        assert collection.number_of_values() == 4 * (2 + 3 + 4)
        stored = [random_cells(4, i + 2, density=0.9, seed=i).csr() for i in range(3)]
        assert collection.number_nonzero_values() == sum(matrix.nnz for matrix in stored)
        assert 0 < collection.sparsity() < 1

        collection.flatten(str(tmp_path / "flat"))
        ds = package.SingleCellMemMapDataset(str(tmp_path / "flat"))
        assert ds.shape() == (12, [2, 3, 4])
        for row in range(12):
            values, columns = row_of(stored[row // 4], row % 4)
            assert ds[row].tolist() == [values.tolist(), columns.tolist()]
            _, (genes,), (donor,) = ds.get_row(row, True, ["symbol"], True, ["donor"])
            assert (genes.tolist(), donor) == (list("abcd")[: row // 4 + 2], f"d{row % 4 % 3}")

    def test_file_by_file(self, package: Any, directory: Path, tmp_path: Path) -> None:
        collection = package.SingleCellCollection(str(tmp_path / "members"))
        for i in (2, 0):
            collection.load_h5ad(str(directory / f"{i}.h5ad"), use_X_not_raw=True)
        assert collection.number_of_variables() == [4, 2]
        assert [len(ds) for ds in collection.fname_to_mmap.values()] == [4, 4]

    def test_no_files(self, package: Any, tmp_path: Path) -> None:
        (tmp_path / "nothing").mkdir()
        collection = package.SingleCellCollection(str(tmp_path / "members"))
        with pytest.raises(FileNotFoundError, match="nothing"):
            collection.load_h5ad_multi(str(tmp_path / "nothing"))

    def test_a_failing_file(self, package: Any, directory: Path, tmp_path: Path) -> None:
        (directory / "broken.h5ad").write_bytes(b"no HDF5")
        collection = package.SingleCellCollection(str(tmp_path / "members"))
        with pytest.raises(RuntimeError, match=r"broken\.h5ad"):
            collection.load_h5ad_multi(str(directory), use_X_not_raw=True)


class TestNeighbors:
    @pytest.fixture
    def ds(self, make: Any) -> Any:
        return make(load_neighbors=True, neighbor_key="next_cell_ids")

    def test_arrays(self, ds: Any) -> None:
        for i in range(N_OBS):
            weights, neighbors = row_of(GRAPH.csr(), i)
            assert ds.get_neighbor_indices_for_cell(i).tolist() == neighbors.tolist()
            assert ds.get_neighbor_weights_for_cell(i).tolist() == weights.tolist()
        for method in (ds.get_neighbor_indices_for_cell, ds.get_neighbor_weights_for_cell):
            with pytest.raises(IndexError):
                method(N_OBS)

    def test_sampling(self, package: Any, ds: Any, make: Any) -> None:
        counts = np.diff(GRAPH.csr().indptr)
        lonely, busy = int(counts.argmin()), int(counts.argmax())
        assert counts[lonely] == 0
        assert ds.sample_neighbor_index(lonely) == lonely
        found = {int(ds.sample_neighbor_index(busy)) for _ in range(300)}
        assert found == set(row_of(GRAPH.csr(), busy)[1].tolist())
        strategy = package.NeighborSamplingStrategy.FIRST
        first = make("first", load_neighbors=True, neighbor_sampling_strategy=strategy)
        assert first.sample_neighbor_index(busy) == row_of(GRAPH.csr(), busy)[1][0]

    def test_stats(self, ds: Any, make: Any) -> None:
        counts = np.diff(GRAPH.csr().indptr)
        stats = ds.get_neighbor_stats()
        assert stats == {
            "has_neighbors": True,
            "total_connections": counts.sum(),
            "min_neighbors_per_cell": counts.min(),
            "max_neighbors_per_cell": counts.max(),
            "avg_neighbors_per_cell": pytest.approx(counts.mean()),
            "cells_with_no_neighbors": (counts == 0).sum(),
        }
        kinds = {name: type(value) for name, value in stats.items()}
        assert kinds.pop("has_neighbors") is bool
        assert kinds.pop("avg_neighbors_per_cell") is float
        assert set(kinds.values()) == {int}
        assert make("without").get_neighbor_stats() == {"has_neighbors": False}

    @pytest.mark.parametrize("padded", [False, True])
    def test_sampling_of_ones_own(self, ds: Any, monkeypatch: Any, padded: bool) -> None:
        monkeypatch.setattr(ds, "sample_neighbor_index", lambda cell_index: 8 - cell_index)
        get = ds.get_row_padded_with_neighbor if padded else ds.get_row_with_neighbor
        one = ds.get_row_padded if padded else ds.get_row
        for i in range(N_OBS):
            pair = get(i)
            assert (pair["current_cell_index"], pair["next_cell_index"]) == (i, 8 - i)
            for name, row in (("current_cell", i), ("next_cell", 8 - i)):
                np.testing.assert_equal(pair[name], one(row)[0])

    @pytest.mark.parametrize("padded", [False, True])
    def test_features(self, ds: Any, padded: bool) -> None:
        get = ds.get_row_padded_with_neighbor if padded else ds.get_row_with_neighbor
        pair = get(
            2,
            return_var_features=True,
            var_feature_names=["symbol"],
            return_obs_features=True,
            obs_feature_names=["age"],
        )
        places = {"current_cell", "next_cell", "current_cell_index", "next_cell_index"}
        assert set(pair) == places | {"var_features", "obs_features"}
        assert [column.tolist() for column in pair["var_features"]] == [VAR["symbol"].tolist()]
        assert pair["obs_features"] == [2]
        pair = get(2, True, ["length"])
        assert [column.tolist() for column in pair["var_features"]] == [VAR["length"].tolist()]
        assert pair["obs_features"] is None
        pair = get(2)
        assert pair["var_features"] is pair["obs_features"] is None

    def test_use_without_a_graph(self, make: Any) -> None:
        ds = make()
        for method in (ds.get_row_with_neighbor, ds.get_row_padded_with_neighbor):
            with pytest.raises(ValueError, match="neighbo"):
                method(0)


class TestTorch:
    def test_is_a_dataset(self, make: Any) -> None:
        ds = make()
        assert isinstance(ds, torch.utils.data.Dataset)
        assert issubclass(type(ds), torch.utils.data.Dataset)

    def test_sum_of_datasets(self, package: Any, make: Any) -> None:
        a, b = make("a"), make("b")
        both = a + b
        assert isinstance(both, torch.utils.data.ConcatDataset)
        assert len(both) == 2 * N_OBS
        assert torch.equal(both[N_OBS + 4], b[4])
        (batch,) = torch.utils.data.DataLoader(
            a + b, batch_size=2 * N_OBS, collate_fn=package.collate_sparse_matrix_batch
        )
        np.testing.assert_array_equal(batch.to_dense(), np.concatenate([DENSE, DENSE]))

    def test_batches_of_one_without_collating(self, make: Any) -> None:
        for i, batch in enumerate(torch.utils.data.DataLoader(make(), batch_size=1)):
            expected = [part.tolist() for part in row_of(CELLS.csr(), i)]
            assert batch.tolist() == [expected]

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_batches(self, package: Any, make: Any, num_workers: int) -> None:
        loader = torch.utils.data.DataLoader(
            make(),
            batch_size=4,
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,
            collate_fn=package.collate_sparse_matrix_batch,
        )
        batches = list(loader)
        assert all(batch.layout == torch.sparse_csr for batch in batches)
        for start, batch in zip((0, 4, 8), batches, strict=True):
            dense, rows = batch.to_dense().numpy(), DENSE[start : start + 4]
            width = dense.shape[1]
            np.testing.assert_array_equal(dense, rows[:, :width])
            assert not rows[:, width:].any()

    def test_pairs(self, package: Any, make: Any) -> None:
        ds = make(load_neighbors=True, neighbor_sampling_strategy="first")

        class Pairs(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return len(ds)

            def __getitem__(self, i: int) -> Any:
                return ds.get_row_with_neighbor(i)

        (batch,) = torch.utils.data.DataLoader(
            Pairs(), batch_size=N_OBS, collate_fn=package.collate_neighbor_sparse_matrix_batch
        )
        following = [int(ds.sample_neighbor_index(i)) for i in range(N_OBS)]
        assert batch["batch_size"] == N_OBS
        assert batch["current_cell_indices"] == list(range(N_OBS))
        assert batch["next_cell_indices"] == following
        for name, rows in (("current_cells", range(N_OBS)), ("next_cells", following)):
            dense, expected = batch[name].to_dense().numpy(), DENSE[list(rows)]
            np.testing.assert_array_equal(dense, expected[:, : dense.shape[1]])

    def test_pickled(self, make: Any) -> None:
        ds = make()
        assert torch.equal(pickle.loads(pickle.dumps(ds))[4], ds[4])


def cell(values: list[float], columns: list[int], kind: str) -> Any:
    if kind == "tensor":
        return torch.tensor([values, columns])
    made = {"list": list, "array": np.array, "tensors": torch.tensor}[kind]
    return made(values), made(columns)


class TestCollating:
    @pytest.mark.parametrize("kind", ["list", "array", "tensors"])
    def test_pairs(self, package: Any, kind: str) -> None:
        rows = [([1.0, 2.0], [0, 1]), ([3.0], [2]), ([4.0, 5.0, 6.0], [1, 2, 3]), ([], [])]
        one, two, three, none = (cell(*row, kind) for row in rows)
        batch = package.collate_neighbor_sparse_matrix_batch(
            [
                {
                    "current_cell": one,
                    "next_cell": two,
                    "current_cell_index": 0,
                    "next_cell_index": 7,
                },
                {
                    "current_cell": three,
                    "next_cell": none,
                    "current_cell_index": np.int64(2),
                    "next_cell_index": np.uint32(3),
                },
            ]
        )
        assert set(batch) == {
            "current_cells",
            "next_cells",
            "current_cell_indices",
            "next_cell_indices",
            "batch_size",
        }
        assert batch["current_cell_indices"] == [0, 2]
        assert batch["next_cell_indices"] == [7, 3]
        assert batch["batch_size"] == 2
        assert batch["current_cells"].is_sparse_csr
        assert batch["next_cells"].is_sparse_csr
        assert batch["current_cells"].to_dense().tolist() == [[1, 2, 0, 0], [0, 4, 5, 6]]
        assert batch["next_cells"].to_dense().tolist() == [[0, 0, 3], [0, 0, 0]]
        if kind == "list":
            assert batch["current_cells"].dtype == torch.get_default_dtype()

    def test_pairs_of_empty_cells(self, package: Any) -> None:
        pair = {"current_cell": ([], []), "next_cell": ([], [])}
        index = {"current_cell_index": 0, "next_cell_index": 1}
        batch = package.collate_neighbor_sparse_matrix_batch([pair | index] * 2)
        assert batch["current_cells"].shape == batch["next_cells"].shape == (2, 0)

    @pytest.mark.parametrize("number", [int, float])
    def test_cells(self, package: Any, number: type) -> None:
        rows = [([1, 2, 3], [2, 3, 5]), ([4, 5, 6, 7], [1, 2, 5, 6]), ([], [])]
        cells = [cell(list(map(number, values)), columns, "tensor") for values, columns in rows]
        batch = package.collate_sparse_matrix_batch(cells)
        dense = [[0, 0, 1, 2, 0, 3, 0], [0, 4, 5, 0, 0, 6, 7], [0] * 7]
        assert batch.to_dense().tolist() == dense

    def test_empty_cells(self, package: Any) -> None:
        empty = cell([], [], "tensor")
        assert package.collate_sparse_matrix_batch([empty, empty]).shape == (2, 0)
