"""Choosing cells, genes and columns, compared with anndata and scanpy."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from anndata.io import write_elem
from anndata.tests.helpers import assert_equal
from anndata.utils import make_index_unique
from annotated import annotated, write, written
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import write_members
from sources import Cells, Encoding, cells, encodings, names, random_cells, write_h5ad

import scdl
from scdl import errors
from scdl.archive.tables import TableInMemory
from scdl.conversion import unique_names
from scdl.sources import chosen_tables, ranges
from scdl.sources.hdf5 import RowReader
from storage_backends.capabilities import Verdict
from storage_backends.compute.warning_filters import ignore_warnings

pytestmark = [
    pytest.mark.filterwarnings("ignore:(Variable|Observation) names are not unique"),
    pytest.mark.filterwarnings("ignore:.*columns of var that differ between feature blocks"),
]
BACKENDS: list[dict[str, Any]] = [{"backend": "memmap"}, {"backend": "zarr", "compression": "fast"}]
LAYOUTS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": lambda matrix: matrix.toarray()}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a few values and rows at a time, so that there are many pieces."""
    monkeypatch.setattr(ranges, "GAP", 3)
    monkeypatch.setattr(chosen_tables, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(unique_names, "ROWS_AT_ONCE", 7)


def marked(adata: anndata.AnnData, seed: int = 0) -> anndata.AnnData:
    """The same with columns that choose cells and genes, and colours of categories."""
    rng = np.random.default_rng(seed)
    adata.obs["chosen"] = rng.random(adata.n_obs) < 0.4
    # One category is not left at all.
    adata.obs.loc[adata.obs["category"] == "a", "chosen"] = False
    adata.var["wanted"] = rng.random(adata.n_vars) < 0.5
    adata.uns = {"nested": {"a": 1}}
    adata.uns["category_colors"] = np.array(["#1", "#2", "#3", "#4"], object)
    adata.uns["ordered_colors"] = np.array(["#1"], object)
    return adata


# -- all of an AnnData ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", BACKENDS, ids=["memmap", "zarr"])
@pytest.mark.parametrize("raw", [False, True], ids=["X", "raw"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["h5ad", "store", "archive", "object", "view", "backed"])
@pytest.mark.parametrize("both", [False, True], ids=["cells", "both"])
def test_as_the_copy_of_a_view(
    tmp_path: Path, options: dict[str, Any], raw: bool, layout: str, kind: str, both: bool
) -> None:
    source: Any = tmp_path / ("a.zarr" if kind == "store" else "a.h5ad")
    with anndata.settings.override(zarr_write_format=3), ignore_warnings(""):
        made = marked(
            annotated(40, 12, seed=1, raw=raw, X=sp.csr_matrix if raw else LAYOUTS[layout])
        )
        # Colours of columns of var, which is not cut if raw is converted.
        made.var = made.var.rename(columns={"category": "family"} if both else {})
        made.uns["family_colors"] = made.uns["category_colors"]
        for mapping, keys in ((made.obsm, ("none", "zeros", "flags")), (made.obsp, ("flags",))):
            for key in keys:
                del mapping[key]
        adata = written(made, source)
    if kind == "archive":
        scdl.convert(source, tmp_path / "source.zarr", matrix="X")
        source = tmp_path / "source.zarr"
    elif kind == "object":
        source = adata
    elif kind == "view":
        adata = adata[::-1][5:, 1:]
        source = adata
    elif kind == "backed":
        source = anndata.read_h5ad(source, backed="r")
    with ignore_warnings(""):
        genes = adata.var["wanted"] if both else slice(None)
        part = adata[adata.obs["chosen"], genes].copy()
    options = options | ({"matrix": "X"} if both or kind == "archive" else {})
    if options["backend"] == "memmap":
        options = options | {"obsm": ["X_pca", "cube"], "neighbor_key": ["graph", "csc"]}
    with ignore_warnings(""):
        expected = scdl.convert(part, tmp_path / "expected", **options)
        more = {"genes_where": "wanted"} if both else {}
        report = scdl.convert(source, tmp_path / "found", where="chosen", **more, **options)
    one, other = scdl.open(report.path), scdl.open(expected.path)
    assert_equal(one.to_anndata(), other.to_anndata())
    for key in other.neighbor_keys:
        for row in range(len(other)):
            ours, theirs = (data._graph_of(key).neighbors(row) for data in (one, other))
            assert ours.indices.tolist() == theirs.indices.tolist()
    assert report.cells_left_out == adata.n_obs - part.n_obs > 0
    if both:
        assert report.genes_left_out == (adata.n_vars - part.n_vars,)
    assert "left out: " in str(report)
    assert scdl.verify(report.path, deep=True).verdict is Verdict.SOUND


def test_genes_of_raw(tmp_path: Path) -> None:
    """They are chosen if raw is converted; the others stay."""
    adata = marked(annotated(20, 12, raw=True))
    wanted = np.arange(12) % 3 == 0
    raw = adata.raw.to_adata()
    raw.var["wanted"] = wanted
    adata.raw = raw
    write(adata, tmp_path / "a.h5ad")
    with ignore_warnings(""):
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", genes_where="wanted")
    found = scdl.open(tmp_path / "a.zarr").to_anndata()
    assert found.n_vars == adata.n_vars
    assert found.raw.var_names.tolist() == raw.var_names[wanted].tolist()
    assert (raw.X[:, wanted] != found.raw.X).nnz == 0
    assert np.array_equal(found.raw.varm["PCs"], raw.varm["PCs"][wanted])


@given(cells=cells(), encoding=encodings(("csr", "csc", "dense", "coo")), data=st.data())
@settings(max_examples=examples(60))
def test_any_rows_of_any_encoding(cells: Cells, encoding: Any, data: Any) -> None:
    n_obs, n_vars = cells.shape
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    rows = np.flatnonzero(rng.random(n_obs) < data.draw(st.sampled_from([0, 0.2, 0.7, 1])))
    wanted = rng.random(n_vars) < data.draw(st.sampled_from([0, 0.5, 1]))
    var = pd.DataFrame({"wanted": wanted}, index=names("gene", n_vars))
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        source = write_h5ad(place / "a.h5ad", cells, encoding, var=var)
        options = {"data_dtype": "float64", "block_values": 20, "block_rows": 3}
        for path in (source, place / "archive"):
            scdl.convert(
                path, place / "b", cells=rows, genes_where="wanted", replace=True, **options
            )
            found = scdl.open(place / "b").read_rows(slice(None)).to_scipy().toarray()
            assert np.array_equal(found, cells.csr(np.float64).toarray()[rows][:, wanted])
            # The second time from an archive with all cells.
            scdl.convert(source, place / "archive", replace=True, **options)


@pytest.mark.parametrize("storage", [{}, {"chunk": 40}, {"chunk": 40, "compression": "gzip"}])
def test_only_what_is_chosen_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: dict[str, Any]
) -> None:
    cells = random_cells(2_000, 20)
    source = write_h5ad(tmp_path / "a.h5ad", cells, Encoding(storage=storage))
    n_read = 0
    read = RowReader.read

    def counted(self: RowReader, start: int, stop: int) -> Any:
        nonlocal n_read
        n_read += stop - start
        return read(self, start, stop)

    monkeypatch.setattr(RowReader, "read", counted)
    nnz = len(cells.values)
    for rows, most in (([*range(600, 620)], 0.03), ([*range(0, 2_000, 100)], 0.04)):
        n_read = 0
        scdl.convert(source, tmp_path / "b", cells=rows, block_rows=50, replace=True)
        # Values and columns of the cells; and offsets of all blocks with one.
        assert n_read < 2 * nnz * most + 2_200


# -- which cells ---------------------------------------------------------------------------------


def three(place: Path) -> tuple[list[Path], anndata.AnnData]:
    """Three files whose names of cells differ, and their cells together."""
    parts = []
    for i, n in enumerate((10, 0, 15)):
        part = annotated(n, 12, seed=i)
        part.obs = part.obs[["category", "int"]].assign(only=i) if i else part.obs[["int"]]
        part.var = part.var[["category"]].assign(wanted=np.arange(12) % 2 == 0)
        part.obs_names = names(f"s{i}-", n)
        part = anndata.AnnData(
            part.X, part.obs, part.var, obsm={"X_pca": part.obsm["X_pca"]},
            obsp={"graph": part.obsp["graph"]},
        )  # fmt: skip
        parts.append(part)
        write(part, place / f"{i}.h5ad")
    with ignore_warnings(""):
        whole = anndata.concat(parts, join="outer")
    return [place / f"{i}.h5ad" for i in range(3)], whole


def test_cells_of_several_sources(tmp_path: Path) -> None:
    paths, whole = three(tmp_path)
    rows = np.array([22, 3, 9, 10, 24])
    mask = np.isin(np.arange(25), rows)
    some = whole.obs_names[rows]
    (tmp_path / "names.txt").write_text("\n".join([*some, ""]))
    ways: list[Any] = [
        rows, rows - 25, mask, pd.Series(mask, whole.obs_names), mask.tolist(), rows.tolist(),
        some, some.tolist(), [*some, *some], {*some}, tmp_path / "names.txt",
    ]  # fmt: skip
    for way in ways:
        report = scdl.convert(paths, tmp_path / "out", cells=way, replace=True)
        assert scdl.open(report.path).obs_names.tolist() == whole.obs_names[mask].tolist()
        assert report.cells_left_out == 20
    # Both must hold; a column that only some sources have is missing in the others.
    scdl.convert(paths, tmp_path / "out", cells=rows, where="int > 0 and only == 2", replace=True)
    both = mask & (whole.obs["int"] > 0) & (whole.obs["only"] == 2)
    assert scdl.open(tmp_path / "out").obs_names.tolist() == whole.obs_names[both].tolist()
    scdl.convert(paths, tmp_path / "out", cells=slice(0, 25, 2), replace=True)
    assert len(scdl.open(tmp_path / "out")) == 13


@pytest.mark.parametrize("options", BACKENDS, ids=["memmap", "zarr"])
def test_with_other_options(tmp_path: Path, options: dict[str, Any]) -> None:
    """Labels, one gene space, graphs, vectors and a random order."""
    paths, whole = three(tmp_path)
    more: dict[str, Any] = {"label": "sample", "neighbor_key": "graph", "obsm": "X_pca"}
    with ignore_warnings(""):
        parts = [anndata.read_h5ad(path) for path in paths]
        views = [part[part.obs["int"] > 0, part.var["wanted"]].copy() for part in parts]
    more |= options
    choice = {"where": "int > 0", "genes_where": "wanted"}
    other = scdl.open(scdl.convert(views, tmp_path / "expected", **more).path)
    one = scdl.open(scdl.convert(paths, tmp_path / "found", **choice, **more).path)
    adata, expected = one.to_anndata(), other.to_anndata()
    # A file without cells has columns of categories.
    adata.obs = adata.obs[[*expected.obs]]
    assert_equal(adata, expected)
    shuffled = scdl.open(
        scdl.convert(paths, tmp_path / "shuffled", shuffle=3, genes="union", **choice, **more).path
    )
    rows = shuffled.obs["source_row"].to_numpy()
    assert np.array_equal(np.sort(rows), np.flatnonzero(whole.obs["int"] > 0))
    assert shuffled.obs_names.tolist() == whole.obs_names[rows].tolist()


def test_graphs_of_archives_with_several_blocks(tmp_path: Path) -> None:
    """Neighbours may be in another feature block of the same archive."""
    ragged = write_members(tmp_path / "members")
    more: dict[str, Any] = {"data_dtype": "float64", "neighbor_key": "next_cell_ids"}
    scdl.convert(ragged.paths, tmp_path / "whole", **more)
    whole = scdl.open(tmp_path / "whole")
    rows = np.random.default_rng(0).permutation(len(whole))[:50]
    scdl.convert(tmp_path / "whole", tmp_path / "part", cells=rows, **more)
    part, rows = scdl.open(tmp_path / "part"), np.sort(rows)
    places = {row: i for i, row in enumerate(rows.tolist())}
    for new, old in enumerate(rows.tolist()):
        ours, theirs = (d._graph_of("next_cell_ids").neighbors(r) for d, r in
                        ((part, new), (whole, old)))  # fmt: skip
        kept = [places[n] for n in theirs.indices.tolist() if n in places]
        assert ours.indices.tolist() == kept
    one, other = (data.select_genes("union", missing="zero") for data in (part, whole))
    found, expected = one.read_rows(slice(None)).to_scipy(), other.read_rows(rows).to_scipy()
    assert (found != expected).nnz == 0


@pytest.mark.parametrize("options", BACKENDS, ids=["memmap", "zarr"])
def test_nothing_chosen(tmp_path: Path, options: dict[str, Any]) -> None:
    adata = marked(annotated(20, 12))
    adata = anndata.AnnData(adata.X, adata.obs, adata.var, obsm={"frame": adata.obsm["frame"]},
                            layers=dict(adata.layers), obsp=dict(adata.obsp))  # fmt: skip
    write(adata, tmp_path / "a.h5ad")
    with ignore_warnings(""):
        empty = scdl.convert(tmp_path / "a.h5ad", tmp_path / "a", where="int > 99", **options)
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "b", genes_where="float > 99", **options)
    assert (empty.n_obs, empty.n_vars, empty.nnz) == (0, [12], 0)
    assert scdl.open(tmp_path / "a").to_anndata().shape == (0, 12)
    assert scdl.open(tmp_path / "b").to_anndata().shape == (20, 0)


# -- columns and names ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", BACKENDS, ids=["memmap", "zarr"])
def test_columns(tmp_path: Path, options: dict[str, Any]) -> None:
    adata = written(annotated(20, 12), tmp_path / "a.h5ad")
    options = options | {"only_matrix": True}
    report = scdl.convert(
        tmp_path / "a.h5ad", tmp_path / "a",
        where="int > 0", obs_columns={"float": "score", "category": "type"},
        var_columns=["words", "float"], **options,
    )  # fmt: skip
    found = scdl.open(tmp_path / "a").to_anndata()
    part = adata[adata.obs["int"] > 0].copy()
    expected = part.obs[["float", "category"]].rename(
        columns={"float": "score", "category": "type"}
    )
    assert_equal(found.obs, expected)
    assert_equal(found.var, part.var[["words", "float"]])
    assert {"obs/int", "var/category"} <= {*report.not_carried}
    none = scdl.convert(tmp_path / "a.h5ad", tmp_path / "b", obs_columns=[], **options)
    assert scdl.open(none.path).to_anndata().obs.shape == (20, 0)


POOL = st.sampled_from(["a", "b", "a-1", "a-2", "a-1-1", "b-01", "b-10", "", "-1", "a\n-1", None])


@given(rows=st.lists(POOL, max_size=30), cut=st.integers(0, 30))
@settings(max_examples=examples(100))
def test_unique_names_are_those_of_anndata(rows: list[str | None], cut: int) -> None:
    tables = [
        TableInMemory(pa.table({"_index": pa.array(part, pa.large_string())}))
        for part in (rows[:cut], rows[cut:])
    ]
    found = unique_names.with_unique_names(tables)
    names = [n for table in found for n in table.column("_index", 0, table.num_rows).to_pylist()]
    with ignore_warnings(""):
        expected = make_index_unique(pd.Index(rows, dtype=object))
    assert names == [None if pd.isna(name) else name for name in expected]


def test_unique_names_of_chosen_cells(tmp_path: Path) -> None:
    """Only of cells that are chosen, and in tables of obsm, too."""
    adata = annotated(20, 12)
    adata.obs_names = names("c", 10).append(names("c", 10))
    write(adata, tmp_path / "a.h5ad")
    more: dict[str, Any] = {"cells": np.arange(5, 20), "unique_names": True}
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", **more)
    part = adata[5:].copy()
    part.obs_names_make_unique()
    found = scdl.open(tmp_path / "a.zarr").to_anndata()
    assert found.obs_names.tolist() == part.obs_names.tolist()
    assert found.obsm["frame"].index.tolist() == part.obs_names.tolist()


# -- quality -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["counts", "floats", "repeated", "dense", "csc"])
@pytest.mark.parametrize("options", [*BACKENDS, {"shuffle": 1}], ids=["memmap", "zarr", "shuffled"])
def test_quality_is_that_of_scanpy(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    scanpy = pytest.importorskip("scanpy")
    cells = random_cells(40, 30, dtype="<f4" if kind == "floats" else "<u2", density=0.2,
                         repeated=kind == "repeated", is_sorted=kind != "repeated")  # fmt: skip
    var = pd.DataFrame({"odd": np.arange(30) % 2 == 1, "wanted": np.arange(30) < 9},
                       index=[*names("MT-", 5), *names("gene", 25)])  # fmt: skip
    encoding = Encoding(kind if kind in ("dense", "csc") else "csr")
    source = write_h5ad(tmp_path / "a.h5ad", cells, encoding, var=var)
    groups = {"mt": "^MT-", "odd": "odd", "two": ["gene1", "MT-3"]}
    adata = anndata.AnnData(sp.csr_matrix(cells.csr(np.float64)), var=var)
    for name, members in (("mt", var.index.str.startswith("MT-")),
                          ("two", var.index.isin(groups["two"]))):  # fmt: skip
        adata.var[name] = members
    with ignore_warnings(""):
        scanpy.pp.calculate_qc_metrics(
            adata, qc_vars=[*groups], percent_top=None, log1p=False, inplace=True
        )
    renamed = {"n_genes_by_counts": "n_genes", "total_counts": "n_counts"}
    renamed |= {f"pct_counts_{name}": f"pct_{name}" for name in groups}
    expected = adata.obs.rename(columns=renamed)[[*renamed.values()]]
    report = scdl.convert(
        source, tmp_path / "a", quality=groups, genes_where="wanted", block_values=50, **options
    )
    found = scdl.open(report.path).obs
    rows = found["source_row"] if "shuffle" in options else np.arange(40)
    assert report.n_vars == [9]
    assert found["n_genes"].dtype == np.int32
    np.testing.assert_allclose(found[[*expected]].to_numpy(), expected.to_numpy()[rows], rtol=1e-6)


def test_cells_by_their_quality(tmp_path: Path) -> None:
    """As filter_cells of scanpy; figures replace columns of obs, which the report names."""
    scanpy = pytest.importorskip("scanpy")
    adata = annotated(40, 12)
    adata.obs["n_genes"] = 1_000
    write(adata, tmp_path / "a.h5ad")
    rows = np.arange(5, 40)
    where = "n_genes >= 6 and pct_some < 60"
    report = scdl.convert(
        tmp_path / "a.h5ad", tmp_path / "a", cells=rows, where=where, quality={"some": "[0-4]$"}
    )
    part = adata[rows].copy()
    scanpy.pp.filter_cells(part, min_genes=6)
    some = part.var_names.str.contains("[0-4]$")
    share = np.asarray(part.X[:, some].sum(axis=1) / part.X.sum(axis=1)).ravel()
    part = part[share < 0.6]
    found = scdl.open(report.path)
    assert found.obs_names.tolist() == part.obs_names.tolist()
    assert found.obs["n_genes"].tolist() == part.obs["n_genes"].tolist()
    assert "obs/n_genes" in report.not_carried


# -- many files ----------------------------------------------------------------------------------


def test_in_parts_and_directories(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    paths, _ = three(tmp_path / "files")
    choices: list[dict[str, Any]] = [
        {"where": "int > 0", "genes_where": "wanted", "unique_names": True},
        {"quality": {"some": "1"}, "where": "n_genes > 5"},
        {"quality": True, "genes_where": "wanted"},
        {"cells": [1, 12, 13], "obs_columns": ["int"]},
    ]
    for i, choice in enumerate(choices):
        whole = scdl.convert(paths, tmp_path / f"whole{i}", **choice)
        parts = scdl.convert_in_parts(
            paths, tmp_path / f"parts{i}", workers=1, split_bytes=9_000, **choice
        )
        assert_equal(scdl.open(parts.path).to_anndata(), scdl.open(whole.path).to_anndata())
        assert (parts.cells_left_out, parts.nnz) == (whole.cells_left_out, whole.nnz)
    choice = {"where": "int > 0", "quality": True}
    report = scdl.convert_directory(
        tmp_path / "files", tmp_path / "out", workers=1, split_bytes=9_000, **choice
    )
    again = scdl.convert_directory(
        tmp_path / "files", tmp_path / "out", workers=1, resume=True, **choice
    )
    assert [*again.archives.values()] == [*report.archives.values()]
    for source, archive in report.archives.items():
        adata = anndata.read_h5ad(source)
        assert scdl.open(archive).obs_names.tolist() == [*adata.obs_names[adata.obs["int"] > 0]]
    with pytest.raises(errors.OptionError, match="cells= is about sources that become one"):
        scdl.convert_directory(tmp_path / "files", tmp_path / "b", cells=[1])


# -- errors --------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"where": "int >"}, errors.FilterError, "is not valid"),
    ({"where": "True"}, errors.FilterError, "names no column of obs"),
    ({"where": "itn > 3"}, errors.FeatureNotFoundError, "did you mean 'int'"),
    ({"where": "int > 'a'"}, errors.FilterError, "does not fit obs"),
    ({"genes_where": "flaot > 3"}, errors.FeatureNotFoundError, "did you mean 'float'"),
    ({"genes_where": "float > 'a'"}, errors.FilterError, "does not fit var"),
    ({"cells": [True] * 19}, errors.RowIndexError, r"must have shape \(20,\)"),
    ({"cells": [3, 20]}, errors.RowIndexError, "row 20 is out of range"),
    ({"cells": [3, 4, 3]}, errors.RowIndexError, "row 3 more than once"),
    ({"cells": [0, -20]}, errors.RowIndexError, "row 0 more than once"),
    ({"cells": [1.5]}, errors.RowIndexError, "must be integers"),
    ({"cells": ["cell1", "no"]}, errors.CellNotFoundError, "1 of 2 cells do not exist.*'no'"),
    ({"cells": "none.txt"}, errors.CellListNotFoundError, "none.txt: this file of cell names"),
    ({"obs_columns": ["it"]}, errors.FeatureNotFoundError, "no column 'it' in obs.*'int'"),
    ({"var_columns": ["x"]}, errors.FeatureNotFoundError, "no column 'x' in var; there are: cat"),
    ({"obs_columns": {"int": "a", "float": "a"}}, errors.OptionError, "'a' is the name of two"),
    ({"obs_columns": {"int": "_index"}}, errors.OptionError, "reserved for names"),
    ({"obs_columns": [3]}, errors.OptionError, "must be a list of names"),
    ({"quality": 3}, errors.OptionError, "quality must be True, or groups"),
    ({"quality": {"mt": "("}}, errors.OptionError, "no regular expression"),
    ({"quality": {"mt": 3}}, errors.OptionError, "must be a regular expression, a boolean column"),
    ({"quality": {"mt": "^MT-"}}, errors.GeneError, "no gene belongs to 'mt'"),
    ({"quality": {"mt": ["no"]}}, errors.GeneError, "1 genes of 'mt' do not exist, such as 'no'"),
    ({"quality": True, "label": "n_genes"}, errors.OptionError, "has a column 'n_genes' already"),
]  # fmt: skip


def test_bad_input(tmp_path: Path) -> None:
    write(annotated(20, 12), tmp_path / "a.h5ad")
    for options, kind, message in BAD:
        with pytest.raises(kind, match=message) as caught:
            scdl.convert(tmp_path / "a.h5ad", tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"], options


def test_elements_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    """What has another length than the cells cannot be cut, even if it then seems to fit."""
    write_h5ad(tmp_path / "a.h5ad", random_cells(20, 12))
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        write_elem(file.require_group("obsm"), "short", np.zeros((9, 2)))
    report = scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", cells=[*range(9)])
    assert "obsm/short" in report.not_carried
    assert scdl.open(report.path).to_anndata().n_obs == 9


def test_commands(tmp_path: Path, run_command: Any) -> None:
    adata = written(annotated(20, 12), tmp_path / "a.h5ad")
    (tmp_path / "names").write_text("\n".join(adata.obs_names[:15]))
    done = run_command(
        "scdl", "convert", "a.h5ad", "made", "--where", "int > 0", "--cells", "names",
        "--genes-where", "float < 0.5", "--obs-column", "int", "--obs-column", "float=score",
        "--var-column", "float", "--unique-names", "--quality-group", "some=1$",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scdl.convert(
        tmp_path / "a.h5ad", tmp_path / "expected", where="int > 0", cells=tmp_path / "names",
        genes_where="float < 0.5", obs_columns={"int": "int", "float": "score"},
        var_columns=["float"], unique_names=True, quality={"some": "1$"},
    )  # fmt: skip
    found, expected = (scdl.open(tmp_path / name).to_anndata() for name in ("made", "expected"))
    assert_equal(found, expected)
    assert [*found.obs] == ["int", "score", "n_genes", "n_counts", "pct_some"]
