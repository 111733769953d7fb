"""Dry runs of conversions: what they tell is what happens, and nothing is written."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from sources import Encoding, names, random_cells, write_h5ad

import scdl
from scdl.archive.csr import SparseRows
from scdl.conversion import planning, trials
from scdl.errors import ArchiveExistsError, ArchiveWriteError, CastError, SourceError
from scdl.sources.h5ad import H5adFile
from scdl.sources.matrices import Bounds
from storage_backends import registry
from storage_backends.directory.scratch import scratch_beside
from storage_backends.zarr.codecs.profiles import PROFILES

#: Fields of a report that a dry run knows exactly.
EXACT = ("backend", "n_obs", "n_vars", "nnz", "dtype", "matrices", "not_carried", "is_counts")


def write(path: Path, n: int = 3000, layout: str = "csr", seed: int = 0) -> Path:
    cells = random_cells(n, 200, dtype="<u2", seed=seed)
    obs = pd.DataFrame({"type": ["B", "T"] * (n // 2)}, index=names("cell", n))
    return write_h5ad(path, cells, Encoding(layout), obs=obs)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source") / "cells.h5ad")


@pytest.mark.parametrize("profile", ["memmap", *PROFILES])
def test_tells_what_happens(source: Path, tmp_path: Path, profile: str) -> None:
    is_memmap = profile == "memmap"
    dest = tmp_path / ("a.scdl" if is_memmap else "a.zarr")
    options = {} if is_memmap else {"compression": profile, "only_matrix": True}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    plan = scdl.convert(source, dest, dry_run=True, **options)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    report = scdl.convert(source, dest, **options)
    for name in EXACT:
        assert getattr(plan, name) == getattr(report, name), name
    store = scdl.open(dest).store
    matrix = sum(store.stored_bytes[part] for part in ("data", "indices", "indptr"))
    assert plan.dry_run
    assert plan.sampled_cells > 0
    assert plan.seconds > 0
    # Tables, and metadata of Zarr, are beside the matrix.
    assert 0.8 * matrix < plan.nbytes < 1.3 * matrix + 200_000
    assert not report.dry_run


def test_the_matrix_of_a_memmap_archive_is_exact(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning._Plan, "_table_bytes", lambda self: 0)
    for dtype in ("uint16", "float64"):
        plan = scdl.convert(source, tmp_path / "a", data_dtype=dtype, dry_run=True, replace=True)
        scdl.convert(source, tmp_path / "a", data_dtype=dtype, replace=True)
        store = scdl.open(tmp_path / "a").store
        assert plan.nbytes == sum(store.spec(part).nbytes for part in ("data", "indices", "indptr"))


def normalised(place: str, n: int = 6000, n_genes: int = 300) -> ad.AnnData:
    """Counts in raw or a layer, with log-normalised values in X."""
    rng = np.random.default_rng(0)
    counts = sp.random(n, n_genes, 0.3, "csr", np.float32, rng=rng)
    counts.data[:] = rng.geometric(0.4, counts.nnz)
    cells = ad.AnnData(counts)
    if place == "raw":
        cells.raw = cells
    else:
        cells.layers["counts"] = counts
    scale = sp.diags(1e4 / np.maximum(counts.sum(axis=1).A1, 1))
    cells.X = sp.csr_matrix(scale @ counts, dtype=np.float32).log1p()
    return cells


@pytest.mark.parametrize("place", ["raw", "layers"])
@pytest.mark.parametrize("profile", ["archive", "balanced", "packed", "memmap"])
def test_matrices_that_repeat_each_other(tmp_path: Path, place: str, profile: str) -> None:
    source = tmp_path / "x.h5ad"
    normalised(place).write_h5ad(source)
    options: dict[str, Any] = {"compression": profile}
    dest = tmp_path / ("a.scdl" if profile == "memmap" else "a.zarr")
    if profile == "memmap":
        # Fields count, too.
        options = {"matrix": "X", "layers": {"other": "X"}}
    plan = scdl.convert(source, dest, dry_run=True, **options)
    report = scdl.convert(source, dest, **options)
    assert report.nbytes / 1.3 < plan.nbytes < 1.3 * report.nbytes
    for name in EXACT:
        assert getattr(plan, name) == getattr(report, name), name


def test_matrices_that_follow_other_genes(tmp_path: Path) -> None:
    """Archives do not store them together, as the estimate knows."""
    renamed, others = normalised("raw"), normalised("layers")
    renamed.var_names = [f"other {name}" for name in renamed.var_names]
    others.layers["dense"] = np.random.default_rng(0).random(others.shape)
    for adata in (renamed, others):
        plan = scdl.convert(adata, tmp_path / "a.zarr", dry_run=True, compression="archive")
        report = scdl.convert(adata, tmp_path / "a.zarr", compression="archive", replace=True)
        assert report.nbytes / 1.3 < plan.nbytes < 1.3 * report.nbytes
        shutil.rmtree(tmp_path / "a.zarr")


def test_dense_matrices_are_sampled(tmp_path: Path) -> None:
    source = write(tmp_path / "dense.h5ad", layout="dense")
    plan = scdl.convert(source, tmp_path / "a", dry_run=True)
    report = scdl.convert(source, tmp_path / "a")
    assert abs(plan.nnz - report.nnz) < 0.1 * report.nnz


@pytest.mark.parametrize("layout", ["csc", "coo"])
def test_matrices_by_column(tmp_path: Path, layout: str) -> None:
    """No cell can be read alone, so that the size is a bound, but some entries can be converted."""
    source = write(tmp_path / "x.h5ad", layout=layout)
    plan = scdl.convert(source, tmp_path / "a.zarr", dry_run=True, only_matrix=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5ad"]
    report = scdl.convert(source, tmp_path / "a.zarr", only_matrix=True)
    assert plan.nnz == report.nnz
    assert plan.nbytes >= report.nbytes - 200_000
    assert plan.sampled_cells == 0
    assert 0 < plan.seconds < 60
    assert "at most" in str(plan)


def test_what_cannot_be_timed(tmp_path: Path) -> None:
    source = write(tmp_path / "csc.h5ad", layout="csc")
    plan = scdl.convert(source, tmp_path / "a", dry_run=True, cells=slice(9))
    assert (plan.sampled_cells, math.isnan(plan.seconds)) == (0, True)
    assert "a time that is unknown" in str(plan)
    assert json.loads(plan.to_json())["seconds"] is None


def test_entries_of_a_trial_are_the_first(tmp_path: Path) -> None:
    """A trial of a matrix by columns converts as many values as it was asked for."""
    source = write(tmp_path / "csc.h5ad", layout="csc")
    with H5adFile(source) as file:
        for n in (1, 7, 10**9):
            part = file.matrix.beginning(n)
            assert part is not None
            blocks = [*part.blocks(Bounds(1000, 100))]
            assert sum(len(block.data) for block in blocks) == min(n, file.matrix.size)
            assert sum(len(block.indptr) - 1 for block in blocks) == 3000


@pytest.mark.parametrize(
    "options",
    [
        {"quality": True},
        {"shuffle": 3},
        {"obsm": "X_pca"},
        {"genes": "union", "missing": "zero"},
        {"label": "from", "keys": ["one"]},
    ],
)
def test_trials_take_the_options(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Trials that fail would leave the time unknown."""
    monkeypatch.setattr(trials, "_BLOCK", 1 << 14)
    if "obsm" in options:
        vectors = {"X_pca": np.ones((3000, 2), "f4")}
        source = write_h5ad(tmp_path / "o.h5ad", random_cells(3000, 200, seed=1), obsm=vectors)
    before = {*tmp_path.iterdir()}
    plan = scdl.convert(source, tmp_path / "a", dry_run=True, **options)
    assert plan.seconds > 0
    assert {*tmp_path.iterdir()} == before


def test_several_sources(source: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.h5ad", 1000, seed=1)
    plan, report = (
        scdl.convert({"a": source, "b": other}, tmp_path / "both", label="from", dry_run=dry)
        for dry in (True, False)
    )
    for name in (*EXACT, "differing_var", "reordered"):
        assert getattr(plan, name) == getattr(report, name), name


KILLED = """
import os, signal, sys, tempfile
import scdl
from scdl.conversion import trials

write = trials.write_archive

def die(*arguments, **options):
    write(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

trials.write_archive = die
if sys.argv[3]:
    tempfile.tempdir, access = sys.argv[3], os.access
    os.access = lambda path, mode, **more: mode != os.W_OK and access(path, mode, **more)
scdl.convert(sys.argv[1], sys.argv[2], dry_run=True)
"""


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
@pytest.mark.parametrize("after", ["dry run", "conversion"])
def test_what_a_killed_dry_run_left_is_removed(
    source: Path,
    tmp_path: Path,
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    place: str,
    after: str,
) -> None:
    """By the next command that writes, or would write, the same archive."""
    for directory in ("beside", "elsewhere"):
        (tmp_path / directory).mkdir()
    # Another process that is at work keeps its directory.
    with scratch_beside(str(tmp_path / place / "a.scdl")) as used:
        dest = tmp_path / "beside" / "a.scdl"
        temporary = tmp_path / place if place == "elsewhere" else ""
        assert run_python("-c", KILLED, source, dest, temporary).returncode == -9
        (scratch,) = {*(tmp_path / place).iterdir()} - {Path(used)}
        assert (scratch / "a.scdl" / "data.npy").exists()
        scdl.convert(source, tmp_path / place / "a.scdl", dry_run=after == "dry run")
        assert [*(tmp_path / place).glob(".*")] == [Path(used)]
    assert [*(tmp_path / place).glob(".*")] == []


def test_errors_are_those_of_the_conversion(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for dest, options, error in (
        ("there", {}, ArchiveExistsError),
        ("no/such", {}, ArchiveWriteError),
        ("a", {"matrix": "layers/x"}, SourceError),
        ("a", {"data_dtype": "uint8"}, CastError),
    ):
        if error is CastError:
            source = write_h5ad(tmp_path / "f.h5ad", random_cells(9, 9, dtype="<f4", seed=1))
        for dry_run in (True, False):
            with pytest.raises(error):
                scdl.convert(source, tmp_path / dest, dry_run=dry_run, **options)
    scdl.convert(source, tmp_path / "there", replace=True, dry_run=True)
    assert [*(tmp_path / "there").iterdir()] == []


@pytest.mark.parametrize("n", [0, 1, 7])
def test_few_cells(tmp_path: Path, n: int) -> None:
    source = write_h5ad(tmp_path / "few.h5ad", random_cells(n, 3, seed=n))
    plan, report = (
        scdl.convert(source, tmp_path / "a.zarr", dry_run=dry, compression="archive")
        for dry in (True, False)
    )
    assert (plan.n_obs, plan.nnz) == (report.n_obs, report.nnz)


def test_a_directory(source: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        write(tmp_path / "in" / f"{i}.h5ad", 200, seed=i)
    (tmp_path / "in" / "bad.h5ad").write_text("not HDF5")
    plan = scdl.convert_directory(tmp_path / "in", tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    report = scdl.convert_directory(tmp_path / "in", tmp_path / "out", workers=1, skip_failed=True)
    assert plan.reports.keys() == report.reports.keys()
    assert plan.failed.keys() == report.failed.keys()
    for path, one in plan.reports.items():
        assert (one.path, one.n_obs, one.nnz) == (
            report.reports[path].path, 200, report.reports[path].nnz
        )  # fmt: skip
    assert f"2 files, 400 cells, {sum(one.nnz for one in report.reports.values()):,} values" in str(
        plan
    )


def test_the_command(
    source: Path, tmp_path: Path, run_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_command("scdl", "convert", source, "a.zarr", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3,000 cells" in done.stdout
    assert "about" in done.stdout
    assert "nothing was written" in done.stdout
    done = run_command("scdl", "convert", source, "a.zarr", "--dry-run", "--json")
    assert json.loads(done.stdout)["dry_run"] is True
    assert [*tmp_path.iterdir()] == []


@given(seed=st.integers(0, 99), profile=st.sampled_from(["memmap", *PROFILES]))
def test_encoded_bytes_of_any_backend(seed: int, profile: str) -> None:
    """They are positive, and at most a little more than the numbers take in memory."""
    matrix = random_cells(20, 30, seed=seed).csr()
    rows = SparseRows(matrix.data, matrix.indices.astype("u2"), matrix.indptr.astype("u4"))
    arrays = dict(zip(("data", "indices", "indptr"), rows[:3], strict=True))
    backend = registry.backend("memmap" if profile == "memmap" else "zarr")
    options = {} if profile == "memmap" else {"compression": profile}
    found = backend.writer.encoded_bytes(arrays, n_vars=30, **options)
    for name, values in arrays.items():
        assert 0 < found[name] <= values.nbytes + 200
        assert profile != "memmap" or found[name] == np.asarray(values).nbytes
