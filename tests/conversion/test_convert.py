"""Conversion: every encoding that an h5ad file may have gives the rows that scipy sees."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from budget import whole_only
from hypothesis import given
from hypothesis import strategies as st
from reading import assert_rows, assert_same
from sources import (
    DTYPES,
    Cells,
    Encoding,
    cells,
    encodings,
    names,
    random_cells,
    write_h5ad,
    write_matrix,
)

import scdl

BLOCKS = [1, 3, 17, 1 << 20]


@contextmanager
def workplace() -> Iterator[Path]:
    """A directory for one example of hypothesis."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def anndata_reads(path: Path, expected: sp.csr_array) -> None:
    """The oracle agrees with anndata."""
    x = anndata.read_h5ad(path).X
    dense = x.toarray() if sp.issparse(x) else np.asarray(x)
    np.testing.assert_array_equal(dense.astype(np.float32), expected.toarray())


@given(cells(), encodings(), st.sampled_from(BLOCKS))
def test_every_encoding(matrix: Cells, encoding: Encoding, block_values: int) -> None:
    with workplace() as place:
        source = write_h5ad(place / "a.h5ad", matrix, encoding)
        report = scdl.convert(source, place / "archive", block_values=block_values)
        expected = matrix.csr()
        assert (report.n_obs, report.n_vars) == (matrix.shape[0], [matrix.shape[1]])
        assert report.nnz == expected.nnz
        assert_same(scdl.open(place / "archive"), expected)


@given(
    cells(dtypes=("<f4", "<f8", "<i4", "<i8", "<u1", "<u2")),
    encodings(),
    st.sampled_from(BLOCKS),
)
def test_what_anndata_reads(matrix: Cells, encoding: Encoding, block_values: int) -> None:
    with workplace() as place:
        native = Encoding(encoding.layout, "<i4", "<i4", encoding.storage)
        source = write_h5ad(place / "a.h5ad", matrix, native)
        scdl.convert(source, place / "archive", block_values=block_values)
        ds = scdl.open(place / "archive")
        anndata_reads(source, sp.csr_array(ds.read_rows(slice(None)).to_dense()))


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_in_every_layout(tmp_path: Path, layout: str, dtype: str) -> None:
    matrix = random_cells(30, 20, dtype=dtype, seed=3)
    source = write_h5ad(tmp_path / "a.h5ad", matrix, Encoding(layout))
    scdl.convert(source, tmp_path / "archive", block_values=50)
    assert_same(scdl.open(tmp_path / "archive"), matrix.csr())


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_blocks_do_not_change_the_archive(tmp_path: Path, layout: str) -> None:
    storage = {"compression": "gzip", "chunk": 50}
    matrix = random_cells(70, 90, density=0.3, is_sorted=False)
    source = write_h5ad(tmp_path / "a.h5ad", matrix, Encoding(layout, storage=storage))
    for block_values in (1, 7, 100, 1 << 24):
        path = tmp_path / f"archive{block_values}"
        scdl.convert(source, path, block_values=block_values)
        for file in ("data.npy", "col_ptr.npy", "row_ptr.npy", "header.sch"):
            first = tmp_path / "archive1" / file
            assert (path / file).read_bytes() == first.read_bytes()


def test_rows_longer_than_a_block(tmp_path: Path) -> None:
    matrix = random_cells(4, 500, density=1.0, is_sorted=False, repeated=True)
    source = write_h5ad(tmp_path / "a.h5ad", matrix)
    scdl.convert(source, tmp_path / "archive", block_values=10)
    assert_same(scdl.open(tmp_path / "archive"), matrix.csr())


def test_empty_rows_and_columns_anywhere(tmp_path: Path) -> None:
    rows, columns = np.array([2, 2, 5]), np.array([1, 6, 1])
    matrix = Cells(rows, columns, np.array([1, 2, 3], "f4"), (9, 8))
    for layout in ("csr", "csc", "dense"):
        source = write_h5ad(tmp_path / f"{layout}.h5ad", matrix, Encoding(layout))
        scdl.convert(source, tmp_path / layout, block_values=1)
        assert_same(scdl.open(tmp_path / layout), matrix.csr())


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("shape", [(0, 5), (4, 5), (0, 0), (3, 0)])
def test_nothing_stored(tmp_path: Path, layout: str, shape: tuple[int, int]) -> None:
    matrix = random_cells(*shape, density=0.0)
    obs = pd.DataFrame({"age": np.arange(shape[0])}, index=names("cell", shape[0]))
    source = write_h5ad(tmp_path / "a.h5ad", matrix, Encoding(layout), obs=obs)
    report = scdl.convert(source, tmp_path / "archive")
    assert (report.n_obs, report.n_vars, report.nnz) == (shape[0], [shape[1]], 0)
    ds = scdl.open(tmp_path / "archive")
    assert_same(ds, matrix.csr())
    assert ds.obs["age"].tolist() == list(range(shape[0]))
    assert ds.sparsity() == 1.0


def test_stored_zeros_stay_stored(tmp_path: Path) -> None:
    values = np.array([0, 2, 0], "f4")
    matrix = Cells(np.array([0, 0, 1]), np.array([0, 2, 1]), values, (2, 3))
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", matrix), tmp_path / "archive")
    ds = scdl.open(tmp_path / "archive")
    assert ds.number_nonzero_values() == 3
    assert ds.get_row(0)[0][0].tolist() == [0, 2]


def test_special_floats(tmp_path: Path) -> None:
    values = np.array([np.nan, np.inf, -np.inf, np.float32(1e-45)], "f4")
    matrix = Cells(np.arange(4), np.zeros(4, int), values, (4, 2))
    for layout in ("csr", "csc", "dense"):
        source = write_h5ad(tmp_path / f"{layout}.h5ad", matrix, Encoding(layout))
        scdl.convert(source, tmp_path / layout)
        np.testing.assert_array_equal(scdl.open(tmp_path / layout).data, values)


class TestSortingAndSumming:
    def test_both_are_reported(self, tmp_path: Path) -> None:
        rows = np.array([0, 0, 1, 1, 1, 2, 2, 3])
        columns = np.array([1, 2, 3, 0, 3, 4, 4, 0])
        matrix = Cells(rows, columns, np.arange(1, 9).astype("f4"), (4, 5))
        report = scdl.convert(write_h5ad(tmp_path / "a.h5ad", matrix), tmp_path / "archive")
        assert report.rows_sorted == 1
        assert report.duplicates_summed == 2
        assert report.nnz == 6
        assert_same(scdl.open(tmp_path / "archive"), matrix.csr())

    def test_neither_in_a_canonical_file(self, tmp_path: Path) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(9, 9))
        report = scdl.convert(source, tmp_path / "archive")
        assert (report.rows_sorted, report.duplicates_summed) == (0, 0)

    @pytest.mark.parametrize("layout", ["csr", "csc"])
    @pytest.mark.parametrize(("dtype", "value"), [("u1", 200), ("i1", 100), ("u2", 60_000)])
    def test_sums_do_not_wrap(self, tmp_path: Path, layout: str, dtype: str, value: int) -> None:
        twice = np.full(2, value, dtype)
        matrix = Cells(np.zeros(2, int), np.ones(2, int), twice, (1, 2))
        source = write_h5ad(tmp_path / "a.h5ad", matrix, Encoding(layout))
        scdl.convert(source, tmp_path / "archive")
        assert scdl.open(tmp_path / "archive").get_row_column(0, 1) == 2 * value


class TestStorage:
    """Chunks are read raw where that is safe; whatever HDF5 allows in them must come out right."""

    matrix = random_cells(40, 30, seed=5)

    def check(self, path: Path) -> None:
        scdl.convert(path, path.with_suffix(".scdl"), block_values=100)
        assert_same(scdl.open(path.with_suffix(".scdl")), self.matrix.csr())

    @contextmanager
    def rewritten(self, tmp_path: Path, part: str, **storage: object) -> Iterator[h5py.Dataset]:
        """Store one array of X anew, and yield it empty, with the values as an attribute."""
        path = write_h5ad(tmp_path / "a.h5ad", self.matrix)
        with h5py.File(path, "r+") as file:
            values = file["X"][part][:]
            del file["X"][part]
            yield file["X"].create_dataset(part, values.shape, values.dtype, **storage), values
        self.check(path)

    @pytest.mark.parametrize("part", ["data", "indices", "indptr"])
    def test_chunks_that_skip_filters(self, tmp_path: Path, part: str) -> None:
        storage = {"chunks": (8,), "compression": "gzip", "shuffle": True}
        with self.rewritten(tmp_path, part, **storage) as (dataset, values):
            dataset[:] = values
            # Bit 0 is the shuffle, bit 1 gzip: this chunk uses neither.
            dataset.id.write_direct_chunk((8,), values[8:16].tobytes(), filter_mask=0b11)

    def test_chunks_that_skip_only_the_shuffle(self, tmp_path: Path) -> None:
        import zlib

        storage = {"chunks": (8,), "compression": "gzip", "shuffle": True}
        with self.rewritten(tmp_path, "data", **storage) as (dataset, values):
            dataset[:] = values
            packed = zlib.compress(values[16:24].tobytes())
            dataset.id.write_direct_chunk((16,), packed, filter_mask=0b01)

    def test_chunks_never_written_hold_the_fill_value(self, tmp_path: Path) -> None:
        storage = {"chunks": (8,), "compression": "gzip", "fillvalue": 2.5}
        matrix = self.matrix
        values = matrix.values.copy()
        values[8:16] = 2.5
        self.matrix = Cells(matrix.rows, matrix.columns, values, matrix.shape)
        with self.rewritten(tmp_path, "data", **storage) as (dataset, written):
            dataset[:8] = written[:8]
            dataset[16:] = written[16:]

    def test_scale_offset_filter(self, tmp_path: Path) -> None:
        storage = {"chunks": (8,), "scaleoffset": 0}
        with self.rewritten(tmp_path, "indices", **storage) as (dataset, values):
            dataset[:] = values

    @pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
    def test_dense_in_chunks_of_both_axes(self, tmp_path: Path, compression: str | None) -> None:
        path = write_h5ad(tmp_path / "a.h5ad", self.matrix, Encoding("dense"))
        with h5py.File(path, "r+") as file:
            values = file["X"][:]
            del file["X"]
            file.create_dataset("X", data=values, chunks=(7, 11), compression=compression)
        self.check(path)


class TestMatrix:
    """Which matrix is taken."""

    x, counts, spliced = (random_cells(8, n_vars, seed=n_vars) for n_vars in (6, 9, 6))
    raw_var = pd.DataFrame({"symbol": [f"R{i}" for i in range(9)]}, index=names("raw", 9))
    var = pd.DataFrame({"symbol": [f"X{i}" for i in range(6)]}, index=names("gene", 6))

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        return write_h5ad(
            tmp_path / "a.h5ad",
            self.x,
            var=self.var,
            raw=(self.counts, self.raw_var),
            layers={"spliced": self.spliced},
        )

    @pytest.mark.parametrize(
        ("matrix", "expected"),
        [(None, "counts"), ("raw/X", "counts"), ("X", "x"), ("layers/spliced", "spliced")],
    )
    def test_source(self, source: Path, matrix: str | None, expected: str) -> None:
        report = scdl.convert(source, source.parent / "archive", matrix=matrix)
        assert report.matrices == [matrix or "raw/X"]
        ds = scdl.open(source.parent / "archive")
        assert_same(ds, getattr(self, expected).csr())
        var = self.raw_var if expected == "counts" else self.var
        assert ds.var.index.tolist() == var.index.tolist()
        assert ds.var["symbol"].tolist() == var["symbol"].tolist()

    def test_x_where_there_is_no_raw(self, tmp_path: Path) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", self.x)
        assert scdl.convert(source, tmp_path / "archive").matrices == ["X"]

    def test_raw_where_there_is_no_x(self, tmp_path: Path) -> None:
        obs = pd.DataFrame(index=names("cell", 8))
        raw = (self.counts, self.raw_var)
        source = write_h5ad(tmp_path / "a.h5ad", None, obs=obs, var=self.var, raw=raw)
        scdl.convert(source, tmp_path / "archive")
        assert_same(scdl.open(tmp_path / "archive"), self.counts.csr())

    @pytest.mark.parametrize("use_x", [False, True])
    def test_documented_options(self, source: Path, use_x: bool) -> None:
        archive = source.parent / "archive"
        ds = scdl.SingleCellMemMapDataset(
            archive, source, use_X_not_raw=use_x, paginated_load_cutoff=0, load_block_row_size=3
        )
        assert_same(ds, (self.x if use_x else self.counts).csr())


class TestDtype:
    @pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "f2", "f4", "f8"])
    def test_stored_as_asked(self, tmp_path: Path, dtype: str) -> None:
        matrix = random_cells(9, 7, dtype="<u2")
        source = write_h5ad(tmp_path / "a.h5ad", matrix)
        report = scdl.convert(source, tmp_path / "archive", data_dtype=np.dtype(dtype).name)
        assert np.dtype(report.dtype) == dtype
        ds = scdl.open(tmp_path / "archive")
        assert ds.dtypes["data.npy"] == ds.data.dtype == np.dtype(dtype)
        # scipy has no float16.
        if dtype == "f2":
            np.testing.assert_array_equal(ds.data, matrix.csr().data)
        else:
            assert_rows(ds, matrix.csr(dtype))

    def test_column_ids_and_offsets_are_as_narrow_as_can_be(self, tmp_path: Path) -> None:
        for n_vars, expected in ((256, "uint8"), (257, "uint16"), (65_537, "uint32")):
            matrix = Cells(np.array([0]), np.array([n_vars - 1]), np.ones(1, "f4"), (1, n_vars))
            source = write_h5ad(tmp_path / f"{n_vars}.h5ad", matrix)
            scdl.convert(source, tmp_path / str(n_vars))
            ds = scdl.open(tmp_path / str(n_vars))
            assert ds.dtypes["col_ptr.npy"] == expected
            assert ds.get_row(0)[0][1].tolist() == [n_vars - 1]
        matrix = random_cells(20, 20, density=1.0)
        scdl.convert(write_h5ad(tmp_path / "full.h5ad", matrix), tmp_path / "full")
        assert scdl.open(tmp_path / "full").dtypes["row_ptr.npy"] == "uint16"

    @pytest.mark.parametrize(
        ("source", "value", "dtype"),
        [
            ("f4", 256, "uint8"),
            ("i4", 65_536, "uint16"),
            ("i8", 2**32, "uint32"),
            ("f4", -1, "uint8"),
            ("i2", -1, "uint64"),
            ("f4", np.nan, "uint8"),
            ("f8", np.inf, "uint32"),
            ("f4", 0.5, "uint8"),
            ("f8", 1e6, "float16"),
            ("f8", 1e39, "float32"),
            ("f8", 2.0**64, "uint64"),
        ],
    )
    @pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
    def test_what_a_dtype_cannot_hold(
        self, tmp_path: Path, source: str, value: float, dtype: str, layout: str
    ) -> None:
        values = np.array([1, value], source)
        matrix = Cells(np.array([0, 1]), np.array([0, 1]), values, (2, 2))
        write_h5ad(tmp_path / "a.h5ad", matrix, Encoding(layout))
        with pytest.raises(scdl.errors.CastError, match=dtype):
            scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive", data_dtype=dtype)
        assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]

    def test_limits_of_a_dtype_are_held(self, tmp_path: Path) -> None:
        for source, value, dtype in (
            ("u8", 2**64 - 1, "uint64"),
            ("f4", 255, "uint8"),
            ("f8", 65_504, "float16"),
            ("i8", 2**32 - 1, "uint32"),
        ):
            matrix = Cells(np.zeros(1, int), np.zeros(1, int), np.array([value], source), (1, 1))
            write_h5ad(tmp_path / f"{dtype}.h5ad", matrix)
            scdl.convert(tmp_path / f"{dtype}.h5ad", tmp_path / dtype, data_dtype=dtype)
            assert scdl.open(tmp_path / dtype).data[0].item() == value

    @pytest.mark.parametrize(
        ("source", "value", "dtype", "rounding"),
        [
            ("f8", 0.1, "float32", 1.5e-9),
            ("f8", 1 / 3, "float16", 8.2e-5),
            ("f4", 0.1, "float16", 2.5e-5),
        ],
    )
    def test_rounding(
        self, tmp_path: Path, source: str, value: float, dtype: str, rounding: float
    ) -> None:
        matrix = Cells(np.zeros(1, int), np.zeros(1, int), np.array([value], source), (1, 1))
        write_h5ad(tmp_path / "a.h5ad", matrix)
        with pytest.warns(scdl.errors.ScdlWarning, match="round"):
            report = scdl.convert(
                tmp_path / "a.h5ad", tmp_path / "one", data_dtype=dtype, data_dtype_tolerance=1e-12
            )
        stored = np.array([value], source).astype(dtype).astype(np.float64)
        exact = abs(stored - np.array([value], source).astype(np.float64)).item()
        assert report.max_rounding == pytest.approx(exact)
        assert exact == pytest.approx(rounding, rel=0.1)
        # Within the tolerance nothing is said: a warning would be an error.
        scdl.convert(
            tmp_path / "a.h5ad", tmp_path / "two", data_dtype=dtype, data_dtype_tolerance=1e-3
        )

    def test_integers_beyond_what_float32_counts(self, tmp_path: Path) -> None:
        values = np.array([2**24 + 1], "i4")
        matrix = Cells(np.zeros(1, int), np.zeros(1, int), values, (1, 1))
        write_h5ad(tmp_path / "a.h5ad", matrix)
        with pytest.warns(scdl.errors.ScdlWarning, match="round"):
            report = scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive")
        assert report.max_rounding == 1

    def test_integers_that_a_double_does_not_hold(self, tmp_path: Path) -> None:
        values = np.array([2**53, 2**53 + 1, 2**63 + 1025], "u8")
        where = np.zeros(3, int), np.arange(3)
        source = write_h5ad(tmp_path / "a.h5ad", Cells(*where, values, (1, 3)))
        with pytest.warns(scdl.errors.ScdlWarning, match="rounded them by up to 1.02e"):
            report = scdl.convert(source, tmp_path / "a", data_dtype="float64")
        assert report.max_rounding == 1023
        small = write_h5ad(tmp_path / "b.h5ad", Cells(*where, values // 2**11, (1, 3)))
        assert scdl.convert(small, tmp_path / "b", data_dtype="float64").max_rounding == 0

    @pytest.mark.parametrize("dtype", ["int8", "complex64", "float128", "nonsense", "U5"])
    def test_dtypes_that_the_format_has_not(self, tmp_path: Path, dtype: str) -> None:
        write_h5ad(tmp_path / "a.h5ad", random_cells(2, 2))
        with pytest.raises((ValueError, TypeError), match=dtype):
            scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive", data_dtype=dtype)
        assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]


class TestObsm:
    vectors = np.random.default_rng(0).normal(size=(20, 5))

    @pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "i4", "u1"])
    def test_read_along(self, tmp_path: Path, dtype: str) -> None:
        vectors = (self.vectors * 10).astype("i8").clip(0, 9).astype(dtype)
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(20, 4), obsm={"X_pca": vectors})
        scdl.convert(source, tmp_path / "archive", obsm=["X_pca"], block_values=7)
        rows = [3, -1, 3, 0]
        found = scdl.open(tmp_path / "archive").read_rows(rows, obsm=["X_pca"]).obsm["X_pca"]
        np.testing.assert_array_equal(found, vectors[rows])
        assert found.dtype == np.dtype(dtype).newbyteorder("=")

    def test_only_on_request(self, tmp_path: Path) -> None:
        obsm = {"X_pca": self.vectors, "X_umap": self.vectors[:, :2]}
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(20, 4), obsm=obsm)
        report = scdl.convert(source, tmp_path / "archive", obsm=["X_umap"])
        assert "obsm/X_pca" in report.not_carried
        assert "obsm/X_umap" not in report.not_carried
        ds = scdl.open(tmp_path / "archive")
        assert ds.read_rows([1]).obsm == {}
        with pytest.raises(scdl.errors.FeatureNotFoundError, match="X_umap"):
            ds.read_rows([1], obsm=["X_pca"])

    def test_no_cells(self, tmp_path: Path) -> None:
        source = write_h5ad(
            tmp_path / "a.h5ad", random_cells(0, 4), obsm={"X_pca": self.vectors[:0]}
        )
        scdl.convert(source, tmp_path / "archive", obsm=["X_pca"])
        batch = scdl.open(tmp_path / "archive").read_rows([], obsm=["X_pca"])
        assert batch.obsm["X_pca"].shape == (0, 5)


class TestNotCarried:
    def test_everything_that_is_left_out_is_named(self, tmp_path: Path) -> None:
        x = random_cells(6, 5)
        graph = random_cells(6, 6)
        source = write_h5ad(
            tmp_path / "a.h5ad",
            x,
            raw=(random_cells(6, 7), pd.DataFrame(index=names("gene", 7))),
            layers={"counts": x},
            obsm={"X_pca": np.zeros((6, 2))},
            obsp={"connectivities": graph, "next_cell_ids": graph},
        )
        with h5py.File(source, "r+") as file:
            file.create_group("uns")["note"] = "text"
            file.create_group("varm")["PCs"] = np.zeros((5, 2))
        report = scdl.convert(source, tmp_path / "archive", neighbor_key="next_cell_ids")
        assert set(report.not_carried) == {
            "X",
            "layers/counts",
            "obsm/X_pca",
            "obsp/connectivities",
            "uns",
            "var",  # raw/var is taken
            "varm/PCs",
        }
        for name in ("layers/counts", "obsm/X_pca", "obsp/connectivities"):
            assert name in str(report)

    def test_nothing(self, tmp_path: Path) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(6, 5))
        assert scdl.convert(source, tmp_path / "archive").not_carried == ()

    @pytest.mark.parametrize("group", ["uns", "obsm", "varm", "obsp", "layers"])
    def test_elements_that_nobody_can_read_are_never_read(self, tmp_path: Path, group: str) -> None:
        matrix = random_cells(6, 5)
        source = write_h5ad(tmp_path / "a.h5ad", matrix)
        with h5py.File(source, "r+") as file:
            exotic = file.require_group(group).create_group("exotic")
            exotic.attrs.update({"encoding-type": "from-the-future", "encoding-version": "9"})
            exotic["dangling"] = h5py.SoftLink("/nowhere")
            exotic["elsewhere"] = h5py.ExternalLink("missing.h5", "/x")
            exotic["opaque"] = np.void(b"bytes")
        report = scdl.convert(source, tmp_path / "archive")
        assert report.not_carried == (group if group == "uns" else f"{group}/exotic",)
        assert_same(scdl.open(tmp_path / "archive"), matrix.csr())


class TestReport:
    def test_says_what_was_written(self, tmp_path: Path) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(30, 20))
        report = scdl.convert(str(source), str(tmp_path / "archive"))
        assert Path(report.path) == tmp_path / "archive"
        assert report.backend == "memmap"
        assert np.dtype(report.dtype) == np.float32
        files = [path for path in (tmp_path / "archive").rglob("*") if path.is_file()]
        assert report.nbytes == sum(path.stat().st_size for path in files)
        assert 0 < report.seconds < 60
        assert report.max_rounding == 0
        for text in (str(tmp_path / "archive"), "30", "20", "X"):
            assert text in str(report)

    @pytest.mark.parametrize("progress", [True, False])
    def test_progress_bar(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: bool
    ) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(30, 20))
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr("sys.stderr", terminal)
        scdl.convert(source, tmp_path / "archive", progress=progress)
        assert ("100%" in terminal.getvalue()) == progress
        assert progress or terminal.getvalue() == ""

    def test_metadata_files(self, tmp_path: Path) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(30, 20))
        scdl.convert(source, tmp_path / "archive")
        assert json.loads((tmp_path / "archive/metadata.json").read_text()) == {"num_rows": 30}
        assert json.loads((tmp_path / "archive/version.json").read_text()) == scdl.__version__


class TestSeveralFiles:
    def files(self, tmp_path: Path, *specs: tuple[int, int]) -> list[Path]:
        """One file for each number of cells and of genes; equal numbers mean equal genes."""
        paths = []
        for i, (n_obs, n_vars) in enumerate(specs):
            (tmp_path / str(i)).mkdir()
            path = tmp_path / str(i) / "same_stem.h5ad"
            obs = pd.DataFrame({"file": [f"f{i}"] * n_obs}, index=names(f"file{i}-", n_obs))
            var = pd.DataFrame(index=names(f"of{n_vars}-", n_vars))
            paths.append(write_h5ad(path, random_cells(n_obs, n_vars, seed=i), obs=obs, var=var))
        return paths

    def test_equal_genes_make_one_block(self, tmp_path: Path) -> None:
        paths = self.files(tmp_path, (5, 8), (1, 8), (7, 8))
        report = scdl.convert(paths, tmp_path / "archive", block_values=10)
        expected = sp.vstack([random_cells(n, 8, seed=i).csr() for i, n in enumerate((5, 1, 7))])
        ds = scdl.open(tmp_path / "archive")
        assert report.matrices == ["X", "X", "X"]
        assert_same(ds, sp.csr_array(expected))
        assert ds.obs["file"].tolist() == ["f0"] * 5 + ["f1"] + ["f2"] * 7
        assert ds.obs_names[5] == "file1-0"

    def test_different_genes_make_blocks(self, tmp_path: Path) -> None:
        paths = self.files(tmp_path, (5, 8), (4, 3), (2, 3), (3, 8))
        report = scdl.convert(paths, tmp_path / "archive")
        ds = scdl.open(tmp_path / "archive")
        assert report.n_vars == ds.number_of_variables() == [8, 3, 8]
        assert ds.number_of_values() == 5 * 8 + 6 * 3 + 3 * 8
        assert ds.shape() == (14, [8, 3, 8])
        row = 0
        for i, (n_obs, n_vars) in enumerate([(5, 8), (4, 3), (2, 3), (3, 8)]):
            dense = random_cells(n_obs, n_vars, seed=i).csr().toarray()
            for k in range(n_obs):
                np.testing.assert_array_equal(ds.get_row_padded(row)[0], dense[k])
                _, (genes,) = ds.get_row(row, return_features=True)
                assert genes.tolist() == [f"of{n_vars}-{j}" for j in range(n_vars)]
                row += 1

    def test_twelve_different_files(self, tmp_path: Path) -> None:
        """With ten blocks or more, file names sort differently from numbers."""
        paths = self.files(tmp_path, *[(2, n_vars) for n_vars in range(3, 15)])
        scdl.convert(paths, tmp_path / "archive")
        ds = scdl.open(tmp_path / "archive")
        for i, n_vars in enumerate(range(3, 15)):
            _, (genes,) = ds.get_row(2 * i, return_features=True)
            assert genes.tolist() == [f"of{n_vars}-{j}" for j in range(n_vars)]

    def test_genes_in_another_order_are_brought_into_the_first(self, tmp_path: Path) -> None:
        for name, genes in (("a", ["g0", "g1"]), ("b", ["g1", "g0"])):
            var = pd.DataFrame(index=pd.Index(genes))
            write_h5ad(tmp_path / f"{name}.h5ad", random_cells(2, 2, density=1), var=var)
        scdl.convert([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "archive")
        ds = scdl.open(tmp_path / "archive")
        assert ds.number_of_variables() == [2]
        assert ds.get_row(3, return_features=True)[1][0].tolist() == ["g0", "g1"]
        cells = random_cells(2, 2, density=1).csr().toarray()
        np.testing.assert_array_equal(
            ds.read_rows(slice(None)).to_dense(), [*cells, *cells[:, ::-1]]
        )

    def test_different_obs_columns(self, tmp_path: Path) -> None:
        for name, column in (("a", "age"), ("b", "dose")):
            obs = pd.DataFrame({column: [1, 2], "both": ["x", name]}, index=names(name, 2))
            write_h5ad(tmp_path / f"{name}.h5ad", random_cells(2, 2), obs=obs)
        scdl.convert([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "archive")
        obs = scdl.open(tmp_path / "archive").obs
        assert obs["both"].tolist() == ["x", "a", "x", "b"]
        assert obs["age"].isna().tolist() == [False, False, True, True]
        assert obs["dose"].tolist()[2:] == [1, 2]

    def test_different_categories(self, tmp_path: Path) -> None:
        for name, values in (("a", ["B", "T"]), ("b", ["NK", "B"])):
            obs = pd.DataFrame({"type": pd.Categorical(values)}, index=names(name, 2))
            write_h5ad(tmp_path / f"{name}.h5ad", random_cells(2, 2), obs=obs)
        scdl.convert([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "archive")
        ds = scdl.open(tmp_path / "archive")
        assert ds.obs["type"].tolist() == ["B", "T", "NK", "B"]
        assert ds.read_rows([2, 3], obs=["type"]).obs["type"].tolist() == ["NK", "B"]

    def test_graphs_and_vectors(self, tmp_path: Path) -> None:
        paths = []
        for i, n in enumerate((4, 3)):
            graph = random_cells(n, n, seed=i)
            vectors = np.full((n, 2), i, "f4")
            path = tmp_path / f"{i}.h5ad"
            cells = random_cells(n, 5)
            paths.append(write_h5ad(path, cells, obsp={"knn": graph}, obsm={"X_pca": vectors}))
        scdl.convert(paths, tmp_path / "archive", neighbor_key="knn", obsm=["X_pca"])
        ds = scdl.open(tmp_path / "archive", neighbor_key="knn")
        joined = sp.csr_array(
            sp.block_diag([random_cells(n, n, seed=i).csr() for i, n in enumerate((4, 3))])
        )
        for i in range(7):
            part = slice(joined.indptr[i], joined.indptr[i + 1])
            neighbors = ds.get_neighbor_indices_for_cell(i)
            assert neighbors.tolist() == joined.indices[part].tolist()
        assert ds.read_rows([3, 4], obsm=["X_pca"]).obsm["X_pca"].tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("backend", ["memmap", "memory"])
def test_every_backend_reads_the_same(tmp_path: Path, backend: str) -> None:
    path = str(tmp_path / "archive") if backend == "memmap" else f"ram:{tmp_path}"
    matrix = random_cells(20, 9, seed=1)
    graph = random_cells(20, 20, seed=2)
    obs = pd.DataFrame({"type": pd.Categorical(["B", "T"] * 10)}, index=names("cell", 20))
    source = write_h5ad(tmp_path / "a.h5ad", matrix, obs=obs, obsp={"next_cell_ids": graph})
    report = scdl.convert(source, path, backend=backend, neighbor_key="next_cell_ids")
    assert report.backend == backend
    ds = scdl.open(path)
    assert_same(ds, matrix.csr())
    assert ds.obs["type"].tolist() == ["B", "T"] * 10
    assert ds.get_neighbor_stats()["total_connections"] == graph.csr().nnz


def test_options_of_the_class_reach_the_conversion(tmp_path: Path) -> None:
    matrix = random_cells(6, 5)
    vectors = {"X_pca": np.eye(6, dtype="f4")}
    source = write_h5ad(tmp_path / "a.h5ad", matrix, layers={"counts": matrix}, obsm=vectors)
    ds = scdl.SingleCellDataset(
        tmp_path / "archive",
        source,
        matrix="layers/counts",
        obsm=["X_pca"],
        data_dtype="float64",
        block_values=3,
    )
    assert_same(ds, matrix.csr("f8"))
    np.testing.assert_array_equal(ds.read_rows([2], obsm=["X_pca"]).obsm["X_pca"], np.eye(6)[[2]])


@whole_only
def test_names_of_functions_survive_imports_of_modules(
    tmp_path: Path, run_python: Callable[..., object]
) -> None:
    """`scdl.convert` is the function, also after something has imported every module."""
    write_h5ad(tmp_path / "a.h5ad", random_cells(3, 3))
    code = """
import importlib, pkgutil, scdl
scdl.SingleCellDataset("one", "a.h5ad")
scdl.convert("a.h5ad", "two")
for module in pkgutil.walk_packages(scdl.__path__, "scdl."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        # Some need it.
        assert error.name in ("torch", "lightning", "distributed"), error
scdl.convert("a.h5ad", "three")
print(len(scdl.open("one")), len(scdl.open("two")), len(scdl.open("three")))
"""
    done = run_python("-c", code)
    assert (done.returncode, done.stdout) == (0, "3 3 3\n"), done.stderr


def test_scipy_writes_and_we_read(tmp_path: Path) -> None:
    """A file as anndata itself writes it, through its own defaults."""
    x = sp.random_array((50, 40), density=0.2, format="csr", dtype=np.float32, rng=0)
    adata = anndata.AnnData(x, layers={"csc": x.tocsc()})
    adata.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    for matrix in ("X", "layers/csc"):
        path = tmp_path / matrix.replace("/", "_")
        scdl.convert(tmp_path / "a.h5ad", path, matrix=matrix)
        assert_same(scdl.open(path), sp.csr_array(x))


def test_sources_may_be_symbolic_links(tmp_path: Path) -> None:
    matrix = random_cells(5, 4)
    write_h5ad(tmp_path / "a.h5ad", matrix)
    (tmp_path / "link.h5ad").symlink_to("a.h5ad")
    scdl.convert(tmp_path / "link.h5ad", tmp_path / "archive")
    assert_same(scdl.open(tmp_path / "archive"), matrix.csr())


def test_matrix_of_a_group_that_is_a_link(tmp_path: Path) -> None:
    matrix = random_cells(5, 4)
    source = write_h5ad(tmp_path / "a.h5ad", matrix)
    with h5py.File(source, "r+") as file:
        write_matrix(file, "elsewhere", matrix)
        del file["X"]
        file["X"] = h5py.SoftLink("/elsewhere")
    scdl.convert(source, tmp_path / "archive")
    assert_same(scdl.open(tmp_path / "archive"), matrix.csr())


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(3, 4))
    with pytest.raises(TypeError, match="matrx"):
        scdl.convert(source, tmp_path / "archive", matrx="X")
    assert not (tmp_path / "archive").exists()
    scdl.convert(source, tmp_path / "archive")
    with pytest.raises(TypeError, match="data_dtype"):
        scdl.open(tmp_path / "archive", data_dtype="uint8")


def test_dense_in_high_chunks_is_read_by_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As h5py lays dense matrices out by itself; a row of chunks may exceed the memory."""
    monkeypatch.setattr("scdl.sources.hdf5_matrices._LARGEST_BAND", 1_000)
    cells = random_cells(90, 40, density=0.3)
    source = write_h5ad(tmp_path / "a.h5ad", cells, Encoding("dense"))
    with h5py.File(source, "r+") as file:
        values, attributes = file["X"][:], dict(file["X"].attrs)
        del file["X"]
        file.create_dataset("X", data=values, chunks=(50, 7), compression="gzip")
        file["X"].attrs.update(attributes)
    report = scdl.convert(source, tmp_path / "archive", block_values=200)
    assert_same(scdl.open(tmp_path / "archive"), cells.csr())
    assert report.rows_sorted == 0
