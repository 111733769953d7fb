"""A format of a third party: one module, and an entry point."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from sources import random_cells, write_h5ad

import scdl
from scdl.errors import ScdlWarning, SourceError

THIRD_PARTY = """
import numpy as np
import pyarrow as pa
from scdl.archive.tables import NoTable
from scdl.sources.base import Source
from scdl.sources.formats import SourceFormat
from scdl.sources.matrices import Dense, Values


class Table(Source):
    # Counts as text: a line for each cell, the first names the genes.

    def __init__(self, path):
        self.path = self.label = path
        self.matrix_name = self.element = "X"
        with open(path) as file:
            self._genes = file.readline().split()
            counts = np.loadtxt(file, "f4", ndmin=2)
        self.obs = NoTable(len(counts))
        self.matrix = Dense(path, Values(counts), counts.shape)

    def var(self):
        return pa.table({"_index": self._genes})


def opened(path, matrix, stack):
    return [Table(path)]


FORMAT = SourceFormat("counts", lambda path: path.endswith(".counts"), opened)
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    info = tmp_path / "site" / "counts-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counts\nVersion: 1.0\n")
    entry = "[scdl.source_formats]\ncounts = counts_format:FORMAT\n"
    (info / "entry_points.txt").write_text(entry)
    (tmp_path / "site" / "counts_format.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "a.counts").write_text("x y z\n0 1 0\n2 0 3\n")
    return tmp_path / "a.counts"


@pytest.mark.parametrize("target", ["a", "a.zarr"])
def test_it_is_converted(source: Path, tmp_path: Path, target: str) -> None:
    report = scdl.convert(source, tmp_path / target)
    assert (report.n_obs, report.n_vars, report.nnz, report.is_counts) == (2, [3], 3, True)
    ds = scdl.open(tmp_path / target)
    np.testing.assert_array_equal(ds.read_rows([0, 1]).to_dense(), [[0, 1, 0], [2, 0, 3]])
    assert ds.var_names.tolist() == ["x", "y", "z"]


def test_one_that_cannot_be_imported_is_left_out(source: Path, tmp_path: Path) -> None:
    (tmp_path / "site" / "counts_format.py").write_text("import a_module_that_is_not_there")
    sys.modules.pop("counts_format", None)
    write_h5ad(tmp_path / "a.h5ad", random_cells(3, 2))
    assert scdl.convert(tmp_path / "a.h5ad", tmp_path / "a").n_obs == 3
    with pytest.raises(SourceError, match=r"a\.counts"):
        scdl.convert(source, tmp_path / "b")


def test_what_it_lacks(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="obsm/X_pca is missing"):
        scdl.convert(source, tmp_path / "a", obsm="X_pca")
    with pytest.warns(ScdlWarning, match="no file has obsp/connectivities"):
        scdl.convert(source, tmp_path / "a", neighbor_key="connectivities")
