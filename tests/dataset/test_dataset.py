"""One archive as a dataset: every documented method, and reading in batches."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
import shutil
import stat
import subprocess
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from headers import header_bytes, header_of
from hypothesis import given
from hypothesis import strategies as st
from reading import assert_same
from sources import names, random_cells, write_h5ad

import scdl
from scdl.errors import ArchiveFormatError, OptionError
from storage_backends import registry
from storage_backends.testing.archives import small_archive

N_OBS, N_VARS = 23, 11
CELLS = random_cells(N_OBS, N_VARS, is_sorted=False, repeated=True, seed=4)
EXPECTED = CELLS.csr()
OBS = pd.DataFrame(
    {"type": pd.Categorical((["B", "T", "NK"] * 8)[:N_OBS]), "age": np.arange(N_OBS)},
    index=names("cell", N_OBS),
)
VAR = pd.DataFrame(
    {"feature_id": [f"ENSG{i}" for i in range(N_VARS)], "length": np.arange(N_VARS) * 10},
    index=names("gene", N_VARS),
)
VECTORS = np.random.default_rng(1).normal(size=(N_OBS, 3)).astype("f4")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dataset")
    source = write_h5ad(place / "a.h5ad", CELLS, obs=OBS, var=VAR, obsm={"X_pca": VECTORS})
    scdl.convert(source, place / "archive", obsm=["X_pca"])
    return place / "archive"


@pytest.fixture(scope="module", params=["memmap", "memory"])
def ds(archive: Path, request: pytest.FixtureRequest) -> Any:
    """The same cells in two backends: nothing may depend on which."""
    if request.param == "memmap":
        return scdl.open(archive)
    path = f"ram:{archive}"
    scdl.convert(archive.parent / "a.h5ad", path, backend="memory", obsm=["X_pca"])
    return scdl.open(path)


class TestDocumentedMethods:
    def test_counts(self, ds: Any) -> None:
        assert len(ds) == ds.number_of_rows() == ds.n_obs == N_OBS
        assert ds.number_of_variables() == ds.n_vars == [N_VARS]
        assert ds.shape() == (N_OBS, [N_VARS])
        assert ds.number_of_values() == N_OBS * N_VARS
        assert ds.number_nonzero_values() == EXPECTED.nnz
        assert ds.sparsity() == pytest.approx(1 - EXPECTED.nnz / (N_OBS * N_VARS))
        assert isinstance(ds.version(), str)

    def test_rows(self, ds: Any) -> None:
        assert_same(ds, EXPECTED)

    def test_types_of_counts(self, ds: Any) -> None:
        for count in (ds.number_of_rows(), ds.number_of_values(), ds.number_nonzero_values()):
            assert type(count) is int

    @pytest.mark.parametrize("method", ["get_row", "get_row_padded"])
    def test_features(self, ds: Any, method: str) -> None:
        get = getattr(ds, method)
        assert get(0)[1] is None
        every = get(3, return_features=True)[1]
        assert [column.tolist() for column in every] == [VAR[c].tolist() for c in VAR]
        assert len(every[0]) == N_VARS
        (one,) = get(3, return_features=True, feature_vars=["length"])[1]
        assert one.tolist() == VAR["length"].tolist()
        swapped = get(3, True, ["length", "feature_id"])[1]
        assert [column[1] for column in swapped] == [10, "ENSG1"]

    def test_one_name_is_a_name(self, ds: Any) -> None:
        (lengths,) = ds.get_row(3, True, "length")[1]
        assert lengths.tolist() == VAR["length"].tolist()
        assert ds.get_row(3, obs_feature_names="age", return_obs_features=True)[2] == [3]

    def test_both_names_of_an_option(self, ds: Any) -> None:
        for chosen in ({"feature_vars": ["length"]}, {"var_feature_names": ["length"]}):
            for wanted in ({"return_features": True}, {"return_var_features": True}):
                _, (lengths,), *obs = ds.get_row(3, **chosen, **wanted)
                assert lengths.tolist() == VAR["length"].tolist()
                assert obs == [None] * any("var_f" in name for name in chosen | wanted)

    def test_features_serve_tokenizers(self, ds: Any) -> None:
        (values, columns), features = ds.get_row(0, True, ["feature_id"])
        genes = features[0][columns]
        stored = EXPECTED.indices[: EXPECTED.indptr[1]]
        assert genes.tolist() == VAR["feature_id"].iloc[stored].tolist()
        assert len(values) == len(columns)

    def test_var_features(self, ds: Any) -> None:
        for features in (ds.features(), ds.var_features()):
            (ids, lengths), label = features.lookup(5)
            assert ids.tolist() == VAR["feature_id"].tolist()
            assert lengths.tolist() == VAR["length"].tolist()
            assert str(label).endswith("a.h5ad")
            assert features.lookup(5, ["length"])[0][0].tolist() == VAR["length"].tolist()
            assert features.lookup(5, "length")[0][0].tolist() == VAR["length"].tolist()
            assert features.number_vars_at_row(5) == N_VARS
            assert features.column_dims() == [N_VARS]
            assert features.number_of_values() == [N_OBS * N_VARS]
            assert features.number_of_rows() == N_OBS
            assert isinstance(features.version(), str)

    @pytest.mark.parametrize("row", [N_OBS, -N_OBS - 1])
    def test_features_of_no_row(self, ds: Any, row: int) -> None:
        with pytest.raises(IndexError):
            ds.var_features().lookup(row)
        with pytest.raises(IndexError):
            ds.obs_features()[row]

    def test_obs_features(self, ds: Any) -> None:
        assert ds.obs_features()[3][0] == ["B", 3]
        assert ds.obs_features()[-1][0] == [OBS["type"].iloc[-1], N_OBS - 1]
        blocks, labels = ds.obs_features()[5:10]
        assert len(blocks) == len(labels) == 1
        assert blocks[0]["type"].tolist() == OBS["type"].iloc[5:10].tolist()
        assert blocks[0]["age"].tolist() == [5, 6, 7, 8, 9]
        assert ds.obs_features().number_of_rows() == N_OBS
        assert ds.obs_features().lookup(3, "type")[0] == ["B"]
        for row in (N_OBS, -N_OBS - 1):
            with pytest.raises(IndexError):
                ds.obs_features().number_vars_at_row(row)

    def test_tables(self, ds: Any) -> None:
        pd.testing.assert_frame_equal(
            ds.obs, OBS, check_index_type=False, check_column_type=False, check_categorical=False
        )
        assert ds.var["feature_id"].tolist() == VAR["feature_id"].tolist()
        assert list(ds.obs_names) == OBS.index.tolist()
        assert list(ds.var_names) == VAR.index.tolist()

    def test_column_out_of_range(self, ds: Any) -> None:
        for column in (N_VARS, N_VARS + 100):
            with pytest.raises(IndexError, match=str(column)):
                ds.get_row_column(0, column)

    def test_attributes(self, archive: Path) -> None:
        ds = scdl.open(archive)
        assert ds.dtypes == {
            "data.npy": "float32",
            "col_ptr.npy": "uint8",
            "row_ptr.npy": "uint8",
        }
        np.testing.assert_array_equal(ds.data, EXPECTED.data)
        np.testing.assert_array_equal(ds.col_index, EXPECTED.indices)
        np.testing.assert_array_equal(ds.row_index, EXPECTED.indptr)
        assert Path(ds.data_path) == archive
        assert ds.metadata == {"num_rows": N_OBS}
        for array in (ds.data, ds.col_index, ds.row_index):
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable

    def test_save_to_another_place(self, archive: Path, tmp_path: Path) -> None:
        assert scdl.open(archive).save() is True
        assert scdl.open(archive).save(tmp_path / "copy") is True
        copied = scdl.open(tmp_path / "copy")
        assert_same(copied, EXPECTED)
        np.testing.assert_array_equal(
            copied.read_rows([3], obsm=["X_pca"]).obsm["X_pca"], VECTORS[[3]]
        )
        assert copied.obs["type"].tolist() == OBS["type"].tolist()
        assert copied.var_names.tolist() == VAR.index.tolist()

    def test_load(self, archive: Path, tmp_path: Path) -> None:
        other = random_cells(3, 4, seed=8)
        write_h5ad(tmp_path / "b.h5ad", other)
        ds = scdl.SingleCellMemMapDataset(tmp_path / "b", tmp_path / "b.h5ad")
        assert_same(ds, other.csr())
        ds.load(archive)
        assert_same(ds, EXPECTED)
        assert ds.obs["age"].tolist() == OBS["age"].tolist()

    def test_load_h5ad(self, archive: Path, tmp_path: Path) -> None:
        other = random_cells(3, 4, seed=8)
        write_h5ad(tmp_path / "b.h5ad", other)
        ds = scdl.SingleCellMemMapDataset(tmp_path / "b", tmp_path / "b.h5ad")
        ds.load_h5ad(archive.parent / "a.h5ad")
        assert_same(ds, EXPECTED)
        assert_same(scdl.open(tmp_path / "b"), EXPECTED)


class TestOpening:
    def test_documented_signature(self) -> None:
        parameters = list(inspect.signature(scdl.SingleCellMemMapDataset).parameters)
        assert parameters[:12] == [
            "data_path",
            "h5ad_path",
            "num_elements",
            "num_rows",
            "mode",
            "paginated_load_cutoff",
            "load_block_row_size",
            "feature_index_name",
            "load_neighbors",
            "neighbor_key",
            "neighbor_sampling_strategy",
            "fallback_to_identity",
        ]
        assert set(parameters[12:]) >= {
            "var_feature_index_name",
            "obs_feature_index_name",
            "data_dtype",
            "data_dtype_tolerance",
            "use_X_not_raw",
        }
        assert issubclass(scdl.SingleCellMemMapDataset, scdl.SingleCellDataset)

    @pytest.mark.parametrize("name", ["num_elements", "num_rows"])
    def test_empty_arrays_are_not_offered(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(TypeError, match=r"scdl\.convert"):
            scdl.SingleCellMemMapDataset(tmp_path / "archive", **{name: 5})
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("opener", ["open", "SingleCellDataset", "SingleCellMemMapDataset"])
    def test_missing_path_says_how_to_make_one(self, tmp_path: Path, opener: str) -> None:
        with pytest.raises(FileNotFoundError, match="convert") as caught:
            getattr(scdl, opener)(tmp_path / "nothing")
        assert isinstance(caught.value, scdl.errors.ArchiveNotFoundError)
        assert "nothing" in str(caught.value)

    @pytest.mark.parametrize("opener", ["SingleCellDataset", "SingleCellMemMapDataset"])
    def test_existing_target_is_left_alone(self, archive: Path, opener: str) -> None:
        with pytest.raises(FileExistsError) as caught:
            getattr(scdl, opener)(archive, archive.parent / "a.h5ad")
        assert isinstance(caught.value, scdl.errors.ArchiveExistsError)
        assert_same(scdl.open(archive), EXPECTED)

    def test_positional_documented_call(self, archive: Path, tmp_path: Path) -> None:
        source = str(archive.parent / "a.h5ad")
        ds = scdl.SingleCellMemMapDataset(str(tmp_path / "made"), source)
        assert_same(ds, EXPECTED)
        assert_same(scdl.SingleCellMemMapDataset(str(tmp_path / "made")), EXPECTED)

    def test_names_of_index_columns(self, archive: Path) -> None:
        ds = scdl.SingleCellMemMapDataset(
            archive, feature_index_name="gene", obs_feature_index_name="barcode"
        )
        assert ds.get_row(0, True, ["gene"])[1][0].tolist() == VAR.index.tolist()
        assert ds.read_rows([2], obs=["barcode"]).obs["barcode"].tolist() == ["cell2"]

    def test_what_is_no_archive(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("text")
        (tmp_path / "directory").mkdir()
        for name in ("file", "directory"):
            with pytest.raises(scdl.errors.ArchiveFormatError, match=name):
                scdl.open(tmp_path / name)


def numpy_selection(rows: Any) -> np.ndarray:
    """What NumPy makes of the same rows; an empty list is no float array."""
    if isinstance(rows, list) and not rows:
        return np.empty(0, int)
    return np.atleast_1d(np.arange(N_OBS)[rows])


POSITIONS = st.integers(-N_OBS, N_OBS - 1)
SELECTIONS = st.one_of(
    POSITIONS,
    POSITIONS.map(np.int64),
    POSITIONS.map(np.int8),
    st.slices(N_OBS),
    st.lists(POSITIONS, max_size=40),
    st.lists(POSITIONS, max_size=40).map(lambda rows: np.array(rows, np.int32)),
    st.lists(st.integers(0, N_OBS - 1), max_size=40).map(lambda rows: np.array(rows, np.uint8)),
    st.lists(st.integers(0, N_OBS - 1), max_size=40).map(lambda rows: np.array(rows, np.uint64)),
    st.lists(st.booleans(), min_size=N_OBS, max_size=N_OBS),
    st.lists(st.booleans(), min_size=N_OBS, max_size=N_OBS).map(np.array),
)


class TestReadRows:
    @given(rows=SELECTIONS)
    def test_any_selection(self, ds: Any, rows: Any) -> None:
        at = numpy_selection(rows)
        batch = ds.read_rows(rows, obs=["type", "age"], obsm=["X_pca"])
        assert batch.n_vars == N_VARS
        np.testing.assert_array_equal(batch.rows, at)
        expected = EXPECTED[at]
        assert batch.to_scipy().shape == (len(at), N_VARS)
        np.testing.assert_array_equal(
            batch.indptr, np.append(0, np.cumsum(np.diff(EXPECTED.indptr)[at]))
        )
        np.testing.assert_array_equal(batch.to_scipy().toarray(), expected.toarray())
        np.testing.assert_array_equal(batch.to_dense(), expected.toarray())
        assert batch.obs["type"].tolist() == OBS["type"].iloc[at].tolist()
        assert batch.obs["age"].tolist() == at.tolist()
        np.testing.assert_array_equal(batch.obsm["X_pca"], VECTORS[at])

    def test_types(self, ds: Any) -> None:
        batch = ds.read_rows([2, 2])
        assert isinstance(batch, scdl.CellBatch)
        assert (batch.data.dtype, batch.indptr.dtype, batch.rows.dtype) == ("f4", "i8", "i8")
        assert batch.indices.dtype.kind in "ui"
        assert isinstance(batch.to_scipy(), sp.csr_matrix | sp.csr_array)
        assert batch.to_dense().dtype == np.float32
        assert (dict(batch.obs), dict(batch.obsm)) == ({}, {})

    def test_is_frozen(self, ds: Any) -> None:
        batch = ds.read_rows([0])
        with pytest.raises(AttributeError):
            batch.data = np.zeros(3)

    def test_wider_column_ids(self, ds: Any) -> None:
        stored = ds.read_rows([5, 2, 5])
        for dtype in (np.int16, np.int32, np.uint64):
            batch = ds.read_rows([5, 2, 5], index_dtype=dtype)
            assert batch.indices.dtype == dtype
            np.testing.assert_array_equal(batch.indices, stored.indices)
        with pytest.raises(scdl.errors.OutputError):
            ds.read_rows([5, 2], index_dtype=np.int8)

    def test_in_any_order_of_genes(self, ds: Any) -> None:
        batch = ds.read_rows(slice(None), ordered=False)
        np.testing.assert_array_equal(batch.to_dense(), EXPECTED.toarray())

    @given(st.slices(9))
    def test_parts_of_a_batch(self, ds: Any, part: slice) -> None:
        rows = np.arange(N_OBS)[5:14]
        batch = ds.read_rows(rows, obs=["age"], obsm=["X_pca"])
        if part.step not in (None, 1):
            with pytest.raises(ValueError, match="step"):
                batch[part]
            return
        cut = batch[part]
        assert len(cut) == len(rows[part])
        np.testing.assert_array_equal(cut.to_dense(), EXPECTED.toarray()[rows[part]])
        np.testing.assert_array_equal(cut.rows, rows[part])
        assert cut.obs["age"].tolist() == rows[part].tolist()
        np.testing.assert_array_equal(cut.obsm["X_pca"], VECTORS[rows[part]])

    @pytest.mark.parametrize("index", [0, -1, [0], np.arange(2), "age"])
    def test_a_batch_is_only_sliced(self, ds: Any, index: Any) -> None:
        batch = ds.read_rows([5, 2])
        with pytest.raises(OptionError, match="indexed by slices"):
            batch[index]
        with pytest.raises(OptionError, match="indexed by slices"):
            list(batch)

    @pytest.mark.parametrize(
        "rows",
        [N_OBS, -N_OBS - 1, [0, N_OBS], [-N_OBS - 1], np.array([N_OBS]), np.uint64(2**64 - 1)],
    )
    def test_out_of_range(self, ds: Any, rows: Any) -> None:
        with pytest.raises(scdl.errors.RowIndexError):
            ds.read_rows(rows)

    @pytest.mark.parametrize("n", [0, 1, N_OBS - 1, N_OBS + 1])
    def test_mask_of_wrong_length(self, ds: Any, n: int) -> None:
        with pytest.raises(scdl.errors.RowIndexError, match=str(N_OBS)):
            ds.read_rows(np.ones(n, bool))

    @pytest.mark.parametrize("rows", [1.5, [0.5], "cell1", ["cell1"], None, [[0, 1], [2, 3]]])
    def test_what_is_no_selection(self, ds: Any, rows: Any) -> None:
        with pytest.raises((TypeError, IndexError)):
            ds.read_rows(rows)

    def test_a_mask_with_missing_values(self, ds: Any) -> None:
        mask = pd.array([None, *[True] * (N_OBS - 1)], dtype="boolean")
        with pytest.raises(scdl.errors.RowIndexError, match=r"without missing values.*data\.where"):
            ds.read_rows(mask)
        np.testing.assert_array_equal(ds.read_rows(mask.fillna(False)).rows, np.arange(1, N_OBS))

    def test_large_batches(self, ds: Any) -> None:
        rows = np.random.default_rng(0).integers(0, N_OBS, 10_000)
        batch = ds.read_rows(rows)
        np.testing.assert_array_equal(batch.to_scipy().toarray(), EXPECTED.toarray()[rows])


class TestPositions:
    @pytest.mark.parametrize("method", ["get_row", "get_row_padded"])
    @pytest.mark.parametrize("kind", [int, np.int64, np.int16])
    def test_negative_rows_count_from_the_end(self, ds: Any, method: str, kind: type) -> None:
        get = getattr(ds, method)
        for i in range(N_OBS):
            ahead, behind = get(kind(i))[0], get(kind(i - N_OBS))[0]
            np.testing.assert_array_equal(np.concatenate(ahead, None), np.concatenate(behind, None))
        assert ds.get_row_column(kind(-1), 0) == EXPECTED.toarray()[-1, 0]

    def test_unsigned_rows(self, ds: Any) -> None:
        values = ds.get_row(np.uint8(5))[0][0]
        assert values.tolist() == ds.get_row(5)[0][0].tolist()

    @pytest.mark.parametrize(
        "row", [N_OBS, -N_OBS - 1, np.int64(N_OBS), np.int32(-N_OBS - 1), 2**70]
    )
    def test_out_of_range(self, ds: Any, row: Any) -> None:
        for read in (
            ds.get_row,
            ds.get_row_padded,
            ds.__getitem__,
            lambda i: ds.get_row_column(i, 0),
        ):
            with pytest.raises(scdl.errors.RowIndexError):
                read(row)

    @pytest.mark.parametrize("row", [1.0, "1", None])
    def test_what_is_no_row(self, ds: Any, row: Any) -> None:
        with pytest.raises((TypeError, IndexError)):
            ds.get_row(row)

    def test_iteration_ends(self, ds: Any) -> None:
        pytest.importorskip("torch")
        assert sum(row.shape[1] for row in ds) == EXPECTED.nnz


class TestReadOnly:
    def test_what_get_row_gives_cannot_edit_the_archive(self, archive: Path) -> None:
        ds = scdl.open(archive)
        (values, columns), _ = ds.get_row(0)
        for array in (values, columns, ds.data, ds.col_index, ds.row_index):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            values.flags.writeable = True

    def test_changing_a_batch_does_not_change_the_archive(self, archive: Path) -> None:
        ds = scdl.open(archive)
        for rows in ([0, 1], slice(None), 0):
            batch = ds.read_rows(rows, obs=["age"], obsm=["X_pca"])
            for array in (batch.data, batch.indices, batch.obs["age"], batch.obsm["X_pca"]):
                if array.flags.writeable:
                    array[:] = 0
        again = scdl.open(archive)
        assert_same(again, EXPECTED)
        for reread in (ds, again):
            assert reread.read_rows([1], obs=["age"]).obs["age"].tolist() == [1]
            np.testing.assert_array_equal(
                reread.read_rows([1], obsm=["X_pca"]).obsm["X_pca"], VECTORS[[1]]
            )

    def test_opens_without_permission_to_write(self, archive: Path, mount: Any) -> None:
        media = mount("media", "size=8m")
        shutil.copytree(archive, media / "archive")
        subprocess.run(["mount", "-o", "remount,ro", str(media)], check=True)
        with pytest.raises(OSError, match=r"[Rr]ead-only"):
            (media / "file").touch()
        ds = scdl.open(media / "archive")
        assert_same(ds, EXPECTED)
        assert ds.obs["age"].tolist() == OBS["age"].tolist()
        with pytest.raises(scdl.errors.ArchiveWriteError):
            ds.cast_data_to_dtype("float64")
        assert_same(ds, EXPECTED)

    def test_nothing_is_written_where_permission_is_missing(
        self, archive: Path, tmp_path: Path
    ) -> None:
        copied = tmp_path / "archive"
        shutil.copytree(archive, copied)
        everything = [copied, *copied.rglob("*")]
        for path in everything:
            path.chmod(path.stat().st_mode & ~0o222)
        before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in everything}
        ds = scdl.open(copied)
        assert_same(ds, EXPECTED)
        assert len(ds.obs) == N_OBS
        assert {
            p: (p.stat().st_mtime_ns, p.stat().st_size) for p in [copied, *copied.rglob("*")]
        } == before
        for path in everything:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def read_in_child(ds: Any) -> tuple[list[float], int]:
    return ds.read_rows(slice(None)).data.tolist(), len(ds.obs)


class TestProcessesAndThreads:
    def test_pickles_are_small_and_read(self, archive: Path) -> None:
        ds = scdl.open(archive)
        assert_same(ds, EXPECTED)
        assert len(ds.obs) == N_OBS  # what has been read must not travel
        pickled = pickle.dumps(ds)
        assert len(pickled) < 10_000
        assert_same(pickle.loads(pickled), EXPECTED)
        assert_same(copy.deepcopy(ds), EXPECTED)

    def test_pickles_of_large_datasets_are_small(self, tmp_path: Path) -> None:
        n = 30_000
        obs = pd.DataFrame({"type": pd.Categorical(["B"] * n)}, index=names("cell", n))
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(n, 30, density=0.2), obs=obs)
        ds = scdl.SingleCellDataset(tmp_path / "archive", source)
        assert len(ds.obs) == n
        ds.read_rows(slice(None), obs=["type"])
        ds.obs_features()[0]
        assert len(pickle.dumps(ds)) < 10_000

    def test_options_survive_pickling(self, archive: Path) -> None:
        ds = scdl.open(archive, neighbor_sampling_strategy="first", fallback_to_identity=False)
        again = pickle.loads(pickle.dumps(ds))
        assert type(again) is type(ds)
        documented = scdl.SingleCellMemMapDataset(archive, feature_index_name="gene")
        again = pickle.loads(pickle.dumps(documented))
        assert type(again) is scdl.SingleCellMemMapDataset
        assert again.get_row(0, True, ["gene"])[1][0].tolist() == VAR.index.tolist()

    def test_pickles_do_not_depend_on_the_working_directory(
        self, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(archive.parent)
        pickled = pickle.dumps(scdl.open("archive"))
        monkeypatch.chdir(tmp_path)
        assert_same(pickle.loads(pickled), EXPECTED)

    def test_spawned_worker(self, archive: Path) -> None:
        ds = scdl.open(archive)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            values, n_obs = pool.submit(read_in_child, ds).result(timeout=60)
        assert values == EXPECTED.data.tolist()
        assert n_obs == N_OBS

    def test_threads(self, archive: Path) -> None:
        ds = scdl.open(archive)
        rng = np.random.default_rng(0)
        selections = [rng.integers(0, N_OBS, 50) for _ in range(200)]
        with ThreadPoolExecutor(8) as pool:
            batches = list(pool.map(lambda rows: ds.read_rows(rows, obs=["age"]), selections))
        for rows, batch in zip(selections, batches, strict=True):
            np.testing.assert_array_equal(batch.to_dense(), EXPECTED.toarray()[rows])
            assert batch.obs["age"].tolist() == rows.tolist()


@pytest.mark.parametrize("dtype", ["u4", "u8"])
@pytest.mark.parametrize("value", [-5, 1 << 20])
def test_damaged_offsets_are_an_error(tmp_path: Path, dtype: str, value: int) -> None:
    """Also where the offset before or behind it is right, and with other archives beside."""
    contents = small_archive(20, 30, dtypes=("float32", "uint16", np.dtype(dtype).name))
    with registry.backend("memmap").writer.open(str(tmp_path / "a")) as writer:
        contents.write(writer)
        writer.commit(contents.attrs)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    offsets = np.memmap(tmp_path / "a" / "row_ptr.npy", dtype, "r+")
    offsets[7] = np.array(value).astype(dtype)
    offsets.flush()
    collection = scdl.SingleCellCollection([tmp_path / "a", tmp_path / "b"])
    genes = collection.select_genes("union", duplicates="first")
    for cells in (scdl.open(tmp_path / "a"), collection, genes):
        for rows in ([6], [7], [0, 7, 9], range(20)):
            with pytest.raises(ArchiveFormatError, match=r"row [67] .*damaged"):
                cells.read_rows(rows)
        assert len(cells.read_rows([0, 5, 8])) == 3


class TestOffsetsBeyond32Bits:
    """An archive of more than 2**31 stored values, nearly all of it a hole in a sparse file."""

    HOLE = 2**31 + 7

    @pytest.fixture
    def huge(self, tmp_path: Path) -> Path:
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(4, 3, density=1.0))
        scdl.convert(source, tmp_path / "seed")
        (path := tmp_path / "huge").mkdir()
        offsets = np.array([0, self.HOLE, self.HOLE + 2, self.HOLE + 2, self.HOLE + 5], "u4")
        nnz = int(offsets[-1])
        (path / "row_ptr.npy").write_bytes(offsets.tobytes())
        with (path / "data.npy").open("wb") as file:
            file.truncate(nnz * 4)
            file.seek(self.HOLE * 4)
            file.write(np.arange(1, 6, dtype="f4").tobytes())
        with (path / "col_ptr.npy").open("wb") as file:
            file.truncate(nnz)
            file.seek(self.HOLE)
            file.write(bytes([0, 2, 0, 1, 2]))
        if (path / "data.npy").stat().st_blocks * 512 > 2**30:
            pytest.skip("this file system has no sparse files")
        fields = header_of(tmp_path / "seed" / "header.sch")
        lengths = {"DATA": nnz, "COLPTR": nnz, "ROWPTR": 5}
        codes = {"DATA": 6, "COLPTR": 1, "ROWPTR": 3}
        fields["arrays"] = [
            (name, lengths[name], codes[name], None) for name in ("DATA", "ROWPTR", "COLPTR")
        ]
        (path / "header.sch").write_bytes(header_bytes(**fields))
        for name in ("var_features", "obs_features"):
            shutil.copytree(tmp_path / "seed" / name, path / name)
        for name in ("metadata.json", "version.json"):
            shutil.copy(tmp_path / "seed" / name, path / name)
        return path

    def test_rows_behind_the_hole(self, huge: Path) -> None:
        ds = scdl.open(huge)
        assert ds.number_nonzero_values() == self.HOLE + 5
        assert ds.get_row(1)[0][0].tolist() == [1, 2]
        assert ds.get_row(3)[0][1].tolist() == [0, 1, 2]
        batch = ds.read_rows([3, 2, 1, 3])
        assert batch.indptr.tolist() == [0, 3, 3, 5, 8]
        assert batch.to_dense().tolist() == [[3, 4, 5], [0, 0, 0], [1, 0, 2], [3, 4, 5]]
