"""What of an AnnData an archive keeps comes back; what it does not keep is named, or an error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import write_elem
from anndata.tests.helpers import assert_equal
from budget import sample
from sources import Encoding, names, random_cells, write_h5ad, write_matrix

import scdl
from benchmarks.roundtrip import batches
from scdl.conversion.export import export
from scdl.errors import OutputError, ScdlError, SourceError

pytestmark = pytest.mark.filterwarnings("ignore")

N_OBS, N_VARS, N_RAW = 6, 4, 5


def annotated() -> anndata.AnnData:
    """Cells with something small in every place."""
    rng = np.random.default_rng(0)

    def graph(n: int) -> sp.csr_matrix:
        return sp.random(n, n, 0.5, "csr", random_state=1)

    obs, var = (pd.DataFrame(index=names(*a)) for a in (("cell", N_OBS), ("gene", N_VARS)))
    raw = anndata.AnnData(
        sp.random(N_OBS, N_RAW, 0.5, "csr", dtype=np.float32, random_state=0),
        obs=obs,
        var=pd.DataFrame(index=names("raw", N_RAW)),
        varm={"loadings": rng.random((N_RAW, 2))},
    )
    adata = anndata.AnnData(
        sp.random(N_OBS, N_VARS, 0.5, "csr", dtype=np.float32, random_state=0),
        obs=obs,
        var=var,
        layers={"dense": rng.random((N_OBS, N_VARS))},
        obsm={"vectors": rng.random((N_OBS, 2)), "frame": pd.DataFrame({"a": 1.0}, obs.index)},
        varm={"loadings": rng.random((N_VARS, 2))},
        obsp={"graph": graph(N_OBS)},
        varp={"graph": graph(N_VARS)},
        uns={"kept": 1, "nested": {"kept": "text"}},
    )
    adata.raw = raw
    return adata


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "cells.h5ad"
    annotated().write_h5ad(path)
    return path


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(pristine, tmp_path))


def array(parent: h5py.Group, name: str, values: Any) -> None:
    """Replace an element by an array."""
    if name in parent:
        del parent[name]
    write_elem(parent, name, values)


MISFITS: dict[str, Callable[[h5py.File], None]] = {
    "obsm/vectors": lambda f: array(f["obsm"], "vectors", np.zeros((N_OBS - 1, 2))),
    "obsm/sparse": lambda f: array(f["obsm"], "sparse", sp.csr_matrix((N_OBS + 1, 2))),
    "obsm/text": lambda f: array(f["obsm"], "text", np.array([["a"]] * 3, object)),
    "obsm/table": lambda f: array(f["obsm"], "table", pd.DataFrame({"a": [1]}, ["x"])),
    "varm/loadings": lambda f: array(f["varm"], "loadings", np.zeros((3, 2))),
    "layers/dense": lambda f: array(f["layers"], "dense", np.zeros((N_OBS, N_RAW))),
    "layers/sparse": lambda f: array(f["layers"], "sparse", sp.csc_matrix((N_OBS, 9))),
    "layers/cube": lambda f: array(f["layers"], "cube", np.zeros((N_OBS, N_VARS, 2))),
    "obsp/graph": lambda f: array(f["obsp"], "graph", sp.csr_matrix((N_OBS, 2))),
    "varp/graph": lambda f: array(f["varp"], "graph", np.zeros((2, 2))),
    "raw/varm/loadings": lambda f: array(f["raw/varm"], "loadings", np.zeros((2, 2))),
    "raw/X": lambda f: array(f["raw"], "X", sp.csr_matrix((N_OBS, 2), dtype=np.float32)),
}


@pytest.mark.parametrize("name", sample(MISFITS, 2))
def test_an_element_that_does_not_fit_is_named(
    pristine: Path, source: Path, tmp_path: Path, name: str
) -> None:
    with h5py.File(source, "r+") as file:
        MISFITS[name](file)
    target = tmp_path / "a.zarr"
    with pytest.raises(SourceError, match=f"cells.h5ad: {name} has shape") as caught:
        scdl.convert(source, target)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]
    if name != "raw/X":
        # Without it, or mended, the same call goes through.
        scdl.convert(source, target, only_matrix=True)
        shutil.copy(pristine, source)
        scdl.convert(source, target, replace=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("obsm/vectors", {"obsm": ["vectors"]}),
        ("obsp/graph", {"neighbor_key": "graph"}),
        ("raw/X", {}),
    ],
)
def test_what_is_asked_for_must_fit_in_memmap_too(
    source: Path, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    with h5py.File(source, "r+") as file:
        MISFITS[name](file)
    with pytest.raises(SourceError, match=f"cells.h5ad: {name} has shape"):
        scdl.convert(source, tmp_path / "a", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_rows_of_another_name(source: Path, tmp_path: Path) -> None:
    with h5py.File(source, "r+") as file:
        frame = pd.DataFrame({"a": 1.0}, names("other", N_OBS))
        array(file["obsm"], "frame", frame)
    with pytest.raises(SourceError, match="obsm/frame is a table whose row names differ"):
        scdl.convert(source, tmp_path / "a.zarr")


def novel(parent: h5py.Group, name: str) -> None:
    parent.create_group(name).attrs.update({"encoding-type": "novel", "encoding-version": "1"})


def wide(parent: h5py.Group, name: str, *shape: int) -> None:
    parent[name] = np.ones(shape, np.longdouble)
    parent[name].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


UNKEPT: dict[str, Callable[[h5py.File], None]] = {
    "uns/novel": lambda f: novel(f["uns"], "novel"),
    "uns/nested/novel": lambda f: novel(f["uns/nested"], "novel"),
    "uns/wide": lambda f: wide(f["uns"], "wide", 3),
    "uns/__hidden": lambda f: write_elem(f["uns"], "__hidden", 3),
    "uns/elsewhere": lambda f: f["uns"].__setitem__("elsewhere", h5py.ExternalLink("x", "/y")),
    f"uns/{'n' * 230}": lambda f: write_elem(f["uns"], "n" * 230, np.arange(3)),
    "obsm/novel": lambda f: novel(f["obsm"], "novel"),
    "obsm/wide": lambda f: wide(f["obsm"], "wide", N_OBS, 2),
    "obsm/a/b": lambda f: array(f.create_group("obsm/a"), "b", np.ones((N_OBS, 2))),
    "varm/novel": lambda f: novel(f["varm"], "novel"),
    "layers/novel": lambda f: novel(f["layers"], "novel"),
    "layers/a/b": lambda f: array(f.create_group("layers/a"), "b", np.ones((N_OBS, N_VARS))),
    "obsp/novel": lambda f: novel(f["obsp"], "novel"),
    "varp/novel": lambda f: novel(f["varp"], "novel"),
    "raw/varm/novel": lambda f: novel(f["raw/varm"], "novel"),
    "X": lambda f: array(f, "X", np.ones((N_OBS, N_VARS + 2))),
}


@pytest.mark.parametrize("name", sample(UNKEPT, 2))
def test_what_cannot_be_kept_is_left_out_and_named(source: Path, tmp_path: Path, name: str) -> None:
    expected = anndata.read_h5ad(source)
    with h5py.File(source, "r+") as file:
        UNKEPT[name](file)
    report = scdl.convert(source, tmp_path / "a.zarr")
    assert report.not_carried == (name,)
    assert f"not carried over: {name}" in str(report)
    if name == "X":
        expected.X = None
    ds = scdl.open(tmp_path / "a.zarr")
    export(ds.store, tmp_path / "back.h5ad")
    for back in (ds.to_anndata(), anndata.read_h5ad(tmp_path / "back.h5ad")):
        assert_equal(back, expected)
    assert name.partition("/")[0] in " ".join(scdl.convert(source, tmp_path / "m").not_carried)


def test_genes_that_are_missing(source: Path, tmp_path: Path) -> None:
    """Raw without genes is no raw; the matrix beside it is taken where it is asked for."""
    with h5py.File(source, "r+") as file:
        del file["raw/var"]
    for target in ("a", "a.zarr"):
        with pytest.raises(SourceError, match=r"raw/var is missing; .* matrix='X'"):
            scdl.convert(source, tmp_path / target)
        report = scdl.convert(source, tmp_path / target, matrix="X")
        assert {"raw/X"} <= set(report.not_carried)
        assert scdl.open(tmp_path / target).to_anndata().raw is None
    assert set(scdl.convert(source, tmp_path / "b.zarr", matrix="X").not_carried) == {
        "raw/X",
        "raw/varm/loadings",
    }


def test_raw_without_a_matrix_that_can_be_read(source: Path, tmp_path: Path) -> None:
    with h5py.File(source, "r+") as file:
        file["raw/X"].attrs["encoding-type"] = "novel"
    report = scdl.convert(source, tmp_path / "a.zarr", matrix="X")
    assert set(report.not_carried) == {"raw/X", "raw/var", "raw/varm/loadings"}
    export(scdl.open(tmp_path / "a.zarr").store, tmp_path / "back.h5ad")
    expected = annotated()
    expected.raw = None
    assert_equal(anndata.read_h5ad(tmp_path / "back.h5ad"), expected)


def test_a_layer_with_a_slash_in_its_name(source: Path, tmp_path: Path) -> None:
    layer = np.arange(N_OBS * N_VARS, dtype=np.float32).reshape(N_OBS, N_VARS)
    with h5py.File(source, "r+") as file:
        array(file.create_group("layers/a"), "b", layer)
    for target in ("m", "m.zarr"):
        report = scdl.convert(source, tmp_path / target, matrix="layers/a/b", only_matrix=True)
        assert report.matrices == ["layers/a/b"]
        assert (scdl.open(tmp_path / target).to_anndata().X.toarray() == layer).all()


def test_coordinates(tmp_path: Path) -> None:
    """Graphs, matrices and loadings as anndata does not write them."""
    cells = random_cells(6, 4, dtype="f4", repeated=True)
    graph = random_cells(6, 6, dtype="f8", is_sorted=False)
    coo = Encoding("coo")
    write_h5ad(tmp_path / "a.h5ad", cells, coo, layers={"l": cells}, obsp={"g": graph})
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        write_matrix(file.create_group("obsm"), "m", cells, coo)
        write_matrix(file.create_group("uns"), "u", cells, coo)
    report = scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr")
    assert report.not_carried == ()
    read = anndata.read_zarr(tmp_path / "a.zarr")
    for found in (read.X, read.layers["l"], read.obsm["m"], read.uns["u"]):
        assert (found.toarray() == cells.csr().toarray()).all()
    assert (read.obsp["g"].toarray() == graph.csr(np.float64).toarray()).all()
    for target in ("b", "b.zarr"):
        scdl.convert(tmp_path / "a.h5ad", tmp_path / target, neighbor_key="g")
        assert scdl.open(tmp_path / target).neighbor_keys == ["g"]


@pytest.mark.parametrize("layout", sample(["csr", "csc", "coo"], 2))
def test_edges_that_repeat_stay_two(tmp_path: Path, layout: str) -> None:
    graph = random_cells(6, 6, density=0.3, dtype="f4", repeated=True)
    write_h5ad(
        tmp_path / "a.h5ad",
        random_cells(6, 4),
        obsp={"g": graph},
        obsp_encoding=Encoding(layout),
    )
    found = []
    for target in ("a", "a.zarr"):
        scdl.convert(tmp_path / "a.h5ad", tmp_path / target, neighbor_key="g")
        store = scdl.open(tmp_path / target).store
        found.append([store.read(f"graphs/g/{part}").tolist() for part in ("data", "indices")])
    assert found[0] == found[1]
    assert len(found[0][0]) == len(graph.values)


def test_offsets_that_fall(source: Path, tmp_path: Path) -> None:
    with h5py.File(source, "r+") as file:
        file["obsp/graph/indptr"][2] = 99
    with pytest.raises(SourceError, match=r"cells\.h5ad: obsp/graph: indptr is not monotone"):
        scdl.convert(source, tmp_path / "a.zarr")


def test_layers_take_what_the_matrix_takes(tmp_path: Path) -> None:
    """Codecs of frames know where the rows of a layer end, as they do of the matrix."""
    matrix = random_cells(200, 300, dtype="f4").csr()
    adata = anndata.AnnData(matrix, layers={"same": matrix.copy(), "twice": matrix * 2})
    adata.write_h5ad(tmp_path / "a.h5ad")
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", compression="packed-fast")
    sizes = {
        name: sum(file.stat().st_size for file in (tmp_path / "a.zarr" / name).rglob("c/*"))
        for name in ("X/indices", "layers/same/indices", "layers/twice/indices")
    }
    assert max(sizes.values()) < 1.02 * sizes["X/indices"]
    layer = scdl.open(tmp_path / "a.zarr", matrix="layers/twice")
    np.testing.assert_array_equal(layer.read_rows(slice(None)).to_dense(), 2 * matrix.toarray())


def early(path: Path) -> None:
    """A file as anndata 0.6 wrote it: tables and mappings are compound, the graph is in uns."""
    n, g = N_OBS, N_VARS
    matrix = sp.csr_matrix(np.eye(n, g, dtype=np.float32))
    graph = sp.csr_matrix(np.roll(np.eye(n), 1, 1))
    with h5py.File(path, "w") as file:
        for name, value in (("X", matrix), ("raw.X", matrix), ("uns/neighbors/distances", graph)):
            group = file.create_group(name)
            group["data"], group["indices"], group["indptr"] = (
                value.data, value.indices, value.indptr,
            )  # fmt: skip
            group.attrs["h5sparse_format"] = "csr"
            group.attrs["h5sparse_shape"] = np.array(value.shape)
        for name, prefix, length in (("obs", "c", n), ("var", "g", g), ("raw.var", "g", g)):
            rows = [(f"{prefix}{i}".encode(), i % 2) for i in range(length)]
            file[name] = np.array(rows, [("index", "S4"), ("kind", "i8")])
        for name, length in (("obsm", n), ("varm", g), ("raw.varm", g)):
            values = np.zeros(length, [("X_pca", "f4", (2,)), ("ids", "i4", (1,))])
            values["X_pca"] = np.arange(2 * length).reshape(length, 2)
            file[name] = values
        file["uns/kind_categories"] = np.array([b"odd", b"even"])
        file["uns/neighbors/params/method"] = "umap"
        novel(file["uns"], "novel")


@pytest.mark.parametrize("target", ["a", "a.zarr"])
def test_files_of_early_releases(tmp_path: Path, target: str) -> None:
    early(tmp_path / "a.h5ad")
    report = scdl.convert(
        tmp_path / "a.h5ad", tmp_path / target, neighbor_key="distances", obsm=["X_pca"]
    )
    read = scdl.open(tmp_path / target).to_anndata()
    assert (read.obsp["distances"].toarray() == np.roll(np.eye(N_OBS), 1, 1)).all()
    assert (read.obsm["X_pca"] == np.arange(2 * N_OBS).reshape(N_OBS, 2)).all()
    assert list(read.obs["kind"][:2]) == ["odd", "even"]
    if target == "a":
        assert {"uns", "varm/X_pca", "raw/varm"} <= set(report.not_carried)
        return
    assert report.not_carried == ("uns/novel",)
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        del file["uns/novel"]
    expected = anndata.read_h5ad(tmp_path / "a.h5ad")
    # anndata leaves the codes of raw's genes.
    expected.raw.var["kind"] = expected.var["kind"]
    assert_equal(read, expected)


def old_store(path: Path, *, consolidated: bool = False, zarr_format: int = 2) -> anndata.AnnData:
    """A store that does not say what its groups are, with the graph in uns."""
    adata = annotated()
    adata.raw = None
    adata.uns["neighbors"] = {"connectivities": adata.obsp.pop("graph")}
    with anndata.settings.override(zarr_write_format=zarr_format):
        adata.write_zarr(path)
    root = zarr.open_group(path, use_consolidated=False)
    for place in ("", "layers", "obsm", "varm", "obsp", "varp", "uns", "uns/nested"):
        group = root[place] if place else root
        assert isinstance(group, zarr.Group)
        group.attrs.clear()
    for file in (".zmetadata",):
        (path / file).unlink(missing_ok=True)
    if consolidated:
        zarr.consolidate_metadata(root.store)
    return adata


@pytest.mark.parametrize(("consolidated", "zarr_format"), [(True, 2), (False, 2), (True, 3)])
def test_stores_that_do_not_say_what_they_are(
    tmp_path: Path, consolidated: bool, zarr_format: int
) -> None:
    source = tmp_path / "a.zarr"
    expected = old_store(source, consolidated=consolidated, zarr_format=zarr_format)
    graph = expected.uns.pop("neighbors")["connectivities"]
    for target in ("b", "b.zarr"):
        scdl.convert(source, tmp_path / target, neighbor_key="connectivities")
        read = scdl.open(tmp_path / target).to_anndata()
        assert_equal(read.X, expected.X)
        found = read.obsp["connectivities"]
        assert (found != graph.astype(found.dtype)).nnz == 0
    expected.obsp["connectivities"] = graph
    read.uns.pop("neighbors", None)
    assert_equal(read, expected)


def test_stores_with_what_nobody_knows(tmp_path: Path) -> None:
    annotated().write_zarr(tmp_path / "a.zarr")
    root = zarr.open_group(tmp_path / "a.zarr", use_consolidated=False)
    for name in ("uns/novel", "uns/nested/novel", "obsm/novel", "layers/novel"):
        root.create_group(name).attrs["encoding-type"] = "novel"
    broken = root.create_group("obsp/broken")
    broken.attrs["encoding-type"] = "csr_matrix"
    zarr.consolidate_metadata(root.store)
    report = scdl.convert(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert set(report.not_carried) == {
        "uns/novel", "uns/nested/novel", "obsm/novel", "layers/novel", "obsp/broken",
    }  # fmt: skip
    assert_equal(scdl.open(tmp_path / "b.zarr").to_anndata(), annotated())


def test_the_type_of_names_may_differ_from_that_of_a_table(tmp_path: Path) -> None:
    """As pandas 3 writes them; the names of the table count as those of the cells."""
    adata = annotated()
    adata.write_h5ad(tmp_path / "a.h5ad")
    text = pd.Index(pd.array(adata.obs_names, dtype="string"))
    with (
        h5py.File(tmp_path / "a.h5ad", "r+") as file,
        anndata.settings.override(allow_write_nullable_strings=True),
    ):
        array(file, "obs", pd.DataFrame(index=text))
        array(file["obsm"], "frame", pd.DataFrame({"a": 1.0}, text))
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr")
    ds = scdl.open(tmp_path / "a.zarr")
    export(ds.store, tmp_path / "back.h5ad")
    stored = anndata.read_zarr(tmp_path / "a.zarr")
    for back in (anndata.read_h5ad(tmp_path / "back.h5ad"), stored):
        assert back.obsm["frame"]["a"].tolist() == [1.0] * N_OBS
    assert ds.to_anndata([3, 1]).obsm["frame"].index.tolist() == ["cell3", "cell1"]


@pytest.mark.parametrize("backend", ["memmap", "zarr"])
def test_random_cells_come_back(backend: str) -> None:
    """A few of those that ``make roundtrip`` tries."""
    wrong = batches.try_batch(sample(range(7, 15), 2), backend, batches.Sources())
    assert not wrong


def test_a_store_as_source_comes_back() -> None:
    assert not batches.try_batch(sample(range(40, 44), 1), "zarr", batches.Sources(zarr_format=3))


def test_what_was_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign finds what is lost, and what is raised."""
    monkeypatch.setattr("scdl.conversion.elements._ElementWriter._is_written", lambda *_: True)
    assert batches.try_batch(range(7, 10), "zarr", batches.Sources())
    monkeypatch.setattr(
        "scdl.convert", lambda *_, **__: (_ for _ in ()).throw(ScdlError("refused"))
    )
    ((seed, said),) = batches.try_batch(range(7, 8), "zarr", batches.Sources())
    assert (seed, said) == (7, ["ScdlError: refused"])


def test_names_that_the_archive_refuses(tmp_path: Path) -> None:
    """Elements of them are left out and named, unless they were asked for."""
    adata = annotated()
    adata.obsm = {"__vectors": adata.obsm["vectors"], "vectors": adata.obsm["vectors"]}
    adata.obsp = {"__graph": adata.obsp["graph"]}
    sources = [tmp_path / f"{i}.zarr" for i in range(2)]
    for source in sources:
        adata.write_zarr(source)
    report = scdl.convert(sources, tmp_path / "both.zarr", backend="zarr")
    assert {"obsm/__vectors", "obsp/__graph"} <= {*report.not_carried}
    found = scdl.open(tmp_path / "both.zarr")
    expected = np.concatenate([adata.obsm["vectors"]] * 2)
    np.testing.assert_array_equal(found.to_anndata().obsm["vectors"], expected)
    for asked in ({"obsm": "__vectors"}, {"neighbor_key": "__graph"}):
        with pytest.raises(OutputError, match="'__"):
            scdl.convert(sources, tmp_path / "asked.zarr", backend="zarr", **asked)
        assert not (tmp_path / "asked.zarr").exists()
