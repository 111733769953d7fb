"""Cells that are added to archives: ``data.append`` and ``scdl append``."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from annotated import names_of_layers
from budget import examples, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scdl
from scdl.errors import (
    ArchiveChangedError,
    ArchiveLockedError,
    CastError,
    GeneError,
    OptionError,
    SourceError,
)
from storage_backends.zarr.chunks import writing
from storage_backends.zarr.codecs.profiles import PROFILES, Profile

GENES = [f"g{i}" for i in range(12)]
KINDS = {
    "memmap": {"backend": "memmap"},
    "fast": {"backend": "zarr", "compression": "fast"},
    "archive": {"backend": "zarr", "compression": "archive"},
}
pytestmark = pytest.mark.filterwarnings("ignore:Observation names are not unique")


def cells(n, seed=0, types="BT", **more):
    rng = np.random.default_rng(seed)
    X = sp.random(n, 12, 0.4, "csr", np.float32, rng=rng, data_rvs=lambda k: rng.integers(1, 9, k))
    obs = pd.DataFrame(
        {"type": pd.Categorical(rng.choice(list(types), n)), "n": rng.integers(0, 9, n)},
        index=[f"cell {seed} {i}" for i in range(n)],
    )
    return ad.AnnData(X, obs, pd.DataFrame({"length": range(12)}, index=GENES), **more)


def with_elements(n, seed=0, types="BT"):
    rng = np.random.default_rng(seed)
    graph = sp.random(n, n, 0.2, "csr", np.float32, rng=rng)
    vectors = rng.normal(size=(n, 3)).astype(np.float32)
    return cells(n, seed, types, obsm={"X_pca": vectors}, obsp={"knn": graph})


def convert(source, path, kind="memmap"):
    scdl.convert(source, path, obsm="X_pca", neighbor_key="knn", **KINDS[kind])
    return scdl.open(path)


def assert_same(one, other):
    """Two archives have the same content, and are sound."""
    a, b = one.to_anndata(), other.to_anndata()
    np.testing.assert_array_equal(a.X.toarray(), b.X.toarray())
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    assert set(a.obsm) == set(b.obsm)
    assert set(a.obsp) == set(b.obsp)
    for key in a.obsm:
        np.testing.assert_array_equal(a.obsm[key], b.obsm[key])
    for key in a.obsp:
        np.testing.assert_array_equal(a.obsp[key].toarray(), b.obsp[key].toarray())
    for data in (one, other):
        report = data.verify(deep=True)
        assert (report.verdict, list(report.findings)) == (0, []), str(report)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(15, least=3))
@given(sizes=st.lists(st.integers(0, 25), min_size=2, max_size=3))
def test_parts_equal_one_conversion(tmp_path_factory, kind, sizes):
    place = tmp_path_factory.mktemp("parts")
    parts = [with_elements(n, i, "BTXYZ"[: i + 2]) for i, n in enumerate(sizes)]
    data = convert(parts[0], place / "grown", kind)
    for part in parts[1:]:
        assert data.append(part).n_obs == part.n_obs
    assert_same(data, convert(parts, place / "whole", kind))


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of few numbers, and shards of few chunks."""
    monkeypatch.setattr(writing, "_CHUNKS_PER_SHARD", 3)
    for name, profile in PROFILES.items():
        small = Profile(32, profile.compressor, profile.by_detection, profile.portable)
        monkeypatch.setitem(PROFILES, name, small)


# anndata: of codecs in stores that it reads
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("compression", sample(PROFILES))
def test_full_shards_stay(tmp_path, compression):
    options = {"backend": "zarr", "compression": compression}
    first, *rest = (cells(n, i) for i, n in enumerate([61, 1, 30, 7]))
    scdl.convert(first, tmp_path / "grown", **options)
    data = scdl.open(tmp_path / "grown")
    before = {path: path.stat().st_ino for path in (tmp_path / "grown/X").rglob("c/*")}
    for part in rest:
        data.append(part)
    scdl.convert([first, *rest], tmp_path / "whole", **options)
    assert_same(data, scdl.open(tmp_path / "whole"))
    kept = [path for path, inode in before.items() if path.stat().st_ino == inode]
    # All but the last shard of each of three arrays.
    assert len(kept) == len(before) - 3 > 3
    np.testing.assert_array_equal(
        ad.read_zarr(tmp_path / "grown").to_df()[GENES], data.to_anndata().to_df()
    )


@pytest.mark.usefixtures("small_chunks")
def test_values_that_need_a_wider_type(tmp_path):
    """Counts are stored in 16 bits until one does not fit."""
    scdl.convert(cells(60), tmp_path / "a", **KINDS["fast"])
    large = cells(5, 1)
    large.X.data[-1] = 1e6
    data = scdl.open(tmp_path / "a")
    data.append(large)
    scdl.convert([cells(60), large], tmp_path / "b", **KINDS["fast"])
    assert_same(data, scdl.open(tmp_path / "b"))


@pytest.mark.parametrize("kind", KINDS)
def test_open_readers_keep_their_cells(tmp_path, kind):
    data = convert(with_elements(30), tmp_path / "a", kind)
    reader, expected = scdl.open(tmp_path / "a"), with_elements(30)
    data.append(with_elements(20, 1))
    assert (len(reader), len(data), len(scdl.open(tmp_path / "a"))) == (30, 50, 50)
    np.testing.assert_array_equal(reader.to_anndata().X.toarray(), expected.X.toarray())
    pd.testing.assert_frame_equal(reader.read_obs(), expected.obs)
    with pytest.raises(ArchiveChangedError):
        reader.append(with_elements(3))


def count(path, started):
    """In another process: read an archive until it has grown."""
    reader, first = scdl.open(path), scdl.open(path).to_anndata().X.toarray()
    started.set()
    end = time.monotonic() + 60
    while len(scdl.open(path)) == len(reader) and time.monotonic() < end:
        pass
    return len(scdl.open(path)), bool((reader.to_anndata().X.toarray() == first).all())


def test_reader_in_another_process(tmp_path):
    data = convert(with_elements(30), tmp_path / "a")
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(1, mp_context=context) as pool:
        started = manager.Event()
        reading = pool.submit(count, str(tmp_path / "a"), started)
        started.wait(60)
        data.append(with_elements(20, 1))
        assert reading.result(60) == (50, True)


def test_hard_linked_copy_does_not_change(tmp_path):
    convert(with_elements(30), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=os.link)
    for name, seed in itertools.product("ab", (1, 2)):
        scdl.open(tmp_path / name).append(with_elements(10, seed + ord(name)))
    for name in "ab":
        parts = [with_elements(30), *(with_elements(10, s + ord(name)) for s in (1, 2))]
        assert_same(scdl.open(tmp_path / name), convert(parts, tmp_path / f"{name} whole"))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_united(tmp_path, kind):
    first, second, third = cells(10), cells(5, 1), cells(5, 2)
    second.obs["batch"] = "b"
    second.obs["n"] = second.obs["n"] + 0.5
    del third.obs["type"]
    scdl.convert(first, tmp_path / "a", **KINDS[kind])
    data = scdl.open(tmp_path / "a")
    for part in (second, third):
        data.append(part)
    scdl.convert([first, second, third], tmp_path / "b", **KINDS[kind])
    assert_same(data, scdl.open(tmp_path / "b"))


def test_archive_without_obs(tmp_path):
    for kind in KINDS:
        path = tmp_path / kind
        with scdl.create(path, var=GENES, **KINDS[kind]) as archive:
            archive.append(cells(5).X)
        data = scdl.open(path)
        data.append(path)
        assert (len(data), data.obs_features()) == (10, None)
        data.append(cells(5, 1))
        assert data.read_obs()["type"].isna().tolist() == [True] * 10 + [False] * 5
        assert data.verify(deep=True).verdict == 0


def test_labels(tmp_path):
    scdl.convert({"a": cells(3)}, tmp_path / "a", label="batch")
    data = scdl.open(tmp_path / "a")
    data.append({"b": cells(2, 1), "c": cells(1, 2)}, label="batch")
    data.append(cells(1, 3))
    assert data.read_obs()["batch"].astype(object).fillna("-").tolist() == [*"aaabbc-"]


def test_genes(tmp_path):
    scdl.convert(cells(5), tmp_path / "a")
    data = scdl.open(tmp_path / "a")
    turned = cells(4, 1)[:, ::-1].copy()
    turned.var["other"] = 1
    report = data.append(turned)
    assert report.not_carried == ("var/other",)
    np.testing.assert_array_equal(data.to_anndata().X[5:].toarray(), turned.X.toarray()[:, ::-1])
    other = cells(3, 2)[:, 2:].copy()
    other.var_names = [*GENES[2:-1], "new"]
    with pytest.raises(GeneError, match=r"lacks 3 \(g0, g1, g11\); it has in addition 1 \(new\)"):
        data.append(other)
    with pytest.raises(GeneError):
        data.append(other, genes="archive")
    data.append(other, genes="archive", missing="zero")
    expected = np.zeros((3, 12), np.float32)
    expected[:, 2:11] = other.X.toarray()[:, :-1]
    np.testing.assert_array_equal(data.to_anndata().X[9:].toarray(), expected)
    assert data.var_features().blocks[0].names == scdl.open(tmp_path / "a")._var.blocks[0].names


def test_what_does_not_fit(tmp_path):
    scdl.convert(with_elements(5), tmp_path / "a", obsm="X_pca", data_dtype="uint8")
    data, before = scdl.open(tmp_path / "a"), sorted(os.listdir(tmp_path / "a/scdl"))
    negative = with_elements(5, 1)
    negative.X = -negative.X
    wide = with_elements(5, 1)
    wide.obsm["X_pca"] = np.ones((5, 4), np.float32)
    for wrong, error in [(negative, CastError), (wide, SourceError), (cells(5), SourceError)]:
        with pytest.raises(error):
            data.append(wrong)
    for options in ({"data_dtype": "float32"}, {"compression": "fast"}, {"genes": "union"}):
        with pytest.raises(OptionError):
            data.append(with_elements(5, 1), **options)
    with pytest.raises(OptionError, match="missing"):
        data.append(with_elements(5, 1), missing="zero")
    with pytest.raises(SourceError, match="nothing to append"):
        data.append([])
    assert sorted(os.listdir(tmp_path / "a/scdl")) == before
    assert_same(data, scdl.open(tmp_path / "a"))


def layered(n, seed=0):
    """Layers in every form in which archives of a whole AnnData keep them."""
    adata, rng = with_elements(n, seed), np.random.default_rng(seed + 1)
    values = sp.random(n, 12, 0.3, "csr", rng=rng, data_rvs=lambda k: rng.integers(1, 99, k))
    adata.layers["by columns"] = values.astype(np.uint16).tocsc()
    adata.layers["data"] = rng.normal(size=(n, 12)) * (rng.random((n, 12)) < 0.7)
    adata.layers["indptr"] = (3 * adata.X).tocsc()
    adata.layers["by rows"] = 2 * adata.X
    return adata


def whole_matrix(adata, element):
    return adata.X if element == "X" else adata.layers[element.removeprefix("layers/")]


def assert_same_matrices(grown, whole):
    """Two Zarr archives hold the same AnnData, in the same form."""
    a, b = ad.read_zarr(grown), ad.read_zarr(whole)
    assert names_of_layers(a) == names_of_layers(b)
    for element in ("X", *(f"layers/{name}" for name in names_of_layers(a))):
        found, expected = whole_matrix(a, element), whole_matrix(b, element)
        assert (type(found), found.dtype, found.shape) == (
            type(expected), expected.dtype, expected.shape,
        )  # fmt: skip
        if sp.issparse(found):
            for part in ("data", "indices", "indptr"):
                np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
        else:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
@pytest.mark.parametrize("chunks", ["small", "default"])
@pytest.mark.parametrize("kind", ["fast", "archive"])
@settings(
    max_examples=examples(10, least=2), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(0, 25), min_size=2, max_size=3),
    block_values=st.sampled_from([1, 7, 50, 1 << 20]),
)
def test_layers_in_every_form(tmp_path_factory, request, kind, chunks, sizes, block_values):
    """Growing equals converting the concatenation: dense layers, and those by columns."""
    if chunks == "small":
        request.getfixturevalue("small_chunks")
    place, parts = tmp_path_factory.mktemp("forms"), [layered(n, i) for i, n in enumerate(sizes)]
    whole = ad.concat(parts, merge="same", pairwise=True)
    # The concatenation by anndata may have other forms.
    for name in names_of_layers(parts[0]):
        is_dense = not sp.issparse(parts[0].layers[name])
        form = "dense" if is_dense else parts[0].layers[name].format
        dense = np.concatenate([_dense(part.layers[name]) for part in parts])
        whole.layers[name] = dense if is_dense else getattr(sp, f"{form}_matrix")(dense)
    scdl.convert(parts[0], place / "grown.zarr", **KINDS[kind])
    data = scdl.open(place / "grown.zarr")
    for part in parts[1:]:
        # Genes in another order.
        report = data.append(part[:, ::-1].copy(), block_values=block_values)
        assert (report.n_obs, report.fields) == (part.n_obs, ("by rows",))
    # The table of cells has tests of its own.
    whole.obs = data.read_obs()
    scdl.convert(whole, place / "whole.zarr", **KINDS[kind])
    assert_same(data, scdl.open(place / "whole.zarr"))
    assert_same_matrices(place / "grown.zarr", place / "whole.zarr")


def _dense(values):
    return values.toarray() if sp.issparse(values) else values


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_x_beside_a_layer_that_is_the_matrix(tmp_path, form):
    def part(n, seed):
        adata = layered(n, seed)
        adata.X = adata.X.toarray() if form == "dense" else adata.X.asformat(form)
        return adata

    parts = [part(9, 0), part(6, 1)]
    scdl.convert(parts[0], tmp_path / "a.zarr", matrix="layers/by rows")
    data = scdl.open(tmp_path / "a.zarr")
    data.append(parts[1], matrix="layers/by rows")
    grown = ad.read_zarr(tmp_path / "a.zarr")
    for element in ("X", *(f"layers/{name}" for name in names_of_layers(parts[0]))):
        found = whole_matrix(grown, element)
        assert type(found) is type(whole_matrix(parts[0], element))
        expected = np.concatenate([_dense(whole_matrix(one, element)) for one in parts])
        np.testing.assert_array_equal(_dense(found), expected)
    assert data.verify(deep=True).verdict == 0


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_layers_stay_after_an_error(tmp_path):
    """Nothing changes if a matrix that is written last does not fit."""
    scdl.convert(layered(9), tmp_path / "a.zarr")
    reader = scdl.open(tmp_path / "a.zarr")
    files = {path: path.read_bytes() for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()}
    wrong = layered(5, 1)
    wrong.layers["by columns"] = -wrong.layers["by columns"].astype(np.int64)
    with pytest.raises(CastError, match="by columns"):
        scdl.open(tmp_path / "a.zarr").append(wrong)
    with pytest.raises(SourceError, match="there is no matrix layers/by rows"):
        scdl.open(tmp_path / "a.zarr").append(with_elements(5, 1))
    assert files == {
        path: path.read_bytes() for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()
    }
    # Layers may come from others, and readers keep what they opened.
    other = with_elements(5, 1)
    scdl.open(tmp_path / "a.zarr").append(
        other, layers=dict.fromkeys(names_of_layers(layered(1)), "X")
    )
    grown = ad.read_zarr(tmp_path / "a.zarr")
    for name in names_of_layers(grown):
        np.testing.assert_array_equal(_dense(grown.layers[name])[9:], other.X.toarray())
    assert len(reader) == 9
    assert reader.verify(deep=True).verdict == 0


def with_raw(n, seed=0):
    """Matrices of other genes beside raw/X in every form, and sparse vectors."""
    raw, rng = with_elements(n, seed), np.random.default_rng(seed + 1)
    adata = raw[:, [7, 2, 5, 11]].copy()
    adata.raw = raw
    adata.X = np.log1p(adata.X.toarray())
    adata.layers["by columns"] = (2 * sp.csr_matrix(adata.X)).tocsc()
    adata.layers["by rows"] = sp.csr_matrix(adata.X * 3)
    for form in ("csr", "csc"):
        vectors = sp.random(n, 6, 0.4, form, np.float32, rng=rng)
        adata.obsm[form] = getattr(sp, f"{form}_matrix")(vectors)
    return adata


def joined(parts):
    """The concatenation of parts of `with_raw`, with every element in its form."""
    whole = ad.concat(parts, merge="same", pairwise=True)
    raw = ad.concat([part.raw.to_adata() for part in parts], merge="same")
    whole.raw = raw[:, parts[0].raw.var_names].copy()
    for mapping in ("layers", "obsm"):
        for name, first in getattr(parts[0], mapping).items():
            if name is not None and sp.issparse(first):
                dense = [getattr(part, mapping)[name].toarray() for part in parts]
                form = getattr(sp, f"{first.format}_matrix")
                getattr(whole, mapping)[name] = form(np.concatenate(dense))
    return whole


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("sizes", [(9, 7, 25), (0, 3, 0), (25, 0, 1)])
@pytest.mark.parametrize("block_values", [7, 1 << 20])
@pytest.mark.parametrize("matrix", ["raw/X", "X"])
@pytest.mark.parametrize("kind", ["fast", "archive"])
def test_elements_of_other_columns(tmp_path, kind, matrix, block_values, sizes):
    """Matrices beside raw/X, raw/X beside X, and sparse matrices in obsm grow."""
    parts = [with_raw(n, i) for i, n in enumerate(sizes)]
    scdl.convert(parts[0], tmp_path / "grown.zarr", matrix=matrix, **KINDS[kind])
    data = scdl.open(tmp_path / "grown.zarr")
    for i, part in enumerate(parts[1:]):
        # Genes of both tables in other orders; from an object, and from a file.
        source = part[:, ::-1].copy()
        source.raw = part.raw.to_adata()[:, ::-1]
        if i:
            source.write_h5ad(tmp_path / "part.h5ad")
            source = tmp_path / "part.h5ad"
        report = data.append(source, matrix=matrix, block_values=block_values)
        assert report.n_obs == part.n_obs
        assert [name for name in report.not_carried if not name.startswith("obs/")] == []
    assert data.verify(deep=True).verdict == 0
    found, whole = ad.read_zarr(tmp_path / "grown.zarr"), joined(parts)
    for element in ("X", "raw/X", "layers/by columns", "layers/by rows", "obsm/csr", "obsm/csc"):
        a, b = whole_element(found, element), whole_element(whole, element)
        # The matrix itself is stored by rows.
        form = sp.csr_matrix if element == matrix else type(b)
        assert (type(a), a.dtype) == (form, b.dtype), element
        columns = slice(None)
        if not element.startswith("obsm"):
            tables = [one.raw if element == "raw/X" else one for one in (found, whole)]
            columns = tables[0].var_names.get_indexer(tables[1].var_names)
        np.testing.assert_array_equal(_dense(a)[:, columns], _dense(b), element)


def whole_element(adata, name):
    if name == "raw/X":
        return adata.raw.X
    mapping, _, key = name.partition("/")
    return getattr(adata, mapping)[key] if key else adata.X


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_what_a_source_lacks_of_other_columns(tmp_path):
    """Errors change nothing, and genes are mapped by name if asked."""
    scdl.convert(with_raw(9), tmp_path / "a.zarr")
    files = {path: path.read_bytes() for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()}
    without, narrow, other = (with_raw(5, 1) for _ in range(3))
    without.X = None
    del without.obsm["csr"]
    narrow.obsm["csc"] = narrow.obsm["csc"][:, :3]
    other.var_names = ["new", *other.var_names[1:]]
    data = scdl.open(tmp_path / "a.zarr")
    for wrong, error, told in (
        (without, SourceError, "X, obsm/csr is missing"),
        (narrow, SourceError, r"obsm/csc.*\(5, 3\)"),
        (other, GeneError, r"lacks 1 \(g7\); it has in addition 1 \(new\)"),
    ):
        with pytest.raises(error, match=told):
            data.append(wrong)
    with pytest.raises(GeneError, match="g7"):
        data.append(other, genes="archive")
    assert files == {
        path: path.read_bytes() for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()
    }
    data.append(other, genes="archive", missing="zero", where="n < 100")
    grown = ad.read_zarr(tmp_path / "a.zarr")
    expected = np.where(np.array(other.var_names) == "new", 0, other.X)
    np.testing.assert_array_equal(grown.X[9:], expected)
    np.testing.assert_array_equal(grown.raw.X[9:].toarray(), other.raw.X.toarray())


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_chosen_cells_of_other_columns(tmp_path):
    parts = [with_raw(9), with_raw(20, 1)]
    scdl.convert(parts[0], tmp_path / "a.zarr")
    data = scdl.open(tmp_path / "a.zarr")
    report = data.append(parts[1], where="n > 4", quality=True)
    chosen = parts[1][parts[1].obs["n"] > 4]
    assert 0 < report.n_obs == chosen.n_obs < 20
    grown = ad.read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(grown.X[9:], chosen.X)
    np.testing.assert_array_equal(grown.obsm["csr"][9:].toarray(), chosen.obsm["csr"].toarray())
    archive = scdl.open(tmp_path / "a.zarr")
    # An archive is a source as well, of itself.
    archive.append(tmp_path / "a.zarr")
    twice = ad.read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(twice.X, np.concatenate([grown.X, grown.X]))


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_genes_of_raw_in_another_order_than_those_of_x(tmp_path):
    """Each matrix has the genes of its own table, also if both tables are as long."""

    def part(n, seed):
        adata = cells(n, seed)
        adata.raw = cells(n, seed)[:, ::-1]
        return adata

    parts = [part(5, 0), part(4, 1)]
    parts[1].raw = parts[1].raw.to_adata()[:, ::-1]
    scdl.convert(parts[0], tmp_path / "a.zarr", matrix="X")
    scdl.open(tmp_path / "a.zarr").append(parts[1], matrix="X")
    grown = ad.read_zarr(tmp_path / "a.zarr")
    for raw in (False, True):
        found = grown.raw.to_adata() if raw else grown
        expected = np.concatenate([part.X.toarray() for part in parts])
        np.testing.assert_array_equal(found[:, GENES].X.toarray(), expected)


def test_raw_of_archives_of_the_matrix_alone(tmp_path):
    """Sources with X and layers beside raw/X: the archive holds raw/X."""
    parts = [with_raw(9), with_raw(6, 1)]
    scdl.convert(parts[0], tmp_path / "a", obsm="X_pca")
    data = scdl.open(tmp_path / "a")
    report = data.append(parts[1])
    assert {"X", "layers/by rows", "obsm/csr", "var"} <= {*report.not_carried}
    scdl.convert(parts, tmp_path / "b", obsm="X_pca")
    assert_same(data, scdl.open(tmp_path / "b"))


def with_layer(n, seed=0, form="csr"):
    adata = with_elements(n, seed)
    adata.layers["doubled"] = (2 * adata.X).asformat(form)
    return adata


@pytest.mark.parametrize("kind", KINDS)
def test_fields_grow(tmp_path, kind):
    options = {**KINDS[kind], "layers": ["doubled"], "obsm": "X_pca", "neighbor_key": "knn"}
    parts = [with_layer(n, n) for n in (9, 0, 6)]
    # Genes in another order, of the field as of the matrix.
    parts[2] = parts[2][:, ::-1].copy()
    scdl.convert(parts[0], tmp_path / "a", **options)
    data = scdl.open(tmp_path / "a")
    for part in parts[1:]:
        assert data.append(part).fields == ("doubled",)
    scdl.convert(parts, tmp_path / "b", **options)
    whole = scdl.open(tmp_path / "b")
    assert_same(data, whole)
    assert data.fields == whole.fields == ["doubled"]
    rows = data.read_rows(slice(None), fields=["doubled"])
    np.testing.assert_array_equal(rows.fields["doubled"].to_dense(), 2 * rows.to_dense())


def test_fields_of_other_layers_and_of_none(tmp_path):
    scdl.convert(with_layer(5), tmp_path / "a", layers=["doubled"])
    data = scdl.open(tmp_path / "a")
    data.append(cells(4, 1), layers={"doubled": "X"})
    rows = data.read_rows(slice(5, None), fields=["doubled"])
    np.testing.assert_array_equal(rows.fields["doubled"].to_dense(), rows.to_dense())
    with pytest.raises(SourceError, match="there is no matrix layers/doubled"):
        data.append(cells(4, 1))
    with pytest.raises(OptionError, match=r"but the layers of .* are: doubled"):
        data.append(cells(4, 1), layers=["other"])
    assert len(data) == 9


FORMS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": _dense}


def with_objects(n, seed=0):
    """Graphs in every form, truth values in each mapping, and tables with different columns."""
    adata, rng = with_elements(n, seed), np.random.default_rng(seed + 1)
    graph, truth = adata.obsp["knn"], sp.csr_matrix(rng.random((n, 12)) < 0.3)
    for form, make in FORMS.items():
        adata.obsp[form] = make(graph)
        adata.obsp[f"{form} truth"] = make(graph > 0.5)
        adata.layers[f"{form} truth"] = make(truth)
        adata.obsm[f"{form} truth"] = make(truth[:, :5])
    columns = {
        "number": rng.normal(size=n),
        "count": rng.integers(0, 9, n),
        "text": [f"text {i}" for i in range(n)],
        "category": pd.Categorical(rng.choice(["a", f"b{seed}"], n), ["a", f"b{seed}"]),
        f"of {seed}": np.arange(n),
    }
    # Of no rows, too: newer releases of pandas have a type of text.
    adata.obsm["table"] = pd.DataFrame(columns, index=adata.obs_names).astype({"text": str})
    return adata


def joined_objects(parts):
    """The elements of parts of `with_objects` as one AnnData has them, by name."""
    found = {}
    for mapping in ("layers", "obsm", "obsp"):
        for key, first in getattr(parts[0], mapping).items():
            if key is None or isinstance(first, pd.DataFrame):
                continue
            each = [_dense(getattr(part, mapping)[key]) for part in parts]
            join = np.concatenate
            if mapping == "obsp":

                def join(blocks):
                    sparse = [sp.csr_matrix(block) for block in blocks]
                    return sp.block_diag(sparse).toarray().astype(blocks[0].dtype)

            form = first.format if sp.issparse(first) else "dense"
            found[f"{mapping}/{key}"] = FORMS[form](join(each))
    return found


def joined_table(parts):
    tables = [part.obsm["table"] for part in parts]
    table = pd.concat([one.drop(columns="category") for one in tables])
    table["category"] = pd.api.types.union_categoricals([one["category"] for one in tables])
    return table


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
@pytest.mark.parametrize("chunks", ["small", "default"])
@pytest.mark.parametrize("kind", ["fast", "archive"])
@settings(
    max_examples=examples(10, least=2), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(0, 25), min_size=2, max_size=3),
    block_values=st.sampled_from([1, 7, 50, 1 << 20]),
    from_file=st.booleans(),
)
def test_graphs_truth_values_and_tables(
    tmp_path_factory, request, kind, chunks, sizes, block_values, from_file
):
    """Growing equals converting the concatenation."""
    if chunks == "small":
        request.getfixturevalue("small_chunks")
    place, parts = (
        tmp_path_factory.mktemp("forms"),
        [with_objects(n, i) for i, n in enumerate(sizes)],
    )
    scdl.convert(parts[0], place / "grown.zarr", **KINDS[kind])
    data, reader = scdl.open(place / "grown.zarr"), scdl.open(place / "grown.zarr")
    for part in parts[1:]:
        # Genes in another order; the copy has no unused categories.
        source = part[:, ::-1].copy()
        part.obsm["table"] = source.obsm["table"]
        if from_file:
            source.write_h5ad(place / "part.h5ad")
            source = place / "part.h5ad"
        report = data.append(source, block_values=block_values)
        assert (report.n_obs, report.not_carried) == (part.n_obs, ())
    expected, table = joined_objects(parts), joined_table(parts)
    whole = ad.AnnData(np.concatenate([part.X.toarray() for part in parts]), data.read_obs())
    whole.X, whole.var = sp.csr_matrix(whole.X), parts[0].var
    for name, value in expected.items():
        mapping, _, key = name.partition("/")
        getattr(whole, mapping)[key] = value
    grown = ad.read_zarr(place / "grown.zarr")
    found = grown.obsm["table"]
    assert list(found.index) == list(table.index) == list(grown.obs_names)
    assert {*found} == {*table}
    for name in table:
        pd.testing.assert_series_equal(
            found[name].reset_index(drop=True),
            table[name].reset_index(drop=True),
            check_names=False,
            check_dtype="of" not in name,
        )
    whole.obsm["table"] = found
    scdl.convert(whole, place / "whole.zarr", **KINDS[kind])
    converted = ad.read_zarr(place / "whole.zarr")
    for name in expected:
        a, b = (whole_element(one, name) for one in (grown, converted))
        assert (type(a), a.dtype, a.shape) == (type(b), b.dtype, b.shape), name
        np.testing.assert_array_equal(_dense(a), _dense(b), name)
    # The type of an empty index depends on the release of pandas.
    pd.testing.assert_frame_equal(found, converted.obsm["table"], check_index_type=False)
    assert data.verify(deep=True).verdict == reader.verify(deep=True).verdict == 0
    before = reader.to_anndata().obsm["table"]
    pd.testing.assert_frame_equal(before, parts[0].obsm["table"], check_index_type=False)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_truth_values_beside_other_matrices(tmp_path):
    """X of truth values beside raw, or beside a layer that is the matrix."""

    def part(n, seed, *, raw):
        adata = cells(n, seed)
        truth = adata.X > 3
        if raw:
            adata.raw = adata
            adata = adata[:, [7, 2, 5]].copy()
            truth = truth[:, [7, 2, 5]]
        else:
            adata.layers["counts"] = adata.X
        adata.X = truth
        return adata

    for matrix in ("raw/X", "layers/counts"):
        parts = [part(n, n, raw=matrix == "raw/X") for n in (9, 6)]
        scdl.convert(parts[0], tmp_path / "a.zarr", matrix=matrix, replace=True)
        scdl.open(tmp_path / "a.zarr").append(parts[1], matrix=matrix)
        grown = ad.read_zarr(tmp_path / "a.zarr").X
        assert (type(grown), grown.dtype) == (sp.csr_matrix, bool)
        expected = np.concatenate([one.X.toarray() for one in parts])
        np.testing.assert_array_equal(grown.toarray(), expected)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_what_a_source_lacks_of_objects(tmp_path):
    """Errors change nothing; cells without a graph have no neighbours."""
    scdl.convert(with_objects(9), tmp_path / "a.zarr")
    files = {path: path.read_bytes() for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()}
    wrong = [with_objects(5, 1) for _ in range(5)]
    del wrong[0].obsm["table"]
    wrong[1].obsm["table"] = wrong[1].obsm["X_pca"]
    wrong[2].write_h5ad(tmp_path / "renamed.h5ad")
    with h5py.File(tmp_path / "renamed.h5ad", "a") as file:
        names = file["obsm/table/_index"]
        # Newer releases of anndata write text that may be missing.
        names = names["values"] if isinstance(names, h5py.Group) else names
        names[0] = "other"
    wrong[2] = tmp_path / "renamed.h5ad"
    wrong[3].layers["csc truth"] = 2 * wrong[3].X
    wrong[4].obsp["csc truth"] = wrong[4].obsp["csr"]
    told = (
        (SourceError, "obsm/table is missing"),
        (SourceError, "obsm/table is a table in .*, but not here"),
        (SourceError, "obsm/table is a table whose row names differ"),
        (CastError, "csc truth.* cannot hold the value"),
        (CastError, "csc truth.* cannot hold the value"),
    )
    data = scdl.open(tmp_path / "a.zarr")
    for source, (error, text) in zip(wrong, told, strict=True):
        with pytest.raises(error, match=text):
            data.append(source)
    assert files == {
        path: path.read_bytes() for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()
    }
    other = with_objects(20, 1)
    other.obsp.clear()
    other.obsm["table"]["complex"] = 1j
    report = data.append(other, where="n > 4")
    assert "obsm/table/complex" in report.not_carried
    chosen = other[other.obs["n"] > 4]
    grown = ad.read_zarr(tmp_path / "a.zarr")
    assert 0 < report.n_obs == len(grown) - 9 == chosen.n_obs < 20
    for key, graph in with_objects(9).obsp.items():
        expected = sp.block_diag([graph, sp.csr_matrix((chosen.n_obs, chosen.n_obs))]).toarray()
        np.testing.assert_array_equal(_dense(grown.obsp[key]), expected, key)
    assert grown.obsm["table"]["text"].tolist()[9:] == chosen.obsm["table"]["text"].tolist()
    np.testing.assert_array_equal(
        grown.obsm["csc truth"][9:].toarray(), chosen.obsm["csc truth"].toarray()
    )


def test_changed_columns_of_tables(tmp_path):
    """Columns of other types are united, and reported, as those of obs are."""
    parts = [with_elements(5, i) for i in range(2)]
    for part, values in zip(parts, ([*range(5)], [*"abcde"]), strict=True):
        part.obsm["table"] = pd.DataFrame({"mixed": values}, index=part.obs_names)
    scdl.convert(parts[0], tmp_path / "a.zarr")
    with pytest.warns(scdl.errors.ScdlWarning, match="columns of obsm/table with different types"):
        report = scdl.open(tmp_path / "a.zarr").append(parts[1])
    assert [change.split(" ")[0] for change in report.changed_columns] == ["obsm/table/mixed"]
    grown = scdl.open(tmp_path / "a.zarr").to_anndata().obsm["table"]
    assert grown["mixed"].tolist() == [*"01234abcde"]


def test_interrupted_append_of_objects(tmp_path, run_python):
    scdl.convert(with_objects(9), tmp_path / "a.zarr")
    with_objects(5, 1).write_h5ad(tmp_path / "b.h5ad")
    code = """
import os, sys, scdl
from storage_backends.directory import publication
from storage_backends.zarr.growing import ZarrGrower
complete = ZarrGrower._complete
ZarrGrower._complete = lambda *given: [complete(*given), os.kill(os.getpid(), 9)]
scdl.open(sys.argv[1]).append(sys.argv[2])
"""
    assert run_python("-c", code, tmp_path / "a.zarr", tmp_path / "b.h5ad").returncode == -9
    data = scdl.open(tmp_path / "a.zarr")
    assert data.verify(deep=True).verdict == 0
    pd.testing.assert_frame_equal(data.to_anndata().obsm["table"], with_objects(9).obsm["table"])
    data.append(tmp_path / "b.h5ad")
    assert len(data) == 14
    np.testing.assert_array_equal(
        data.to_anndata().obsp["dense"],
        joined_objects([with_objects(9), with_objects(5, 1)])["obsp/dense"],
    )


def test_what_cannot_grow(tmp_path):
    """Objects of other kinds, and what archives have that are rewritten."""
    adata = with_layer(5, form="csc")
    adata.obsm["text"] = np.array([["a", "b"]] * 5)
    scdl.convert(adata, tmp_path / "a.zarr")
    with pytest.raises(SourceError, match="obsm/text: cells cannot be added to it"):
        scdl.open(tmp_path / "a.zarr").append(adata)
    adata = with_objects(5)
    scdl.convert(adata, tmp_path / "c.zarr")
    os.remove(tmp_path / "c.zarr/scdl.checksums")
    with pytest.raises(SourceError) as error:
        scdl.open(tmp_path / "c.zarr").append(adata)
    named = str(error.value).split("elements ")[1].split(";")[0].split(", ")
    truth = {f"{name}/{form} truth" for name in ("layers", "obsm", "obsp") for form in FORMS}
    assert {*named} == {*truth, "obsm/table", "obsp/csc", "obsp/dense"}


def test_other_elements_stay(tmp_path):
    adata = with_elements(5)
    adata.uns["title"], adata.varm["loadings"] = "cells", np.ones((12, 2))
    scdl.convert(adata, tmp_path / "a.zarr")
    data = scdl.open(tmp_path / "a.zarr")
    report = data.append(adata)
    assert set(report.not_carried) == {"uns", "varm/loadings"}
    grown = data.to_anndata()
    assert (grown.n_obs, grown.uns["title"]) == (10, "cells")
    assert grown.varm["loadings"].shape == (12, 2)


@pytest.mark.parametrize("lacks", ["scdl/checksums.bin", "scdl/manifest.json"])
def test_archive_that_is_rewritten(tmp_path, lacks):
    """Without checksums, or the files of scdl, an archive is written anew."""
    data = convert(with_elements(10), tmp_path / "a")
    os.remove(tmp_path / "a" / lacks)
    if "manifest" in lacks:
        shutil.rmtree(tmp_path / "a/scdl")
    data = scdl.open(tmp_path / "a")
    report = data.append(with_elements(5, 1), where="n < 100")
    assert (len(data), report.n_obs, report.nnz) == (15, 5, with_elements(5, 1).X.nnz)
    if "checksums" in lacks:
        assert_same(data, convert([with_elements(10), with_elements(5, 1)], tmp_path / "b"))
    assert data.verify(deep=True).verdict == 0


def test_interrupted_append(tmp_path, run_python):
    """After a crash the archive has its old cells, is sound, and can be mended or grow."""
    convert(with_elements(30), tmp_path / "a")
    code = """
import os, sys, scdl
from storage_backends.memmap.growing import MemmapGrower
MemmapGrower.commit = lambda writer, *_: [writer.recorder.close(), os.kill(os.getpid(), 9)]
scdl.open(sys.argv[1]).append(sys.argv[2])
"""
    convert(with_elements(20, 1), tmp_path / "b")
    assert run_python("-c", code, tmp_path / "a", tmp_path / "b").returncode == -9
    assert os.path.getsize(tmp_path / "a/data.npy") > 4 * with_elements(30).X.nnz
    data = scdl.open(tmp_path / "a")
    assert len(data) == 30
    findings = data.verify(deep=True).findings
    assert findings
    assert all(finding.verdict == 0 and finding.mendable for finding in findings)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    done = scdl.verify(tmp_path / "copy", repair=True)
    assert done.verdict == 0
    assert_same(scdl.open(tmp_path / "copy"), convert(with_elements(30), tmp_path / "same"))
    data.append(with_elements(20, 1))
    assert_same(data, convert([with_elements(30), with_elements(20, 1)], tmp_path / "whole"))
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_checksums_of_an_interrupted_append(tmp_path):
    """Bytes that were left do not become those of cells."""
    convert(with_elements(30), tmp_path / "a")
    with open(tmp_path / "a/data.npy", "ab") as file:
        file.write(bytes(400))
    (tmp_path / "a/scdl/.growing").touch()
    shutil.copytree(tmp_path / "a", tmp_path / "shared", copy_function=os.link)
    # Shared content is not shortened, and is still known to be longer.
    assert scdl.verify(tmp_path / "shared", repair=True).verdict == 0
    assert len(scdl.open(tmp_path / "shared")) == 30
    os.remove(tmp_path / "a/scdl/checksums.bin")
    scdl.verify(tmp_path / "a", add_checksums=True)
    for name in ("a", "shared"):
        data = scdl.open(tmp_path / name)
        data.append(with_elements(5, 1))
        whole = convert([with_elements(30), with_elements(5, 1)], tmp_path / f"{name} whole")
        assert_same(data, whole)


def test_other_program_that_changes_values_is_not_taken_for_an_append(tmp_path):
    convert(with_elements(30), tmp_path / "a")
    with open(tmp_path / "a/data.npy", "ab") as file:
        file.write(bytes(400))
    with pytest.raises(scdl.errors.ArchiveFormatError):
        scdl.open(tmp_path / "a")


def test_second_writer_is_refused(tmp_path):
    data = convert(with_elements(5), tmp_path / "a")
    other = scdl.open(tmp_path / "a")
    writer = data._store.grow()
    with writer, pytest.raises(ArchiveLockedError):
        other.append(with_elements(5, 1))
    other.append(with_elements(5, 1))
    assert len(scdl.open(tmp_path / "a")) == 10


def test_many_small_appends_leave_few_files(tmp_path):
    data = convert(with_elements(5), tmp_path / "a")
    before = sorted(p.relative_to(tmp_path) for p in (tmp_path / "a").rglob("*"))
    for seed in range(1, 12):
        data.append(with_elements(2, seed))
    assert sorted(p.relative_to(tmp_path) for p in (tmp_path / "a").rglob("*")) == before


def test_reference_reads_grown_archives(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    reference = pytest.importorskip("bionemo.scdl.io.single_cell_memmap_dataset")
    from storage_backends.memmap import table_writer

    # Files of obs from a few rows on.
    monkeypatch.setattr(table_writer, "ROW_GROUP", 4)
    parts = [cells(5 + i, i) for i in range(12)]
    scdl.convert(parts[0], tmp_path / "a")
    data = scdl.open(tmp_path / "a")
    for part in parts[1:]:
        data.append(part)
    assert len(list((tmp_path / "a/obs_features").glob("*.parquet"))) == 12
    theirs = reference.SingleCellMemMapDataset(str(tmp_path / "a"))
    assert theirs.shape() == data.shape()
    whole = ad.concat(parts)
    for i in range(len(data)):
        (values, columns), (genes,), cell = theirs.get_row(
            i, return_var_features=True, return_obs_features=True
        )
        assert values.tolist() == whole.X[i].data.tolist()
        assert columns.tolist() == whole.X[i].indices.tolist()
        assert genes.tolist() == list(range(12))
        assert [*map(str, cell)] == [str(whole.obs["type"].iloc[i]), str(whole.obs["n"].iloc[i])]
    scdl.convert(parts, tmp_path / "whole")
    assert_same(data, scdl.open(tmp_path / "whole"))


def test_command(tmp_path, run_command):
    for seed, name in enumerate(["a", "b", "c"]):
        cells(5, seed).write_h5ad(tmp_path / f"{name}.h5ad")
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive")
    done = run_command("scdl", "append", "archive", "b.h5ad", "c.h5ad")
    assert done.returncode == 0, done.stderr
    assert "10 cells" in done.stdout
    assert len(scdl.open(tmp_path / "archive")) == 15
    done = run_command("scdl", "append", "nothing", "b.h5ad")
    assert done.returncode == 1
    assert "there is no archive here" in done.stderr


def test_two_commands_at_once(tmp_path, child_environment):
    """Each waits, adds all of its cells, or is refused; none is lost in part."""
    cells(200, 1).write_h5ad(tmp_path / "b.h5ad")
    scdl.convert(cells(10), tmp_path / "archive")
    command = [sys.executable, "-m", "scdl", "append", "archive", "b.h5ad", "--quiet"]
    running = [
        subprocess.Popen(command, cwd=tmp_path, env=child_environment, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    told = [child.communicate(timeout=120)[1].decode() for child in running]
    done = [child.returncode == 0 for child in running]
    refused = [text for text, ok in zip(told, done, strict=True) if not ok]
    assert all("changing this" in text or "was changed" in text for text in refused), told
    data = scdl.open(tmp_path / "archive")
    assert len(data) == 10 + 200 * sum(done) > 10
    assert data.verify(deep=True).verdict == 0
