"""The backend of docs/backends.md is one, and does what the page says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrow_backend import BACKEND
from budget import whole_only
from places import ROOT, SUPPORT
from sources import random_cells, write_h5ad

import scdl
from scdl.errors import UnknownOptionError
from storage_backends import registry
from storage_backends.base import ArrayStore
from storage_backends.capabilities import Verdict
from storage_backends.testing import BackendTests

CELLS = random_cells(300, 20)


class TestArrow(BackendTests):
    backend = BACKEND

    @whole_only
    def test_spawned_process(self, store: ArrayStore) -> None:
        super().test_spawned_process(store)


def test_the_page_shows_it() -> None:
    page = (ROOT / "docs" / "backends.md").read_text()
    assert f"```python\n{(SUPPORT / 'arrow_backend.py').read_text()}```" in page


class TestInstalled:
    @pytest.fixture
    def archive(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        info = tmp_path / "site" / "arrow-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: arrow\nVersion: 1.0\n")
        entry = "[scdl.storage_backends]\narrow = arrow_backend:BACKEND\n"
        (info / "entry_points.txt").write_text(entry)
        monkeypatch.syspath_prepend(tmp_path / "site")
        write_h5ad(tmp_path / "cells.h5ad", CELLS)
        report = scdl.convert(tmp_path / "cells.h5ad", tmp_path / "cells.arrows", codec="lz4")
        assert report.backend == "arrow"
        return tmp_path / "cells.arrows"

    def test_it_is_read(self, archive: Path) -> None:
        ds = scdl.open(archive)
        assert registry.of(ds.store) is BACKEND
        np.testing.assert_array_equal(ds.read_rows(range(300)).to_dense(), CELLS.csr().toarray())

    def test_it_is_trained_from(self, archive: Path) -> None:
        pytest.importorskip("torch")
        loader = scdl.SingleCellLoader(scdl.open(archive), 64, layout="dense")
        rows = np.concatenate([batch.rows for batch in loader])
        assert sorted(rows.tolist()) == list(range(300))
        assert loader.stats().cells_read is loader.stats().asked_bytes is None

    def test_it_is_verified(self, archive: Path) -> None:
        assert scdl.verify(archive, deep=True).verdict == Verdict.SOUND
        with open(archive / "0.bin", "r+b") as file:
            file.write(b"\xff")
        assert scdl.verify(archive, deep=True).verdict == Verdict.DAMAGED

    def test_it_takes_no_other_option(self, archive: Path, tmp_path: Path) -> None:
        with pytest.raises(UnknownOptionError, match=r"no option 'code'.*, codec$"):
            scdl.convert(tmp_path / "cells.h5ad", tmp_path / "b.arrows", code="lz4")

    def test_by_name(self, archive: Path, tmp_path: Path) -> None:
        other: Any = scdl.convert(archive, tmp_path / "other", backend="arrow")
        assert (other.backend, other.nnz) == ("arrow", len(CELLS.values))


def test_detecting_searches_for_packages_once(tmp_path: Path, monkeypatch: Any) -> None:
    registry.is_archive(str(tmp_path))
    monkeypatch.setattr(registry, "entry_points", None)
    assert not registry.is_archive(str(tmp_path))
