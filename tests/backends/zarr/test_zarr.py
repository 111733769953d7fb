"""The zarr backend: what its profiles store, and what it says of damaged stores."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata.tests.helpers import assert_equal
from annotated import counts, write, written

import scdl
from scdl.archive.schema import Info
from scdl.errors import (
    ArchiveChangedError,
    ArchiveFormatError,
    ArchiveNotFoundError,
    MissingCodecError,
    ScdlError,
)
from storage_backends.zarr.chunks.reading import ZarrArray
from storage_backends.zarr.codecs import encodings
from storage_backends.zarr.codecs.profiles import PROFILES
from storage_backends.zarr.store import ZarrStore

# zarr and anndata: of what anndata reads and writes
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "Consolidated metadata is currently not part",
        "Numcodecs codecs are not in the Zarr",
        "zarr v3 autosharding:UserWarning",
        "Writing zarr v2 data:UserWarning",
    )
]


def cells(n_obs: int = 400, n_vars: int = 60, **elements: Any) -> anndata.AnnData:
    adata = anndata.AnnData(counts(n_obs, n_vars, np.random.default_rng(1)), **elements)
    adata.var_names = [f"g{i}" for i in range(n_vars)]
    return adata


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "a.h5ad"
    rng = np.random.default_rng(0)
    adata = cells(
        obsm={"X_pca": rng.random((400, 3), np.float32)},
        obsp={"graph": sp.random(400, 400, 0.01, format="csr", rng=rng)},
        uns={"numbers": np.arange(9)},
    )
    write(adata, path)
    return path


@pytest.fixture(scope="module")
def archives(source: Path) -> dict[str, Path]:
    for profile in PROFILES:
        scdl.convert(source, source.with_name(f"{profile}.zarr"), compression=profile)
    return {profile: source.with_name(f"{profile}.zarr") for profile in PROFILES}


class TestProfiles:
    def test_sizes(self, source: Path, archives: dict[str, Path]) -> None:
        expected = anndata.read_h5ad(source).X
        for profile, path in archives.items():
            store = scdl.open(path).store
            matrix = sum(store.stored_bytes[part] for part in ("data", "indices", "indptr"))
            # Of 8 values in about 60 genes there are 5 to 7 bits to be told.
            assert matrix * 8 / expected.nnz < 16, profile
            assert store.nbytes > matrix
            assert store.describe("data"), profile
            assert store.attrs["blocks"][0]["n_vars"] == 60
            # Unsigned ids are compared while they are decoded, and not again by who reads them.
            assert store.spec("indices").dtype.kind != "u" or store.spec("indices").below == 60
            assert_equal(scdl.open(path).read_rows(slice(None)).to_scipy(), expected)

    @pytest.mark.parametrize("profile", PROFILES)
    @pytest.mark.parametrize("late", [0.5, -1, 70_000, np.nan, -0.0])
    def test_a_late_value_that_is_no_small_integer(
        self, tmp_path: Path, profile: str, late: float
    ) -> None:
        n = 3 * PROFILES[profile].chunk_items + 5
        data = np.arange(n, dtype=np.float32) % 9 + 1
        data[-2] = late
        indptr = np.array([0, n // 2, n])
        matrix = sp.csr_matrix((data, np.r_[: n // 2, : n - n // 2], indptr), shape=(2, n))
        write(anndata.AnnData(matrix), tmp_path / "a.h5ad")
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", compression=profile)
        found = scdl.open(tmp_path / "a.zarr").read_rows(slice(None))
        np.testing.assert_array_equal(found.data.view("u4"), data.view("u4"))
        assert_equal(scdl.open(tmp_path / "a.zarr").to_anndata().X, matrix)

    @pytest.mark.parametrize("profile", [name for name, p in PROFILES.items() if p.by_detection])
    def test_genes_by_detection(self, tmp_path: Path, profile: str) -> None:
        rng = np.random.default_rng(2)
        adata = cells(
            50,
            12,
            layers={"l": counts(50, 12, rng)},
            varm={"v": rng.random((12, 2))},
            varp={"p": sp.random(12, 12, 0.4, format="csr", rng=rng)},
        )
        write(adata, tmp_path / "a.h5ad")
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", compression=profile)
        root = zarr.open_group(tmp_path / "a.zarr", mode="r")
        order = root["var/original_position"][:]
        np.testing.assert_array_equal(np.sort(order), np.arange(12))
        stored = anndata.read_zarr(tmp_path / "a.zarr")
        assert_equal(stored, adata[:, order].copy())
        assert stored.X.has_sorted_indices
        octaves = np.log2(np.maximum(stored.X.getnnz(axis=0), 0.5))
        assert (np.diff(np.floor(2 * octaves)) <= 0).all()
        assert (np.diff(octaves) < 0).any()
        # Above the seam nothing shows.
        ds = scdl.open(tmp_path / "a.zarr")
        batch = ds.read_rows([7, 3])
        assert_equal(batch.to_scipy(), adata.X[[7, 3]])
        assert batch.to_scipy().has_sorted_indices
        assert list(ds.var.index) == list(adata.var_names)
        assert ds.store.attrs["sorted"] is False
        assert_equal(ds.to_anndata(), adata)
        assert ds.to_anndata().layers["l"].has_sorted_indices

    @pytest.mark.parametrize("kind", [sp.csc_matrix, lambda layer: layer.toarray()])
    def test_layers_that_cannot_follow(self, tmp_path: Path, kind: Callable[[Any], Any]) -> None:
        adata = cells(50, 12, layers={"l": kind(counts(50, 12, np.random.default_rng(2)))})
        expected = written(adata, tmp_path / "a.h5ad")
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", compression="archive")
        assert_equal(anndata.read_zarr(tmp_path / "a.zarr"), expected)
        assert_equal(scdl.open(tmp_path / "a.zarr").to_anndata(), expected)
        assert scdl.open(tmp_path / "a.zarr").store.attrs["sorted"] is True

    def test_several_blocks(self, tmp_path: Path) -> None:
        for n_vars in (12, 30):
            write(cells(40, n_vars), tmp_path / f"{n_vars}.h5ad")
        files = [tmp_path / f"{n}.h5ad" for n in (12, 30)]
        scdl.convert(files, tmp_path / "a.zarr", compression="archive")
        ds = scdl.open(tmp_path / "a.zarr")
        assert (ds.n_vars, ds.store.attrs["sorted"]) == ([12, 30], True)
        assert_equal(ds.read_rows(slice(40, 80)).to_scipy(), cells(40, 30).X)
        assert_equal(ds.to_anndata(slice(0, 40)).X, cells(40, 12).X)
        assert list(ds.to_anndata([79]).var_names) == [f"g{i}" for i in range(30)]


def whole(path: Path) -> dict[str, Any]:
    """Everything that an archive says."""
    with ZarrStore.open(str(path)) as store:
        found: dict[str, Any] = {name: store.read(name).tobytes() for name in store.arrays}
        found |= {name: store.read_table(name).to_pydict() for name in store.tables}
        found |= {name: repr(store.read_element(name)) for name in store.elements}
        # Without labels, where any letter may be another.
        info = Info.from_attrs(store.attrs, store.path)
        return found | {"n": [(block.stop, block.n_vars) for block in info.blocks]}


def refused(path: Path, *errors: type[Exception]) -> str:
    """What is said of a store, which must be one sentence that names it."""
    with pytest.raises(errors or ArchiveFormatError) as caught:
        whole(path)
    told = str(caught.value)
    assert isinstance(caught.value, ScdlError)
    assert str(path) in told
    assert "\n" not in told
    return told


class TestOpening:
    def test_zarr_makes_no_objects_of_what_nobody_uses(
        self, archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of all nodes they took longer than everything else about opening many archives."""
        expected = scdl.open(archives["balanced"]).read_rows([3, 1])
        with monkeypatch.context() as without:
            without.setattr(zarr, "open_group", None)
            store = ZarrStore.open(str(archives["balanced"]))
            found = scdl.open(archives["balanced"]).read_rows([3, 1])
            np.testing.assert_array_equal(found.to_dense(), expected.to_dense())
        assert store.read_table("obs").num_rows == 400
        assert store.read_element("uns")["numbers"].tolist() == list(range(9))

    def test_files_are_let_go_with_the_store(self, archives: dict[str, Path]) -> None:
        """At once, not when cycles are collected: many archives are open one after the other."""
        store = weakref.ref(ZarrStore.open(str(archives["balanced"])))
        assert store() is None

    @pytest.mark.parametrize("hold", [True, False])
    def test_tables_and_elements_are_of_the_archive_that_was_opened(
        self, archives: dict[str, Path], tmp_path: Path, hold: bool
    ) -> None:
        path = tmp_path / "a.zarr"
        shutil.copytree(archives["balanced"], path)
        store = ZarrStore.open(str(path), hold=hold)
        before = store.read_table("obs")
        store = ZarrStore.open(str(path), hold=hold)
        shutil.rmtree(path)
        shutil.copytree(archives["fast"], path)
        if hold:
            assert store.read_table("obs").equals(before)
            assert store.read_element("uns")["numbers"].tolist() == list(range(9))
            return
        for read in (lambda: store.read_table("obs"), lambda: store.read_element("uns")):
            with pytest.raises(ArchiveChangedError, match="was replaced since it was opened"):
                read()


class TestDamage:
    @pytest.fixture
    def copy(self, archives: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
        def copy(profile: str = "balanced") -> Path:
            shutil.rmtree(tmp_path / "a.zarr", ignore_errors=True)
            return Path(shutil.copytree(archives[profile], tmp_path / "a.zarr"))

        return copy

    @pytest.mark.parametrize("profile", PROFILES)
    def test_a_flipped_bit(self, copy: Callable[..., Path], profile: str) -> None:
        """Wherever it is: in a chunk, in an index, in metadata."""
        path = copy(profile)
        expected = whole(path)
        dice = random.Random(profile)
        shards = sorted(path.rglob("c/*"))
        files = [file for file in shards if file.is_file()]
        for file in files * 2 + [path / "zarr.json"] * 25:
            pristine = file.read_bytes()
            damaged = bytearray(pristine)
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
            file.write_bytes(damaged)
            try:
                found = whole(path)
            except ScdlError as error:
                assert str(path) in str(error)  # noqa: PT017
                assert "\n" not in str(error)  # noqa: PT017
            else:
                # In what nobody reads, such as the layout of JSON.
                assert found == expected, file
                assert file.name == "zarr.json", file
            file.write_bytes(pristine)
        assert whole(path) == expected

    @pytest.mark.parametrize("array", ["X/data", "X/indptr", "obsm/X_pca", "obsp/graph/indices"])
    def test_shards(self, copy: Callable[..., Path], array: str) -> None:
        path = copy()
        shard = next(file for file in sorted((path / array / "c").rglob("*")) if file.is_file())
        content = shard.read_bytes()
        for length in (len(content) - 1, len(content) // 2, 3, 0):
            shard.write_bytes(content[:length])
            refused(path)
        shard.unlink()
        assert "missing" in refused(path)

    @pytest.mark.parametrize("array", ["obs/_index", "var/_index", "uns/numbers", "X/indices"])
    def test_a_lost_file(self, copy: Callable[..., Path], array: str) -> None:
        path = copy("fast")
        (path / array / "c" / "0").unlink()
        assert "missing" in refused(path)

    @pytest.mark.parametrize(
        ("node", "edit", "told"),
        [
            ("X", {"attributes": {"encoding-type": "csr_matrix", "shape": [399, 60]}}, "399"),
            ("X/data", {"shape": [7]}, "indices"),
            ("X/indices", {"shape": [7]}, "7"),
            ("X/indptr", {"shape": [7]}, "rows"),
            ("X/indices", {"data_type": "float32"}, ""),
            ("X", {"attributes": {}}, "X has no encoding-type"),
            ("obs", {"attributes": {}}, "the dataframe obs is missing"),
            ("obsm/X_pca", {"shape": [7, 3]}, "7"),
            ("", {"attributes": {"encoding-type": "anndata", "scdl": 1}}, "damaged"),
            ("", {"attributes": {"encoding-type": "dict"}}, "not an AnnData"),
        ],
    )
    def test_contradictory_metadata(
        self, copy: Callable[..., Path], node: str, edit: dict[str, Any], told: str
    ) -> None:
        path = copy("fast")
        edit_metadata(path, node, lambda metadata: metadata.update(edit))
        assert told in refused(path)

    def test_missing_metadata(self, copy: Callable[..., Path]) -> None:
        for node in ("X", "X/data", "X/indptr", "var", "obs", "obs/_index"):
            path = copy("fast")
            metadata = json.loads((path / "zarr.json").read_text())
            nodes = metadata["consolidated_metadata"]["metadata"]
            for name in [name for name in nodes if name == node or name.startswith(f"{node}/")]:
                del nodes[name]
            (path / "zarr.json").write_text(json.dumps(metadata))
            refused(path)
        path = copy()
        (path / "zarr.json").unlink()
        refused(path, ArchiveFormatError, ArchiveNotFoundError)
        (path / "zarr.json").write_text("{}")
        refused(path)

    def test_an_unknown_codec(self, copy: Callable[..., Path]) -> None:
        path = copy()

        def edit(metadata: dict[str, Any]) -> None:
            inner = metadata["codecs"][0]["configuration"]["codecs"]
            inner[-1] = {"name": "novel", "configuration": {}}

        edit_metadata(path, "X/data", edit)
        assert "novel" in refused(path)

    def test_without_pcodec(
        self, copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = copy("archive")
        for name in ("pcodec", "numcodecs.pcodec"):
            monkeypatch.setitem(sys.modules, name, None)
        told = refused(path, MissingCodecError)
        assert "pip install pcodec" in told

    def test_no_anndata(self, tmp_path: Path) -> None:
        for zarr_format in (2, 3):
            path = tmp_path / f"{zarr_format}.zarr"
            zarr.create_group(path, zarr_format=zarr_format).create_array("a", data=np.arange(3))
            assert "not an AnnData" in refused(path)
            with pytest.raises(ScdlError, match="not an AnnData"):
                scdl.open(path)


def edit_metadata(path: Path, node: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the metadata of a node where they are read from."""
    metadata = json.loads((path / "zarr.json").read_text())
    edit(metadata["consolidated_metadata"]["metadata"][node] if node else metadata)
    (path / "zarr.json").write_text(json.dumps(metadata))


def test_gzip_of_several_members() -> None:
    """One after the other is one text, as gzip has it; cut, or too long, it is an error."""
    codec = [{"name": "gzip", "configuration": {}}]
    data = gzip.compress(b"first ") + gzip.compress(b"second")
    assert encodings.decompress(data, codec, 12) == b"first second"
    for bad, most in ((data, 11), (data[:-1], 12), (gzip.compress(b"x"), 0)):
        with pytest.raises(ArchiveFormatError):
            encodings.decompress(bad, codec, most)


def test_an_array_is_opened_while_the_archive_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(anndata.AnnData(counts(40, 30, np.random.default_rng(0))), tmp_path / "a.h5ad")
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr")
    store = scdl.open(tmp_path / "a.zarr").store
    forget = ZarrArray.forget

    def open_another(array: ZarrArray) -> None:
        store.group.array("indices")
        forget(array)

    store.read("indptr", 0, 1)
    monkeypatch.setattr(ZarrArray, "forget", open_another)
    store.close()
