"""AnnData objects: in memory, views, backed by a file, with Dask arrays, and several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import dask.array
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from annotated import annotated, counts, names_of_layers, same, write, written
from budget import examples, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import random_cells, write_h5ad

import scdl
from scdl.errors import OptionError, PathTypeError, SourceError

KINDS = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr array": sp.csr_array,
    "dense": lambda x: x.toarray(),
    "big-endian": lambda x: x.toarray().astype(">f4"),
}


def values(path: Path) -> np.ndarray:
    return scdl.open(path).read_rows(slice(None)).to_dense()


def dense(x: Any) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.asarray(x)


@pytest.mark.parametrize("kind", sample([*KINDS], 2))
@pytest.mark.parametrize("raw", [False, True])
def test_it_becomes_what_its_file_becomes(tmp_path: Path, kind: str, raw: bool) -> None:
    adata = annotated(raw=raw, X=KINDS[kind])
    write(adata, tmp_path / "a.h5ad")
    # Which turns text into categories.
    for suffix in ("scdl", "zarr"):
        one, other = tmp_path / f"one.{suffix}", tmp_path / f"other.{suffix}"
        report = scdl.convert(adata, one)
        expected = scdl.convert(tmp_path / "a.h5ad", other)
        assert set(report.not_carried) == set(expected.not_carried)
        assert (report.matrices, report.nnz) == (expected.matrices, expected.nnz)
        assert (values(one) == values(other)).all()
        pd.testing.assert_frame_equal(scdl.open(one).var, scdl.open(other).var)
    same(*(scdl.open(tmp_path / f"{name}.zarr").to_anndata() for name in ("one", "other")))


def test_the_object_is_not_changed(tmp_path: Path) -> None:
    adata, twin = annotated(raw=True), annotated(raw=True)
    scdl.convert(adata, tmp_path / "a.zarr", shuffle=1)
    same(adata, twin)


@given(st.data())
@settings(max_examples=examples(15))
def test_a_view(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = tmp_path_factory.mktemp("view")
    adata = annotated(raw=data.draw(st.booleans()))
    rows = data.draw(st.lists(st.integers(0, adata.n_obs - 1), min_size=1))
    columns = data.draw(st.lists(st.integers(0, adata.n_vars - 1), min_size=1, unique=True))
    view = adata[rows, columns]
    # Names repeat if rows do.
    matrix = data.draw(st.sampled_from(["X", "layers/csr", "raw/X"][: 3 if view.raw else 2]))
    scdl.convert(view, place / "a", matrix=matrix, block_values=data.draw(st.integers(1, 99)))
    whole = {"X": view.X, "layers/csr": view.layers["csr"]}
    expected = view.raw.X if matrix == "raw/X" else whole[matrix]
    np.testing.assert_array_equal(values(place / "a"), dense(expected).astype("f4"))
    assert list(scdl.open(place / "a").obs.index) == list(view.obs_names)


@pytest.mark.parametrize("kind", sample(["csr", "csc", "dense"], 2))
@pytest.mark.parametrize("viewed", [False, True])
def test_one_that_is_backed(tmp_path: Path, kind: str, viewed: bool) -> None:
    adata = annotated(X=KINDS[kind])
    write(adata, tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    part = slice(3, 20, 2) if viewed else slice(None)
    source = backed[part] if viewed else backed
    scdl.convert(source, tmp_path / "a.zarr", block_values=40)
    same(scdl.open(tmp_path / "a.zarr").to_anndata(), source.to_memory())


@pytest.mark.parametrize("sparse", [False, True])
def test_arrays_of_dask_are_computed_once(tmp_path: Path, sparse: bool) -> None:
    rng = np.random.default_rng(0)
    x, pca = counts(50, 9, rng), rng.random((50, 4))
    computed: list[int] = []

    def part(block_id: tuple[int, ...]) -> Any:
        computed.append(block_id[0])
        rows = x[7 * block_id[0] : 7 * block_id[0] + 7]
        return rows if sparse else rows.toarray()

    chunks = ((7,) * 7 + (1,), (9,))
    meta = sp.csr_matrix((0, 0), dtype="f4") if sparse else np.empty((0, 0), "f4")
    lazy = dask.array.map_blocks(part, dtype="f4", chunks=chunks, meta=meta)
    computed.clear()
    obs, var = (pd.DataFrame(index=[f"{c}{i}" for i in range(n)]) for c, n in (("c", 50), ("g", 9)))
    adata = anndata.AnnData(lazy, obs, var, obsm={"X_pca": dask.array.from_array(pca, (20, 4))})
    computed.clear()
    scdl.convert(adata, tmp_path / "a", obsm="X_pca", block_values=30)
    assert sorted(computed) == list(range(8))
    assert (values(tmp_path / "a") == x.toarray()).all()
    np.testing.assert_array_equal(
        scdl.open(tmp_path / "a").read_rows(slice(None), obsm="X_pca").obsm["X_pca"], pca
    )


def test_several(tmp_path: Path) -> None:
    """Objects and files together, with their names."""
    one, two = (annotated(seed=seed)[:, :7].copy() for seed in (0, 1))
    write_h5ad(tmp_path / "b.h5ad", random_cells(4, 7))
    scdl.convert({"one": one, "two": two}, tmp_path / "a", label="from")
    ds = scdl.open(tmp_path / "a")
    assert ds.obs["from"].tolist() == ["one"] * 30 + ["two"] * 30
    assert (values(tmp_path / "a") == np.vstack([one.X.toarray(), two.X.toarray()])).all()
    assert scdl.convert([one, tmp_path / "b.h5ad"], tmp_path / "c").n_obs == 34


def test_columns_that_archives_do_not_store(tmp_path: Path) -> None:
    adata = annotated()
    adata.obs["mixed"] = [1, "a", 2.5, *[None] * 27]
    adata.obs["_index"] = 3
    adata.obs[7] = np.arange(30)
    adata.obs.insert(0, "int", 1, allow_duplicates=True)
    report = scdl.convert(adata, tmp_path / "a")
    left_out = {"obs/mixed", "obs/_index", "obs/int"}
    assert left_out == {name for name in report.not_carried if name.startswith("obs/")}
    obs = scdl.open(tmp_path / "a").obs
    assert "mixed" not in obs
    assert (obs["int"] == 1).all()
    assert (obs["7"] == np.arange(30)).all()


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("raw/X", "AnnData object of 30 cells and 12 genes: there is no matrix raw/X; the object "
                  "has: X, layers/csr, layers/csr too"),
        ("layers/none", "there is no matrix layers/none"),
    ],
)  # fmt: skip
def test_a_matrix_that_is_not_there(tmp_path: Path, matrix: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        scdl.convert(annotated(), tmp_path / "a", matrix=matrix)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    adata = annotated()
    del adata.X
    message = r"there is no matrix X; the object has: layers/.*; choose one with matrix="
    with pytest.raises(SourceError, match=message):
        scdl.convert(adata, tmp_path / "a")
    adata.X = np.full(adata.shape, 1j)
    with pytest.raises(SourceError, match=r"X: expected numbers, found complex128 values"):
        scdl.convert(adata, tmp_path / "a")
    with pytest.raises(SourceError, match="obsm/absent is missing; obsm has: "):
        scdl.convert(annotated(), tmp_path / "a", obsm="absent")
    with pytest.raises(OptionError, match=r"genome is for 10x .*, but this is AnnData in memory"):
        scdl.convert(annotated(), tmp_path / "a", genome="GRCh38")
    with pytest.raises(PathTypeError, match="DataFrame"):
        scdl.convert(annotated().obs, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding", "ignore:Consolidated metadata")
@pytest.mark.parametrize("kind", sample(["zarr", "h5ad"], 1))
def test_lazily_read(tmp_path: Path, kind: str) -> None:
    read_lazy = pytest.importorskip("anndata.experimental").read_lazy
    pytest.importorskip("xarray")
    path = tmp_path / f"a.{kind}"
    adata = annotated()
    # Zarr 3 has no records; anndata cannot read the others of a lazy object.
    for name in ("records", "nulls", "categories"):
        del adata.uns[name]
    with anndata.settings.override(zarr_write_format=3):
        adata = written(adata, path)
    for suffix in ("scdl", "zarr"):
        one, other = tmp_path / f"one.{suffix}", tmp_path / f"other.{suffix}"
        report, expected = scdl.convert(read_lazy(path), one), scdl.convert(adata, other)
        assert set(report.not_carried) == set(expected.not_carried)
        assert (values(one) == values(other)).all()
        for table in ("obs", "var"):
            frames = [getattr(scdl.open(at).to_anndata(), table) for at in (one, other)]
            # anndata leaves categories out that do not occur.
            pd.testing.assert_frame_equal(*frames, check_categorical=False)
    found, other = (scdl.open(tmp_path / f"{name}.zarr").to_anndata() for name in ("one", "other"))
    assert sorted(names_of_layers(found)) == sorted(names_of_layers(other))
    for layer in names_of_layers(found):
        assert (dense(found.layers[layer]) == dense(other.layers[layer])).all()
