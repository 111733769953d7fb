"""What printing shows: a few lines, of which no line takes long to find out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sources import names, random_cells, write_h5ad

import scdl

N_OBS, N_VARS = 1_200, 5
CELLS = random_cells(N_OBS, N_VARS)
NNZ = CELLS.csr().nnz
SHARE = f"{NNZ:,} stored ({NNZ / N_OBS / N_VARS:.1%} of all), float32, column ids uint8"


@pytest.fixture(params=["memmap", "zarr"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    obs = pd.DataFrame({f"c{i}": range(N_OBS) for i in range(11)}, index=names("c", N_OBS))
    var = pd.DataFrame({"symbol": list("abcde")}, index=names("g", N_VARS))
    parts: dict[str, Any] = {"obsm": {"X_pca": np.ones((N_OBS, 2))}}
    graph = random_cells(N_OBS, N_OBS, density=0.001)
    source = write_h5ad(tmp_path / "a.h5ad", CELLS, obs=obs, var=var, obsp={"knn": graph}, **parts)
    path = tmp_path / f"a.{request.param}"
    scdl.convert(
        source, path, backend=request.param, neighbor_key="knn", obsm=["X_pca"], only_matrix=True
    )
    return path


def test_an_archive(archive: Path) -> None:
    ds = scdl.open(archive)
    columns = ", ".join(f"c{i}" for i in range(8)) + " and 3 more"
    assert str(ds).splitlines() == [
        "SingleCellDataset: 1,200 cells x 5 genes",
        f"  path    {archive} ({archive.suffix[1:]})",
        f"  values  {SHARE}",
        "  var     symbol",
        "  obsm    X_pca",
        f"  obs     {columns}",
        "  graphs  knn",
    ]
    assert repr(ds) == f"SingleCellDataset({str(archive)!r}): 1,200 cells x 5 genes"


def test_an_archive_that_was_moved(archive: Path) -> None:
    ds = scdl.open(archive)
    shutil.move(archive, archive.with_name("elsewhere"))
    assert f"{archive} (no longer there)" in str(ds)


def test_without_obs_and_graphs(tmp_path: Path) -> None:
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", random_cells(2, 3)), tmp_path / "a")
    lines = str(scdl.SingleCellMemMapDataset(tmp_path / "a")).splitlines()
    assert lines[0] == "SingleCellMemMapDataset: 2 cells x 3 genes"
    assert not any(line.startswith("  graphs") for line in lines)


@pytest.mark.parametrize(
    ("widths", "told"),
    [
        ((3, 4), "4 cells x 3 + 4 genes in 2 feature blocks"),
        ((3, 9, 1, 5), "8 cells x 1 to 9 genes in 4 feature blocks"),
    ],
)
def test_a_collection(tmp_path: Path, widths: tuple[int, ...], told: str) -> None:
    (tmp_path / "all").mkdir()
    for i, width in enumerate(widths):
        obs = pd.DataFrame({"age": [1, 2]}, index=names("c", 2))
        var = pd.DataFrame(index=names(f"g{i}-", width))
        source = write_h5ad(
            tmp_path / f"{i}.h5ad", random_cells(2, width, density=1), obs=obs, var=var
        )
        scdl.convert(source, tmp_path / "all" / str(i))
    collection = scdl.open(tmp_path / "all")
    lines = str(collection).splitlines()
    assert lines[0] == f"SingleCellCollection: {told}"
    listed = ", ".join(map(str, range(len(widths))))
    assert lines[1:] == [
        f"  path      {tmp_path / 'all'}",
        f"  archives  {len(widths)}: {listed}",
        f"  values    {2 * sum(widths)} stored (100.0% of all), float32, column ids uint8",
        "  obs       age, in the first",
    ]
    view = collection.select_genes(["g0-0", "g1-0"], missing="zero")
    assert str(view).splitlines() == [
        f"GeneView: {2 * len(widths)} cells x 2 genes",
        "  genes     g0-0, g1-0",
        f"  cells of  {collection!r}",
    ]


def test_an_empty_collection(tmp_path: Path) -> None:
    lines = str(scdl.SingleCellCollection(tmp_path / "none")).splitlines()
    assert lines[0] == "SingleCellCollection: 0 cells x 0 genes"


def test_a_batch(archive: Path) -> None:
    batch = scdl.open(archive).read_rows(np.arange(20), obs=["c3", "c0"], obsm=["X_pca"])
    nnz = len(batch.data)
    assert repr(batch) == str(batch)
    assert str(batch).splitlines() == [
        "CellBatch: 20 cells x 5 genes",
        f"  values  {nnz} stored ({nnz / 100:.1%} of all), float32, column ids uint8",
        "  rows    0, 1, 2, 3, 4, 5, 6, 7 and 12 more",
        "  obs     c3, c0",
        "  obsm    X_pca (2)",
    ]
    assert str(batch[:0]).splitlines()[0] == "CellBatch: 0 cells x 5 genes"
