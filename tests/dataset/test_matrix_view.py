"""Another matrix of an archive that keeps a whole AnnData, read and trained from."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scdl
from scdl.errors import OptionError
from storage_backends.capabilities import RowsRead
from storage_backends.zarr.store import ZarrStore


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(1, (40, 12)).astype("f4"))
    made = ad.AnnData(
        counts.copy(), pd.DataFrame({"t": list("ab" * 20)}, index=map(str, range(40)))
    )
    made.var_names = [f"g{i}" for i in range(12)]
    made.obsm["X_pca"] = rng.random((40, 3)).astype("f4")
    made.obsp["n"] = sp.csr_matrix(np.eye(40, k=1, dtype="f4"))
    made.raw = made
    made = made[:, 3:9].copy()
    made.X = made.X.log1p()
    made.layers["counts"] = counts[:, 3:9].copy()
    made.layers["dense"] = counts[:, 3:9].toarray()
    made.layers["by columns"] = counts[:, 3:9].tocsc()
    # AnnData does not ask for rows in order.
    shuffled = counts[:, 3:9].tocsr()
    order = np.lexsort((-shuffled.indices, np.repeat(np.arange(40), np.diff(shuffled.indptr))))
    made.layers["unsorted"] = sp.csr_matrix(
        (shuffled.data[order], shuffled.indices[order], shuffled.indptr), shape=shuffled.shape
    )
    return made


@pytest.fixture(scope="module", params=["balanced", "archive", "packed"])
def path(request: pytest.FixtureRequest, adata: ad.AnnData, tmp_path_factory: Any) -> Path:
    place: Path = tmp_path_factory.mktemp("kept")
    adata.write_h5ad(place / "a.h5ad")
    scdl.convert(place / "a.h5ad", place / "a.zarr", compression=request.param)
    return place / "a.zarr"


@pytest.mark.parametrize("matrix", ["X", "layers/counts", "layers/unsorted"])
def test_reading(path: Path, adata: ad.AnnData, matrix: str) -> None:
    ds = scdl.open(path, matrix=matrix)
    expected = adata.X if matrix == "X" else adata.layers["counts"]
    assert ds.shape() == (40, [6])
    assert ds.var_names.tolist() == adata.var_names.tolist()
    rows = [7, 3, 39, 7]
    batch = ds.read_rows(rows, obs=["t"], obsm=["X_pca"])
    np.testing.assert_array_equal(batch.to_dense(), expected[rows].toarray())
    assert batch.obs["t"].tolist() == adata.obs["t"].iloc[rows].tolist()
    np.testing.assert_array_equal(batch.obsm["X_pca"], adata.obsm["X_pca"][rows])
    _, genes = ds.get_row(5)[0]
    np.testing.assert_array_equal(genes, np.flatnonzero(expected[5].toarray()))
    assert ds.neighbor_graph("n").neighbors(4).indices.tolist() == [5]
    chosen = ds.read_rows(rows, genes=["g8", "g4"]).to_dense()
    np.testing.assert_array_equal(chosen, expected[rows][:, [5, 1]].toarray())
    back = pickle.loads(pickle.dumps(ds))
    np.testing.assert_array_equal(back.read_rows(rows).to_dense(), expected[rows].toarray())
    np.testing.assert_array_equal(ds.to_anndata().X.toarray(), expected.toarray())


def test_rows_in_frames_are_decoded_together(
    adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of the archive's own matrix, and not one array after the other."""
    found, read = [], ZarrStore.read_rows_across

    def spy(*arguments: Any, **options: Any) -> RowsRead:
        found.append(read(*arguments, **options))
        return found[-1]

    # Whose matrix is X, so that the genes of layers are reordered as its are.
    cells = ad.AnnData(adata.X, adata.obs, adata.var, layers={"counts": adata.layers["counts"]})
    scdl.convert(cells, tmp_path / "a.zarr", compression="packed")
    monkeypatch.setattr(ZarrStore, "read_rows_across", spy)
    ds = scdl.open(tmp_path / "a.zarr", matrix="layers/counts")
    for rows in ([5, 39, 5], range(40)):
        batch = ds.read_rows(rows)
        assert (batch.to_scipy() != adata.layers["counts"][list(rows)]).nnz == 0
    assert found == [RowsRead.SORTED] * 2


def test_the_matrix_that_the_archive_is_made_for(path: Path, adata: ad.AnnData) -> None:
    ds = scdl.open(path)
    assert ds.shape() == (40, [12])
    assert ds.select_matrix("layers/counts").shape() == (40, [6])
    with pytest.raises(OptionError, match="choose one of: raw/X, X, layers/counts"):
        scdl.open(path, matrix="layers/nonsense")


@pytest.mark.parametrize("matrix", ["layers/dense", "layers/by columns"])
def test_matrices_that_are_not_stored_by_rows(path: Path, matrix: str) -> None:
    with pytest.raises(
        OptionError, match=f"{matrix} is not a sparse matrix stored by rows.*convert"
    ):
        scdl.open(path, matrix=matrix)


def test_memmap_archives_have_one(tmp_path: Path, adata: ad.AnnData) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "a", matrix="layers/counts")
    with pytest.raises(OptionError, match="no other matrix X"):
        scdl.open(tmp_path / "a", matrix="X")


def test_loaders(path: Path, adata: ad.AnnData) -> None:
    pytest.importorskip("torch")
    counts = adata.layers["counts"].toarray()
    for ds, options in (
        (scdl.open(path), {"matrix": "layers/counts"}),
        (scdl.open(path, matrix="layers/counts"), {}),
    ):
        loader = scdl.SingleCellLoader(ds, 16, layout="dense", workers=1, **options)
        for batch in loader:
            np.testing.assert_array_equal(batch.x, counts[batch.rows])
    # Two matrices of one archive are different data, though equally many values.
    state = loader.state_dict()
    with pytest.raises(scdl.errors.ResumeError):
        scdl.SingleCellLoader(scdl.open(path, matrix="X"), 16).load_state_dict(state)
    collection = scdl.SingleCellCollection([path])
    with pytest.raises(OptionError, match="no other matrix to choose"):
        scdl.SingleCellLoader(collection, 16, matrix="layers/counts")


def test_a_view_changes_nothing(path: Path, tmp_path: Path) -> None:
    ds: Any = scdl.open(path, matrix="layers/counts")
    scdl.convert(path, tmp_path / "other", matrix="layers/counts")
    other: Any = scdl.open(tmp_path / "other")
    for change in (
        lambda: ds.cast_data_to_dtype("float64"),
        lambda: ds.save(tmp_path / "copy"),
        lambda: ds.concat([scdl.open(path)]),
        lambda: ds.store.remove(),
        lambda: other.concat([ds], output_path=tmp_path / "a", destroy_on_copy=True),
    ):
        with pytest.raises(OptionError, match="open the archive without"):
            change()
    whole: Any = scdl.open(path)
    with pytest.raises(OptionError, match="is a collection"):
        scdl.open(path.parent, matrix="X")
    assert whole.shape() == (40, [12])


def test_the_documented_option_is_for_conversions(tmp_path: Path, adata: ad.AnnData) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    made = scdl.SingleCellMemMapDataset(tmp_path / "a", tmp_path / "a.h5ad", use_X_not_raw=True)
    opened = scdl.SingleCellMemMapDataset(tmp_path / "a", use_X_not_raw=True)
    assert made.n_vars == opened.n_vars == [6]
    opened.load_h5ad(tmp_path / "a.h5ad")
    assert opened.n_vars == [6]
