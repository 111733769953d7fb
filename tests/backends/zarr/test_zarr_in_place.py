"""The documented operations in place, on archives that are a whole AnnData."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("anndata")

from anndata.tests.helpers import assert_equal
from annotated import annotated
from budget import sample

import scdl
from scdl.errors import ScdlWarning

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")


@pytest.mark.parametrize("compression", sample(["archive", "fast"], 1))
def test_casting_and_saving_keep_everything(tmp_path: Path, compression: str) -> None:
    adata = annotated()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    path = tmp_path / "cells.zarr"
    scdl.convert(tmp_path / "cells.h5ad", path, compression=compression)
    ds = scdl.open(path)
    before = ds.to_anndata()
    dtype = ds.data.dtype
    ds.cast_data_to_dtype("float64")
    assert ds.data.dtype == np.float64
    ds.cast_data_to_dtype(dtype)
    ds.save(tmp_path / "copy.zarr")
    for rewritten in (ds, scdl.open(tmp_path / "copy.zarr")):
        assert rewritten.store.options == {"compression": compression}
        assert_equal(rewritten.to_anndata(), before, exact=True)


def test_what_joining_leaves_out_is_told(tmp_path: Path) -> None:
    annotated().write_h5ad(tmp_path / "cells.h5ad")
    scdl.convert(tmp_path / "cells.h5ad", tmp_path / "a.zarr")
    ds, other = (scdl.open(tmp_path / "a.zarr") for _ in range(2))
    n_obs = len(ds)
    with pytest.warns(ScdlWarning, match=r"obsm/\S+.*uns.* is left out"):
        ds.concat(other)
    assert len(ds) == 2 * n_obs
    np.testing.assert_array_equal(
        ds.read_rows(range(n_obs)).to_dense(), ds.read_rows(range(n_obs, 2 * n_obs)).to_dense()
    )
