"""Edge cases: foreign and damaged archives, unusual file systems and callers."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from budget import whole_only
from places import GOLDEN
from sources import names, random_cells, write_h5ad

import scdl
from storage_backends.directory import locks, publication


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    obs = pd.DataFrame({"type": pd.Categorical(["B", "T"] * 5)}, index=names("cell", 10))
    source = write_h5ad(tmp_path / "cells.h5ad", random_cells(10, 8, seed=3), obs=obs)
    scdl.convert(source, tmp_path / "archive")
    return tmp_path / "archive"


@pytest.fixture
def repeating(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A foreign archive whose second cell has a gene twice, and the expected matrix."""
    path = tmp_path / "repeating"
    shutil.copytree(GOLDEN / "neighbors_v013", path, copy_function=shutil.copyfile)
    dense = scdl.open(path).read_rows(slice(None)).to_dense()
    ids, values = (np.fromfile(path / file, np.uint8) for file in ("col_ptr.npy", "data.npy"))
    start = int(np.fromfile(path / "row_ptr.npy", np.uint8)[1])
    dense[1, ids[start]] += values[start + 1]
    dense[1, ids[start + 1]] = 0
    ids[start + 1] = ids[start]
    ids.tofile(path / "col_ptr.npy")
    return path, dense


class TestRepeatedGenes:
    def test_every_method_sums(self, repeating: tuple[Path, np.ndarray]) -> None:
        path, dense = repeating
        ds = scdl.open(path)
        gene = int(ds.get_row(1)[0][1][0])
        np.testing.assert_array_equal(ds.read_rows(slice(None)).to_dense(), dense)
        np.testing.assert_array_equal(ds.get_row_padded(1)[0], dense[1])
        assert ds.get_row_column(1, gene) == dense[1, gene]
        assert ds.read_rows([1]).data.dtype == np.uint8

    def test_copies_hold_each_gene_once(self, repeating: tuple[Path, np.ndarray]) -> None:
        path, dense = repeating
        ds = scdl.open(path)
        ds.save(path.with_name("copy"))
        copy = scdl.open(path.with_name("copy"))
        assert copy.number_nonzero_values() == ds.number_nonzero_values() - 1
        np.testing.assert_array_equal(copy.read_rows(slice(None)).to_dense(), dense)
        assert copy.get_neighbor_stats() == ds.get_neighbor_stats()

    def test_sum_that_does_not_fit(self, repeating: tuple[Path, np.ndarray]) -> None:
        path, _ = repeating
        values = np.fromfile(path / "data.npy", np.uint8)
        values[:] = 200
        values.tofile(path / "data.npy")
        with pytest.raises(scdl.errors.CastError, match="uint8 cannot hold the value 400"):
            scdl.open(path).read_rows([1])
        assert 400 in scdl.open(path).read_rows([1], sum_dtype="uint16").data


class TestDamage:
    def test_column_ids_beyond_the_genes(self, archive: Path) -> None:
        ids = np.fromfile(archive / "col_ptr.npy", np.uint8)
        ids[3] = 250
        ids.tofile(archive / "col_ptr.npy")
        batch = scdl.open(archive).read_rows(slice(None))
        for use in (batch.to_scipy, batch.to_dense):
            with pytest.raises(scdl.errors.ArchiveFormatError, match="250"):
                use()

    @pytest.mark.parametrize("file", ["obs.names.parquet", "obs.categories.parquet"])
    @pytest.mark.parametrize("how", ["missing", "text"])
    def test_side_files_are_required(self, archive: Path, file: str, how: str) -> None:
        path = archive / "scdl" / file
        path.unlink()
        if how == "text":
            path.write_text("not a table")
        with pytest.raises(scdl.errors.ArchiveFormatError, match=file):
            _ = scdl.open(archive).obs

    @pytest.mark.parametrize("changes", [{"format": None}, {"tables": 5}, {"arrays": {}}])
    def test_manifest(self, archive: Path, changes: dict[str, object]) -> None:
        path = archive / "scdl" / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        if changes == {"arrays": {}}:
            assert len(scdl.open(archive)) == 10
        else:
            with pytest.raises(scdl.errors.ArchiveFormatError, match="manifest"):
                scdl.open(archive)

    def test_flipped_bit_in_a_table(self, archive: Path) -> None:
        path = archive / "obs_features" / "dataframe_0.parquet"
        group = pq.ParquetFile(path).metadata.row_group(0).column(0)
        content = bytearray(path.read_bytes())
        content[group.data_page_offset + group.total_compressed_size // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(scdl.errors.ArchiveFormatError):
            _ = scdl.open(archive).obs


class TestFileSystems:
    def test_swap_without_exchange_restores(
        self, archive: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second of two renames fails, as may happen on network file systems."""
        rename, calls = os.rename, []

        def failing(a: str, b: str) -> None:
            calls.append((a, b))
            if len(calls) == 2:
                raise OSError(5, "I/O error")
            rename(a, b)

        ds = scdl.open(archive)
        monkeypatch.setattr(publication, "c_function", lambda *_, **__: None)
        exchange = publication._swap_or_rename
        monkeypatch.setattr(
            publication,
            "_swap_or_rename",
            lambda a, b: (monkeypatch.setattr(os, "rename", failing), exchange(a, b)),
        )
        with pytest.raises(scdl.errors.ArchiveWriteError):
            ds.cast_data_to_dtype("float64")
        monkeypatch.undo()
        assert scdl.open(archive).dtypes["data.npy"] == "float32"
        assert sorted(os.listdir(archive.parent)) == ["archive", "cells.h5ad"]

    def test_killed_between_two_renames(self, archive: Path) -> None:
        aside = archive.with_name(f".archive.0123cdef{publication.PART}{publication.SWAPPED}")
        archive.rename(aside)
        with pytest.raises(scdl.errors.ArchiveNotFoundError):
            scdl.open(archive)
        with pytest.raises(scdl.errors.ArchiveExistsError):
            scdl.convert(archive.with_name("cells.h5ad"), archive)
        assert len(scdl.open(archive)) == 10
        assert not aside.exists()

    def test_what_belongs_to_a_target_of_a_longer_name(self, archive: Path) -> None:
        """Leftovers of a target with a longer name are not touched."""
        ending = f".0123cdef{publication.PART}"
        left = [archive.with_name(f".archive.{end}") for end in (f"zarr{ending}", f"v2{ending}")]
        aside = [path.with_name(path.name + publication.SWAPPED) for path in left]
        for path in (*left, *aside):
            shutil.copytree(archive, path)
        scdl.convert(archive.with_name("cells.h5ad"), archive, replace=True)
        shutil.rmtree(archive)
        scdl.convert(archive.with_name("cells.h5ad"), archive)
        assert all(path.exists() for path in (*left, *aside))

    def test_what_a_living_writer_put_aside(self, archive: Path) -> None:
        aside = archive.with_name(f".archive.0123cdef{publication.PART}{publication.SWAPPED}")
        shutil.copytree(archive, aside)
        held = locks.writer_lock(str(aside))
        scdl.convert(archive.with_name("cells.h5ad"), archive, replace=True)
        assert aside.exists()
        locks.unlock(held)
        scdl.convert(archive.with_name("cells.h5ad"), archive, replace=True)
        assert not aside.exists()

    def test_no_locks(self, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(9, "Bad file descriptor")

        monkeypatch.setattr(locks.fcntl, "flock", refuse)
        scdl.open(archive).save(archive.with_name("copy"))
        assert len(scdl.open(archive.with_name("copy"))) == 10

    def test_cast_through_a_link_changes_the_archive(self, archive: Path) -> None:
        link = archive.with_name("link")
        link.symlink_to(archive)
        scdl.open(link).cast_data_to_dtype("float64")
        assert link.is_symlink()
        assert scdl.open(archive).dtypes["data.npy"] == "float64"
        with pytest.raises(ValueError, match="would be removed"):
            scdl.open(archive).concat(scdl.open(link), destroy_on_copy=True)
        assert len(scdl.open(archive)) == 10

    @whole_only
    def test_kernels_compile_where_nothing_can_be_cached(
        self, archive: Path, run_python: Callable[..., CompletedProcess[str]]
    ) -> None:
        code = f"""
import numba.core.caching as caching
def refuse(*_):
    raise RuntimeError("cannot cache function: no locator available")
caching.FunctionCache.__init__ = refuse
import scdl
print(len(scdl.open({str(archive)!r}).read_rows([1, 2, 3])))
"""
        done = run_python("-c", code)
        assert done.stdout == "3\n", done.stderr


class TestCallers:
    def test_warnings_as_errors_leave_nothing(self, tmp_path: Path) -> None:
        cells = random_cells(5, 6, dtype="<f8")
        cells.values[:] += 0.1
        source = write_h5ad(tmp_path / "a.h5ad", cells)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(scdl.errors.ScdlWarning):
                scdl.convert(source, tmp_path / "archive")
        assert os.listdir(tmp_path) == ["a.h5ad"]
        with pytest.warns(scdl.errors.ScdlWarning, match="rounded"):
            scdl.convert(source, tmp_path / "archive")

    def test_files_with_and_without_raw(self, tmp_path: Path) -> None:
        plain = write_h5ad(tmp_path / "a.h5ad", random_cells(5, 6))
        raw = tmp_path / "b.h5ad"
        anndata = pytest.importorskip("anndata")
        adata = anndata.read_h5ad(plain)
        adata.raw = adata
        adata.write_h5ad(raw)
        with pytest.raises(scdl.errors.SourceError, match="matrix="):
            scdl.convert([plain, raw], tmp_path / "archive")
        assert scdl.convert([plain, raw], tmp_path / "archive", matrix="X").n_obs == 10

    def test_columns_that_no_type_holds(self, tmp_path: Path) -> None:
        sources = []
        for i, values in enumerate([np.array([2**53 + 1, 0]), np.array([0.5, 1.5])]):
            obs = pd.DataFrame({"x": values}, index=names("cell", 2))
            sources.append(write_h5ad(tmp_path / f"{i}.h5ad", random_cells(2, 3), obs=obs))
        with pytest.warns(scdl.errors.ScdlWarning, match="x .int64 and double become text"):
            report = scdl.convert(sources, tmp_path / "archive")
        assert report.changed_columns == ("obs/x (int64 and double become text)",)
        assert scdl.open(tmp_path / "archive").obs["x"].iloc[0] == str(2**53 + 1)

    def test_memory_archives_pickle_by_name(self, tmp_path: Path) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(4, 5))
        ds = scdl.SingleCellDataset("ram:edges", source, backend="memory")
        assert len(pickle.loads(pickle.dumps(ds))) == 4
        ds.store.remove()

    def test_rows_as_a_tensor(self, archive: Path) -> None:
        torch = pytest.importorskip("torch")
        ds = scdl.open(archive)
        assert ds.read_rows(torch.tensor([3, 1])).rows.tolist() == [3, 1]
        assert ds.read_rows(torch.tensor([4])).rows.tolist() == [4]

    def test_features_are_made_once(self, archive: Path) -> None:
        ds = scdl.open(archive)
        (first,), _ = ds.var_features().lookup(0, ["feature_id"])
        (second,), _ = ds.var_features().lookup(5, ["feature_id"])
        assert first is second
        with pytest.raises(ValueError, match="read-only"):
            first[0] = "other"

    def test_a_given_rng_decides(self, tmp_path: Path) -> None:
        ds = scdl.open(GOLDEN / "neighbors_v013")
        draws = [
            [ds.sample_neighbor_index(0, rng=np.random.default_rng(s)) for s in range(20)]
            for _ in range(2)
        ]
        assert draws[0] == draws[1]
        assert len(set(draws[0])) > 1

    def test_load_h5ad_keeps_the_options(self, tmp_path: Path) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(4, 5, dtype="<u2"))
        ds = scdl.SingleCellMemMapDataset(tmp_path / "x", source, data_dtype="uint16")
        ds.load_h5ad(write_h5ad(tmp_path / "b.h5ad", random_cells(7, 5, dtype="<u2")))
        assert len(ds) == 7
        assert ds.dtypes["data.npy"] == "uint16"


@pytest.mark.parametrize("name", ["neighbors_v013", "pbmc68k_v013"])
def test_rows_are_read_only_however_they_are_stored(name: str) -> None:
    (values, columns), _ = scdl.open(GOLDEN / name).get_row(0)
    for array in (values, columns):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
