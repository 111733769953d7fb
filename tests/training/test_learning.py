"""A classifier of real cells learns from batches of every layout."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import sample

torch = pytest.importorskip("torch")

import scdl
from scdl.training.loader import SingleCellLoader

LABEL = "louvain"
#: Required accuracy on held-out cells of 11 clusters, of which the largest is a fifth of all.
ACCURACY = 0.85
EPOCHS = 8


@pytest.fixture(scope="module")
def cells() -> Path:
    """The 700 blood cells in the scanpy package, read without importing scanpy."""
    try:
        packaged = files("scanpy") or []
    except PackageNotFoundError:
        packaged = []
    for file in packaged:
        if file.name == "10x_pbmc68k_reduced.h5ad":
            return Path(str(file.locate()))
    pytest.skip("scanpy, which packages real cells, is not installed")


@pytest.fixture(scope="module")
def ds(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> scdl.SingleCellDataset:
    path = tmp_path_factory.mktemp("learning") / "archive"
    scdl.convert(cells, path)
    return scdl.open(path)


def from_padded(batch: Any, weights: Any) -> Any:
    none = torch.zeros(1, weights.shape[1])
    of_genes = torch.cat([weights, none])[batch.genes]
    return (of_genes * batch.x[..., None]).sum(dim=1)


#: Output of a linear layer without a bias, for batches of every layout.
LAYERS: dict[str, Callable[[Any, Any], Any]] = {
    "csr": lambda batch, weights: batch.x @ weights,
    "coo": lambda batch, weights: torch.sparse.mm(batch.x, weights),
    "dense": lambda batch, weights: batch.x @ weights,
    "padded": from_padded,
    "tokens": lambda batch, weights: batch.tokens @ weights,
}


def options(layout: str, ds: scdl.SingleCellDataset) -> dict[str, Any]:
    if layout == "tokens":
        return {"tokenizer": lambda cells, genes: torch.from_numpy(cells.to_dense())}
    most = int(np.diff(ds.row_index).max())
    return {"layout": layout, "length": most if layout == "padded" else None}


def trained(
    ds: scdl.SingleCellDataset,
    splits: scdl.Splits,
    layout: str,
    order: str = "block",
    by: str | None = None,
) -> tuple[float, list[float]]:
    """Accuracy on held-out cells, and the loss of each step."""

    def loader(part: str, order: str) -> SingleCellLoader:
        given = {**options(layout, ds), "rows": splits[part], "obs": [LABEL]}
        return SingleCellLoader(ds, 64, order=order, by=by if part == "train" else None, **given)

    training, held_out = loader("train", order), loader("test", "sequential")
    n_labels = len(training.vocabulary[LABEL])
    weights = torch.zeros(ds.n_vars[0], n_labels, requires_grad=True)
    optimizer, losses = torch.optim.Adam([weights], 0.005), []
    for _ in range(EPOCHS):
        for batch in training:
            scores = LAYERS[layout](batch, weights)
            loss = torch.nn.functional.cross_entropy(scores, batch.obs[LABEL])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    right = [LAYERS[layout](batch, weights).argmax(dim=1) == batch.obs[LABEL] for batch in held_out]
    return float(torch.cat(right).double().mean()), losses


@pytest.fixture(scope="module")
def splits(ds: Any) -> scdl.Splits:
    return scdl.split(ds, {"train": 0.75, "test": 0.25})


@pytest.fixture(scope="module")
def expected(ds: Any, splits: scdl.Splits) -> list[float]:
    accuracy, losses = trained(ds, splits, "dense")
    assert accuracy >= ACCURACY
    return losses


@pytest.mark.parametrize("layout", sample(["csr", "coo", "padded", "tokens"], 2))
def test_learns(ds: Any, splits: scdl.Splits, expected: list[float], layout: str) -> None:
    """As from dense batches."""
    accuracy, losses = trained(ds, splits, layout)
    assert accuracy >= ACCURACY
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


@pytest.mark.parametrize("order", sample(["balanced", "random"], 1))
def test_learns_in_other_orders(ds: Any, splits: scdl.Splits, order: str) -> None:
    accuracy, _ = trained(ds, splits, "dense", order, LABEL if order == "balanced" else None)
    assert accuracy >= ACCURACY


def test_learns_from_a_compressed_archive(ds: Any, splits: scdl.Splits, tmp_path: Path) -> None:
    scdl.convert(ds.data_path, tmp_path / "archive.zarr")
    accuracy, losses = trained(scdl.open(tmp_path / "archive.zarr"), splits, "csr", "random")
    assert accuracy >= ACCURACY
    np.testing.assert_allclose(losses, trained(ds, splits, "csr", "random")[1], rtol=1e-3)
