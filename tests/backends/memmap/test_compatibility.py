"""Compatibility with the reference package, in both directions."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import GOLDEN
from reading import row_of
from sources import Cells, Encoding, names, random_cells, write_h5ad

import scdl

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("torch")
    reference = pytest.importorskip(
        "bionemo.scdl.io.single_cell_memmap_dataset", reason="bionemo-scdl is not installed"
    )

# Ignore warnings of the reference.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:bionemo"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
]

DTYPES = ["uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]


def theirs(path: Path, **options: Any) -> Any:
    return reference.SingleCellMemMapDataset(str(path), **options)


def assert_they_read(path: Path, *, features: bool = True, **options: Any) -> Any:
    """Check that the reference reads the same rows, numbers and features."""
    ours, real = scdl.open(path), theirs(path, **options)
    assert len(real) == ours.n_obs
    assert real.shape() == ours.shape()
    assert real.number_of_variables() == ours.number_of_variables()
    assert real.number_of_values() == ours.number_of_values()
    assert real.number_nonzero_values() == ours.number_nonzero_values()
    for i in range(ours.n_obs):
        (values, columns), var, obs = real.get_row(
            i, return_var_features=features, return_obs_features=features
        )
        (expected, ids), our_var = ours.get_row(i, return_features=features)
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(columns, ids)
        if features:
            assert [list(column) for column in var] == [list(column) for column in our_var]
            assert_equal_values(obs, ours.obs_features()[i][0])
    return real


def assert_equal_values(theirs: list[Any], ours: list[Any]) -> None:
    assert len(theirs) == len(ours)
    for a, b in zip(theirs, ours, strict=True):
        assert (pd.isna(a) and pd.isna(b)) or a == b


@pytest.mark.parametrize("dtype", DTYPES)
def test_they_read_every_dtype(tmp_path: Path, dtype: str) -> None:
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(9, 7, dtype="<u2"))
    scdl.convert(source, tmp_path / "archive", data_dtype=dtype)
    assert_they_read(tmp_path / "archive")


@pytest.mark.parametrize(("n_obs", "n_vars"), [(1, 1), (40, 300), (300, 2), (3, 70_000)])
def test_they_read_every_width_of_ids_and_offsets(tmp_path: Path, n_obs: int, n_vars: int) -> None:
    cells = random_cells(n_obs, n_vars, density=0.5 if n_vars < 1_000 else 0.001)
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", cells), tmp_path / "archive")
    assert_they_read(tmp_path / "archive", features=n_vars < 1_000)


def test_they_read_unsorted_and_repeated_once_converted(tmp_path: Path) -> None:
    cells = random_cells(20, 9, is_sorted=False, repeated=True)
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", cells), tmp_path / "archive")
    real = assert_they_read(tmp_path / "archive")
    for i in range(20):
        values, columns = row_of(cells.csr(), i)
        assert real.get_row(i)[0][0].tolist() == values.tolist()
        assert real.get_row(i)[0][1].tolist() == columns.tolist()


def test_they_read_every_column(tmp_path: Path) -> None:
    from columns import COLUMNS, N

    for i, (name, values) in enumerate(COLUMNS.items()):
        frame = pd.DataFrame({name: values, "other": range(N)}, index=names("n", N))
        source = write_h5ad(
            tmp_path / f"{i}.h5ad", random_cells(N, N), obs=frame, var=frame[["other"]]
        )
        scdl.convert(source, tmp_path / str(i))
        assert_they_read(tmp_path / str(i))


def test_they_read_tables_without_columns(tmp_path: Path) -> None:
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", random_cells(4, 3)), tmp_path / "archive")
    real = assert_they_read(tmp_path / "archive")
    _, (genes,), (cell,) = real.get_row(2, return_var_features=True, return_obs_features=True)
    assert list(genes) == ["gene0", "gene1", "gene2"]
    assert cell == "cell2"
    by_name = {"var_feature_names": ["var_feature_id"], "obs_feature_names": ["obs_feature_id"]}
    _, (genes,), (cell,) = real.get_row(
        1, return_var_features=True, return_obs_features=True, **by_name
    )
    assert (list(genes), cell) == (["gene0", "gene1", "gene2"], "cell1")


def test_they_read_ragged_archives(tmp_path: Path) -> None:
    paths = []
    for i in range(12):
        var = pd.DataFrame({"symbol": [f"{i}-{j}" for j in range(i + 1)]}, index=names("g", i + 1))
        columns = {"age": range(2)} | ({"dose": [0.5, 1.5]} if i % 3 else {})
        obs = pd.DataFrame(columns, index=names(f"c{i}-", 2))
        cells = random_cells(2, i + 1, density=0.9, seed=i)
        paths.append(write_h5ad(tmp_path / f"{i}.h5ad", cells, obs=obs, var=var))
    scdl.convert(paths, tmp_path / "archive")
    ours, real = scdl.open(tmp_path / "archive"), theirs(tmp_path / "archive")
    assert real.number_of_variables() == ours.number_of_variables() == list(range(1, 13))
    assert real.number_of_values() == ours.number_of_values()
    for row in range(24):
        (values, columns), var, obs = real.get_row(
            row, return_var_features=True, return_obs_features=True
        )
        expected = row_of(random_cells(2, row // 2 + 1, density=0.9, seed=row // 2).csr(), row % 2)
        assert (values.tolist(), columns.tolist()) == tuple(part.tolist() for part in expected)
        assert [list(column) for column in var] == [
            [f"{row // 2}-{j}" for j in range(row // 2 + 1)]
        ]
        assert obs[0] == row % 2


def test_they_read_graphs(tmp_path: Path) -> None:
    graph = random_cells(15, 15, density=0.2, seed=3)
    source = write_h5ad(
        tmp_path / "a.h5ad", random_cells(15, 5), obsp={"knn": graph}, obsp_encoding=Encoding("csc")
    )
    scdl.convert(source, tmp_path / "archive", neighbor_key="knn")
    real = assert_they_read(
        tmp_path / "archive", load_neighbors=True, neighbor_sampling_strategy="first"
    )
    ours = scdl.open(tmp_path / "archive", neighbor_key="knn")
    for i in range(15):
        weights, neighbors = row_of(graph.csr(), i)
        assert real.get_neighbor_indices_for_cell(i).tolist() == neighbors.tolist()
        assert real.get_neighbor_weights_for_cell(i).tolist() == weights.tolist()
    assert real.get_neighbor_stats() == ours.get_neighbor_stats()


def test_they_read_what_was_changed_in_place(tmp_path: Path) -> None:
    datasets = []
    for name in "ab":
        source = write_h5ad(tmp_path / f"{name}.h5ad", random_cells(90, 6, dtype="<u2"))
        datasets.append(scdl.SingleCellMemMapDataset(tmp_path / name, source))
    datasets[0].concat(datasets[1])
    assert_they_read(tmp_path / "a")
    datasets[0].cast_data_to_dtype("uint8")
    assert_they_read(tmp_path / "a")
    datasets[0].save(tmp_path / "copy")
    assert_they_read(tmp_path / "copy")


def test_they_can_save_and_reopen_ours(tmp_path: Path) -> None:
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", random_cells(9, 7)), tmp_path / "archive")
    theirs(tmp_path / "archive").save()
    assert_they_read(tmp_path / "archive")


def their_archive(place: Path, name: str, n_obs: int, *, n_vars: int = 8, **options: Any) -> Any:
    """An archive written by the reference."""
    source = write_h5ad(
        place / f"{name}.h5ad",
        random_cells(n_obs, n_vars, density=0.5, seed=len(name), dtype="<f4"),
        obs=pd.DataFrame({"age": range(n_obs)}, index=names("cell", n_obs)),
        var=pd.DataFrame({"symbol": [f"S{j}" for j in range(n_vars)]}, index=names("g", n_vars)),
    )
    real = reference.SingleCellMemMapDataset(
        str(place / name), str(source), use_X_not_raw=True, **options
    )
    real.save()
    return real


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(n_obs=st.integers(1, 12), n_vars=st.integers(1, 9), seed=st.integers(0, 99))
def test_we_read_theirs(
    tmp_path_factory: pytest.TempPathFactory, n_obs: int, n_vars: int, seed: int
) -> None:
    place = tmp_path_factory.mktemp("theirs")
    cells = random_cells(n_obs, n_vars, density=0.7, seed=seed)
    if cells.csr().nnz == 0:
        return  # a case that the reference cannot convert
    source = write_h5ad(place / "a.h5ad", cells)
    real = reference.SingleCellMemMapDataset(str(place / "a"), str(source), use_X_not_raw=True)
    real.save()
    ours = scdl.open(place / "a")
    np.testing.assert_array_equal(ours.read_rows(slice(None)).to_dense(), cells.csr().toarray())
    assert ours.number_of_variables() == [n_vars]


def test_lengths_that_their_concat_leaves_stale(tmp_path: Path) -> None:
    """`concat` and `save` of a reopened archive keep old lengths in the header; files are right."""
    their_archive(tmp_path, "a", 5)
    their_archive(tmp_path, "bb", 6)
    real = theirs(tmp_path / "a")
    real.concat(theirs(tmp_path / "bb"))
    real.save()
    with pytest.warns(scdl.errors.ScdlWarning, match="save"):
        ours = scdl.open(tmp_path / "a")
    parts = [random_cells(n, 8, density=0.5, seed=len(x)).csr() for n, x in ((5, "a"), (6, "bb"))]
    expected = sp.csr_array(sp.vstack(parts)).toarray()
    np.testing.assert_array_equal(ours.read_rows(slice(None)).to_dense(), expected)
    assert ours.number_of_rows() == 11
    assert ours.obs["age"].tolist() == [*range(5), *range(6)]
    assert ours.get_row(10, True, ["symbol"])[1][0].tolist() == [f"S{j}" for j in range(8)]
    assert ours.save() is True
    np.testing.assert_array_equal(
        scdl.open(tmp_path / "a").read_rows(slice(None)).to_dense(), expected
    )
    assert_they_read(tmp_path / "a")


def test_a_header_that_their_concat_left_stale_is_mended(tmp_path: Path) -> None:
    their_archive(tmp_path, "a", 5)
    their_archive(tmp_path, "bb", 6)
    real = theirs(tmp_path / "a")
    real.concat(theirs(tmp_path / "bb"))
    real.save()
    assert scdl.verify(tmp_path / "a").verdict == 1
    report = scdl.verify(tmp_path / "a", deep=True, repair=True, add_checksums=True)
    assert report.is_sound, report
    assert len(report.done) == 2
    assert scdl.open(tmp_path / "a").number_of_rows() == 11
    assert_they_read(tmp_path / "a")


@pytest.mark.filterwarnings("ignore::scdl.errors.ScdlWarning")
def test_a_dtype_that_their_cast_leaves_stale_is_refused(tmp_path: Path) -> None:
    """The dtype of the values is no longer stored anywhere."""
    their_archive(tmp_path, "a", 30)
    real = theirs(tmp_path / "a")
    real.cast_data_to_dtype("float64")
    real.save()
    with pytest.raises(scdl.errors.ArchiveFormatError, match=r"data\.npy"):
        scdl.open(tmp_path / "a")


def test_they_change_ours_and_we_say_what_no_longer_fits(tmp_path: Path) -> None:
    """The reference changes the documented files, but not our names and vectors."""
    cells = random_cells(9, 8, seed=1)
    vectors = {"X_pca": np.eye(9, 2)}
    source = write_h5ad(
        tmp_path / "a.h5ad",
        cells,
        obs=pd.DataFrame({"age": range(9)}, index=names("cell", 9)),
        var=pd.DataFrame({"symbol": [f"S{j}" for j in range(8)]}, index=names("g", 8)),
        obsm=vectors,
    )
    scdl.convert(source, tmp_path / "a", obsm=["X_pca"])
    their_archive(tmp_path, "bb", 6)
    real = theirs(tmp_path / "a")
    real.concat(theirs(tmp_path / "bb"))
    real.save()
    with pytest.warns(scdl.errors.ScdlWarning):
        ours = scdl.open(tmp_path / "a")
    joined = sp.vstack([cells.csr(), random_cells(6, 8, density=0.5, seed=2).csr()]).toarray()
    np.testing.assert_array_equal(ours.read_rows(slice(None)).to_dense(), joined)
    assert ours.obs["age"].tolist() == [*range(9), *range(6)]
    with pytest.raises(scdl.errors.FeatureNotFoundError):
        ours.read_rows([0], obsm=["X_pca"])


def test_documented_code_runs_with_the_import_changed(tmp_path: Path) -> None:
    """A script gives the same numbers, rows and batches with both packages."""
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(20, 8, density=0.5))
    found = []
    for module, path in ((scdl, tmp_path / "ours"), (reference, tmp_path / "real")):
        data = module.SingleCellMemMapDataset(str(path), str(source), use_X_not_raw=True)
        data.save()
        again = module.SingleCellMemMapDataset(str(path))
        rows = [again.get_row(i)[0] for i in range(20)]
        found.append(
            (
                [again.number_of_rows(), again.number_of_variables(), again.number_of_values()],
                [again.number_nonzero_values(), again.shape(), again.sparsity()],
                [(values.tolist(), columns.tolist()) for values, columns in rows],
                [again.get_row_padded(i)[0].tolist() for i in range(20)],
                [again.get_row_column(3, j) for j in range(8)],
                [again.get_row_column(3, j, impute_missing_zeros=False) for j in range(8)],
                [again[i].tolist() for i in range(20)],
            )
        )
    assert found[0] == found[1]
    pickle.dumps(found)


def test_they_ignore_our_files(tmp_path: Path) -> None:
    """None of our files is where the reference looks for tables."""
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(4, 3), obsm={"X_pca": np.eye(4)})
    scdl.convert(source, tmp_path / "archive", obsm=["X_pca"])
    for table in ("var_features", "obs_features"):
        found = [path.name for path in (tmp_path / "archive" / table).rglob("*.parquet")]
        assert found == ["dataframe_0.parquet"]


@pytest.mark.parametrize("version", ["v011", "v013", "head"])
def test_they_read_the_ragged_golden_files_flattened_by_us(tmp_path: Path, version: str) -> None:
    """The two source files through a collection: every row has the right genes."""
    expected = scdl.open(GOLDEN / f"ragged_{version}")
    dense = expected.read_rows(slice(None), genes="own").to_dense()
    (tmp_path / "h5ad").mkdir()
    spans = {"a": (slice(0, 7), range(12)), "b": (slice(7, 12), range(4, 13))}
    for name, (rows, genes) in spans.items():
        values = sp.coo_array(dense[rows, : len(genes)])
        cells = Cells(*values.coords, values.data, values.shape)
        var = pd.DataFrame(
            {"title": [f"gene{g}" for g in genes]}, index=[f"GENE{g}" for g in genes]
        )
        obs = pd.DataFrame({"cell_type": ["T"] * cells.shape[0]}, index=names(name, cells.shape[0]))
        if name == "a":
            obs["age"] = range(7)
        write_h5ad(tmp_path / "h5ad" / f"{name}.h5ad", cells, obs=obs, var=var)
    made = scdl.SingleCellCollection(tmp_path / "members")
    made.load_h5ad_multi(tmp_path / "h5ad")
    made.flatten(tmp_path / "flat")
    ours, real = scdl.open(tmp_path / "flat"), theirs(tmp_path / "flat")
    assert real.number_of_variables() == ours.number_of_variables() == [12, 9]
    for row in range(12):
        genes = spans["a" if row < 7 else "b"][1]
        assert real.get_row_padded(row)[0].tolist() == dense[row, : len(genes)].tolist()
        var = real.get_row(row, return_var_features=True)[1]
        assert list(var[0]) == [f"gene{g}" for g in genes]
        _, (ids,) = ours.get_row(row, True, ["feature_id"])
        assert ids.tolist() == [f"GENE{g}" for g in genes]


class TestDifferences:
    """Differences in docs/migrate.md without a test in test_reference_faults.py."""

    @pytest.fixture
    def both(self, tmp_path: Path) -> Any:
        """Archives of the same file, written by the reference and by us."""

        def make(cells: Cells | None = None, **parts: Any) -> list[Any]:
            options = parts.pop("options", {})
            cells = random_cells(5, 4, density=0.6) if cells is None else cells
            source = write_h5ad(tmp_path / "a.h5ad", cells, **parts)
            return [
                module.SingleCellMemMapDataset(
                    str(tmp_path / name), str(source), use_X_not_raw=True, **options
                )
                for module, name in ((reference, "theirs"), (scdl, "ours"))
            ]

        return make

    def test_a_file_without_raw(self, tmp_path: Path) -> None:
        source = str(write_h5ad(tmp_path / "a.h5ad", random_cells(5, 4)))
        with pytest.raises(ValueError, match="raw"):
            reference.SingleCellMemMapDataset(str(tmp_path / "theirs"), source)
        assert len(scdl.SingleCellMemMapDataset(tmp_path / "ours", source)) == 5

    def test_repeated_and_unsorted_entries(self, both: Any) -> None:
        cells = Cells(np.zeros(3, int), np.array([2, 0, 2]), np.array([1, 2, 4], "f4"), (1, 3))
        real, ours = both(cells)
        assert real[0].tolist() == [[1, 2, 4], [2, 0, 2]]
        assert ours[0].tolist() == [[2, 5], [0, 2]]

    def test_fractions_become_no_integers(self, tmp_path: Path) -> None:
        cells = Cells(np.zeros(1, int), np.zeros(1, int), np.array([1.75], "f4"), (1, 1))
        source = str(write_h5ad(tmp_path / "a.h5ad", cells))
        options = {"use_X_not_raw": True, "data_dtype": "uint8"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            real = reference.SingleCellMemMapDataset(str(tmp_path / "a"), source, **options)
        assert list(real.data) == [1]
        with pytest.raises(scdl.errors.CastError):
            scdl.SingleCellMemMapDataset(tmp_path / "b", source, **options)

    def test_results_of_rows(self, both: Any) -> None:
        real, ours = both()
        assert (len(real.get_row(0)), len(ours.get_row(0))) == (3, 2)
        kinds = [ds.get_row_padded(0)[0].dtype for ds in (real, ours)]
        assert kinds == [np.float64, np.float32]
        with pytest.raises(TypeError):
            real[0:3]
        assert [cell.tolist() for cell in ours[0:3]] == [real[i].tolist() for i in range(3)]
        assert len(real.get_row(-1)[0][0]) == 0
        assert real.get_row_column(0, 99) == 0.0
        with pytest.raises(IndexError):
            ours.get_row_column(0, 99)

    def test_integer_archives(self, both: Any) -> None:
        cells = random_cells(5, 4, dtype="<u2", density=0.6)
        real, ours = both(cells, options={"data_dtype": "uint16"})
        assert not real[0].dtype.is_signed
        assert str(ours[0].dtype) == "torch.int64"
        assert real[0].tolist() == ours[0].tolist()

    def test_missing_labels(self, both: Any) -> None:
        labels = pd.DataFrame({"t": pd.Categorical(["a", None, "b", "a", "b"])})
        real, ours = both(obs=labels.set_index(names("c", 5)))
        assert np.isnan(real.obs_features()[1][0][0])
        assert ours.obs_features()[1][0] == [None]
        assert pd.isna(ours.obs["t"].iloc[1])

    def test_neighbors_that_were_not_loaded(self, both: Any) -> None:
        graph = random_cells(5, 5, density=0.9)
        real, ours = both(obsp={"next_cell_ids": graph})
        assert len(real.get_neighbor_indices_for_cell(0)) == 0
        assert real.sample_neighbor_index(0) == 0
        for method in (ours.get_neighbor_indices_for_cell, ours.sample_neighbor_index):
            with pytest.raises(ValueError, match="load_neighbors=True"):
                method(0)

    def test_no_fallback(self, both: Any) -> None:
        graph = random_cells(5, 5, density=0)
        cells = Cells(*(np.append(part, 1) for part in (graph.rows, graph.columns)),
                      np.ones(1, "f4"), (5, 5))  # fmt: skip
        options = {"load_neighbors": True, "fallback_to_identity": False}
        real, ours = both(obsp={"next_cell_ids": cells}, options=options)
        assert real.sample_neighbor_index(0) == 0
        with pytest.raises(ValueError, match="no neighbours"):
            ours.sample_neighbor_index(0)

    def test_output_path_of_concat(self, both: Any, tmp_path: Path) -> None:
        for ds in both():
            output = str(tmp_path / f"joined-{type(ds).__module__}")
            other = type(ds)(ds.data_path)
            ds.concat(other, output_path=output)
            assert len(ds) == (5 if isinstance(ds, scdl.SingleCellDataset) else 10)
            assert len(type(ds)(output)) == 10

    def test_batches(self, both: Any) -> None:
        from bionemo.scdl.util import torch_dataloader_utils as util

        real, ours = both(Cells(np.zeros(1, int), np.ones(1, int), np.ones(1, "f4"), (1, 9)))
        theirs_made = util.collate_sparse_matrix_batch([real[0]])
        made = scdl.collate_sparse_matrix_batch([ours[0]])
        assert (theirs_made.shape, made.shape) == ((1, 2), (1, 9))
        kinds = [str(batch.col_indices().dtype) for batch in (theirs_made, made)]
        assert kinds == ["torch.int32", "torch.int64"]

    def test_nothing_at_the_path(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="required"):
            theirs(tmp_path / "none")
        with pytest.raises(FileNotFoundError):
            scdl.SingleCellMemMapDataset(tmp_path / "none")
