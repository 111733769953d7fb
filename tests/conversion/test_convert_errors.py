"""Bad input gets a typed error of one clear sentence and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem
from reading import assert_same
from sources import Cells, Encoding, names, random_cells, write_h5ad, write_matrix

import scdl
from scdl.errors import (
    ArchiveExistsError,
    ArchiveWriteError,
    NeighborError,
    ScdlError,
    SourceError,
    SourceNotFoundError,
)

CELLS = random_cells(8, 6, density=0.7, seed=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A valid file, alone in a directory, to spoil."""
    (tmp_path / "in").mkdir()
    return write_h5ad(tmp_path / "in" / "cells.h5ad", CELLS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def refused(
    sources: Path | list[Path],
    out: Path,
    error: type[ScdlError] = SourceError,
    *,
    match: str | None = None,
    named: str = "cells.h5ad",
    **options: Any,
) -> str:
    """The conversion fails as it should, with one sentence, and leaves nothing behind."""
    with pytest.raises(error, match=match) as caught:
        scdl.convert(sources, out / "archive", **options)
    message = str(caught.value)
    assert named in message
    assert "\n" not in message
    assert len(message) < 400
    assert list(out.iterdir()) == []
    return message


class TestFiles:
    def test_missing(self, source: Path, out: Path) -> None:
        source.unlink()
        refused(source, out, SourceNotFoundError)
        assert issubclass(SourceNotFoundError, FileNotFoundError)

    @pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n" + b"\0" * 100])
    def test_not_hdf5(self, source: Path, out: Path, content: bytes) -> None:
        source.write_bytes(content)
        refused(source, out)

    def test_directory(self, source: Path, out: Path) -> None:
        source.unlink()
        source.mkdir()
        refused(source, out)

    @pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
    def test_truncated(self, source: Path, out: Path, share: float) -> None:
        content = source.read_bytes()
        source.write_bytes(content[: int(len(content) * share)])
        refused(source, out)

    def test_no_permission(self, source: Path, out: Path) -> None:
        if os.geteuid() == 0:
            pytest.skip("the superuser may read everything")
        source.chmod(0)
        refused(source, out)

    def test_not_anndata(self, source: Path, out: Path) -> None:
        with h5py.File(source, "w") as file:
            file["image"] = np.zeros((3, 3))
        refused(source, out)

    @pytest.mark.parametrize("table", ["obs", "var"])
    @pytest.mark.parametrize("how", ["missing", "a number", "no index"])
    def test_no_table(self, source: Path, out: Path, table: str, how: str) -> None:
        with h5py.File(source, "r+") as file:
            index = file[table].attrs["_index"]
            if how == "no index":
                del file[table][index]
            else:
                del file[table]
                if how == "a number":
                    file[table] = 5
        refused(source, out, match=table)

    def test_one_of_several(self, source: Path, out: Path) -> None:
        bad = source.with_name("bad.h5ad")
        bad.write_text("hello")
        for sources in ([source, bad], [bad, source]):
            refused(sources, out, named="bad.h5ad")
        refused([source, source.with_name("absent.h5ad")], out, SourceNotFoundError, named="absent")

    def test_none(self, out: Path) -> None:
        with pytest.raises(ValueError, match="file"):
            scdl.convert([], out / "archive")
        assert list(out.iterdir()) == []

    def test_damaged_compressed_chunk(self, source: Path, out: Path) -> None:
        storage = {"compression": "gzip", "chunk": 64}
        cells = random_cells(40, 30, density=0.9)
        for part in ("data", "indices"):
            write_h5ad(source, cells, Encoding(storage=storage))
            with h5py.File(source, "r") as file:
                info = file["X"][part].id.get_chunk_info(2)
            content = bytearray(source.read_bytes())
            content[info.byte_offset + 2 : info.byte_offset + info.size] = b"\x55" * (info.size - 2)
            source.write_bytes(content)
            refused(source, out)

    def test_chunk_that_unpacks_to_too_little(self, source: Path, out: Path) -> None:
        write_h5ad(source, CELLS, Encoding(storage={"compression": "gzip", "chunk": 8}))
        for content in (zlib.compress(b"\0" * 8), zlib.compress(b"\0" * 1_000), b"\0"):
            with h5py.File(source, "r+") as file:
                file["X/data"].id.write_direct_chunk((8,), content)
            refused(source, out)


class TestMatrix:
    def edit(self, source: Path, **arrays: np.ndarray) -> None:
        with h5py.File(source, "r+") as file:
            for name, values in arrays.items():
                del file["X"][name]
                file["X"][name] = values

    def stored(self, source: Path, name: str) -> np.ndarray:
        with h5py.File(source, "r") as file:
            return file["X"][name][:]

    def test_no_x(self, source: Path, out: Path) -> None:
        with h5py.File(source, "r+") as file:
            del file["X"]
        refused(source, out, match="X")

    def test_null_x(self, source: Path, out: Path) -> None:
        """As anndata writes an AnnData without X."""
        with h5py.File(source, "r+") as file:
            del file["X"]
            file["X"] = h5py.Empty("f4")
            file["X"].attrs.update({"encoding-type": "null", "encoding-version": "0.1.0"})
        refused(source, out, match="X")

    @pytest.mark.parametrize("matrix", ["raw/X", "layers/counts"])
    def test_matrix_asked_for_is_absent(self, source: Path, out: Path, matrix: str) -> None:
        refused(source, out, match=matrix, matrix=matrix)

    def test_layers_there_are_get_named(self, source: Path, out: Path) -> None:
        write_h5ad(source, CELLS, layers={"spliced": CELLS})
        refused(source, out, match="spliced", matrix="layers/counts")

    @pytest.mark.parametrize("matrix", ["obs", "layers", "raw", "nonsense", "obsp/knn"])
    def test_what_is_no_matrix(self, source: Path, out: Path, matrix: str) -> None:
        with pytest.raises(ValueError, match=matrix):
            scdl.convert(source, out / "archive", matrix=matrix)
        assert list(out.iterdir()) == []

    @pytest.mark.parametrize("kind", ["strings", "bytes", "complex", "compound"])
    @pytest.mark.parametrize("layout", ["dense", "csr"])
    def test_x_of_no_numbers(self, source: Path, out: Path, kind: str, layout: str) -> None:
        n = 48 if layout == "dense" else len(CELLS.values)
        values = {
            "strings": np.array(["a"] * n, dtype=h5py.string_dtype()),
            "bytes": np.array([b"abc"] * n),
            "complex": np.ones(n, complex),
            "compound": np.zeros(n, [("a", "f4"), ("b", "f4")]),
        }[kind]
        if layout == "csr":
            self.edit(source, data=values)
        else:
            with h5py.File(source, "r+") as file:
                del file["X"]
                file.create_dataset("X", data=values.reshape(8, 6), dtype=values.dtype)
        refused(source, out, match="X")

    @pytest.mark.parametrize("shape", [(48,), (8, 6, 1), ()])
    def test_dense_of_other_than_two_dimensions(
        self, source: Path, out: Path, shape: tuple[int, ...]
    ) -> None:
        with h5py.File(source, "r+") as file:
            del file["X"]
            file["X"] = np.zeros(shape)
        refused(source, out, match="X")

    @pytest.mark.parametrize("layout", ["csr", "csc"])
    @pytest.mark.parametrize("index", [6, 8, 10_000, -1, -(2**31)])
    @pytest.mark.parametrize("block_values", [3, 1 << 20])
    def test_indices_out_of_range(
        self, source: Path, out: Path, layout: str, index: int, block_values: int
    ) -> None:
        write_h5ad(source, CELLS, Encoding(layout))
        indices = self.stored(source, "indices")
        limit = 6 if layout == "csr" else 8
        if 0 <= index < limit:
            pytest.skip("in range in this layout")
        for position in (0, len(indices) // 2, -1):
            spoilt = indices.copy()
            spoilt[position] = index
            self.edit(source, indices=spoilt)
            refused(source, out, block_values=block_values)

    @pytest.mark.parametrize("layout", ["csr", "csc"])
    @pytest.mark.parametrize(
        "how", ["falls", "negative", "end too small", "end too large", "start"]
    )
    def test_indptr_that_is_none(self, source: Path, out: Path, layout: str, how: str) -> None:
        write_h5ad(source, CELLS, Encoding(layout))
        indptr = self.stored(source, "indptr")
        if how == "falls":
            indptr[[2, 4]] = indptr[[4, 2]]
        elif how == "negative":
            indptr[1] = -1
        elif how == "start":
            indptr[0] = 1
        else:
            indptr[-1] += -1 if how == "end too small" else 1
        self.edit(source, indptr=indptr)
        refused(source, out, match="indptr", block_values=5)

    @pytest.mark.parametrize("layout", ["csr", "csc"])
    @pytest.mark.parametrize("change", [-1, 1])
    def test_indptr_of_wrong_length(
        self, source: Path, out: Path, layout: str, change: int
    ) -> None:
        write_h5ad(source, CELLS, Encoding(layout))
        indptr = self.stored(source, "indptr")
        longer = np.append(indptr, indptr[-1])
        self.edit(source, indptr=longer if change == 1 else np.delete(indptr, 3))
        refused(source, out)

    @pytest.mark.parametrize("name", ["data", "indices"])
    @pytest.mark.parametrize("change", [-1, 1])
    def test_data_and_indices_of_unequal_length(
        self, source: Path, out: Path, name: str, change: int
    ) -> None:
        values = self.stored(source, name)
        self.edit(source, **{name: np.append(values, values[:1]) if change == 1 else values[:-1]})
        refused(source, out)

    @pytest.mark.parametrize("name", ["data", "indices", "indptr"])
    def test_parts_missing(self, source: Path, out: Path, name: str) -> None:
        with h5py.File(source, "r+") as file:
            del file["X"][name]
        refused(source, out, match=name)

    @pytest.mark.parametrize("name", ["indices", "indptr"])
    def test_indices_of_floats(self, source: Path, out: Path, name: str) -> None:
        self.edit(source, **{name: self.stored(source, name) + 0.5})
        refused(source, out, match=name)

    def test_shape_missing(self, source: Path, out: Path) -> None:
        with h5py.File(source, "r+") as file:
            del file["X"].attrs["shape"]
        refused(source, out, match="shape")

    def test_unknown_encoding(self, source: Path, out: Path) -> None:
        with h5py.File(source, "r+") as file:
            file["X"].attrs["encoding-type"] = "bsr_matrix"
        refused(source, out, match="bsr_matrix")

    @pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
    @pytest.mark.parametrize(("n_obs", "n_vars"), [(7, 6), (9, 6), (8, 5), (8, 7)])
    def test_shape_that_disagrees_with_obs_or_var(
        self, source: Path, out: Path, layout: str, n_obs: int, n_vars: int
    ) -> None:
        obs = pd.DataFrame(index=names("cell", n_obs))
        var = pd.DataFrame(index=names("gene", n_vars))
        write_h5ad(source, CELLS, Encoding(layout), obs=obs, var=var)
        refused(source, out, match="obs" if n_obs != 8 else "var")

    def test_raw_of_another_number_of_cells(self, source: Path, out: Path) -> None:
        raw = (random_cells(7, 9), pd.DataFrame(index=names("gene", 9)))
        write_h5ad(source, CELLS, raw=raw)
        refused(source, out, match="raw")

    def test_raw_without_var(self, source: Path, out: Path) -> None:
        write_h5ad(source, CELLS, raw=(CELLS, pd.DataFrame(index=names("gene", 6))))
        with h5py.File(source, "r+") as file:
            del file["raw/var"]
        refused(source, out, match="raw/var")


class TestTables:
    def test_columns_of_unequal_length(self, source: Path, out: Path) -> None:
        write_h5ad(source, CELLS, obs=pd.DataFrame({"age": range(8)}, index=names("cell", 8)))
        with h5py.File(source, "r+") as file:
            del file["obs/age"]
            file["obs/age"] = np.arange(5)
        refused(source, out, match="age")

    @pytest.mark.parametrize("link", [None, h5py.SoftLink("/nowhere"), h5py.SoftLink("/obs/age")])
    def test_column_missing(self, source: Path, out: Path, link: h5py.SoftLink | None) -> None:
        """It is left out, and the report says so."""
        with h5py.File(source, "r+") as file:
            file["obs"].attrs["column-order"] = ["age"]
            if link is not None:
                file["obs/age"] = link
        assert "obs/age" in scdl.convert(source, out / "archive").not_carried

    @pytest.mark.parametrize("code", [3, 100, -2])
    def test_codes_without_a_category(self, source: Path, out: Path, code: int) -> None:
        obs = pd.DataFrame({"type": pd.Categorical(list("abcabcab"))}, index=names("cell", 8))
        write_h5ad(source, CELLS, obs=obs)
        with h5py.File(source, "r+") as file:
            codes = file["obs/type/codes"][:]
            codes[2] = code
            file["obs/type/codes"][:] = codes
        refused(source, out, match="type")

    @pytest.mark.parametrize("table", ["obs", "var"])
    def test_column_of_unknown_encoding(self, source: Path, out: Path, table: str) -> None:
        """It is left out, and the report says so."""
        with h5py.File(source, "r+") as file:
            file[table].attrs["column-order"] = ["exotic"]
            column = file[table].create_group("exotic")
            column.attrs.update({"encoding-type": "from-the-future", "encoding-version": "9"})
        report = scdl.convert(source, out / "archive")
        assert f"{table}/exotic" in report.not_carried
        assert f"{table}/exotic" in str(report)


class TestGraphsAndVectors:
    def graph(self, source: Path, graph: Cells, layout: str = "csr") -> None:
        write_h5ad(source, CELLS, obsp={"knn": graph}, obsp_encoding=Encoding(layout))

    @pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
    @pytest.mark.parametrize("shape", [(8, 6), (7, 7), (9, 9), (6, 8)])
    def test_graph_of_another_shape(
        self, source: Path, out: Path, layout: str, shape: tuple[int, int]
    ) -> None:
        self.graph(source, random_cells(*shape), layout)
        refused(source, out, ScdlError, match="knn", neighbor_key="knn")

    @pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
    @pytest.mark.parametrize("index", [-1, 8, 100])
    def test_neighbors_out_of_range(self, source: Path, out: Path, layout: str, index: int) -> None:
        for name in ("row", "col") if layout == "coo" else ("indices",):
            self.graph(source, random_cells(8, 8), layout)
            with h5py.File(source, "r+") as file:
                file["obsp/knn"][name][3] = index
            refused(source, out, ScdlError, match="knn", neighbor_key="knn")

    def test_coo_of_unequal_lengths(self, source: Path, out: Path) -> None:
        self.graph(source, random_cells(8, 8), "coo")
        with h5py.File(source, "r+") as file:
            rows = file["obsp/knn/row"][:-1]
            del file["obsp/knn/row"]
            file["obsp/knn/row"] = rows
        refused(source, out, ScdlError, match="knn", neighbor_key="knn")

    def test_graph_of_strings(self, source: Path, out: Path) -> None:
        self.graph(source, random_cells(8, 8))
        with h5py.File(source, "r+") as file:
            n = len(file["obsp/knn/data"])
            del file["obsp/knn/data"]
            file["obsp/knn/data"] = ["a"] * n
        refused(source, out, ScdlError, match="knn", neighbor_key="knn")
        assert issubclass(NeighborError, ValueError)

    def test_obsm_absent(self, source: Path, out: Path) -> None:
        write_h5ad(source, CELLS, obsm={"X_umap": np.zeros((8, 2))})
        refused(source, out, match=r"X_pca.*X_umap", obsm=["X_pca"])

    @pytest.mark.parametrize("kind", ["length", "strings", "dimensions", "sparse", "table"])
    def test_obsm_that_is_no_dense_vectors(self, source: Path, out: Path, kind: str) -> None:
        with h5py.File(source, "r+") as file:
            obsm = file.create_group("obsm")
            if kind == "length":
                obsm["X_pca"] = np.zeros((7, 2))
            elif kind == "strings":
                obsm["X_pca"] = [["a", "b"]] * 8
            elif kind == "dimensions":
                obsm["X_pca"] = 5
            elif kind == "sparse":
                write_matrix(obsm, "X_pca", random_cells(8, 3))
            else:
                write_elem(obsm, "X_pca", pd.DataFrame({"a": range(8)}, index=names("cell", 8)))
        refused(source, out, match="X_pca", obsm=["X_pca"])


class TestTarget:
    @pytest.mark.parametrize("kind", ["file", "directory", "archive", "link", "dangling link"])
    def test_exists(self, source: Path, out: Path, kind: str) -> None:
        target = out / "archive"
        if kind == "file":
            target.write_text("mine")
        elif kind == "directory":
            target.mkdir()
            (target / "mine").write_text("mine")
        elif kind == "archive":
            scdl.convert(source, target)
        else:
            target.symlink_to(source if kind == "link" else out / "nowhere")
        before = {path: path.lstat().st_mtime_ns for path in out.rglob("*")}
        with pytest.raises(ArchiveExistsError, match="archive"):
            scdl.convert(source, target)
        assert {path: path.lstat().st_mtime_ns for path in out.rglob("*")} == before
        assert issubclass(ArchiveExistsError, FileExistsError)

    def test_exists_is_found_before_the_work(self, source: Path, out: Path) -> None:
        (out / "archive").mkdir()
        source.write_text("not even HDF5")
        with pytest.raises(ArchiveExistsError):
            scdl.convert(source, out / "archive")

    def test_directory_above_is_missing(self, source: Path, out: Path) -> None:
        with pytest.raises(ArchiveWriteError, match="missing") as caught:
            scdl.convert(source, out / "missing" / "archive")
        assert caught.value.errno == errno.ENOENT
        assert list(out.iterdir()) == []

    def test_directory_above_is_a_file(self, source: Path, out: Path) -> None:
        with pytest.raises(ArchiveWriteError, match=r"cells\.h5ad"):
            scdl.convert(source, source / "archive")
        assert h5py.is_hdf5(source)

    def test_read_only_media(self, source: Path, mount: Callable[..., Path]) -> None:
        media = mount("media", "size=1m")
        subprocess.run(["mount", "-o", "remount,ro", str(media)], check=True)
        with pytest.raises(ArchiveWriteError, match="media") as caught:
            scdl.convert(source, media / "archive")
        assert caught.value.errno == errno.EROFS
        assert list(media.iterdir()) == []

    def test_name_too_long(self, source: Path, out: Path) -> None:
        with pytest.raises(ArchiveWriteError):
            scdl.convert(source, out / ("x" * 300))
        assert list(out.iterdir()) == []

    def test_unknown_backend(self, source: Path, out: Path) -> None:
        with pytest.raises(ValueError, match=r"nonsense.*memmap"):
            scdl.convert(source, out / "archive", backend="nonsense")
        assert list(out.iterdir()) == []

    @pytest.mark.parametrize("size", ["128k", "384k", "700k"])
    def test_disk_full(self, tmp_path: Path, mount: Callable[..., Path], size: str) -> None:
        """At several sizes, so that it happens in different files; all need about 900 kB."""
        cells = random_cells(600, 400, density=0.7)
        source = write_h5ad(tmp_path / "cells.h5ad", cells)
        disk = mount("disk", f"size={size}")
        with pytest.raises(ArchiveWriteError, match="disk") as caught:
            scdl.convert(source, disk / "archive", block_values=10_000)
        assert caught.value.errno == errno.ENOSPC
        assert "\n" not in str(caught.value)
        assert list(disk.iterdir()) == []
        small = random_cells(20, 10)
        scdl.convert(write_h5ad(tmp_path / "small.h5ad", small), disk / "archive")
        assert_same(scdl.open(disk / "archive"), small.csr())

    @pytest.mark.parametrize("layout", ["csr", "csc"])
    def test_largest_file_size(
        self, tmp_path: Path, run_python: Callable[..., Any], layout: str
    ) -> None:
        cells = random_cells(300, 400, density=0.7)
        write_h5ad(tmp_path / "cells.h5ad", cells, Encoding(layout))
        write_h5ad(tmp_path / "small.h5ad", random_cells(3, 3), Encoding(layout))
        (tmp_path / "out").mkdir()
        code = """
import errno, resource, scdl, sys
scdl.convert("small.h5ad", "out/warm")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    scdl.convert("cells.h5ad", "out/archive", block_values=10_000)
except scdl.errors.ArchiveWriteError as error:
    print(errno.errorcode[error.errno], "archive" in str(error))
"""
        done = run_python("-c", code)
        assert done.stdout == "EFBIG True\n", done.stderr
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["warm"]


def test_a_retry_after_any_failure_works(source: Path, out: Path) -> None:
    spoilt = source.with_name("spoilt.h5ad")
    shutil.copy(source, spoilt)
    with h5py.File(spoilt, "r+") as file:
        file["X/indices"][-1] = 77
    for _ in range(2):
        refused([source, spoilt], out, named="spoilt.h5ad", block_values=4)
    scdl.convert(source, out / "archive")
    assert_same(scdl.open(out / "archive"), CELLS.csr())
