"""Archives with matrices that repeat each other."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.tests.helpers import assert_equal
from annotated import names_of_layers
from budget import sample
from range_server import RangeServer, serving

import scdl
from scdl.errors import ScdlError
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr.codecs.repeating_codec import OfCodec, Repetition, SameCodec

# Of the filter that narrows floats to 16 bits.
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs")
N_OBS, N_VARS = 900, 300


def counts(n_obs: int = N_OBS, n_vars: int = N_VARS, *, seed: int = 0) -> sp.csr_matrix:
    """Counts whose genes differ in their rates, and cells in their depth; some cells are empty."""
    rng = np.random.default_rng(seed)
    rates = 6 * rng.permutation(n_vars) ** 3.0 / n_vars**3
    depth = rng.lognormal(0, 0.6, n_obs)
    depth[rng.integers(0, n_obs, 9)] = 0
    return sp.csr_matrix(rng.poisson(depth[:, None] * rates), dtype="f4")


def normalised(counts: sp.csr_matrix, dtype: Any = "f4") -> sp.csr_matrix:
    """As scanpy normalises them."""
    found = counts.astype(dtype)
    depth = np.maximum(np.asarray(counts.sum(axis=1), dtype).ravel(), 1)
    found.data = np.log1p(found.data / np.repeat(depth / 1e4, np.diff(counts.indptr)).astype(dtype))
    return found


def annotated(X: Any, **elements: Any) -> anndata.AnnData:
    rng = np.random.default_rng(1)
    n = X.shape[1]
    var = pd.DataFrame({"n": np.arange(n)}, index=[f"g{i}" for i in range(n)])
    more = {"v": rng.random((n, 2))}, {"p": sp.random(n, n, 0.1, format="csr", rng=rng)}
    obs = pd.DataFrame(index=[f"c{i}" for i in range(X.shape[0])])
    return anndata.AnnData(X, obs, var, varm=more[0], varp=more[1], **elements)


def with_raw(X: Any, raw: Any, **elements: Any) -> anndata.AnnData:
    adata = annotated(X, **elements)
    adata.raw = anndata.AnnData(raw, adata.obs, adata.var)
    return adata


def archived(adata: anndata.AnnData, path: Path, **options: Any) -> Path:
    scdl.convert(adata, path, compression="archive", **options)
    return path


def codecs(path: Path) -> dict[str, str]:
    """The arrays that repeat another, and how."""
    root = json.loads((path / "zarr.json").read_text())
    found = {}
    for name, node in root["consolidated_metadata"]["metadata"].items():
        for codec in node.get("codecs", ())[:1]:
            if codec["name"] in ("scdl.same", "scdl.of"):
                found[name] = f"{codec['name'][5:]} {codec['configuration']['array']}"
    return found


def read(path: Path) -> anndata.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.read_zarr(path)


def check(path: Path, adata: anndata.AnnData) -> None:
    """Compare an archive with its source: all as AnnData and as scdl reads it, and single rows."""
    assert_equal(scdl.open(path).to_anndata(), adata)
    found = read(path)
    genes = found.var_names
    expected = adata[:, genes].copy()
    expected.raw = None
    given, found.raw = found.raw, None
    assert_equal(found, expected)
    matrices = ["X", *(f"layers/{key}" for key in names_of_layers(adata))]
    if adata.raw is not None:
        assert (given.X != adata.raw[:, given.var_names].X).nnz == 0
        matrices.append("raw/X")
    rows = np.random.default_rng(0).permutation(adata.n_obs)[:70]
    for matrix in matrices:
        is_main = matrix == ("raw/X" if adata.raw is not None else "X")
        data = scdl.open(path) if is_main else scdl.open(path, matrix=matrix)
        element = data.read_rows(rows).to_scipy()
        kind, _, key = matrix.partition("/")
        source = {"X": adata.X, "raw": adata.raw and adata.raw.X}.get(kind)
        wanted = (adata.layers[key] if key and kind == "layers" else source)[rows]
        assert element.dtype == wanted.dtype
        assert element.toarray().tobytes() == wanted.toarray().tobytes()
    assert scdl.verify(path, deep=True).is_sound


COUNTS = counts()
RAW = {"X/data": "of ../../raw/X/data", "X/indices": "same ../../raw/X/indices"}


@pytest.mark.parametrize("dtype", sample(["f4", "f8", "i8", "u1"], 2))
def test_raw_and_other_values(dtype: str, tmp_path: Path) -> None:
    X = normalised(COUNTS, dtype if dtype[0] == "f" else "f4")
    if dtype[0] != "f":
        # Another function of the cell and the count, which pcodec may store in fewer bytes.
        X.data = ((X.data * 1_000) % 120).astype(dtype)
    adata = with_raw(X, COUNTS)
    path = archived(adata, tmp_path / "a.zarr")
    found = codecs(path)
    assert found["X/indices"] == RAW["X/indices"]
    assert dtype[0] != "f" or found == RAW
    check(path, adata)


def test_counts_in_a_layer(tmp_path: Path) -> None:
    adata = annotated(normalised(COUNTS), layers={"counts": COUNTS})
    path = archived(adata, tmp_path / "a.zarr")
    assert codecs(path) == {
        "X/data": "of ../../layers/counts/data",
        "layers/counts/indices": "same ../../../X/indices",
    }
    check(path, adata)


def test_bits_that_numbers_hide(tmp_path: Path) -> None:
    """Cells whose values are NaN with other bits, zeros with signs, or denormal."""
    X = normalised(COUNTS)
    odd = np.array([0x7FC00001, 0xFFC00002, 0x80000000, 0, 1], "u4").view("f4")
    for k, value in enumerate(odd):
        row = slice(*X.indptr[20 * k + 20 : 20 * k + 22])
        X.data[row] = np.where(COUNTS.data[row] == 1, value, X.data[row])
    path = archived(with_raw(X, COUNTS), tmp_path / "a.zarr")
    assert codecs(path) == RAW
    found = scdl.open(path, matrix="X").read_rows(slice(None))
    assert found.data.tobytes() == X.data.tobytes()


def test_copies_are_stored_once(tmp_path: Path) -> None:
    adata = with_raw(
        normalised(COUNTS), COUNTS, layers={"counts": COUNTS, "log": normalised(COUNTS)}
    )
    path = archived(adata, tmp_path / "a.zarr")
    found = codecs(path)
    assert found["layers/counts/data"] == "same ../../../raw/X/data"
    assert len(found) == 6
    check(path, adata)


def late(X: sp.csr_matrix, part: str) -> sp.csr_matrix:
    """One number of the last cell is another."""
    X = X.copy()
    if part == "data":
        X.data[-1] += 1
        X.data[-2] += 2
    else:
        X.indices[-1] = N_VARS - 1 if X.indices[-1] < N_VARS - 1 else X.indices[-2] + 1
    return X


def longer(X: sp.csr_matrix) -> sp.csr_matrix:
    """A value moves from the last cell to the one before, so that rows end elsewhere."""
    found = X.copy()
    found.indptr[-2] -= 1
    return found


@pytest.mark.parametrize(
    ("change", "expected"),
    {
        "value": (lambda X: late(X, "data"), ["X/indices"]),
        "id": (lambda X: late(X, "indices"), []),
        "row": (longer, []),
        "noise": (
            lambda X: (
                X
                + 0 * X
                + sp.csr_matrix(
                    (np.random.default_rng(0).random(X.nnz, "f4"), X.indices, X.indptr), X.shape
                )
            ),
            ["X/indices"],
        ),
    }.values(),
    ids=["value", "id", "row", "noise"],
)
def test_what_does_not_follow_is_stored(
    change: Callable[[Any], Any], expected: list[str], tmp_path: Path
) -> None:
    raw = counts(2_000)
    adata = with_raw(change(normalised(raw)), raw)
    path = archived(adata, tmp_path / "a.zarr")
    assert list(codecs(path)) == expected
    check(path, adata)


def test_var_of_other_genes_keeps_its_order(tmp_path: Path) -> None:
    X = normalised(COUNTS)
    fewer = annotated(X[:, :100])
    fewer.raw = anndata.AnnData(
        COUNTS, fewer.obs, pd.DataFrame(index=[f"g{i}" for i in range(N_VARS)])
    )
    dense = with_raw(X.toarray(), COUNTS)
    layer = with_raw(X, COUNTS, layers={"dense": X.toarray()})
    renamed = with_raw(X, COUNTS)
    renamed.var_names = [f"h{i}" for i in range(N_VARS)]
    taken = with_raw(X, COUNTS)
    taken.var["original_position"] = 0
    for k, adata in enumerate((fewer, dense, layer, renamed, taken)):
        path = archived(adata, tmp_path / f"{k}.zarr")
        assert not codecs(path)
        assert list(read(path).var_names) == list(adata.var_names)
        assert_equal(scdl.open(path).to_anndata(), adata)


@pytest.mark.parametrize("profile", ["packed", "balanced"])
def test_other_profiles(profile: str, tmp_path: Path) -> None:
    adata = with_raw(normalised(COUNTS), COUNTS, layers={"counts": COUNTS})
    scdl.convert(adata, tmp_path / "a.zarr", compression=profile)
    assert not codecs(tmp_path / "a.zarr")
    check(tmp_path / "a.zarr", adata)


def test_archives_that_are_converted_again(tmp_path: Path) -> None:
    adata = with_raw(normalised(COUNTS), COUNTS)
    path = archived(adata, tmp_path / "a.zarr")
    for profile in ("archive", "fast"):
        scdl.convert(path, tmp_path / f"{profile}.zarr", compression=profile)
        check(tmp_path / f"{profile}.zarr", adata)
    assert codecs(tmp_path / "archive.zarr") == RAW
    scdl.convert(path, tmp_path / "x.zarr", compression="fast", matrix="X")
    assert (
        scdl.open(tmp_path / "x.zarr").read_rows([5, 700]).to_scipy() != adata.X[[5, 700]]
    ).nnz == 0


def test_archives_with_raw_grow(tmp_path: Path) -> None:
    adata = with_raw(normalised(COUNTS), COUNTS, layers={"counts": COUNTS})
    path = archived(adata[:500].copy(), tmp_path / "a.zarr")
    assert len(codecs(path)) == 4
    scdl.open(path).append(adata[500:].copy())
    assert not codecs(path)
    check(path, adata)


def test_archives_that_grow_store_matrices_on_their_own(tmp_path: Path) -> None:
    X = normalised(COUNTS)
    adata = annotated(X, layers={"counts": COUNTS})
    del adata.varm, adata.varp
    path = archived(adata[:500].copy(), tmp_path / "a.zarr", layers=["counts"], only_matrix=True)
    assert len(codecs(path)) == 2
    before = scdl.open(path)
    before.append(adata[500:].copy())
    assert not codecs(path)
    check(path, adata)
    assert (before.read_rows(np.arange(500)).to_scipy() != X[:500]).nnz == 0
    # One of whose matrices only one gets values.
    path = archived(adata[:500].copy(), tmp_path / "b.zarr", layers=["counts"], only_matrix=True)
    empty = adata[500:502].copy()
    empty.X = sp.csr_matrix(empty.shape, dtype="f4")
    scdl.open(path).append(empty)
    found = scdl.open(path).to_anndata()
    assert (found.X[:500] != X[:500]).nnz == found.X[500:].nnz == 0
    assert (found.layers["counts"] != COUNTS[:502]).nnz == 0
    assert scdl.verify(path, deep=True).is_sound


@pytest.mark.parametrize("where", ["collection", "zip file", "server"])
def test_collections_zip_files_and_servers(where: str, tmp_path: Path) -> None:
    if where == "server":
        pytest.importorskip("obstore")
    parts = [counts(400, seed=seed) for seed in range(3)]
    paths = [
        archived(annotated(normalised(part), layers={"counts": part}), tmp_path / f"{k}.zarr")
        for k, part in enumerate(parts)
    ]
    kinds = {scdl.open(path).store.group.array("data").kind for path in paths}
    assert len(kinds) == 1
    if where != "collection":
        parts = parts[:1]
    expected = sp.vstack([normalised(part) for part in parts]).tocsr()
    rows = np.random.default_rng(0).permutation(expected.shape[0])
    shutil.make_archive(str(tmp_path / "zipped"), "zip", paths[0])
    with serving(tmp_path) as server:
        assert isinstance(server, RangeServer)
        if where == "collection":
            data: Any = scdl.SingleCellCollection(paths)
        else:
            data = scdl.open(
                f"{server.url}/0.zarr" if where == "server" else tmp_path / "zipped.zip"
            )
        found = data.read_rows(rows).to_scipy()
    assert found.toarray().tobytes() == expected[rows].toarray().tobytes()


def test_zarr_reads_any_selection_and_writes_none(tmp_path: Path) -> None:
    raw = counts(2_000)
    path = archived(with_raw(normalised(raw), raw), tmp_path / "a.zarr")
    group = zarr.open_group(path, mode="r+")
    n = len(raw.data)
    assert n > 3 * (1 << 14)
    for name in ("data", "indices"):
        array: Any = group[f"X/{name}"]
        whole = array[:]
        for chosen in (slice(5, 100), slice(3, n, 7_001), slice(-9, None), slice(4, 4), 7, n - 1):
            np.testing.assert_array_equal(array[chosen], whole[chosen])
        places = np.array([n - 1, 5, 5, 40_000])
        np.testing.assert_array_equal(array.oindex[places], whole[places])
        np.testing.assert_array_equal(array.vindex[places], whole[places])
        mask = np.zeros(n, bool)
        mask[places] = True
        np.testing.assert_array_equal(array.oindex[mask], whole[mask])
        with pytest.raises(ValueError, match="cannot be changed"):
            array[:] = 1
    # Paths are relative, so a group of a larger store is read too.
    shutil.copytree(path, tmp_path / "mod" / "rna")
    found = zarr.open_array(tmp_path / "mod" / "rna" / "X" / "data", mode="r")
    with pytest.raises(ValueError, match="out of the store"):
        found[:]
    zarr.create_group(tmp_path / "mod", zarr_format=3)
    nested: Any = zarr.open_group(tmp_path / "mod", mode="r")["rna/X/data"]
    np.testing.assert_array_equal(nested[:], group["X/data"][:])  # type: ignore[index]


def edited(path: Path, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the metadata of an array, in both places."""
    for file in (path / "zarr.json", path / name / "zarr.json"):
        metadata = json.loads(file.read_text())
        node = metadata
        if "consolidated_metadata" in metadata and metadata["node_type"] == "group":
            node = metadata["consolidated_metadata"]["metadata"][name]
        edit(node)
        file.write_text(json.dumps(metadata))


def repeats(array: str) -> Callable[[dict[str, Any]], None]:
    return lambda node: node["codecs"][0]["configuration"].update(array=array)


HOSTILE: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "missing": ("X/data", repeats("../../raw/X/none"), "which is missing"),
    "outside": ("X/data", repeats("../../../../etc/data"), "out of the store"),
    "absolute": ("X/indices", repeats("/raw/X/indices"), "out of the store"),
    "itself": ("X/data", repeats("../data"), "repeats another array"),
    "cycle": ("X/indices", repeats("../data"), "repeats another array"),
    "other length": ("X/data", repeats("../indptr"), "numbers of type"),
    "other type": ("X/indices", repeats("../../raw/X/data"), "numbers of type"),
    "no path": ("X/data", repeats(7), "has array and chunk_shape"),  # type: ignore[arg-type]
    "no settings": ("X/indices", lambda n: n["codecs"][0].pop("configuration"), "has array"),
    "pieces": (
        "X/data",
        lambda n: n["codecs"][0]["configuration"].update(chunk_shape=[1 << 13]),
        "chunks of 8,192 items",
    ),
    "no pieces": (
        "X/data",
        lambda n: n["codecs"][0]["configuration"].update(chunk_shape=[0]),
        "zarr|pieces",
    ),
    "with another codec": (
        "X/data",
        lambda n: n["codecs"].append({"name": "crc32c"}),
        "layout|zarr",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata(case: str, tmp_path: Path) -> None:
    name, edit, reason = HOSTILE[case]
    raw = counts(1_500)
    path = archived(with_raw(normalised(raw), raw), tmp_path / "a.zarr")
    edited(path, name, edit)
    with pytest.raises(ScdlError, match=reason) as caught:
        scdl.open(path, matrix="X").read_rows(np.arange(3))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises((ValueError, KeyError, TypeError, OSError)):
        anndata.read_zarr(path)


def test_damaged_tables_are_told(tmp_path: Path) -> None:
    raw = counts(1_500)
    path = archived(with_raw(normalised(raw), raw), tmp_path / "a.zarr")
    file = path / "X" / "data" / "c" / "0"
    data = bytearray(file.read_bytes())
    for position, reason in ((40, "chunk 0 is damaged"), (len(data) - 9, "index of its shard")):
        changed = data.copy()
        changed[position] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ArchiveFormatError, match=reason):
            scdl.open(path, matrix="X").read_rows(np.arange(3))
        with pytest.raises(ValueError, match="c/0"):
            zarr.open_group(path, mode="r")["X/data"][:]  # type: ignore[index]
        assert not scdl.verify(path, deep=True).is_sound
    file.unlink()
    with pytest.raises(ArchiveFormatError, match="missing"):
        scdl.open(path, matrix="X").read_rows(np.arange(3))


def test_codecs_are_what_metadata_say() -> None:
    for codec, made in (
        (Repetition("scdl.same", "../x"), SameCodec),
        (Repetition("scdl.of", "../x", 9), OfCodec),
    ):
        assert made.from_dict(codec.to_dict()).to_dict() == codec.to_dict()
    assert Repetition.of({"name": "bytes"}) is None
