"""Paths as users give them: the home directory, colons, URLs, and objects that are no paths."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from sources import random_cells, write_h5ad

import scdl
from scdl.errors import PathError, PathTypeError, ScdlError, SourceNotFoundError
from storage_backends import registry
from storage_backends.paths import absolute, is_url, path_of, paths_of

CELLS = random_cells(12, 8, dtype="<u2", seed=1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with an h5ad file, which is not where we are."""
    place = tmp_path / "home"
    (tmp_path / "elsewhere").mkdir()
    place.mkdir()
    write_h5ad(place / "x.h5ad", CELLS)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return place


class TestHome:
    def test_python(self, home: Path) -> None:
        scdl.convert("~/x.h5ad", "~/x.scdl")
        scdl.convert(Path("~/x.h5ad"), Path("~/x.zarr"))
        for name in ("~/x.scdl", "~/x.zarr", Path("~/x.scdl")):
            with registry.open_archive(name) as store:
                assert store.path.startswith(str(home))
            ds = scdl.open(name)
            assert ds.n_obs == 12
            ds.load("~/x.zarr")
            assert scdl.verify(name).verdict is not None
        scdl.SingleCellMemMapDataset("~/made", "~/x.h5ad")
        scdl.open("~/made").save("~/copy")
        assert scdl.open("~/copy").n_obs == 12

    def test_many(self, home: Path) -> None:
        (home / "many").mkdir()
        scdl.convert_directory("~", "~/many", workers=1, use_processes=False)
        scdl.convert_in_parts(["~/x.h5ad"], "~/parts.scdl", workers=1, use_processes=False)
        collection = scdl.SingleCellCollection(["~/parts.scdl", "~/many/x.scdl"])
        assert collection.n_obs == 24
        collection.save_manifest("~/manifest")
        collection.flatten("~/flat.scdl")
        assert scdl.open("~/manifest").n_obs == scdl.open("~/flat.scdl").n_obs == 24
        assert scdl.SingleCellCollection("~/many").n_obs == 12

    def test_what_is_not_an_archive(self, home: Path) -> None:
        scdl.convert("~/x.h5ad", "~/x.scdl")
        ds = scdl.open("~/x.scdl")
        splits = scdl.split(ds, {"train": 0.5, "val": 0.5})
        splits.save("~/splits.npz")
        assert scdl.Splits.load("~/splits.npz", ds).hash == splits.hash
        (home / "genes.txt").write_text("\n".join(ds.var.index[:3]))
        assert ds.select_genes("~/genes.txt").n_vars == [3]

    def test_nothing_is_made_of_that_name(self, home: Path) -> None:
        scdl.convert("~/x.h5ad", "~/x.scdl")
        assert os.listdir() == []


def of_anndata(place: Path) -> Any:
    return ad.AnnData(np.eye(3, dtype="f4"))


def of_hdf5(place: Path) -> Any:
    return h5py.File(place / "some.h5", "w")


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "AnnData": (of_anndata, "scdl.convert"),
    "view of an AnnData": (lambda place: of_anndata(place)[:2], "scdl.convert"),
    "h5py file": (of_hdf5, "path of the file"),
    "h5py group": (lambda place: of_hdf5(place).create_group("g"), "path of the file"),
    "Zarr group": (lambda place: zarr.create_group(place / "g.zarr"), "path of the store"),
    "DataFrame": (lambda place: pd.DataFrame({"a": [1]}), "scdl.convert(adata, path)"),
    "matrix": (lambda place: sp.csr_matrix(np.eye(3)), "scdl.convert(adata, path)"),
    "numbers": (lambda place: np.eye(3), "scdl.convert(adata, path)"),
    "open file": (lambda place: io.BytesIO(b"abc"), "give its path"),
    "mapping": (lambda place: {"a": "x.h5ad"}, "list"),
    "set": (lambda place: {"x.h5ad"}, "list"),
    "bytes": (lambda place: b"x.h5ad", "os.fsdecode"),
    "nothing": (lambda place: None, "None"),
    "number": (lambda place: 3, "3"),
    "nested list": (lambda place: [["x.h5ad"]], "one path"),
    "list of AnnData": (lambda place: [of_anndata(place)], "scdl.convert"),
    "dataset": (lambda place: scdl.open(place / "x.scdl"), "data_path"),
    "view": (lambda place: scdl.open(place / "x.scdl").select_genes(["gene1"]), "already open"),
    "collection": (lambda place: scdl.SingleCellCollection([place / "x.scdl"]), "data_path"),
    "loader": (lambda place: scdl.SingleCellLoader(scdl.open(place / "x.scdl"), 2), "already open"),
    "batch": (lambda place: scdl.open(place / "x.scdl").read_rows([0]), "already open"),
}
#: Kinds that a conversion takes.
SOURCES = {"mapping", "AnnData", "view of an AnnData", "list of AnnData"}
CALLS: dict[str, Callable[[Any], Any]] = {
    "convert": lambda other: scdl.convert(other, "made"),
    "convert to": lambda other: scdl.convert("x.h5ad", other),
    "open": lambda other: scdl.open(other),
    "verify": lambda other: scdl.verify(other),
    "convert_directory": lambda other: scdl.convert_directory(other, "made"),
    "convert_directory to": lambda other: scdl.convert_directory(".", other),
    "convert_in_parts": lambda other: scdl.convert_in_parts(other, "made"),
    "collection": lambda other: scdl.SingleCellCollection(other),
    "dataset": lambda other: scdl.SingleCellDataset(other),
    "dataset from": lambda other: scdl.SingleCellDataset("made", other),
    "splits": lambda other: scdl.Splits.load(other),
    "registry": lambda other: registry.detect(other),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_h5ad(tmp_path / "x.h5ad", CELLS)
    scdl.convert(tmp_path / "x.h5ad", tmp_path / "x.scdl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestOtherObjects:
    @pytest.mark.parametrize(
        ("call", "kind"),
        [
            *(("convert", kind) for kind in OTHERS if kind not in SOURCES),
            *(("open", kind) for kind in OTHERS),
            *((call, "AnnData") for call in CALLS if call not in ("convert", "dataset from")),
            *((call, kind) for call in CALLS for kind in ("dataset", "nothing")),
        ],
    )
    def test_one_sentence_that_says_what_to_do(self, place: Path, call: str, kind: str) -> None:
        if kind == "loader":
            pytest.importorskip("torch")
        make, told = OTHERS[kind]
        other = make(place)
        if (call, kind) == ("dataset from", "nothing"):
            pytest.skip("no h5ad_path opens what is there")
        with pytest.raises(PathTypeError) as caught:
            CALLS[call](other)
        said = str(caught.value)
        assert isinstance(caught.value, ScdlError | TypeError)
        assert said.startswith("expected ")
        assert "found " in said
        assert "\n" not in said
        assert told in said or isinstance(other, list)
        assert not os.path.lexists("made")

    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize("path", ["", "  ", "a\0b", Path("s3://bucket/x.zarr")])
    def test_what_no_path_can_be(self, place: Path, call: str, path: Any) -> None:
        with pytest.raises(PathError) as caught:
            CALLS[call](path)
        assert "expected" in str(caught.value) or "two slashes" in str(caught.value)
        assert not os.path.lexists("made")

    @pytest.mark.parametrize(
        "several",
        [
            ["x.h5ad", Path("x.h5ad")],
            ("x.h5ad", "x.h5ad"),
            np.array(["x.h5ad", "x.h5ad"]),
            pd.Series(["x.h5ad", "x.h5ad"]),
            pd.Index(["x.h5ad", "x.h5ad"]),
        ],
    )
    def test_lists(self, place: Path, several: Any) -> None:
        assert scdl.convert(several, "made").n_obs == 24

    def test_generators(self, place: Path) -> None:
        assert scdl.convert(place.glob("*.h5ad"), "made").n_obs == 12


class TestColons:
    @pytest.mark.parametrize(
        "name",
        ["GSM1:rep2.h5ad", "2024-01-01T10:00.h5ad", "C:\\data\\x.h5ad", "a:b", "s3:x", "a:/b.h5ad"],
    )
    def test_missing_files(self, place: Path, name: str) -> None:
        with pytest.raises(SourceNotFoundError, match="there is no such file"):
            scdl.convert(name, "made")
        with pytest.raises(scdl.errors.ArchiveNotFoundError):
            scdl.open(name)

    def test_files_that_are_there(self, place: Path) -> None:
        os.rename("x.h5ad", "a:b.h5ad")
        scdl.convert("a:b.h5ad", "a:b.scdl")
        assert scdl.SingleCellCollection(["a:b.scdl"]).n_obs == scdl.open("a:b.scdl").n_obs == 12
        collection = scdl.SingleCellCollection(["a:b.scdl"])
        collection.save_manifest("a:collection")
        assert scdl.open("a:collection").n_obs == 12

    @pytest.mark.parametrize("url", ["s3://a/b", "http://a", "simplecache::s3://a/b", "ram:x"])
    def test_urls(self, url: str) -> None:
        assert is_url(url)
        assert path_of(url) == absolute(url) == url
        assert paths_of(url) == [url]

    def test_file_urls(self, place: Path) -> None:
        os.rename("x.h5ad", "a b.h5ad")
        assert scdl.convert(f"file://{place}/a%20b.h5ad", "made").n_obs == 12
