"""Cells of different gene spaces share no column axis; those of one gene space do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scdl
from scdl.archive.schema import Info
from scdl.errors import GeneError, ScdlWarning, SourceError
from storage_backends.capabilities import Verdict


def annotated(genes: list[str], n_obs: int = 4, seed: int = 0, **var: Any) -> ad.AnnData:
    """Counts, with names of cells that do not repeat."""
    values = np.random.default_rng(seed).poisson(1, (n_obs, len(genes))).astype("f4")
    obs = pd.DataFrame(index=[f"c{seed}-{i}" for i in range(n_obs)])
    return ad.AnnData(sp.csr_matrix(values), obs, pd.DataFrame(var, index=genes))


def archive(place: Path, parts: list[ad.AnnData], name: str) -> Path:
    place.mkdir(exist_ok=True)
    files = [place / f"{name}-{i}.h5ad" for i in range(len(parts))]
    for part, file in zip(parts, files, strict=True):
        part.write_h5ad(file)
    scdl.convert(files, place / name)
    return place / name


ALIKE = ["g0", "g1", "g2"]
OTHER = ["g2", "g7", "g0", "g9"]


@pytest.fixture(params=["a", "a.zarr", "collection"])
def mixed(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Cells 0 to 3 have three genes, cells 4 to 7 four others."""
    parts = [annotated(ALIKE), annotated(OTHER, seed=1)]
    if request.param != "collection":
        return scdl.open(archive(tmp_path, parts, request.param))
    return scdl.SingleCellCollection(
        [archive(tmp_path, [part], f"m{i}") for i, part in enumerate(parts)]
    )


def _load(**options: Any) -> Callable[[Any], Any]:
    return lambda ds: next(iter(scdl.SingleCellLoader(ds, 8, **options)))


def _collate(ds: Any) -> Any:
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(
        ds, batch_size=8, collate_fn=scdl.collate_sparse_matrix_batch
    )
    return next(iter(loader))


AXES: dict[str, Callable[[Any], Any]] = {
    "var": lambda ds: ds.var,
    "var_names": lambda ds: ds.var_names,
    "scipy": lambda ds: ds.read_rows([0, 5]).to_scipy(),
    "dense": lambda ds: ds.read_rows([0, 5]).to_dense(),
    "torch": lambda ds: ds.read_rows([0, 5]).to_torch("coo"),
    "a part of a batch": lambda ds: ds.read_rows([1, 0, 5, 4])[1:3].to_scipy(),
    "csr": _load(),
    "coo": _load(layout="coo"),
    "dense loader": _load(layout="dense"),
    "padded": _load(layout="padded", length=2),
    "tokenizer": _load(tokenizer=lambda cells, names: None),
    "tokenizer with own genes": _load(tokenizer=lambda cells, names: None, genes="own"),
    "DataLoader": _collate,
    "cells one by one": lambda ds: scdl.collate_sparse_matrix_batch([ds[0], ds[5]]),
}


@pytest.mark.parametrize("name", AXES)
def test_what_has_one_column_axis_is_refused(mixed: Any, name: str) -> None:
    if name not in ("var", "var_names", "scipy", "dense", "a part of a batch"):
        pytest.importorskip("torch")
    with pytest.raises(GeneError, match=r"2 gene spaces.*genes='union'.*genes='own'"):
        AXES[name](mixed)


def test_cells_of_one_gene_space_are_read_among_others(mixed: Any) -> None:
    assert mixed.gene_spaces.tolist() == [0, 1]
    assert mixed.spaces_of([7, 0]).tolist() == [1, 0]
    batch = mixed.read_rows([4, 5, 6])
    assert batch.to_scipy().shape == (3, 4)
    assert mixed.read_rows([0, 3]).to_dense().shape == (2, 3)
    # The documented reading of one cell is as it was.
    assert len(mixed.get_row_padded(0)[0]) == 3
    assert len(mixed.get_row_padded(5)[0]) == 4
    torch = pytest.importorskip("torch")
    assert mixed[5].shape[0] == 2
    names: list[list[str]] = []
    loader = scdl.SingleCellLoader(
        mixed, 2, rows=[4, 5], tokenizer=lambda cells, genes: names.append(genes.tolist())
    )
    list(loader)
    assert names == [OTHER]
    dense = scdl.SingleCellLoader(mixed, 4, rows=range(4, 8), layout="dense", order="sequential")
    expected = torch.from_numpy(mixed.read_rows(range(4, 8)).to_dense())
    assert torch.equal(next(iter(dense)).x, expected)


def test_own_genes_are_read_on_purpose(mixed: Any) -> None:
    batch = mixed.read_rows([0, 5], genes="own")
    assert batch.spaces.tolist() == [0, 1]
    expected = [np.pad(mixed.get_row_padded(0)[0], (0, 1)), mixed.get_row_padded(5)[0]]
    np.testing.assert_array_equal(batch.to_dense(), expected)
    with pytest.raises(GeneError, match="not one gene space"):
        mixed.select_genes("own")
    pytest.importorskip("torch")
    for layout in ("csr", "coo", "dense", "padded"):
        options: dict[str, Any] = {"length": 4} if layout == "padded" else {}
        loader = scdl.SingleCellLoader(
            mixed, 8, genes="own", layout=layout, order="sequential", **options
        )
        (found,) = loader
        assert found.spaces.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("name", ["a", "a.zarr"])
def test_the_same_genes_in_another_order_are_one_gene_space(tmp_path: Path, name: str) -> None:
    first = annotated(ALIKE, symbol=["A", "B", "C"])
    second = annotated(ALIKE, seed=1, symbol=["A", "B", "C"])[:, [2, 0, 1]].copy()
    path = archive(tmp_path, [first, second, annotated(OTHER, seed=2), first], name)
    ds = scdl.open(path)
    assert ds.n_vars == [3, 4, 3]
    assert ds.gene_spaces.tolist() == [0, 1, 0]
    whole = ad.concat([first, second])
    found = ds.read_rows([*range(8)]).to_dense()
    np.testing.assert_array_equal(found, whole[:, ALIKE].X.toarray())
    assert scdl.verify(path, deep=True).verdict == Verdict.SOUND


def test_the_report_names_what_was_brought_into_order(tmp_path: Path) -> None:
    parts = [annotated(ALIKE, n_cells=[1, 2, 3]), annotated(ALIKE[::-1], seed=1, n_cells=[3, 2, 2])]
    for i, part in enumerate(parts):
        part.write_h5ad(tmp_path / f"{i}.h5ad")
    report = scdl.convert([tmp_path / "0.h5ad", tmp_path / "1.h5ad"], tmp_path / "both")
    assert report.reordered == (str(tmp_path / "1.h5ad"),)
    assert report.differing_var == ("n_cells",)
    assert report.rows_sorted == 0
    assert "order of the first" in str(report)
    assert "differ, kept for each source: n_cells" in str(report)


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
@pytest.mark.parametrize("names", [["g0", "g0", "g1"], ["g0", "g1"]])
def test_names_that_repeat_or_differ_are_not_brought_into_order(
    tmp_path: Path, names: list[str]
) -> None:
    parts = [annotated(names), annotated(names[::-1], seed=1), annotated(["g0", "g7"], seed=2)]
    ds = scdl.open(archive(tmp_path, parts, "a"))
    expected = [0, 1, 2] if len(names) == 3 else [0, 1]
    assert ds.gene_spaces.tolist() == expected


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
@pytest.mark.parametrize("name", ["a", "a.zarr"])
def test_columns_that_differ_are_kept_for_each_source(tmp_path: Path, name: str) -> None:
    nan = [0.5, np.nan, 1.5]
    parts = [
        annotated(ALIKE, seed=i, symbol=["A", "B", "C"], n_cells=[i, 2, 3], mean=nan)
        for i in range(3)
    ]
    path = archive(tmp_path, parts, name)
    ds = scdl.open(path)
    assert ds.gene_spaces.tolist() == [0, 0, 0]
    assert ds.var_names.tolist() == ALIKE
    assert list(ds.var.columns) == ["symbol", "mean"]
    for row, cells in ((0, 0), (5, 1), (11, 2)):
        _, (n_cells,) = ds.get_row(row, return_features=True, feature_vars=["n_cells"])
        assert n_cells.tolist() == [cells, 2, 3]
    values = ad.concat(parts).X.toarray()
    np.testing.assert_array_equal(ds.read_rows(slice(None)).to_dense(), values)
    with pytest.warns(ScdlWarning, match="left out: n_cells"):
        adata = ds.to_anndata()
    np.testing.assert_array_equal(adata.X.toarray(), values)
    assert list(adata.var.columns) == ["symbol", "mean"]
    # The cells of one source have all of its columns.
    assert list(ds.to_anndata([4, 5]).var.columns) == ["symbol", "n_cells", "mean"]
    assert ds.select_genes(["g2"]).read_rows([11]).to_dense().tolist() == [[values[11, 2]]]
    if name.endswith(".zarr"):
        read = ad.read_zarr(path)
        assert read.shape == (12, 3)
        assert list(read.var.columns) == ["symbol", "mean"]
        np.testing.assert_array_equal(read.X.toarray(), values)


def test_a_column_that_takes_the_place_of_blocks(tmp_path: Path) -> None:
    parts = [annotated(ALIKE, seed=i, _blocks=[1, 2, 3], n=[i, 0, 0]) for i in range(2)]
    ds = scdl.open(archive(tmp_path, parts, "a.zarr"))
    assert ds.var["_blocks"].tolist() == [1, 2, 3]
    assert ds.read_rows([0, 7]).to_dense().shape == (2, 3)


def test_archives_that_do_not_state_gene_spaces(tmp_path: Path) -> None:
    parts = [annotated(ALIKE, n=[1, 2, 3]), annotated(ALIKE, seed=1, n=[0, 0, 0]), annotated(OTHER)]
    ds = scdl.open(archive(tmp_path, parts, "a"))
    unsaid = Info(tuple(b.__class__(b.stop, b.n_vars, b.label) for b in ds.info.blocks))
    ds._info = unsaid
    assert ds.gene_spaces.tolist() == [0, 0, 1]


def test_gene_spaces_that_are_misstated_are_found(tmp_path: Path) -> None:
    path = archive(tmp_path, [annotated(ALIKE), annotated(["g5", "g6", "g7"], seed=1)], "a")
    manifest = path / "scdl" / "manifest.json"
    text = manifest.read_text()
    assert '"space": 1' in text
    manifest.write_text(text.replace('"space": 1', '"space": 0'))
    (path / "scdl" / "checksums.bin").unlink()
    report = scdl.verify(path)
    assert any("gene spaces [0, 0]" in finding.message for finding in report.findings)
    assert report.verdict == Verdict.DAMAGED


def test_an_anndata_of_several_gene_spaces_is_refused(mixed: Any) -> None:
    if isinstance(mixed, scdl.SingleCellCollection):
        pytest.skip("a collection is flattened first")
    with pytest.raises(SourceError, match=r"different genes.*genes="):
        mixed.to_anndata()
    assert mixed.to_anndata([5, 4]).shape == (2, 4)


@pytest.mark.parametrize("stored", ["uint16", "float32", "float16"])
@pytest.mark.parametrize("name", ["a", "a.zarr", "collection"])
def test_totals_count_all_genes(tmp_path: Path, name: str, stored: str) -> None:
    pytest.importorskip("torch")
    adata = annotated([f"g{i}" for i in range(20)], n_obs=30)
    adata.write_h5ad(tmp_path / "a.h5ad")
    path = tmp_path / name.replace("collection", "c")
    scdl.convert(tmp_path / "a.h5ad", path, data_dtype=stored)
    ds = scdl.SingleCellCollection([path]) if name == "collection" else scdl.open(path)
    dense, chosen = adata.X.toarray(), ["g7", "g3"]
    totals = dense.sum(axis=1)
    batch = ds.read_rows([3, 1], genes=chosen, totals=True)
    np.testing.assert_array_equal(batch.totals, totals[[3, 1]])
    np.testing.assert_array_equal(ds.read_rows([3, 1], totals=True).totals, totals[[3, 1]])
    selected = dense[:, [7, 3]]
    for over, sums in (("all", totals), ("selected", selected.sum(axis=1))):
        scale = np.divide(100.0, sums, out=np.ones(len(sums)), where=sums != 0)
        loader = scdl.SingleCellLoader(
            ds, 30, genes=chosen, layout="dense", order="sequential",
            transforms=[scdl.NormalizeTotal(100.0, over=over)],
        )  # fmt: skip
        np.testing.assert_allclose(next(iter(loader)).x, selected * scale[:, None], rtol=1e-5)
    with pytest.raises(scdl.errors.LoaderError, match="over must be"):
        scdl.NormalizeTotal(over="some")
