"""Bad input of every format: a typed error of one sentence, and nothing is left behind."""

from __future__ import annotations

import gzip
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import scdl
from benchmarks.generate.files import generate
from benchmarks.generate.formats import FORMATS, gene_file, write_as
from benchmarks.generate.real_cells import synthetic_cells
from benchmarks.generate.spec import DataSpec
from scdl.errors import (
    ArchiveFormatError,
    CastError,
    FeatureNotFoundError,
    GeneError,
    ScdlError,
    SourceError,
)

# anndata: that version 2 will no longer be the default
pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2")
N_CELLS, N_GENES = 70, 50
#: Suffix of the files of each format.
SUFFIXES = {"h5ad": ".h5ad", "zarr": ".zarr", **{name: one[1] for name, one in FORMATS.items()}}
EVERY = pytest.mark.parametrize("name", SUFFIXES)
#: Formats that are one HDF5 file.
HDF5 = ("h5ad", "tenx_h5", "h5mu", "loom")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the same cells in a format, once."""
    place = tmp_path_factory.mktemp("written")
    h5ad = place / "good.h5ad"
    spec = DataSpec(cells=N_CELLS, genes=N_GENES, nnz_per_cell=9, raw=False)
    generate(h5ad, spec, synthetic_cells(n_cells=40, n_genes=600))

    def write(name: str) -> Path:
        path = place / f"good{SUFFIXES[name]}"
        if name == "soma":
            pytest.importorskip("tiledbsoma")
        if name == "zarr" and not path.exists():
            anndata.read_h5ad(h5ad).write_zarr(path)
        elif not path.exists():
            write_as(name, h5ad, path)
        return path

    return write


@pytest.fixture
def source(written: Callable[[str], Path], tmp_path: Path, name: str) -> Path:
    """A copy of the cells in a format."""
    path = written(name)
    copy = tmp_path / path.name
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        shutil.copy(path, copy)
    if name == "parquet":
        shutil.copy(gene_file(path, N_GENES), tmp_path)
    return copy


def options_of(name: str, source: Path) -> dict[str, Any]:
    if name != "parquet":
        return {}
    genes = gene_file(source, N_GENES)
    return {"gene_ids": "genes", "gene_values": "expressions", "vocabulary": genes}


def refused(
    name: str, source: Path, *kinds: type[ScdlError], target: str = "a", **options: Any
) -> str:
    """What a conversion says, which must be one sentence about the source, and leave nothing."""
    before = sorted(os.listdir(source.parent))
    with pytest.raises(kinds or SourceError) as caught:
        scdl.convert(source, source.with_name(target), **options_of(name, source), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message or source.name in message or options, message
    assert sorted(os.listdir(source.parent)) == before
    return message


@EVERY
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_cut_short(name: str, source: Path, share: float) -> None:
    """As a download that broke off."""
    files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, int(share * largest.stat().st_size))
    refused(name, source)


@EVERY
@pytest.mark.parametrize("content", [b"", b"barcode,gene\nA,1\n", b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_a_file_of_another_kind(name: str, source: Path, content: bytes) -> None:
    """At the path of the source, or of its largest file."""
    if source.is_dir():
        files = [path for path in source.rglob("*") if path.is_file()]
        max(files, key=lambda path: path.stat().st_size).write_bytes(content)
        refused(name, source)
        shutil.rmtree(source)
    source.write_bytes(content)
    refused(name, source)


@pytest.mark.parametrize("name", HDF5)
@pytest.mark.parametrize("other", HDF5)
def test_the_suffix_of_another_format(
    name: str, other: str, source: Path, written: Callable[[str], Path]
) -> None:
    """Content is what counts; else the error names the file."""
    shutil.copy(written(other), source)
    before = scdl.convert(written(other), source.with_name("as it is called"))
    try:
        report = scdl.convert(source, source.with_name("other"))
    except SourceError:
        report = None
    if report is None:
        assert str(source) in refused(name, source)
    else:
        assert (report.nnz, report.n_vars) == (before.nnz, before.n_vars)


def h5_without(path: Path, *names: str) -> None:
    """Take away the last entry of datasets of an HDF5 file."""
    with h5py.File(path, "r+") as file:
        for name in names:
            values, attributes = file[name][:-1], dict(file[name].attrs)
            del file[name]
            file[name] = values
            file[name].attrs.update(attributes)


def lines_without(path: Path) -> None:
    """Take away the last line of a compressed text."""
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[:-1])))


def columns_of(path: Path, table: str) -> list[str]:
    """Names of the columns of a table of an AnnData, with its index."""
    with h5py.File(path) as file:
        names = []
        for name, column in file[table].items():
            # Columns of two arrays: categories, and values that may be missing.
            if isinstance(column, h5py.Group):
                names += [f"{table}/{name}/{part}" for part in column if part != "categories"]
            else:
                names.append(f"{table}/{name}")
        return names


def soma_without(path: Path, table: str) -> None:
    """Take away the last row of a table of an experiment."""
    import tiledbsoma

    with tiledbsoma.open(str(path / table)) as frame:
        rows = frame.read().concat()
    shutil.rmtree(path / table)
    domain = [(0, len(rows) - 1)]
    with tiledbsoma.DataFrame.create(str(path / table), schema=rows.schema, domain=domain):
        pass
    with tiledbsoma.open(str(path / table), "w") as frame:
        frame.write(rows.slice(0, len(rows) - 1).combine_chunks())


def zarr_without(path: Path, table: str) -> None:
    """Take away the last row of a table of a Zarr store."""
    import zarr
    from anndata.io import read_elem, write_elem

    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    rows = read_elem(group[table]).iloc[:-1]
    del group[table]
    write_elem(group, table, rows)
    with warnings.catch_warnings():
        # Zarr 3 does not specify consolidated metadata yet.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)


def vocabulary_without(path: Path) -> None:
    genes = gene_file(path, N_GENES)
    genes.write_text("".join(f"{line}\n" for line in genes.read_text().split()[:20]))


#: By format: takes away some of its genes, and some of its cells.
SHORTENED: dict[str, list[Callable[[Path], object]]] = {
    "h5ad": [
        lambda path: h5_without(path, *columns_of(path, "var")),
        lambda path: h5_without(path, *columns_of(path, "obs")),
    ],
    "zarr": [lambda path: zarr_without(path, "var"), lambda path: zarr_without(path, "obs")],
    "tenx_h5": [
        lambda path: h5_without(
            path, *(f"matrix/features/{n}" for n in ("id", "name", "feature_type", "genome"))
        ),
        lambda path: h5_without(path, "matrix/barcodes"),
    ],
    "tenx_mtx": [
        lambda path: lines_without(path / "features.tsv.gz"),
        lambda path: lines_without(path / "barcodes.tsv.gz"),
    ],
    # Rows are cells, so that these cannot differ.
    "parquet": [vocabulary_without],
    "h5mu": [
        lambda path: h5_without(path, *columns_of(path, "mod/rna/var")),
        lambda path: h5_without(path, *columns_of(path, "mod/rna/obs")),
    ],
    "loom": [
        lambda path: h5_without(path, "row_attrs/Gene"),
        lambda path: h5_without(path, "col_attrs/CellID"),
    ],
    "soma": [
        lambda path: soma_without(path, "ms/RNA/var"),
        lambda path: soma_without(path, "obs"),
    ],
}


@EVERY
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("target", ["a", "a.zarr"])
def test_genes_or_cells_that_do_not_match(name: str, source: Path, axis: int, target: str) -> None:
    if axis >= len(SHORTENED[name]):
        return
    SHORTENED[name][axis](source)
    # A store that AnnData wrote is opened as an archive.
    refused(name, source, SourceError, GeneError, ArchiveFormatError, target=target)


def poke_h5(path: Path, name: str, value: float) -> None:
    """Change the first stored value of a dataset, as a file of floats."""
    with h5py.File(path, "r+") as file:
        values = file[name][()].astype("f4")
        values.flat[np.flatnonzero(values)[0]] = value
        del file[name]
        file[name] = values


def poke_market(path: Path, value: float) -> None:
    lines = gzip.decompress((path / "matrix.mtx.gz").read_bytes()).decode().splitlines()
    lines[0] = lines[0].replace("integer", "real")
    lines[-1] = f"{lines[-1].rpartition(' ')[0]} {value}"
    (path / "matrix.mtx.gz").write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))


def poke_lists(path: Path, value: float) -> None:
    table = pq.read_table(path)
    lists = table["expressions"].to_pylist()
    lists[3][0] = value
    at = table.schema.get_field_index("expressions")
    values = pa.array(lists, table.schema.field(at).type)
    pq.write_table(table.set_column(at, "expressions", values), path)


def poke_zarr(path: Path, value: float) -> None:
    import zarr

    zarr.open_group(path, mode="r+", use_consolidated=False)["X/data"][0] = value


def poke_soma(path: Path, value: float) -> None:
    import tiledbsoma

    entry = {"soma_dim_0": [3], "soma_dim_1": [5], "soma_data": pa.array([value], pa.float32())}
    with tiledbsoma.open(str(path / "ms/RNA/X/raw"), "w") as matrix:
        matrix.write(pa.table(entry))


POKES: dict[str, Callable[[Path, float], object]] = {
    "h5ad": lambda path, value: poke_h5(path, "X/data", value),
    "zarr": poke_zarr,
    "tenx_h5": lambda path, value: poke_h5(path, "matrix/data", value),
    "tenx_mtx": poke_market,
    "parquet": poke_lists,
    "h5mu": lambda path, value: poke_h5(path, "mod/rna/X/data", value),
    "loom": lambda path, value: poke_h5(path, "matrix", value),
    "soma": poke_soma,
}


@EVERY
@pytest.mark.parametrize("value", [-1.0, 0.5, float("nan")])
@pytest.mark.parametrize("target", ["a", "a.zarr"])
def test_values_that_are_no_counts(name: str, source: Path, value: float, target: str) -> None:
    """Where counts are asked for by their type; else the report says that there are others."""
    POKES[name](source, value)
    told = refused(name, source, CastError, target=target, data_dtype="uint16")
    assert str(source) in told
    assert str(value).removesuffix(".0") in told
    report = scdl.convert(source, source.with_name(target), **options_of(name, source))
    assert report.is_counts is False


@EVERY
def test_expressions_of_no_column(name: str, source: Path) -> None:
    for option in ("where", "genes_where"):
        told = refused(name, source, FeatureNotFoundError, **{option: "nothing > 3"})
        assert "'nothing'" in told


@EVERY
def test_a_matrix_that_is_not_there(name: str, source: Path) -> None:
    told = refused(name, source, SourceError, matrix="layers/nothing")
    assert "layers/nothing" in told


@EVERY
def test_tables_of_other_cells(name: str, source: Path) -> None:
    others = pd.DataFrame({"age": [1.0]}, index=["a cell of another experiment"])
    refused(name, source, ScdlError, obs=others)


@EVERY
@pytest.mark.parametrize("target", ["grown", "grown.zarr"])
def test_appending_other_genes(name: str, source: Path, target: str) -> None:
    """The error tells how they can be mapped, and that works."""
    path, options = source.with_name(target), options_of(name, source)
    scdl.convert(source, source.with_name("whole"), **options)
    gene = scdl.open(source.with_name("whole")).var_names[3]
    with scdl.create(path, var=["another", gene]) as archive:
        archive.append(np.ones((2, 2), np.float32))
    files = {one: one.read_bytes() for one in path.rglob("*") if one.is_file()}
    with pytest.raises((GeneError, SourceError)) as caught:
        scdl.open(path).append(source, **options)
    assert "genes='archive'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files == {one: one.read_bytes() for one in path.rglob("*") if one.is_file()}
    scdl.open(path).append(source, genes="archive", missing="zero", **options)
    assert (scdl.open(path).n_obs, scdl.open(path).n_vars) == (2 + N_CELLS, [2])
