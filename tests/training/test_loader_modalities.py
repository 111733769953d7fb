"""Several modalities in the batches of a loader: datasets of the same cells, matched by name."""

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
from scdl.errors import CellNotFoundError, DatasetTypeError, GeneError, LoaderError, ResumeError

torch = pytest.importorskip("torch")

N_OBS, N_GENES, N_PROTEINS = 310, 30, 7
KINDS = ["memmap", "zarr", "collection"]


def made(n_obs: int, n_vars: int, seed: int, of: str) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    X = sp.random(
        n_obs, n_vars, 0.4, "csr", "f4", rng=rng, data_rvs=lambda k: rng.integers(1, 99, k)
    )
    names = [f"c{i}" for i in range(n_obs)], [f"{of}{i}" for i in range(n_vars)]
    return ad.AnnData(X, *(pd.DataFrame(index=name) for name in names))


@pytest.fixture(scope="module")
def rna() -> ad.AnnData:
    adata = made(N_OBS, N_GENES, 0, "g")
    adata.layers["spliced"] = 2 * adata.X
    adata.obsp["next_cell_ids"] = sp.csr_matrix(np.eye(N_OBS, k=1, dtype="f4"))
    return adata


@pytest.fixture(scope="module")
def protein() -> ad.AnnData:
    """Other cells, too, in another order."""
    adata = made(N_OBS + 40, N_PROTEINS, 1, "p")
    return adata[np.random.default_rng(2).permutation(adata.n_obs)].copy()


@pytest.fixture(scope="module")
def opened(
    rna: ad.AnnData, protein: ad.AnnData, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Any]:
    place: Path = tmp_path_factory.mktemp("modalities")

    def opened(modality: str, kind: str) -> Any:
        path, adata = place / f"{modality} {kind}", {"rna": rna, "protein": protein}[modality]
        how: dict[str, Any] = {"only_matrix": True}
        if modality == "rna":
            how |= {"layers": ["spliced"], "neighbor_key": "next_cell_ids"}
        if not path.exists() and kind == "collection":
            path.mkdir()
            scdl.convert(adata[:100].copy(), path / "0.zarr", **how)
            scdl.convert(adata[100:].copy(), path / "1.scdl", **how)
        elif not path.exists():
            scdl.convert(adata, path, backend=kind, **how)
        return scdl.open(path)

    return opened


def plain(values: Any) -> np.ndarray:
    return values.to_dense().numpy() if values.layout != torch.strided else values.numpy()


def assert_batch(batch: Any, rna: ad.AnnData, protein: ad.AnnData) -> None:
    rows = batch.rows.numpy()
    # Transforms are applied to the matrix alone.
    np.testing.assert_allclose(plain(batch.x), np.log1p(rna.X[rows].toarray()), rtol=1e-6)
    expected = protein[rna.obs_names[rows]].X.toarray()
    np.testing.assert_array_equal(plain(batch.fields["protein"]), expected)
    if "spliced" in batch.fields:
        np.testing.assert_array_equal(plain(batch.fields["spliced"]), 2 * rna.X[rows].toarray())


@pytest.mark.parametrize("of_rna", KINDS)
@pytest.mark.parametrize("of_protein", KINDS)
@pytest.mark.parametrize("order", ["block", "random"])
def test_joined_by_name(
    opened: Any, rna: ad.AnnData, protein: ad.AnnData, of_rna: str, of_protein: str, order: str
) -> None:
    cells, other = opened("rna", of_rna), opened("protein", of_protein)
    loader = scdl.SingleCellLoader(
        cells, 32, order=order, modalities={"protein": other}, neighbors=1,
        fields={"protein": "dense", "spliced": "csr"}, transforms=[scdl.Log1p()],
    )  # fmt: skip
    assert "modality 'protein' (dense)" in repr(loader)
    assert "field 'spliced' (csr)" in repr(loader)
    seen = []
    for batch in loader:
        seen += batch.rows.tolist()
        for part in (batch, batch.neighbors):
            assert_batch(part, rna, protein)
            assert part.fields["protein"].layout == torch.strided
    assert sorted(seen) == list(range(N_OBS))
    # Each cell and its neighbour, whatever the number of datasets.
    assert loader.stats().cells_read == 2 * N_OBS


def test_genes_rows_workers_and_state(opened: Any, rna: ad.AnnData, protein: ad.AnnData) -> None:
    genes, proteins = [7, 3, 20], [5, 0]
    chosen = {"protein": opened("protein", "zarr").select_genes([f"p{i}" for i in proteins])}
    how: dict[str, Any] = {
        "batch_size": 16, "genes": [f"g{i}" for i in genes], "rows": np.arange(300, 0, -2),
        "modalities": chosen, "layout": "padded", "length": 2, "by_value": True,
    }  # fmt: skip
    cells = opened("rna", "memmap")
    loader, other = scdl.SingleCellLoader(cells, **how), scdl.SingleCellLoader(cells, **how)
    batches = iter(loader)
    first = next(batches)
    other.load_state_dict(loader.state_dict())
    rest = [*batches]
    for batch, same in zip(rest, other, strict=True):
        assert batch.rows.tolist() == same.rows.tolist()
    for batch in [first, *rest, *scdl.SingleCellLoader(cells, workers=1, **how)]:
        rows = batch.rows.numpy()
        expected = protein[rna.obs_names[rows]].X.toarray()[:, proteins]
        values, at = batch.fields["protein"].numpy(), batch.field_genes["protein"].numpy()
        wide = np.pad(expected, ((0, 0), (0, 1)))
        np.testing.assert_array_equal(values, np.take_along_axis(wide, at, axis=1))
        np.testing.assert_array_equal(values, -np.sort(-expected, axis=1))
        assert int(batch.genes.max()) <= len(genes)
    with pytest.raises(ResumeError, match="data was"):
        scdl.SingleCellLoader(cells, **how | {"modalities": {}}).load_state_dict(
            loader.state_dict()
        )


def test_cells_that_one_lacks(opened: Any, rna: ad.AnnData, protein: ad.AnnData) -> None:
    cells, other = opened("rna", "zarr"), opened("protein", "memmap")
    with pytest.raises(CellNotFoundError, match=r"lacks 40 of the 350 cells .* such as 'c3\d\d'"):
        scdl.SingleCellLoader(other, 8, modalities={"rna": cells})
    both = np.isin(other.obs_names, cells.obs_names)
    loader = scdl.SingleCellLoader(other, 31, rows=both, modalities={"rna": cells}, layout="dense")
    for batch in loader:
        names = protein.obs_names[batch.rows.numpy()]
        np.testing.assert_array_equal(batch.x.numpy(), protein[names].X.toarray())
        np.testing.assert_array_equal(batch.fields["rna"].numpy(), rna[names].X.toarray())


def test_neighbors_that_one_lacks(opened: Any, rna: ad.AnnData, tmp_path: Path) -> None:
    """A cell that is loaded may have a neighbour that is not."""
    scdl.convert(rna[:9, :4].copy(), tmp_path / "few")
    how: dict[str, Any] = {"rows": np.arange(9), "modalities": {"few": scdl.open(tmp_path / "few")}}
    cells = opened("rna", "memmap")
    assert len(next(iter(scdl.SingleCellLoader(cells, 9, **how)))) == 9
    with pytest.raises(CellNotFoundError, match="lacks 301 of the 310 cells"):
        scdl.SingleCellLoader(cells, 9, neighbors=1, **how)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_names_that_repeat(rna: ad.AnnData, protein: ad.AnnData, tmp_path: Path) -> None:
    """The same names in the same order need not be unique; others do."""
    same = protein[rna.obs_names].copy()
    first = rna.copy()
    names = [f"c{i // 2}" for i in range(N_OBS)]
    first.obs_names, same.obs_names = names, names
    scdl.convert(first, tmp_path / "rna")
    scdl.convert(same, tmp_path / "protein.zarr")
    scdl.convert(same[::-1].copy(), tmp_path / "turned")
    cells, other, turned = (scdl.open(tmp_path / n) for n in ("rna", "protein.zarr", "turned"))
    for batch in scdl.SingleCellLoader(cells, 62, modalities={"protein": other}):
        expected = same.X[batch.rows.numpy()].toarray()
        np.testing.assert_array_equal(plain(batch.fields["protein"]), expected)
    with pytest.raises(LoaderError, match="missing or repeated"):
        scdl.SingleCellLoader(cells, 62, modalities={"protein": turned})


def test_what_is_refused(opened: Any, tmp_path: Path) -> None:
    cells, other = opened("rna", "memmap"), opened("protein", "memmap")
    with scdl.create(tmp_path / "nameless", var=["p0"]) as archive:
        archive.append(sp.csr_matrix((N_OBS, 1), dtype="f4"))
    scdl.convert([made(5, 3, 0, "p"), made(5, 4, 0, "p")], tmp_path / "two")
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"modalities": {"spliced": other}}, LoaderError, "has a field of that name"),
        ({"modalities": {"protein": "a path"}}, DatasetTypeError, "a path"),
        ({"modalities": other}, LoaderError, "modalities must be a dict of name to dataset"),
        ({"modalities": {3: other}}, LoaderError, "modalities must be a name"),
        ({"modalities": {"p": scdl.open(tmp_path / "nameless")}}, LoaderError, "have no names"),
        ({"modalities": {"p": scdl.open(tmp_path / "two")}}, GeneError, "gene"),
        (
            {
                "modalities": {"p": other},
                "layout": "padded",
                "length": 3,
                "fields": {"p": "aligned"},
            },
            LoaderError,
            "the modality 'p' has other genes",
        ),
    ]
    for options, error, message in wrong:
        with pytest.raises(error, match=message):
            scdl.SingleCellLoader(cells, 8, **options)
