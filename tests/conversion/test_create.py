"""Archives written batch by batch: ``scdl.create``."""

from __future__ import annotations

import itertools
import os

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import scdl
from scdl.errors import (
    ArchiveClosedError,
    ArchiveExistsError,
    BackendOptionError,
    CastError,
    GeneError,
    ScdlError,
    SourceError,
)

GENES = [f"g{i}" for i in range(6)]
BACKENDS = ["memmap", "zarr"]


def counts(n, seed=0):
    rng = np.random.default_rng(seed)
    return sp.random(
        n, 6, 0.5, "csr", np.float32, rng=rng, data_rvs=lambda k: rng.integers(1, 9, k)
    )


def as_arrow(X):
    ends = pa.array(X.indptr.astype(np.int32))
    lists = (pa.ListArray.from_arrays(ends, pa.array(part)) for part in (X.indices, X.data))
    return pa.table([*lists], names=["indices", "data"])


def as_torch(X, layout):
    torch = pytest.importorskip("torch")
    return getattr(torch.tensor(X.toarray()), layout)()


KINDS = {
    "csr": lambda X: X,
    "csc array": sp.csc_array,
    "coo": lambda X: X.tocoo(),
    "dense": lambda X: X.toarray(),
    "arrow": as_arrow,
    "record batch": lambda X: as_arrow(X).combine_chunks().to_batches()[0],
    "torch": lambda X: as_torch(X, "clone"),
    "torch csr": lambda X: as_torch(X, "to_sparse_csr"),
    "torch coo": lambda X: as_torch(X, "to_sparse"),
    "anndata": lambda X: ad.AnnData(X[:, ::-1], var=pd.DataFrame(index=GENES[::-1])),
    "iterator": lambda X: iter([X[:1], X[1:].toarray()]),
}


@pytest.mark.filterwarnings("ignore:Transforming to str")
@pytest.mark.parametrize("kind", KINDS)
def test_matrix_of_any_kind(tmp_path, kind):
    X = counts(5)
    with scdl.create(tmp_path / "a.scdl", var=GENES) as archive:
        archive.append(KINDS[kind](X))
        archive.append(X)
    np.testing.assert_array_equal(
        scdl.open(tmp_path / "a.scdl").to_anndata().X.toarray(), sp.vstack([X, X]).toarray()
    )
    assert (archive.report.n_obs, archive.report.nnz) == (10, 2 * X.nnz)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=examples(30))
@given(cuts=st.lists(st.integers(0, 30), max_size=3))
def test_batches_equal_one_conversion(tmp_path_factory, backend, cuts):
    path = tmp_path_factory.mktemp("batches")
    rng = np.random.default_rng(len(cuts))
    obs = pd.DataFrame(
        {"type": pd.Categorical(rng.choice(["B", "T"], 30)), "n": rng.integers(0, 9, 30)},
        index=[f"c{i}" for i in range(30)],
    )
    var = pd.DataFrame({"length": np.arange(6)}, index=GENES)
    vectors = rng.normal(size=(30, 3)).astype(np.float32)
    whole = ad.AnnData(counts(30), obs, var, obsm={"X_pca": vectors})
    scdl.convert(whole, path / "whole", backend=backend)
    edges = [0, *sorted(cuts), 30]
    with scdl.create(path / "parts", var=var, obsm="X_pca", backend=backend) as archive:
        for start, stop in itertools.pairwise(edges):
            part = slice(start, stop)
            archive.append(whole.X[part], obs.iloc[part], {"X_pca": vectors[part]})
    found, expected = (scdl.open(path / name) for name in ("parts", "whole"))
    for one in (found, expected):
        assert one.verify(deep=True).verdict == 0
    found, expected = found.to_anndata(), expected.to_anndata()
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    np.testing.assert_array_equal(found.obsm["X_pca"], vectors)
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)


def test_columns_of_batches_are_united(tmp_path):
    with scdl.create(tmp_path / "a.scdl", var=GENES) as archive:
        archive.append(counts(2), obs={"a": [1, 2]})
        archive.append(counts(1))
        archive.append(counts(1), obs=pa.table({"b": ["x"]}))
    obs = scdl.open(tmp_path / "a.scdl").read_obs()
    assert obs["a"].fillna(-1).tolist() == [1, 2, -1, -1]
    assert obs["b"].isna().tolist() == [True, True, True, False]


def test_archive_without_cells(tmp_path):
    with scdl.create(tmp_path / "a.scdl", var=GENES):
        pass
    data = scdl.open(tmp_path / "a.scdl")
    assert (data.n_obs, data.n_vars) == (0, [6])


WRONG = {
    "genes": (SourceError, lambda a: a.append(counts(2)[:, :5])),
    "column ids": (
        SourceError,
        lambda a: a.append(pa.table({"indices": [[6]], "data": [[1.0]]})),
    ),
    "lists of other lengths": (
        SourceError,
        lambda a: a.append(pa.table({"indices": [[1, 2]], "data": [[1.0]]})),
    ),
    "no lists": (SourceError, lambda a: a.append(pa.table({"x": [1]}))),
    "length of obs": (SourceError, lambda a: a.append(counts(2), obs={"a": [1]})),
    "column type": (SourceError, lambda a: a.append(counts(1), obs={"a": [b"x"]})),
    "kind of obs": (SourceError, lambda a: a.append(counts(1), obs=[1])),
    "kind": (SourceError, lambda a: a.append("cells.h5ad")),
    "value": (CastError, lambda a: a.append(counts(2) * -1)),
    "names": (GeneError, lambda a: a.append(ad.AnnData(counts(2)))),
    "obsm": (SourceError, lambda a: a.append(counts(2), obsm={"p": np.ones(2)})),
    "obs of an AnnData": (
        SourceError,
        lambda a: a.append(ad.AnnData(counts(1)), obs={"a": [1]}),
    ),
}


@pytest.mark.filterwarnings("ignore:Transforming to str")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", WRONG)
def test_error_leaves_nothing(tmp_path, backend, what):
    error, wrong = WRONG[what]
    options = {"var": GENES, "data_dtype": "uint8", "backend": backend}
    with pytest.raises(error) as raised:
        write(tmp_path / "a", lambda archive: archive.append(counts(3)), wrong, **options)
    assert isinstance(raised.value, ScdlError)
    assert os.listdir(tmp_path) == []


def write(path, *steps, var=GENES, **options):
    with scdl.create(path, var=var, **options) as archive:
        for step in steps:
            step(archive)


def fails(error, step):
    def run(archive):
        with pytest.raises(error):
            step(archive)

    return run


def test_error_that_was_caught_stops_the_archive(tmp_path):
    wrong = fails(SourceError, lambda archive: archive.append(counts(2)[:, :2]))
    closed = fails(ArchiveClosedError, lambda archive: archive.append(counts(2)))
    with pytest.raises(ArchiveClosedError, match="was not written"):
        write(tmp_path / "a", wrong, closed)
    assert os.listdir(tmp_path) == []


def vectors(shape):
    return lambda archive: archive.append(counts(shape[0]), obsm={"p": np.ones(shape)})


def test_vectors_are_alike(tmp_path):
    with pytest.raises(SourceError, match="in the first batch"):
        write(tmp_path / "a", vectors((1, 2)), vectors((2, 3)), obsm=["p"])
    with pytest.raises(SourceError, match="obsm/p is missing"):
        write(tmp_path / "a", lambda archive: archive.append(counts(1)), obsm="p")


def test_arguments(tmp_path):
    with pytest.raises(BackendOptionError):
        scdl.create(tmp_path / "a", var=GENES, compression="fast")
    with pytest.raises(SourceError):
        scdl.create(tmp_path / "a", var="genes")
    with scdl.create(tmp_path / "a.zarr", var=GENES, compression="fast") as archive:
        archive.append(counts(2))
        assert os.listdir(tmp_path) != ["a.zarr"]
    with pytest.raises(ArchiveExistsError):
        scdl.create(tmp_path / "a.zarr", var=GENES)
    with scdl.create(tmp_path / "a.zarr", var=GENES[:1], replace=True):
        pass
    assert scdl.open(tmp_path / "a.zarr").n_vars == [1]
    assert os.listdir(tmp_path) == ["a.zarr"]
