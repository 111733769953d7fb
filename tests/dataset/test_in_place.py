"""cast_data_to_dtype, concat and save: right after reopening, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from headers import header_bytes, header_of
from places import GOLDEN
from reading import assert_rows, assert_same, row_of
from sources import Cells, names, random_cells, write_h5ad

import scdl
from scdl.errors import BackendOptionError, CollectionError


def make(
    place: Path,
    name: str,
    n_obs: int,
    n_vars: int,
    *,
    seed: int = 0,
    dtype: str = "float32",
    options: dict[str, Any] | None = None,
) -> Any:
    """An archive of whole positive numbers, with names, obs, a graph and vectors."""
    obs = pd.DataFrame(
        {"type": pd.Categorical((["B", name] * n_obs)[:n_obs]), "age": np.arange(n_obs)},
        index=names(f"{name}-", n_obs),
    )
    var = pd.DataFrame({"symbol": [f"S{j}" for j in range(n_vars)]}, index=names("gene", n_vars))
    source = write_h5ad(
        place / f"{name}.h5ad",
        random_cells(n_obs, n_vars, seed=seed, dtype="<u2"),
        obs=obs,
        var=var,
        obsp={"next_cell_ids": random_cells(n_obs, n_obs, seed=seed + 1)},
        obsm={"X_pca": np.full((n_obs, 2), seed, "f4")},
    )
    return scdl.SingleCellDataset(
        place / name,
        source,
        load_neighbors=True,
        obsm=["X_pca"],
        data_dtype=dtype,
        **(options or {}),
    )


def cells(n_obs: int, n_vars: int, seed: int, dtype: str = "f4") -> sp.csr_array:
    return random_cells(n_obs, n_vars, seed=seed, dtype="<u2").csr(dtype)


def assert_graphs(ds: Any, *parts: tuple[int, int]) -> None:
    """The graphs of (n_obs, seed) archives, one after the other."""
    graphs = [random_cells(n, n, seed=seed + 1).csr() for n, seed in parts]
    expected = sp.csr_array(sp.block_diag(graphs))
    for i in range(expected.shape[0]):
        weights, neighbors = row_of(expected, i)
        np.testing.assert_array_equal(ds.get_neighbor_indices_for_cell(i), neighbors)
        np.testing.assert_array_equal(ds.get_neighbor_weights_for_cell(i), weights)


def listing(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


class TestCast:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "float16", "float64"])
    def test_here_and_after_reopening(self, tmp_path: Path, dtype: str) -> None:
        ds = make(tmp_path, "a", 9, 6)
        before = listing(tmp_path)
        ds.cast_data_to_dtype(dtype)
        assert listing(tmp_path) == before
        for opened in (ds, scdl.open(tmp_path / "a")):
            assert opened.dtypes["data.npy"] == opened.data.dtype == dtype
            np.testing.assert_array_equal(opened.data, cells(9, 6, 0).data)
            if dtype != "float16":  # which scipy has not
                assert_rows(opened, cells(9, 6, 0, dtype))
            assert opened.obs_names[3] == "a-3"
            assert opened.obs["age"].tolist() == list(range(9))
            assert opened.var["symbol"].tolist() == [f"S{j}" for j in range(6)]
            assert_graphs(opened, (9, 0))
            assert opened.read_rows([1], obsm=["X_pca"]).obsm["X_pca"].tolist() == [[0, 0]]

    def test_there_and_back(self, tmp_path: Path) -> None:
        ds = make(tmp_path, "a", 9, 6)
        for dtype in ("uint8", np.float64, np.dtype("u2"), "float32"):
            ds.cast_data_to_dtype(dtype)
        assert_same(scdl.open(tmp_path / "a"), cells(9, 6, 0))

    @pytest.mark.parametrize(("value", "dtype"), [(300, "uint8"), (-1, "uint16"), (0.5, "uint8")])
    def test_what_cannot_be_held_changes_nothing(
        self, tmp_path: Path, value: float, dtype: str
    ) -> None:
        x = sp.csr_array(np.array([[0, value], [1, 0]], "f4"))
        coo = x.tocoo()
        write_h5ad(tmp_path / "a.h5ad", Cells(coo.row, coo.col, coo.data, x.shape))
        ds = scdl.SingleCellMemMapDataset(tmp_path / "a", tmp_path / "a.h5ad")
        before = contents(tmp_path)
        with pytest.raises(scdl.errors.CastError, match=dtype):
            ds.cast_data_to_dtype(dtype)
        assert contents(tmp_path) == before
        assert_same(ds, x)

    def test_an_older_reader_keeps_reading(self, tmp_path: Path) -> None:
        ds = make(tmp_path, "a", 9, 6)
        older = scdl.open(tmp_path / "a")
        (values, columns), _ = older.get_row(0)
        kept = values.copy(), columns.copy()
        ds.cast_data_to_dtype("uint8")
        np.testing.assert_array_equal(values, kept[0])
        np.testing.assert_array_equal(columns, kept[1])
        np.testing.assert_array_equal(older.read_rows(slice(None)).data, cells(9, 6, 0).data)


def contents(place: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file()
    }


class TestConcat:
    def check(self, ds: Any, *parts: tuple[str, int, int]) -> None:
        """Archives by (name, n_obs, seed), of 6 genes each."""
        assert_same(ds, sp.csr_array(sp.vstack([cells(n, 6, seed) for _, n, seed in parts])))
        assert list(ds.obs_names) == [f"{name}-{i}" for name, n, _ in parts for i in range(n)]
        assert ds.obs["age"].tolist() == [i for _, n, _ in parts for i in range(n)]
        types = [kind for name, n, _ in parts for kind in (["B", name] * n)[:n]]
        assert ds.obs["type"].tolist() == types
        assert_graphs(ds, *((n, seed) for _, n, seed in parts))
        vectors = ds.read_rows(slice(None), obsm=["X_pca"]).obsm["X_pca"]
        assert vectors[:, 0].tolist() == [seed for _, n, seed in parts for _ in range(n)]
        assert ds.var["symbol"].tolist() == [f"S{j}" for j in range(6)]

    def test_one(self, tmp_path: Path) -> None:
        ds, other = make(tmp_path, "a", 5, 6, seed=1), make(tmp_path, "b", 7, 6, seed=2)
        before = listing(tmp_path)
        ds.concat(other)
        assert listing(tmp_path) == before
        for opened in (ds, scdl.open(tmp_path / "a")):
            self.check(opened, ("a", 5, 1), ("b", 7, 2))
        self.check(scdl.open(tmp_path / "b"), ("b", 7, 2))

    def test_a_list_and_again(self, tmp_path: Path) -> None:
        parts = [("a", 5, 1), ("b", 7, 2), ("c", 1, 3)]
        ds, *others = (make(tmp_path, name, n, 6, seed=seed) for name, n, seed in parts)
        ds.concat(other for other in others)
        ds.concat(make(tmp_path, "d", 2, 6, seed=9))
        self.check(scdl.open(tmp_path / "a"), *parts, ("d", 2, 9))

    @pytest.mark.parametrize("extend_copy_size", [1, 64, 10_485_760])
    def test_to_another_place(self, tmp_path: Path, extend_copy_size: int) -> None:
        ds, other = make(tmp_path, "a", 5, 6, seed=1), make(tmp_path, "b", 7, 6, seed=2)
        before = contents(tmp_path)
        ds.concat(other, extend_copy_size, output_path=tmp_path / "joined")
        self.check(scdl.open(tmp_path / "joined"), ("a", 5, 1), ("b", 7, 2))
        assert {k: v for k, v in contents(tmp_path).items() if not k.startswith("joined")} == before

    def test_with_itself(self, tmp_path: Path) -> None:
        ds = make(tmp_path, "a", 5, 6, seed=1)
        ds.concat(scdl.open(tmp_path / "a"))
        self.check(scdl.open(tmp_path / "a"), ("a", 5, 1), ("a", 5, 1))

    def test_destroy_on_copy(self, tmp_path: Path) -> None:
        ds, other = make(tmp_path, "a", 5, 6, seed=1), make(tmp_path, "b", 7, 6, seed=2)
        ds.concat(other, destroy_on_copy=True)
        assert not (tmp_path / "b").exists()
        self.check(scdl.open(tmp_path / "a"), ("a", 5, 1), ("b", 7, 2))

    def test_nothing_is_destroyed_where_it_fails(self, tmp_path: Path) -> None:
        ds = make(tmp_path, "a", 5, 6, seed=1)
        other = make(tmp_path, "b", 7, 6, seed=2, dtype="uint8")
        before = contents(tmp_path)
        with pytest.raises(ValueError, match="cast_data_to_dtype"):
            ds.concat(other, destroy_on_copy=True)
        assert contents(tmp_path) == before

    def test_destroying_itself_is_refused_or_harmless(self, tmp_path: Path) -> None:
        ds = make(tmp_path, "a", 5, 6, seed=1)
        try:
            ds.concat(scdl.open(tmp_path / "a"), destroy_on_copy=True)
        except ValueError:
            self.check(scdl.open(tmp_path / "a"), ("a", 5, 1))
        else:
            self.check(scdl.open(tmp_path / "a"), ("a", 5, 1), ("a", 5, 1))

    def test_names_of_cells(self, tmp_path: Path) -> None:
        ds, other = make(tmp_path, "a", 5, 6, seed=1), make(tmp_path, "b", 7, 6, seed=2)
        again = scdl.open(tmp_path / "a")
        with pytest.raises(CollectionError, match=r"'a-0' is in .*/a more than once"):
            ds.concat(again, cell_names="unique")
        assert ds.n_obs == 5
        ds.concat(other, output_path=tmp_path / "u", cell_names="unique")
        self.check(scdl.open(tmp_path / "u"), ("a", 5, 1), ("b", 7, 2))
        ds.concat(other, cell_names="prefix", destroy_on_copy=True)
        assert ds.obs_names[[0, 5]].tolist() == ["a-a-0", "b-b-0"]
        assert not (tmp_path / "b").exists()

    def test_another_backend(self, tmp_path: Path) -> None:
        ds, other = make(tmp_path, "a", 5, 6, seed=1), make(tmp_path, "b", 7, 6, seed=2)
        target = tmp_path / "joined"
        ds.concat(other, output_path=target, backend="zarr", compression="fast")
        self.check(scdl.open(target), ("a", 5, 1), ("b", 7, 2))
        assert scdl.open(target).store.options == {"compression": "fast"}
        with pytest.raises(BackendOptionError, match="compression"):
            ds.concat(other, output_path=tmp_path / "x", compression="fast")
        scdl.open(target).concat(other, backend="memmap")
        self.check(scdl.open(target), ("a", 5, 1), ("b", 7, 2), ("b", 7, 2))

    def test_what_is_no_dataset(self, tmp_path: Path) -> None:
        ds = make(tmp_path, "a", 5, 6, seed=1)
        make(tmp_path, "b", 7, 6, seed=2)
        for wrong in (str(tmp_path / "b"), scdl.SingleCellCollection([tmp_path / "b"]), None, 3):
            with pytest.raises(
                CollectionError, match=r"expected open archives.* flatten a collection"
            ):
                ds.concat(wrong)
        assert ds.n_obs == 5

    def test_different_genes(self, tmp_path: Path) -> None:
        sizes = [(2, n_vars) for n_vars in range(3, 15)]
        ds, *others = (make(tmp_path, f"n{i}", *size, seed=i) for i, size in enumerate(sizes))
        ds.concat(others)
        again = scdl.open(tmp_path / "n0")
        assert again.number_of_variables() == list(range(3, 15))
        for i, (_, n_vars) in enumerate(sizes):
            np.testing.assert_array_equal(
                again.get_row_padded(2 * i)[0], cells(2, n_vars, i).toarray()[0]
            )
            (symbols,) = again.get_row(2 * i + 1, return_features=True)[1]
            assert symbols.tolist() == [f"S{j}" for j in range(n_vars)]

    def test_narrow_types_grow(self, tmp_path: Path) -> None:
        """200 + 200 stored values do not fit the offsets of the first."""
        ds, other = make(tmp_path, "a", 60, 6, seed=1), make(tmp_path, "b", 70, 6, seed=2)
        assert ds.dtypes["row_ptr.npy"] == "uint8"
        ds.concat([other, other])
        assert ds.dtypes["row_ptr.npy"] == "uint16"
        self.check(scdl.open(tmp_path / "a"), ("a", 60, 1), ("b", 70, 2), ("b", 70, 2))

    @pytest.mark.parametrize(
        ("one", "two", "joined"),
        [
            ("uint8", "uint16", "uint16"),
            ("uint32", "uint8", "uint32"),
            ("float32", "float64", "float64"),
            ("float64", "float16", "float64"),
        ],
    )
    def test_types_of_one_kind_widen(self, tmp_path: Path, one: str, two: str, joined: str) -> None:
        ds = make(tmp_path, "a", 5, 6, seed=1, dtype=one)
        ds.concat(make(tmp_path, "b", 7, 6, seed=2, dtype=two))
        again = scdl.open(tmp_path / "a")
        assert again.dtypes["data.npy"] == joined
        stacked = sp.csr_array(sp.vstack([cells(5, 6, 1), cells(7, 6, 2)]))
        assert_rows(again, stacked.astype(joined))

    @pytest.mark.parametrize(("one", "two"), [("uint8", "float32"), ("float16", "uint64")])
    def test_integers_and_floats_do_not_mix(self, tmp_path: Path, one: str, two: str) -> None:
        ds = make(tmp_path, "a", 5, 6, seed=1, dtype=one)
        other = make(tmp_path, "b", 7, 6, seed=2, dtype=two)
        with pytest.raises(ValueError, match="cast_data_to_dtype"):
            ds.concat(other)
        other.cast_data_to_dtype(one)
        ds.concat(other)
        np.testing.assert_array_equal(
            scdl.open(tmp_path / "a").data, np.append(cells(5, 6, 1).data, cells(7, 6, 2).data)
        )

    def test_only_one_has_a_graph(self, tmp_path: Path) -> None:
        ds = make(tmp_path, "a", 5, 6, seed=1)
        write_h5ad(tmp_path / "b.h5ad", random_cells(7, 6, seed=2, dtype="<u2"))
        other = scdl.SingleCellDataset(tmp_path / "b", tmp_path / "b.h5ad")
        with pytest.warns(scdl.errors.ScdlWarning, match="X_pca"):
            ds.concat(other)
        again = scdl.open(tmp_path / "a")
        graph = random_cells(5, 5, seed=2).csr()
        for i in range(5):
            assert again.get_neighbor_indices_for_cell(i).tolist() == row_of(graph, i)[1].tolist()
        for i in range(5, 12):
            assert again.get_neighbor_indices_for_cell(i).tolist() == []

    def test_archives_of_the_reference(self, tmp_path: Path) -> None:
        golden = GOLDEN
        for name in ("ragged_v011", "ragged_v013"):
            shutil.copytree(golden / name, tmp_path / name, copy_function=shutil.copyfile)
            for path in [tmp_path / name, *(tmp_path / name).rglob("*")]:
                path.chmod(0o755)
        ds = scdl.open(tmp_path / "ragged_v013")
        before = ds.read_rows(slice(None), genes="own").to_dense()
        ds.concat(scdl.open(tmp_path / "ragged_v011"))
        again = scdl.open(tmp_path / "ragged_v013")
        assert again.number_of_variables() == [12, 9, 12, 9]
        np.testing.assert_array_equal(
            again.read_rows(slice(None), genes="own").to_dense(), np.vstack([before, before])
        )
        assert again.obs["cell_type"].tolist()[:4] == ["T", "B", "T", "NK"]
        assert again.get_row(20, True, ["feature_id"])[1][0][0] == "GENE4"

    def test_an_older_reader_keeps_reading(self, tmp_path: Path) -> None:
        ds, other = make(tmp_path, "a", 5, 6, seed=1), make(tmp_path, "b", 7, 6, seed=2)
        older = scdl.open(tmp_path / "a")
        ds.concat(other)
        assert_same(older, cells(5, 6, 1))


class TestSave:
    def test_a_foreign_archive_with_a_stale_header_is_repaired(self, tmp_path: Path) -> None:
        make(tmp_path, "a", 9, 6)
        header = tmp_path / "a" / "header.sch"
        fields = header_of(header)
        fields["arrays"] = [(name, 3, code, shape) for name, _, code, shape in fields["arrays"]]
        header.write_bytes(header_bytes(**fields))
        with pytest.warns(scdl.errors.ScdlWarning, match="save"):
            ds = scdl.open(tmp_path / "a")
        assert_same(ds, cells(9, 6, 0))
        assert ds.save() is True
        assert_same(scdl.open(tmp_path / "a"), cells(9, 6, 0))
        assert header_of(header)["arrays"][0][1] == cells(9, 6, 0).nnz

    def test_target_exists(self, tmp_path: Path) -> None:
        ds = make(tmp_path, "a", 9, 6)
        (tmp_path / "taken").mkdir()
        with pytest.raises(scdl.errors.ArchiveExistsError):
            ds.save(tmp_path / "taken")
        assert list((tmp_path / "taken").iterdir()) == []
