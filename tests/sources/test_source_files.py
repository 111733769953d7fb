"""Why a file cannot be read, and what is told of the values in it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from budget import sample
from sources import Cells, Encoding, random_cells, write_h5ad

import scdl
from scdl.archive.casting import Caster
from scdl.errors import CastError, MissingFilterError, ScdlError, SourceError
from scdl.sources import hdf5_guard
from storage_backends.errors import ArchiveWriteError, one_line


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_h5ad(tmp_path / "cells.h5ad", random_cells(20, 8, dtype="<f4"))


def refused(source: Path, target: Path, kind: type[ScdlError] = SourceError, **how: Any) -> str:
    """What a conversion says, which must be one sentence about the file, and leave nothing."""
    with pytest.raises(kind) as caught:
        scdl.convert(source, target, **how)
    message = str(caught.value)
    assert message.startswith(f"{source}: ")
    assert "\n" not in message
    assert not target.exists()
    return message


class TestOpening:
    def test_a_file_that_is_written_elsewhere(self, source: Path, tmp_path: Path) -> None:
        held = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(1, flush=True); input()"
        child = subprocess.Popen(
            [sys.executable, "-c", held, source], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        try:
            message = refused(source, tmp_path / "a")
        finally:
            child.communicate(b"\n")
        assert "locked" in message
        assert "not an HDF5 file" not in message
        scdl.convert(source, tmp_path / "a")

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            (errno.EAGAIN, "locked"),
            (errno.EACCES, "permission denied"),
            (errno.EPERM, "permission denied"),
            (errno.EIO, "Input/output error"),
        ],
    )
    def test_what_the_system_says(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(code, "unable to open file")

        monkeypatch.setattr(hdf5_guard, "check_heaps", refuse)
        message = refused(source, tmp_path / "a")
        assert said in message
        assert "HDF5 file" not in message

    def test_a_file_of_something_else(self, source: Path, tmp_path: Path) -> None:
        source.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
        assert "not an HDF5 file" in refused(source, tmp_path / "a")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(11, "try again"), "try again"),
        (FileNotFoundError(2, "no such file", "/x"), "no such file: /x"),
        (KeyError("name"), "name"),
        (ValueError("two\nlines  here"), "two lines here"),
        (ValueError(), "ValueError"),
        (AssertionError(), "AssertionError"),
        (ArchiveWriteError(28, "cannot write: full", "/y"), "/y: cannot write: full"),
    ],
)
def test_errors_of_others_are_given_by_their_sentence(error: Exception, said: str) -> None:
    assert one_line(error) == said


def test_errors_that_begin_with_something_else() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    assert "invalid start byte" in one_line(caught.value)


class TestFilters:
    """Compression that HDF5 does not have itself."""

    def compress(self, source: Path, name: str, number: int) -> None:
        with h5py.File(source, "r+") as file:
            values, attributes = file[name][()], dict(file[name].attrs)
            del file[name]
            made = file.create_dataset(
                name, values.shape, values.dtype, chunks=values.shape, compression=number,
                allow_unknown_filter=True,
            )  # fmt: skip
            made.id.write_direct_chunk((0,) * values.ndim, b"no such bytes")
            made.attrs.update(attributes)

    @pytest.mark.parametrize(
        ("number", "called"),
        [
            (32015, "zstd"),
            (32001, "Blosc"),
            (32004, "LZ4"),
            (32008, "Bitshuffle"),
            (61234, "61234"),
        ],
    )
    @pytest.mark.parametrize("name", ["X/data", "obs/_index", "obsm/X_pca"])
    def test_one_that_is_missing_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, called: str, name: str
    ) -> None:
        # As where it is not installed.
        monkeypatch.setitem(sys.modules, "hdf5plugin", None)
        source = write_h5ad(
            tmp_path / "cells.h5ad", random_cells(9, 4), obs=pd.DataFrame({"_": range(9)}),
            obsm={"X_pca": np.ones((9, 2))},
        )  # fmt: skip
        with h5py.File(source, "r") as file:
            name = name.replace("_index", file["obs"].attrs["_index"])
        if name.startswith("obs/"):
            with h5py.File(source, "r+") as file:
                attributes = dict(file[name].attrs)
                del file[name]
                file[name] = np.arange(9)
                file[name].attrs.update(attributes)
        self.compress(source, name, number)
        message = refused(source, tmp_path / "a.zarr", MissingFilterError)
        assert name in message
        assert called in message
        assert "pip install hdf5plugin" in message

    def test_the_package_is_used_where_it_is_installed(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.compress(source, "X/data", 32015)
        (tmp_path / "hdf5plugin.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "hdf5plugin", raising=False)
        available = h5py.h5z.filter_avail
        monkeypatch.setattr(
            h5py.h5z, "filter_avail", lambda n: "hdf5plugin" in sys.modules or available(n)
        )
        with pytest.raises(SourceError) as caught:
            scdl.convert(source, tmp_path / "a")
        del sys.modules["hdf5plugin"]
        # Then HDF5 has its say about the bytes.
        assert not isinstance(caught.value, MissingFilterError)

    def test_with_the_package_itself(self, tmp_path: Path) -> None:
        hdf5plugin = pytest.importorskip("hdf5plugin")
        cells = anndata.AnnData(random_cells(20, 8).csr().toarray())
        cells.write_h5ad(tmp_path / "a.h5ad", compression=hdf5plugin.FILTERS["zstd"])
        command = [sys.executable, "-m", "scdl", "convert", "a.h5ad", "a.scdl"]
        assert subprocess.run(command, cwd=tmp_path).returncode == 0
        assert (scdl.open(tmp_path / "a.scdl").to_anndata().X.toarray() == cells.X).all()


class TestCounts:
    @pytest.mark.parametrize(
        ("values", "are_counts"),
        [
            ([1.0, 2, 300], True),
            ([0.0, -0.0, 5], True),
            ([1.0, 2.5], False),
            ([1.0, -1.0], False),
            ([np.nan, 1], False),
            ([np.inf, 1], False),
            ([], True),
        ],
    )
    @pytest.mark.parametrize("backend", ["memmap", "zarr"])
    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    def test_values_are_looked_at(
        self, tmp_path: Path, values: list[float], are_counts: bool, backend: str, dtype: str
    ) -> None:
        n = len(values)
        cells = Cells(np.zeros(n, int), np.arange(n), np.array(values, dtype), (1, max(n, 1)))
        write_h5ad(tmp_path / "a.h5ad", cells)
        report = scdl.convert(tmp_path / "a.h5ad", tmp_path / "a", backend=backend)
        assert report.is_counts is are_counts
        assert ("not counts: values of X are negative or not whole numbers" in str(report)) is (
            not are_counts
        )
        again = scdl.convert(tmp_path / "a", tmp_path / "b", backend=backend)
        assert again.is_counts is are_counts

    @pytest.mark.parametrize("dtype", ["?", "u1", "i2", "f2"])
    def test_types(self, dtype: str) -> None:
        caster = Caster.keeping(np.dtype(dtype))
        caster(np.ones(5, dtype), "x")
        assert caster.is_counts
        if np.dtype(dtype).kind in "if":
            caster(np.array([1, -1], dtype), "x")
            caster(np.ones(5, dtype), "x")
            assert not caster.is_counts

    def test_a_value_far_behind(self) -> None:
        values = np.ones(300_000, np.float32)
        values[-1] = 0.5
        caster = Caster(np.float32)
        caster(values, "x")
        assert not caster.is_counts

    @pytest.mark.parametrize("fraction", [0.0, 0.5])
    def test_parts_know_it(self, tmp_path: Path, fraction: float) -> None:
        cells = random_cells(60, 8, dtype="f4").astype("f4")
        cells.values[:] = np.abs(np.rint(cells.values)) + 1
        cells.values[-1] += fraction
        write_h5ad(tmp_path / "a.h5ad", cells)
        report = scdl.convert_in_parts(
            [tmp_path / "a.h5ad"], tmp_path / "a", workers=2, use_processes=False, split_bytes=1_000
        )
        assert report.is_counts is (fraction == 0)


class TestIntegers:
    @pytest.mark.parametrize(("value", "tolerance"), [(1e-9, 1e-8), (2.4, 0.5), (0.5, np.inf)])
    def test_they_take_no_fractions(self, tmp_path: Path, value: float, tolerance: float) -> None:
        cells = Cells(np.zeros(1, int), np.zeros(1, int), np.array([value]), (1, 2))
        source = write_h5ad(tmp_path / "a.h5ad", cells)
        message = refused(
            source, tmp_path / "a", CastError, data_dtype="uint8", data_dtype_tolerance=tolerance
        )
        assert f"uint8 cannot hold the value {value}" in message

    @pytest.mark.parametrize("dtype", sample(["i1", "i2", "i4", "i8", "u8", ">i4"], 2))
    @pytest.mark.parametrize("layout", ["csr", "dense"])
    def test_parts_hold_those_of_any_type(self, tmp_path: Path, dtype: str, layout: str) -> None:
        cells = random_cells(60, 8, dtype=dtype, is_sorted=layout == "dense")
        write_h5ad(tmp_path / "a.h5ad", cells, Encoding(layout))
        how: dict[str, Any] = {"workers": 2, "use_processes": False, "split_bytes": 500}
        whole = scdl.convert(tmp_path / "a.h5ad", tmp_path / "whole.zarr")
        parts = scdl.convert_in_parts([tmp_path / "a.h5ad"], tmp_path / "parts.zarr", **how)
        assert (parts.rows_sorted, parts.dtype) == (whole.rows_sorted, whole.dtype)
        ours, theirs = (scdl.open(tmp_path / name).store for name in ("parts.zarr", "whole.zarr"))
        for name in ("data", "indices", "indptr"):
            assert ours.read(name).tobytes() == theirs.read(name).tobytes()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "parts.zarr", "whole.zarr"]
