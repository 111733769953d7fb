"""Kernels are compiled for types, and not once more for a constant that a caller passes."""

import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scdl


def literal_signatures() -> list[str]:
    """Compiled versions of the kernels of imported modules for literals."""
    found = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("scdl", "storage_backends"):
            for function in vars(module).values():
                signatures = getattr(function, "nopython_signatures", ())
                found += [f"{function}: {s}" for s in signatures if "Literal" in str(s)]
    return found


@pytest.mark.parametrize("profile", ["packed", "balanced", "archive", "fast", None])
def test_none_for_literals(profile: str | None, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    counts = sp.random(300, 200, 0.2, "csr", np.float32, random_state=0)
    counts.data = np.ceil(counts.data * 9)
    target = tmp_path / ("cells.zarr" if profile else "cells.scdl")
    options: dict[str, Any] = {"compression": profile} if profile else {}
    scdl.convert(ad.AnnData(counts), target, **options)
    data = scdl.open(target)
    genes = list(data.var_names[::-3])
    forms: list[dict[str, Any]] = [
        {},
        {"layout": "dense"},
        {"layout": "padded", "length": 8},
        {"genes": genes},
    ]
    for form in forms:
        loader = scdl.SingleCellLoader(data, 64, **form)
        assert sum(len(batch) for batch in loader) == 300
    assert literal_signatures() == []
