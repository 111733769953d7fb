"""Imports, conversion and training where calls of POSIX are missing, as on Windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from places import ROOT
from sources import random_cells, write_h5ad

PROGRAM = """
import sys
sys.path[:0] = [{support!r}, {root!r}]
# What the packages below do where the calls are missing is their own affair.
import anndata, h5py, numba.cuda, pandas, pyarrow.parquet, rich.console, scipy, torch, tqdm, typer
import fsspec, obstore.store, pytest, torch.utils.data, zarr
import importlib, pkgutil
from without_posix import take_away
take_away()

import scdl, storage_backends

for package in (scdl, storage_backends):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # Of extras; these have their own systems.
        if module.name not in ("scdl.__main__", "scdl.sources.soma", "scdl.lightning",
                               "scdl.conversion.many.dask", "storage_backends.testing.suite"):
            importlib.import_module(module.name)

for target in ("a.scdl", "a.zarr"):
    scdl.convert({source!r}, target)
    scdl.convert({source!r}, target, replace=True)
    data = scdl.open(target)
    assert data.read_rows([3, 0, 3]).to_scipy().shape == (3, 8)
    assert scdl.verify(target, deep=True).is_sound
    loader = scdl.SingleCellLoader(data, 4, order="random", layout="dense")
    assert sum(len(batch) for batch in loader) == 12
print("done")
"""


def test_all_modules_and_an_archive(tmp_path: Path) -> None:
    source = write_h5ad(tmp_path / "cells.h5ad", random_cells(12, 8, dtype="<u2", seed=1))
    support = str(ROOT / "tests" / "support")
    program = PROGRAM.format(support=support, root=str(ROOT), source=str(source))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr
