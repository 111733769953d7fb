"""Named fields: layers that are stored beside the matrix and read with it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import rewritten

import scdl
from scdl.conversion.export import export
from scdl.errors import (
    ArchiveFormatError,
    CastError,
    CollectionError,
    FeatureNotFoundError,
    OptionError,
    OutputError,
    ScdlWarning,
    SourceError,
)

BACKENDS: dict[str, dict[str, Any]] = {
    "memmap": {"backend": "memmap"},
    "balanced": {"backend": "zarr"},
    "archive": {"backend": "zarr", "compression": "archive", "only_matrix": True},
}
FORMS: dict[str, Any] = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": sp.csr_matrix.toarray}
DTYPES = ["f4", "f8", "u2", "i4", "?"]
Kinds = dict[str, tuple[str, str]]
KINDS: Kinds = {"spliced": ("csr", "f4"), "counts": ("csc", "i4"), "by cell": ("dense", "u2")}


def cells(seed: int, n_obs: int, genes: Sequence[str], kinds: Kinds = KINDS) -> ad.AnnData:
    """Cells whose layers have sparse patterns of their own, in some forms and dtypes."""
    rng = np.random.default_rng(seed)

    def matrix(dtype: str) -> sp.csr_matrix:
        shape = n_obs, len(genes)
        values = rng.integers(1, 9, shape) * (rng.random(shape) < 0.4)
        return sp.csr_matrix(values.astype(dtype))

    made = ad.AnnData(
        matrix("f4"),
        pd.DataFrame({"n": np.arange(n_obs)}, index=[f"c{seed}-{i}" for i in range(n_obs)]),
        pd.DataFrame(index=list(genes)),
    )
    for name, (form, dtype) in kinds.items():
        made.layers[name] = FORMS[form](matrix(dtype))
    return made


def names(n: int) -> list[str]:
    return [f"g{i}" for i in range(n)]


def plain(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def assert_read(ds: Any, adata: ad.AnnData, rows: Any, fields: Sequence[str]) -> None:
    """The matrix and the fields of rows are those of the AnnData, also as slices."""
    batch = ds.read_rows(rows, fields=fields)
    assert list(batch.fields) == list(fields)
    for read, expected in [
        (batch, adata.X),
        *((batch.fields[name], adata.layers[name]) for name in fields),
    ]:
        wanted = plain(expected)[rows]
        assert read.shape == wanted.shape
        np.testing.assert_array_equal(plain(read.to_scipy()), wanted)
        np.testing.assert_array_equal(read.rows, batch.rows)
        assert read.to_scipy().has_sorted_indices
    half = batch[len(batch) // 2 :]
    for name in fields:
        part = plain(batch.fields[name].to_scipy())[len(batch) // 2 :]
        np.testing.assert_array_equal(plain(half.fields[name].to_scipy()), part)


def convert(source: Any, path: Path, kind: str, **options: Any) -> Any:
    return scdl.convert(source, path, **{**BACKENDS[kind], **options})


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ad.AnnData]]:
    """Archives ``<kind>-<i>`` of two AnnData with all layers as fields, and ``<i>.h5ad``."""
    place = tmp_path_factory.mktemp("two")
    made = [cells(i, n, names(11)) for i, n in enumerate([30, 21])]
    for i, adata in enumerate(made):
        adata.write_h5ad(place / f"{i}.h5ad")
        for kind in BACKENDS:
            convert(place / f"{i}.h5ad", place / f"{kind}-{i}", kind, layers=list(KINDS))
    return place, made


@settings(max_examples=examples(40))
@given(
    seed=st.integers(0, 2**16),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    n_vars=st.integers(1, 9),
    kind=st.sampled_from(list(BACKENDS)),
    layer=st.tuples(st.sampled_from(list(FORMS)), st.sampled_from(DTYPES)),
    shuffle=st.sampled_from([None, 3]),
)
def test_all_that_anndata_has_is_read(
    seed: int,
    lengths: list[int],
    n_vars: int,
    kind: str,
    layer: tuple[str, str],
    shuffle: int | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place, rng = tmp_path_factory.mktemp("any"), np.random.default_rng(seed)
    kinds = {"one": layer, "other": ("csr", "f4")}
    made = [cells(seed + i, n, names(n_vars), kinds) for i, n in enumerate(lengths)]
    # Sources may have their genes in another order.
    sources = [adata[:, rng.permutation(n_vars)].copy() for adata in made]
    whole = ad.concat([adata[:, sources[0].var_names] for adata in made])
    layers = {"one": "layers/one", "renamed": "layers/other"}
    report = convert(sources, place / "a", kind, layers=layers, shuffle=shuffle)
    assert report.fields == ("one", "renamed")
    whole.layers["renamed"] = whole.layers["other"]
    ds = scdl.open(place / "a")
    order = np.arange(len(whole)) if shuffle is None else ds.obs["source_row"].to_numpy()
    whole = whole[order].copy()
    # Archives that keep a whole AnnData have its other layers, too.
    is_whole = kind == "balanced" and len(lengths) == 1
    assert set(ds.fields) == {"one", "renamed", *(["other"] if is_whole else [])}
    stored = "u1" if layer[1] == "?" else layer[1]
    assert ds.read_rows([], fields="one").fields["one"].data.dtype == stored
    rows = rng.integers(0, len(whole), 7) if len(whole) else np.empty(0, np.int64)
    assert_read(ds, whole, rows, ["renamed", "one"])
    chosen = rng.permutation(n_vars)[: n_vars // 2 + 1]
    view = ds.select_genes([whole.var_names[i] for i in chosen])
    assert_read(view, whole[:, chosen], rows, ["one"])
    back = ds.to_anndata()
    for name in ds.fields:
        np.testing.assert_array_equal(plain(back.layers[name]), plain(whole.layers[name]))
    assert scdl.verify(place / "a", deep=True).is_sound
    ds.save(place / "copy")
    assert_read(scdl.open(place / "copy"), whole, rows, ["one", "renamed"])


@pytest.mark.parametrize("kinds", [("memmap",) * 2, ("archive", "memmap"), ("balanced",) * 2])
def test_collections(two: tuple[Path, list[ad.AnnData]], tmp_path: Path, kinds: Any) -> None:
    place, made = two
    whole, rows = ad.concat(made), np.random.default_rng(0).permutation(51)[:40]
    collection = scdl.SingleCellCollection([place / f"{k}-{i}" for i, k in enumerate(kinds)])
    assert sorted(collection.fields) == sorted(KINDS)
    assert_read(collection, whole, rows, list(KINDS))
    view = collection.select_genes(["g7", "g2"])
    assert_read(view, whole[:, ["g7", "g2"]], rows, list(KINDS))
    for adata, expected in ((collection.to_anndata(), whole), (view.to_anndata(rows), view)):
        if expected is view:
            expected = whole[rows][:, ["g7", "g2"]]
        for name in KINDS:
            np.testing.assert_array_equal(plain(adata.layers[name]), plain(expected.layers[name]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collection.flatten(tmp_path / "flat")
        collection.flatten(tmp_path / "chosen.zarr", genes=["g7", "g2"])
        collection.flatten(tmp_path / "shards", shuffle=5, shard_cells=20)
    assert_read(scdl.open(tmp_path / "flat"), whole, rows, list(KINDS))
    assert_read(scdl.open(tmp_path / "chosen.zarr"), view_of(whole), rows, list(KINDS))
    shards = scdl.open(tmp_path / "shards")
    assert_read(shards, whole[shards.obs["source_row"].to_numpy()], rows, list(KINDS))


def view_of(adata: ad.AnnData) -> ad.AnnData:
    return adata[:, ["g7", "g2"]]


def test_manifests_know_fields(two: tuple[Path, list[ad.AnnData]], tmp_path: Path) -> None:
    """Those of earlier versions do not, and members are opened to find out."""
    place, made = two
    for i in range(2):
        convert(place / f"memmap-{i}", tmp_path / f"{i}.scdl", "memmap")
    scdl.open(tmp_path).save_manifest()
    rows = np.arange(50, 0, -7)
    (manifest,) = [p for p in tmp_path.iterdir() if p.is_file()]
    told = json.loads(manifest.read_text())
    assert all(set(member["fields"]) == set(KINDS) for member in told["members"])
    assert_read(scdl.open(tmp_path), ad.concat(made), rows, list(KINDS))
    for member in told["members"]:
        del member["fields"]
    manifest.write_text(json.dumps(told))
    assert_read(scdl.open(tmp_path), ad.concat(made), rows, list(KINDS))
    told["members"][0]["fields"] = {"spliced": ["object", "u1", 3, True]}
    manifest.write_text(json.dumps(told))
    with pytest.raises(ArchiveFormatError, match="not a valid manifest"):
        scdl.open(tmp_path)


@pytest.mark.parametrize("kind", list(BACKENDS))
def test_feature_blocks(tmp_path: Path, kind: str) -> None:
    """Fields have the genes of their cells, whatever block they are in."""
    made = [cells(0, 9, names(8)), cells(1, 7, [*names(5), "h0", "h1", "h2", "h3"])]
    convert(made, tmp_path / "a", kind, layers=["spliced"])
    convert(tmp_path / "a", tmp_path / "again", "memmap")
    convert(tmp_path / "a", tmp_path / "as matrix", "memmap", matrix="layers/spliced")
    union = ad.concat(made, join="outer", fill_value=0)
    rows = [12, 3, 9, 0, 12]
    for path in (tmp_path / "a", tmp_path / "again"):
        ds = scdl.open(path)
        view = ds.select_genes("union", missing="mask")
        assert_read(view, union, rows, ["spliced"])
        batch = view.read_rows(rows, fields=["spliced"])
        assert batch.fields["spliced"].present is batch.present is not None
        np.testing.assert_array_equal(batch.fields["spliced"].spaces, batch.spaces)
        own = ds.read_rows(rows, fields=["spliced"], genes="own").fields["spliced"]
        for i, row in enumerate(rows):
            adata, at = (made[0], row) if row < 9 else (made[1], row - 9)
            expected = adata.layers["spliced"][[at]]
            np.testing.assert_array_equal(own[i : i + 1].indices, expected.indices)
            np.testing.assert_array_equal(own[i : i + 1].data, expected.data)
        assert_read(ds, ad.concat([made[0]]), [4, 4, 0], ["spliced"])
        assert scdl.verify(path, deep=True).is_sound
    spliced = scdl.open(tmp_path / "as matrix").select_genes("union", missing="zero")
    expected = plain(union.layers["spliced"])[rows]
    np.testing.assert_array_equal(plain(spliced.read_rows(rows).to_scipy()), expected)


class TestWholeArchives:
    """Archives that keep a whole AnnData have its layers by rows as fields."""

    def test_layers_by_rows(self, tmp_path: Path) -> None:
        adata = cells(0, 20, names(6))
        adata.write_h5ad(tmp_path / "a.h5ad")
        with ad.settings.override(zarr_write_format=3), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_zarr(tmp_path / "theirs.zarr")
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr")
        for path in (tmp_path / "a.zarr", tmp_path / "theirs.zarr"):
            ds = scdl.open(path)
            assert ds.fields == ["spliced"]
            assert_read(ds, adata, [3, 19, 3], ["spliced"])
            # Like other elements, they are converted to other archives when asked for.
            scdl.convert(path, tmp_path / "b", layers="spliced", replace=True)
            assert_read(scdl.open(tmp_path / "b"), adata, [3, 19, 3], ["spliced"])
            assert scdl.convert(path, tmp_path / "b", replace=True).fields == ()

    def test_genes_of_raw(self, tmp_path: Path) -> None:
        """Layers have the genes of var, which need not be those of raw."""
        adata = cells(0, 20, names(6))
        adata.raw = adata.copy()
        scdl.convert(adata, tmp_path / "same.zarr", layers=["spliced"])
        assert scdl.open(tmp_path / "same.zarr").fields == ["spliced"]
        assert_read(scdl.open(tmp_path / "same.zarr"), adata, [3, 19, 3], ["spliced"])
        adata = adata[:, [4, 1, 5]].copy()
        scdl.convert(adata, tmp_path / "other.zarr")
        ds = scdl.open(tmp_path / "other.zarr")
        assert ds.fields == []
        assert_read(ds.select_matrix("X"), adata, [3, 19, 3], ["spliced"])
        with pytest.raises(SourceError, match=r"spliced.* genes of var.* raw/X .*matrix="):
            scdl.convert(adata, tmp_path / "none.scdl", layers=["spliced"])

    def test_names_that_are_taken(self, tmp_path: Path) -> None:
        adata = cells(0, 5, names(6))
        for options in (
            {"layers": {"spliced": "layers/counts"}},
            {"layers": ["spliced"], "matrix": "layers/spliced"},
        ):
            with pytest.raises(OptionError, match=r"keeps layers/spliced as it is.*only_matrix"):
                scdl.convert(adata, tmp_path / "a.zarr", **options)
            report = scdl.convert(adata, tmp_path / "a.zarr", only_matrix=True, **options)
            assert report.fields == ("spliced",)
            scdl.open(tmp_path / "a.zarr").store.remove()


class TestWhatIsNotShared:
    def pair(self, place: Path, one: Kinds, other: Kinds) -> scdl.SingleCellCollection:
        for i, kinds in enumerate([one, other]):
            adata = cells(i, 6, names(4), kinds)
            scdl.convert(adata, place / f"{i}.scdl", layers=list(kinds))
        return scdl.SingleCellCollection([place / "0.scdl", place / "1.scdl"])

    def test_a_member_without_it(self, tmp_path: Path) -> None:
        collection = self.pair(
            tmp_path, {"a": ("csr", "f4"), "b": ("csr", "f4")}, {"b": ("csr", "f8")}
        )
        assert collection.fields == ["b"]
        with pytest.raises(FeatureNotFoundError, match=r"no field 'a'; it has: b;"):
            collection.read_rows([0], fields=["a"])
        assert collection.read_rows([0], fields="b").fields["b"].data.dtype == np.float64
        with pytest.warns(ScdlWarning, match=r"layers/a is left out: not all archives have it"):
            collection.flatten(tmp_path / "flat")
        assert scdl.open(tmp_path / "flat").fields == ["b"]
        with pytest.raises(CollectionError, match="layers/a is left out"):
            collection.flatten(tmp_path / "other", destroy_on_copy=True)

    def test_values_of_no_common_type(self, tmp_path: Path) -> None:
        collection = self.pair(tmp_path, {"a": ("csr", "f4")}, {"a": ("csr", "i8")})
        with pytest.raises(CastError, match=r"0\.scdl has float32, \S*1\.scdl has int64"):
            collection.read_rows([0], fields=["a"])
        with pytest.warns(ScdlWarning, match=r"layers/a is left out: .*no dtype represents"):
            collection.flatten(tmp_path / "flat")

    def test_a_copy_that_differs(self, tmp_path: Path) -> None:
        """A member is removed only if its fields were copied."""
        collection = self.pair(tmp_path, {"a": ("csr", "f4")}, {"a": ("csr", "f4")})
        collection.flatten(tmp_path / "flat", destroy_on_copy=True)
        assert not (tmp_path / "0.scdl").exists()
        assert scdl.open(tmp_path / "flat").fields == ["a"]


def test_sources_of_archives_keep_fields(
    two: tuple[Path, list[ad.AnnData]], tmp_path: Path
) -> None:
    place, made = two
    both = [place / "archive-0", place / "memmap-1"]
    report = scdl.convert(both, tmp_path / "both.zarr")
    assert set(report.fields) == set(KINDS)
    assert f"fields: {', '.join(report.fields)}" in str(report)
    assert_read(scdl.open(tmp_path / "both.zarr"), ad.concat(made), [3, 40], list(KINDS))
    report = scdl.convert(both, tmp_path / "one", layers={"x": "layers/counts"}, genes=["g3", "g1"])
    assert report.fields == ("x",)
    read = scdl.open(tmp_path / "one").read_rows([40], fields="x").fields["x"]
    expected = plain(made[1].layers["counts"])[[10]][:, [3, 1]]
    np.testing.assert_array_equal(plain(read.to_scipy()), expected)
    assert scdl.convert(both[1], tmp_path / "without", layers=()).fields == ()


@pytest.mark.parametrize("kind", list(BACKENDS))
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_exported_as_layers(
    two: tuple[Path, list[ad.AnnData]], tmp_path: Path, kind: str, suffix: str
) -> None:
    place, made = two
    with scdl.open(place / f"{kind}-0").store as store:
        export(store, tmp_path / f"a{suffix}")
    read = ad.read_h5ad if suffix == ".h5ad" else ad.read_zarr
    found = read(tmp_path / f"a{suffix}")
    # anndata 0.13 lists X as the layer of no name.
    assert {*found.layers} - {None} == set(KINDS)
    for name in KINDS:
        np.testing.assert_array_equal(plain(found.layers[name]), plain(made[0].layers[name]))


def test_in_parts(two: tuple[Path, list[ad.AnnData]], tmp_path: Path) -> None:
    place, made = two
    files = [place / f"{i}.h5ad" for i in range(2)]
    scdl.convert_in_parts(
        files, tmp_path / "a", layers=["counts"], workers=2, use_processes=False, split_bytes=1
    )
    assert_read(scdl.open(tmp_path / "a"), ad.concat(made), [3, 40], ["counts"])


def test_the_documented_files_do_not_change(
    two: tuple[Path, list[ad.AnnData]], tmp_path: Path
) -> None:
    """Other readers of the format see the archive that they would see without fields."""
    place, _ = two
    scdl.convert(place / "0.h5ad", tmp_path / "plain")
    for path in (tmp_path / "plain").rglob("*"):
        inside = path.relative_to(tmp_path / "plain")
        if path.is_file() and inside.parts[0] != "scdl":
            assert path.read_bytes() == (place / "memmap-0" / inside).read_bytes(), inside


@pytest.mark.parametrize("kind", list(BACKENDS))
def test_unknown_fields(two: tuple[Path, list[ad.AnnData]], kind: str) -> None:
    ds = scdl.open(two[0] / f"{kind}-0")
    listed = ", ".join(ds.fields)
    for cells in (ds, ds.select_genes(["g1"])):
        with pytest.raises(FeatureNotFoundError, match=f"no field 'nope'; it has: {listed};"):
            cells.read_rows([0], fields=["spliced", "nope"])
    with pytest.raises(OptionError, match="fields must be a name"):
        ds.read_rows([0], fields=[3])  # type: ignore[list-item]


def test_sources_that_lack_a_layer(tmp_path: Path) -> None:
    one, other = cells(0, 4, names(3)), cells(1, 4, names(3), {"x": ("csr", "f4")})
    with pytest.raises(SourceError, match=r"no matrix layers/nope; the object has: X, layers/spl"):
        scdl.convert(one, tmp_path / "a", layers="nope")
    with pytest.raises(SourceError, match=r"no matrix layers/x; the object has: X, layers/spliced"):
        scdl.convert([other, one], tmp_path / "a", layers="x")
    assert not (tmp_path / "a").exists()


def test_layers_of_another_shape(tmp_path: Path) -> None:
    import h5py
    from anndata.io import write_elem

    cells(0, 4, names(3)).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        write_elem(file["layers"], "long", sp.csr_matrix((5, 3)))
    with pytest.raises(SourceError, match=r"layers/long has shape \(5, 3\), expected \(4, 3\)"):
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "a", layers=["long"])


@pytest.mark.parametrize("layers", [[""], ["a/b"], {"x": 3}, {3: "X"}, 3])
def test_names_that_fields_cannot_have(tmp_path: Path, layers: Any) -> None:
    with pytest.raises(OptionError, match="layers"):
        scdl.convert(cells(0, 4, names(3)), tmp_path / "a", layers=layers)


def test_backends_without_fields(two: tuple[Path, list[ad.AnnData]]) -> None:
    place, _ = two
    with pytest.raises(OutputError, match="keeps no layers/spliced"):
        scdl.convert(place / "0.h5ad", "ram:fields", backend="memory", layers=["spliced"])
    report = scdl.convert(place / "memmap-0", "ram:fields", backend="memory")
    assert report.fields == ()
    assert set(report.not_carried) == {f"layers/{name}" for name in KINDS}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda ids: ids.__setitem__(0, 11), "expected ids from 0 to 10"),
        (lambda ids: ids.__setitem__(slice(0, 2), ids[1::-1].copy()), "ascending"),
    ],
)
def test_damage_is_found(
    two: tuple[Path, list[ad.AnnData]], tmp_path: Path, change: Any, told: str
) -> None:
    path = two[0] / "memmap-0"
    ids = scdl.open(path).store.read("layers/spliced/indices")
    change(ids)
    rewritten(path, tmp_path / "bad", {"layers/spliced/indices": ids})
    report = scdl.verify(tmp_path / "bad")
    assert not report.is_sound
    assert "layers/spliced/indices" in str(report)
    assert told in str(report)


@pytest.mark.parametrize(
    "sparse",
    [{"layers/nope": 11}, {"obsm/x": 11}, {"layers/spliced": -1}, {"layers/spliced": "11"}, [1],
     {"layers/spliced": 1 << 60}],
)  # fmt: skip
def test_manifests_of_others(
    two: tuple[Path, list[ad.AnnData]], tmp_path: Path, sparse: Any
) -> None:
    scdl.open(two[0] / "memmap-0").save(tmp_path / "a")
    manifest = tmp_path / "a" / "scdl" / "manifest.json"
    told = json.loads(manifest.read_text())
    assert told["sparse"] == dict.fromkeys((f"layers/{name}" for name in KINDS), 11)
    manifest.write_text(json.dumps(told | {"sparse": sparse}))
    with pytest.raises(ArchiveFormatError):
        scdl.open(tmp_path / "a")


def test_info_and_printing(
    two: tuple[Path, list[ad.AnnData]], run_command: Callable[..., Any]
) -> None:
    path = two[0] / "memmap-0"
    ds = scdl.open(path)
    assert f"fields  {', '.join(KINDS)}" in str(ds)
    assert "fields  counts" in str(ds.read_rows([0], fields=["counts"]))
    told = run_command("scdl", "info", str(path)).stdout
    n = ds.store.spec("layers/counts/data").length
    assert f"counts ({n:,} stored values, int32)" in " ".join(told.split())
    assert "element" not in told


def test_command_line(
    two: tuple[Path, list[ad.AnnData]], tmp_path: Path, run_command: Callable[..., Any]
) -> None:
    done = run_command(
        "scdl", "convert", str(two[0] / "0.h5ad"), str(tmp_path / "a"),
        "--layer", "counts", "--layer", "x=layers/spliced",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert scdl.open(tmp_path / "a").fields == ["counts", "x"]
