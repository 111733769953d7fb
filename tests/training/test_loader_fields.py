"""Fields in the batches of loaders: each in its layout, for the cells of the batch."""

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
from scdl.errors import FeatureNotFoundError, LoaderError, ResumeError

torch = pytest.importorskip("torch")

N_OBS, N_VARS = 330, 24
LAYOUTS = ["csr", "coo", "dense"]


def counts(rng: np.random.Generator, dtype: str) -> sp.csr_matrix:
    mask = rng.random((N_OBS, N_VARS)) < 0.3
    return sp.csr_matrix((mask * rng.integers(1, 9, mask.shape)).astype(dtype))


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    made = ad.AnnData(
        counts(rng, "f4"),
        pd.DataFrame(index=[f"c{i}" for i in range(N_OBS)]),
        pd.DataFrame(index=[f"g{i}" for i in range(N_VARS)]),
        layers={"spliced": counts(rng, "u2"), "unspliced": counts(rng, "f4").toarray()},
    )
    made.obsp["next_cell_ids"] = sp.csr_matrix(np.eye(N_OBS, k=1, dtype="f4"))
    return made


@pytest.fixture(scope="module", params=["memmap", "archive", "collection"])
def path(
    request: pytest.FixtureRequest, adata: ad.AnnData, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    place: Path = tmp_path_factory.mktemp("fields")
    how: dict[str, Any] = {"layers": ["spliced", "unspliced"], "neighbor_key": "next_cell_ids"}
    if request.param == "collection":
        scdl.convert(adata[:200].copy(), place / "0.zarr", only_matrix=True, **how)
        scdl.convert(adata[200:].copy(), place / "1.scdl", **how)
        return place
    if request.param == "archive":
        how |= {"backend": "zarr", "compression": "archive"}
    scdl.convert(adata, place / "a", **how)
    return place / "a"


@pytest.fixture
def cells(path: Path) -> Any:
    """Opened for each test, as decoded chunks are kept."""
    return scdl.open(path)


def plain(values: Any) -> np.ndarray:
    return values.to_dense().numpy() if values.layout != torch.strided else values.numpy()


def assert_batch(batch: Any, adata: ad.AnnData, fields: dict[str, str], genes: Any = None) -> None:
    genes = slice(None) if genes is None else genes
    rows = batch.rows.numpy()
    assert list(batch.fields) == list(fields)
    matrices = {"x": (batch.x, adata.X)}
    matrices |= {name: (batch.fields[name], adata.layers[name]) for name in fields}
    for values, expected in matrices.values():
        expected = expected[rows][:, genes]
        expected = expected.toarray() if sp.issparse(expected) else expected
        np.testing.assert_array_equal(plain(values), expected.astype("f4"))
        assert values.dtype == torch.float32
    kinds = {"csr": torch.sparse_csr, "coo": torch.sparse_coo, "dense": torch.strided}
    for name, layout in fields.items():
        assert batch.fields[name].layout == kinds[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ["block", "random"])
@pytest.mark.parametrize("other", LAYOUTS)
def test_each_in_its_layout(
    cells: Any, adata: ad.AnnData, layout: str, other: str, order: str
) -> None:
    fields = {"unspliced": other, "spliced": "dense"}
    loader = scdl.SingleCellLoader(cells, 32, layout=layout, order=order, fields=fields)
    seen = []
    for batch in loader:
        assert_batch(batch, adata, fields)
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(N_OBS))
    assert loader.stats().cells_read == N_OBS
    assert f"field 'unspliced' ({other})" in repr(loader)
    # A list of names takes the layout of the loader.
    batch = next(iter(scdl.SingleCellLoader(cells, 32, layout=layout, fields=["spliced"])))
    assert_batch(batch, adata, {"spliced": layout})


def test_genes_rows_workers_and_neighbors(cells: Any, adata: ad.AnnData) -> None:
    genes = [7, 3, 20]
    loader = scdl.SingleCellLoader(
        cells, 16, genes=[f"g{i}" for i in genes], rows=np.arange(300, 0, -2), fields="spliced",
        workers=1, neighbors=1,
    )  # fmt: skip
    alone = scdl.SingleCellLoader(
        cells, 16, genes=[f"g{i}" for i in genes], rows=np.arange(300, 0, -2), fields="spliced"
    )
    for batch, same in zip(loader, alone, strict=True):
        for part in (batch, batch.neighbors, same):
            assert_batch(part, adata, {"spliced": "csr"}, genes)
        assert batch.rows.tolist() == same.rows.tolist()


def padded(matrix: Any, length: int, choose: str) -> tuple[np.ndarray, ...]:
    """Values, genes and lengths of padded rows of a matrix."""
    dense = matrix.toarray() if sp.issparse(matrix) else matrix
    values = np.zeros((len(dense), length), "f4")
    genes = np.full(values.shape, dense.shape[1])
    for i, row in enumerate(dense):
        at = np.flatnonzero(row)
        at = at[np.argsort(-row[at].astype("f4"), kind="stable")] if choose == "largest" else at
        at = at[:length]
        values[i, : len(at)], genes[i, : len(at)] = row[at], at
    return values, genes, np.minimum((dense != 0).sum(1), length)


@pytest.mark.parametrize("genes", [None, [20, 3, 7, 11, 0, 23]])
@pytest.mark.parametrize(("choose", "other"), [("largest", "first"), ("first", "largest")])
def test_padded(
    cells: Any, adata: ad.AnnData, choose: str, other: str, genes: list[int] | None
) -> None:
    """Each field has its own values and genes, or those of the matrix."""
    how: dict[str, Any] = {
        "layout": "padded", "length": 5, "choose": choose, "neighbors": 1,
        "genes": genes and [f"g{i}" for i in genes],
    }  # fmt: skip
    own = {"spliced": {"layout": "padded", "length": 3, "choose": other}, "unspliced": "aligned"}
    matrices, seen = (adata.X, adata.layers["spliced"], adata.layers["unspliced"]), []
    for batch in scdl.SingleCellLoader(cells, 32, fields=own, **how):
        seen += batch.rows.tolist()
        for part in (batch, batch.neighbors):
            rows = part.rows.numpy()
            x, spliced, unspliced = (m[rows][:, genes or slice(None)] for m in matrices)
            of_x, of_spliced = padded(x, 5, choose), padded(spliced, 3, other)
            found = part.fields["spliced"], part.field_genes["spliced"]
            found = (*found, part.field_lengths["spliced"])
            for values, expected in zip(found, of_spliced, strict=True):
                np.testing.assert_array_equal(values.numpy(), expected)
            for values, expected in zip((part.x, part.genes, part.lengths), of_x, strict=True):
                np.testing.assert_array_equal(values.numpy(), expected)
            wide = np.pad(unspliced, ((0, 0), (0, 1)))
            expected = np.take_along_axis(wide, of_x[1], axis=1)
            np.testing.assert_array_equal(part.fields["unspliced"].numpy(), expected)
            assert [*part.field_genes] == [*part.field_lengths] == ["spliced"]
    assert sorted(seen) == list(range(N_OBS))
    half = batch.to(torch.bfloat16)
    assert half.fields["spliced"].dtype == half.fields["unspliced"].dtype == torch.bfloat16
    assert half.field_genes["spliced"].dtype == torch.int64
    # A list of names takes layout, length and choice of the loader.
    batch = next(iter(scdl.SingleCellLoader(cells, 32, fields=["spliced"], **how)))
    spliced = adata.layers["spliced"][batch.rows.numpy()][:, genes or slice(None)]
    values, at, _ = padded(spliced, 5, choose)
    np.testing.assert_array_equal(batch.fields["spliced"].numpy(), values)
    np.testing.assert_array_equal(batch.field_genes["spliced"].numpy(), at)


def test_padded_at_random(cells: Any, adata: ad.AnnData) -> None:
    """A field draws its own genes, which depend on the batch alone; the matrix may be sparse."""
    fields = {"spliced": {"layout": "padded", "length": 4, "choose": "random"}}
    loaders = [scdl.SingleCellLoader(cells, 64, fields=fields, threads=n) for n in (1, 3)]
    for batch, same in zip(*loaders, strict=True):
        values, genes = batch.fields["spliced"].numpy(), batch.field_genes["spliced"].numpy()
        np.testing.assert_array_equal(same.field_genes["spliced"].numpy(), genes)
        spliced = adata.layers["spliced"][batch.rows.numpy()].toarray()
        wide = np.pad(spliced, ((0, 0), (0, 1)))
        np.testing.assert_array_equal(values, np.take_along_axis(wide, genes, axis=1))
        assert (genes != padded(spliced, 4, "first")[1]).any()
        assert batch.x.layout == torch.sparse_csr
        assert (
            batch.field_lengths["spliced"].tolist() == np.minimum((spliced > 0).sum(1), 4).tolist()
        )


def test_what_changes_fields(cells: Any, adata: ad.AnnData) -> None:
    """Normalisation does not; functions of the batch do, and a dtype casts them."""

    def double(batch: Any) -> Any:
        fields = {name: 2 * values for name, values in batch.fields.items()}
        return batch.with_(fields=fields)

    transforms = [scdl.NormalizeTotal(1.0), scdl.Log1p(), double]
    loader = scdl.SingleCellLoader(
        cells, 16, layout="dense", fields=["spliced"], transforms=transforms
    )
    batch = next(iter(loader))
    expected = 2 * adata.layers["spliced"][batch.rows.numpy()].toarray()
    np.testing.assert_array_equal(batch.fields["spliced"].numpy(), expected.astype("f4"))
    assert float(batch.x.max()) < 1
    half = batch.to(torch.bfloat16)
    assert half.fields["spliced"].dtype == half["fields"]["spliced"].dtype == torch.bfloat16
    assert "fields: spliced" in repr(batch)
    assert batch.pin_memory().fields["spliced"].shape == (16, N_VARS)
    stored = scdl.SingleCellLoader(cells, 16, fields=["spliced"], dtype=None)
    assert next(iter(stored)).fields["spliced"].dtype == torch.int32


def test_tokenizers_take_fields(cells: Any, adata: ad.AnnData) -> None:
    loader = scdl.SingleCellLoader(
        cells,
        16,
        fields={"unspliced": "dense"},
        tokenizer=lambda batch, genes: batch.fields["unspliced"].to_scipy().sum(),
    )
    batch = next(iter(loader))
    expected = adata.layers["unspliced"][batch.rows.numpy()]
    assert batch.tokens == expected.sum()
    np.testing.assert_array_equal(batch.fields["unspliced"].numpy(), expected)


def test_memory_is_shared(cells: Any) -> None:
    """Buffers are smaller with fields, so that a state is one of the same fields."""
    how: dict[str, Any] = {"batch_size": 8, "memory_mb": 0.02}
    one, other = (scdl.SingleCellLoader(cells, fields=f, **how) for f in ((), ["spliced"]))
    assert other.order.buffer < one.order.buffer
    copy = pickle.loads(pickle.dumps(other))
    batches = iter(other)
    next(batches)
    copy.load_state_dict(other.state_dict())
    for batch, same in zip(batches, copy, strict=True):
        assert batch.rows.tolist() == same.rows.tolist()
        assert torch.equal(batch.fields["spliced"].to_dense(), same.fields["spliced"].to_dense())
    with pytest.raises(ResumeError, match="order was"):
        one.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fields": ["nope"]}, FeatureNotFoundError, r"no field 'nope'; it has: (un)?spliced, "),
        ({"fields": {"spliced": "padded"}}, LoaderError, "'spliced': length is required"),
        ({"fields": {"spliced": 3}}, LoaderError, "csr, coo, dense, padded, aligned, not 3"),
        ({"fields": {"spliced": "aligned"}}, LoaderError, "must be 'padded', not 'csr'"),
        ({"layout": "aligned"}, LoaderError, "csr, coo, dense, padded, not 'aligned'"),
        ({"fields": {"spliced": {"length": 3}}}, LoaderError, "not allowed for other layouts"),
        ({"fields": {"spliced": {"size": 3}}}, LoaderError, "no option 'size'; a field takes: la"),
        (
            {"fields": {"spliced": {"layout": "padded", "length": 0}}},
            LoaderError,
            "'spliced': length must be a whole number of at least 1, not 0",
        ),
        (
            {"fields": {"spliced": {"layout": "padded", "length": 2, "choose": "last"}}},
            LoaderError,
            "'spliced': choose must be one of first, largest, random, not 'last'",
        ),
        ({"fields": [3]}, LoaderError, "fields must be a name"),
    ],
)  # fmt: skip
def test_what_is_refused(
    cells: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scdl.SingleCellLoader(cells, 8, **options)
