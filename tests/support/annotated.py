"""AnnData objects with everything in them, and comparing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.tests.helpers import assert_equal
from sources import writing_strings


def counts(n_obs: int, n_vars: int, rng: np.random.Generator, dtype: Any = np.float32) -> Any:
    """A CSR matrix of small integers, whose genes differ in how many cells have them."""
    shares = rng.permutation(np.linspace(0.05, 0.9, n_vars))
    mask = rng.random((n_obs, n_vars)) < shares
    return sp.csr_matrix(np.where(mask, rng.integers(1, 9, (n_obs, n_vars)), 0).astype(dtype))


def columns(n: int, rng: np.random.Generator, prefix: str) -> pd.DataFrame:
    """Columns of every kind that AnnData has, with and without nulls."""
    some = rng.random(n) < 0.3
    codes = pd.Categorical.from_codes(rng.integers(-1, 3, n), ["ü", "a", "b"])
    frame = {
        "category": codes.add_categories("unused"),
        "ordered": pd.Categorical(rng.choice(["lo", "hi"], n), ["lo", "hi"], ordered=True),
        "numbered": pd.Categorical(rng.choice([3, 1], n), [3, 1, 2]),
        "int": rng.integers(-9, 9, n),
        "small": rng.integers(0, 9, n).astype(np.uint8),
        "float": np.where(some, np.nan, rng.random(n)),
        "half": rng.random(n).astype(np.float32),
        "bool": rng.random(n) < 0.5,
        "text": np.array([f"{prefix} é{i % 7}" for i in range(n)], object),
        "nullable": pd.arrays.IntegerArray(rng.integers(0, 9, n), some),
        "complete": pd.array(rng.integers(0, 9, n), dtype="UInt16"),
        "truth": pd.arrays.BooleanArray(rng.random(n) < 0.5, some),
        "words": pd.array(np.where(some, None, "w"), dtype="string"),
        "all words": pd.array(["w"] * n, dtype="string"),
    }
    return pd.DataFrame(frame, index=pd.Index([f"{prefix}{i}" for i in range(n)], name=prefix))


def annotated(
    n_obs: int = 30, n_vars: int = 12, *, seed: int = 0, raw: bool = False, X: Any = sp.csr_matrix
) -> anndata.AnnData:
    """An AnnData with everything in it; `X` makes its matrix of a CSR matrix."""
    rng = np.random.default_rng(seed)

    def sparse(n: int, m: int, kind: Any = sp.csr_matrix, dtype: Any = np.float64) -> Any:
        return kind((rng.random((n, m)) * (rng.random((n, m)) < 0.3)).astype(dtype))

    def frame(index: pd.Index) -> pd.DataFrame:
        return columns(len(index), rng, "x").set_index(index)[["category", "nullable"]]

    obs, var = columns(n_obs, rng, "cell"), columns(n_vars, rng, "gene")
    var = var[["category", "float", "complete", "words"]]
    uns = {
        "nested": {"a": 1, "text": "é", "deeper": {"none": None, "true": True, "pi": 3.14}},
        "array": np.arange(6.0).reshape(2, 3),
        "words": np.array(["x", "yy"], object),
        "frame": frame(pd.Index(["p", "q"])),
        "categories": pd.Categorical(["a", "b", None], ["b", "a"]),
        "sparse": sparse(4, 4),
        "records": np.array([(1, 2.5), (3, 4.5)], [("a", "i4"), ("b", "f8")]),
        "nothing": {},
        "zeros": np.zeros(5),
        "nulls": pd.array([1, None, 3], dtype="Int64"),
    }
    adata = anndata.AnnData(
        X=X(counts(n_obs, n_vars, rng)),
        obs=obs,
        var=var,
        uns=uns,
        layers={
            "csr": sparse(n_obs, n_vars, dtype=np.float32),
            "csr too": counts(n_obs, n_vars, rng, np.int32),
        },
        obsm={
            "X_pca": rng.random((n_obs, 5), np.float32),
            "cube": rng.random((n_obs, 2, 3)),
            "none": np.zeros((n_obs, 0), np.float32),
            "zeros": np.zeros((n_obs, 3)),
            "flags": rng.random((n_obs, 2)) < 0.5,
            "frame": frame(obs.index),
            "sparse": sparse(n_obs, 7),
            "csc": sparse(n_obs, 7, sp.csc_matrix),
        },
        varm={
            "PCs": rng.random((n_vars, 4)),
            "frame": frame(var.index),
            "sparse": sparse(n_vars, 3, sp.csc_matrix),
        },
        obsp={
            "graph": sparse(n_obs, n_obs),
            "flags": sparse(n_obs, n_obs, dtype=bool),
            "csc": sparse(n_obs, n_obs, sp.csc_matrix, np.float32),
            "dense": rng.random((n_obs, n_obs)),
        },
        varp={"sparse": sparse(n_vars, n_vars), "dense": rng.random((n_vars, n_vars))},
    )
    if raw:
        adata.raw = adata
        adata = adata[:, : n_vars // 2].copy()
        adata.X = np.asarray(adata.X.todense() if sp.issparse(adata.X) else adata.X) - np.float32(1)
    return adata


def write(adata: anndata.AnnData, path: Path) -> None:
    """Write an AnnData as a file, or a Zarr store where the path says so."""
    with writing_strings():
        if path.suffix == ".zarr":
            adata.write_zarr(path)
        else:
            adata.write_h5ad(path)


def written(adata: anndata.AnnData, path: Path) -> anndata.AnnData:
    """Like :func:`write`; what anndata reads of it."""
    write(adata, path)
    return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


def reordered(adata: anndata.AnnData, genes: Any) -> anndata.AnnData:
    """The same cells with genes in the order of some names, those of raw where it has them."""
    raw = adata.raw
    with anndata.settings.override(remove_unused_categories=False):
        if raw is not None:
            adata = adata.copy()
            at = raw.var_names.get_indexer(genes)
            whole = anndata.AnnData(raw.X, var=raw.var, varm=dict(raw.varm))
            whole.obs_names = adata.obs_names
            adata.raw = whole[:, at].copy()
            return adata
        return adata[:, genes].copy()


def names_of_layers(adata: anndata.AnnData) -> list[str]:
    """Names of layers; newer releases of anndata list X among them as None."""
    return [name for name in adata.layers if name is not None]


def same(actual: anndata.AnnData, expected: anndata.AnnData) -> None:
    """Check that all elements are the same, and the types of numbers."""
    assert_equal(actual, expected)
    pairs = [(actual.X, expected.X)]
    pairs += [(actual.layers[k], expected.layers[k]) for k in names_of_layers(expected)]
    pairs += [(actual.obsm[k], expected.obsm[k]) for k in expected.obsm if k != "frame"]
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
