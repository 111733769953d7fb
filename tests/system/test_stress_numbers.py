"""Special floating-point values, and offsets beyond 2^31 and 2^32."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from headers import header_bytes, header_of
from sources import Cells, random_cells, write_h5ad

import scdl

pytestmark = pytest.mark.filterwarnings(
    "ignore:zarr v3 autosharding:UserWarning",
    "ignore:Writing zarr v2:UserWarning",
    "ignore:Consolidated metadata:UserWarning",
)
BACKENDS = ["memmap", "zarr"]

#: Bits of floats that are easily lost: zeros of both signs, extremes of each kind,
#: infinities, quiet and signalling NaNs with payloads.
BITS = {
    "f2": [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7D55],
    "f4": [
        *(0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000),
        *(0xFF800000, 0x7FC00000, 0xFFC12345, 0x7FA00001),
    ],
    "f8": [
        *(0x0, 1 << 63, 1, (1 << 63) | 0xFFFFFFFFFFFFF, 1 << 52, 0x7FEFFFFFFFFFFFFF, 0x7FF << 52),
        *(0xFFF << 52, 0x7FF8 << 48, (0xFFF8 << 48) | 0x123, (0x7FF4 << 48) | 1),
    ],
}
EXTREMES = {
    name: np.array([np.iinfo(name).min, np.iinfo(name).max, 1, np.iinfo(name).max - 1], name)
    for name in ("u1", "u2", "u4", "u8")
}


def stored(name: str) -> np.ndarray:
    """Expected values, one per cell."""
    if name in BITS:
        return np.array(BITS[name], f"u{name[1]}").view(name)
    return EXTREMES[name]


def written(path: Path, name: str, backend: str, order: str = "<") -> scdl.SingleCellDataset:
    """An archive of cells with one gene each, from an h5ad file with a given byte order."""
    values = stored(name)
    n = len(values)
    cells = Cells(np.arange(n), np.arange(n) % 3, values.astype(order + name), (n, 3))
    write_h5ad(path / "cells.h5ad", cells)
    scdl.convert(path / "cells.h5ad", path / "archive", backend=backend, data_dtype=name)
    return scdl.open(path / "archive")


def same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    unsigned = f"u{expected.itemsize}"
    np.testing.assert_array_equal(found.view(unsigned), expected.view(unsigned))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", [*BITS, *EXTREMES])
def test_every_bit_comes_back(tmp_path: Path, name: str, backend: str, order: str) -> None:
    ds = written(tmp_path, name, backend, order)
    expected = stored(name)
    batch = ds.read_rows(np.arange(len(ds)))
    same_bits(batch.data, expected)
    same_bits(np.concatenate([ds.get_row(i)[0][0] for i in range(len(ds))]), expected)
    backwards = np.arange(len(ds))[::-1]
    same_bits(ds.read_rows(backwards).data, expected[::-1])
    ds.save(str(tmp_path / "copy"))
    same_bits(scdl.open(tmp_path / "copy").read_rows(slice(None)).data, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BITS)
def test_vectors_keep_their_bits(tmp_path: Path, name: str, backend: str) -> None:
    vectors = np.stack([stored(name)[:10], stored(name)[1:11]], axis=1)
    adata = ad.AnnData(sp.csr_matrix((10, 3), dtype=np.float32), obsm={"v": vectors})
    adata.write_h5ad(tmp_path / "a.h5ad")
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive", backend=backend, obsm=["v"])
    found = scdl.open(tmp_path / "archive").read_rows(slice(None), obsm=["v"]).obsm["v"]
    same_bits(np.ascontiguousarray(found), vectors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_of_loaders(tmp_path: Path, backend: str) -> None:
    torch = pytest.importorskip("torch")
    ds = written(tmp_path, "f4", backend)
    expected = torch.from_numpy(stored("f4").copy())
    options: dict[str, Any] = {"order": "sequential", "layout": "csr"}
    for dtype in ("float32", "float64"):
        (batch,) = scdl.SingleCellLoader(ds, len(ds), dtype=dtype, **options)
        kept = batch.x.values().numpy()
        # NumPy warns of signalling NaNs.
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(kept, expected.numpy().astype(dtype))
        np.testing.assert_array_equal(np.signbit(kept), np.signbit(stored("f4")))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_narrow_outputs(tmp_path: Path, backend: str, dtype: str) -> None:
    """Rounding as in torch, including subnormals, signed zeros, infinities and NaN."""
    torch = pytest.importorskip("torch")
    values = np.array([0.0, -0.0, 1e-7, -6e-8, 1 / 3, 65_504, 2049, np.inf, -np.inf, np.nan], "f4")
    n = len(values)
    cells = Cells(np.arange(n), np.zeros(n, int), values, (n, 1))
    write_h5ad(tmp_path / "a.h5ad", cells)
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive", backend=backend)
    ds = scdl.open(tmp_path / "archive")
    for layout in ("csr", "dense"):
        options: dict[str, Any] = {"order": "sequential", "layout": layout}
        (batch,) = scdl.SingleCellLoader(ds, n, dtype=dtype, **options)
        found = batch.x.values() if layout == "csr" else batch.x[:, 0]
        expected = torch.from_numpy(values).to(getattr(torch, dtype))
        assert found.dtype == expected.dtype
        wide, rounded = found.float().numpy(), expected.float().numpy()
        np.testing.assert_array_equal(wide, rounded)
        if layout == "csr":
            np.testing.assert_array_equal(np.signbit(wide), np.signbit(rounded))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("version", [2, 3])
def test_big_endian_stores(tmp_path: Path, backend: str, version: int) -> None:
    """Foreign Zarr stores with big-endian numbers."""
    cells = random_cells(9, 7, dtype="<f4", seed=3)
    matrix = sp.csr_matrix(cells.csr())
    adata = ad.AnnData(matrix, obs=pd.DataFrame({"age": np.arange(9)}, index=list("abcdefghi")))
    with ad.settings.override(zarr_write_format=version):
        adata.write_zarr(tmp_path / "source.zarr")
    group = zarr.open_group(tmp_path / "source.zarr", mode="r+", use_consolidated=False)
    for name in ("X/data", "X/indices", "X/indptr", "obs/age"):
        node = group[name]
        values, attributes = node[:], dict(node.attrs)
        del group[name]
        big = group.create_array(
            name, shape=values.shape, chunks=(5,), dtype=values.dtype.newbyteorder(">"),
            **({"serializer": zarr.codecs.BytesCodec(endian="big")} if version == 3 else {}),
        )  # fmt: skip
        big[:] = values
        big.attrs.update(attributes)
    (tmp_path / "source.zarr" / ".zmetadata").unlink(missing_ok=True)
    if version == 3:
        root = tmp_path / "source.zarr" / "zarr.json"
        document = json.loads(root.read_text())
        document.pop("consolidated_metadata", None)
        root.write_text(json.dumps(document))
    direct = scdl.open(tmp_path / "source.zarr")
    scdl.convert(tmp_path / "source.zarr", tmp_path / "archive", backend=backend)
    for ds in (direct, scdl.open(tmp_path / "archive")):
        np.testing.assert_array_equal(ds.read_rows(slice(None)).to_dense(), matrix.toarray())
        assert ds.obs["age"].tolist() == list(range(9))


def test_big_endian_dense(tmp_path: Path) -> None:
    values = random_cells(8, 6, seed=4).csr().toarray()
    write_h5ad(tmp_path / "a.h5ad", random_cells(8, 6))
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        del file["X"]
        file["X"] = values.astype(">f8")
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive", data_dtype="float64")
    np.testing.assert_array_equal(
        scdl.open(tmp_path / "archive").read_rows(slice(None)).to_dense(), values
    )


# -- offsets at boundaries: sparse files of which only rows at the boundaries are read ----------

BOUNDARIES = (2**31, 2**32)
N_VALUES = 2**32 + 50
OFFSETS = np.array(
    [0, 2**31 - 4, 2**31 + 3, 2**32 - 5, 2**32 + 4, 2**32 + 4, N_VALUES - 2, N_VALUES], "<u8"
)
N_VARS = 2**32
#: Rows outside of holes.
ROWS = [1, 3, 4, 6]


def genes_of(row: int) -> np.ndarray:
    """Genes beyond 2^31, up to the largest uint32."""
    n = int(OFFSETS[row + 1] - OFFSETS[row])
    return np.sort(np.r_[np.arange(n - 1) * 400_000_000 + row, [N_VARS - 1 - row]][:n]).astype(
        "<u4"
    )


def values_of(row: int) -> np.ndarray:
    return (np.arange(int(OFFSETS[row + 1] - OFFSETS[row])) + 10 * row + 1).astype("u1")


def put(path: Path, row: int, values: np.ndarray) -> None:
    with path.open("r+b") as file:
        file.seek(int(OFFSETS[row]) * values.itemsize)
        file.write(values.tobytes())


@pytest.fixture(scope="module")
def with_holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memmap archive of 2^32 + 50 values: sparse files of 20 GB."""
    place = tmp_path_factory.mktemp("holes")
    n_obs = len(OFFSETS) - 1
    write_h5ad(place / "a.h5ad", random_cells(n_obs, 5))
    archive = place / "archive"
    scdl.convert(place / "a.h5ad", archive)
    fields = header_of(archive / "header.sch")
    lengths = {"DATA": (N_VALUES, 1), "COLPTR": (N_VALUES, 3), "ROWPTR": (n_obs + 1, 4)}
    fields["arrays"] = [(name, *lengths[name], None) for name, *_ in fields["arrays"]]
    (archive / "header.sch").write_bytes(header_bytes(**fields))
    file = archive / "scdl" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["nnz"] = N_VALUES
    manifest["attrs"]["blocks"][0]["n_vars"] = N_VARS
    file.write_text(json.dumps(manifest))
    (archive / "row_ptr.npy").write_bytes(OFFSETS.tobytes())
    for name, itemsize in (("data.npy", 1), ("col_ptr.npy", 4)):
        with (archive / name).open("wb") as stream:
            stream.truncate(N_VALUES * itemsize)
    for row in ROWS:
        put(archive / "data.npy", row, values_of(row))
        put(archive / "col_ptr.npy", row, genes_of(row))
    return archive


@pytest.fixture(scope="module")
def chunks_with_holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an AnnData in Zarr, without the empty chunks."""
    path = tmp_path_factory.mktemp("chunks") / "a.zarr"
    n_obs = len(OFFSETS) - 1
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n_obs)])
    with ad.settings.override(zarr_write_format=3):
        ad.AnnData(sp.csr_matrix((n_obs, 4), dtype=np.uint8), obs).write_zarr(path)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    root["X"].attrs["shape"] = [n_obs, N_VARS]
    dtypes = {"data": "u1", "indices": "<u4"}
    for name, dtype in dtypes.items():
        attributes = dict(root[f"X/{name}"].attrs)
        del root[f"X/{name}"]
        root.create_array(
            f"X/{name}", shape=(N_VALUES,), chunks=(1 << 16,), dtype=dtype, compressors=None
        ).attrs.update(attributes)
        for row in ROWS:
            if OFFSETS[row] < OFFSETS[row + 1]:
                values = values_of(row) if name == "data" else genes_of(row)
                root[f"X/{name}"][int(OFFSETS[row]) : int(OFFSETS[row + 1])] = values
    del root["X/indptr"]
    root.create_array("X/indptr", shape=OFFSETS.shape, chunks=(100,), dtype="<i8")[:] = OFFSETS
    document = json.loads((path / "zarr.json").read_text())
    document.pop("consolidated_metadata", None)
    (path / "zarr.json").write_text(json.dumps(document))
    # Pad to the size of ordinary values, as otherwise the compression ratio is refused.
    with (path / "X" / "data" / "hole").open("wb") as stream:
        stream.truncate(N_VALUES)
    return path


@pytest.fixture(params=["with_holes", "chunks_with_holes"])
def archive(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_offsets_are_on_both_sides_of_boundaries() -> None:
    for boundary in BOUNDARIES:
        assert any(a < boundary < b for a, b in itertools.pairwise(OFFSETS))
    assert max(genes_of(3)) > 2**31


def test_rows_beyond_the_boundaries(archive: Path) -> None:
    ds = scdl.open(archive)
    assert ds.number_nonzero_values() == N_VALUES
    for rows in (ROWS, ROWS[::-1], [3, 3, 1]):
        batch = ds.read_rows(rows)
        np.testing.assert_array_equal(batch.data, np.concatenate([values_of(r) for r in rows]))
        np.testing.assert_array_equal(batch.indices, np.concatenate([genes_of(r) for r in rows]))
        lengths = [len(values_of(row)) for row in rows]
        assert batch.indptr.tolist() == [0, *np.cumsum(lengths)]
        assert batch.n_vars == N_VARS
    for row in ROWS:
        (values, genes), _ = ds.get_row(row)
        np.testing.assert_array_equal(values, values_of(row))
        np.testing.assert_array_equal(genes, genes_of(row))


def test_values_by_gene_beyond_the_boundaries(archive: Path) -> None:
    ds = scdl.open(archive)
    for row in ROWS:
        if OFFSETS[row] < OFFSETS[row + 1]:
            assert ds.get_row_column(row, int(genes_of(row)[-1])) == values_of(row)[-1]
    assert ds.get_row_column(3, 2**31 + 12_345) == 0


def test_loaders_beyond_the_boundaries(archive: Path) -> None:
    torch = pytest.importorskip("torch")
    loader = scdl.SingleCellLoader(
        scdl.open(archive), 2, rows=ROWS, order="sequential", layout="csr"
    )
    batches = list(loader)
    values = torch.cat([batch.x.values() for batch in batches]).numpy()
    genes = torch.cat([batch.x.col_indices() for batch in batches]).numpy()
    np.testing.assert_array_equal(values, np.concatenate([values_of(row) for row in ROWS]))
    np.testing.assert_array_equal(genes, np.concatenate([genes_of(row) for row in ROWS]))


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("version", [2, 3])
def test_stores_of_truth_values(tmp_path: Path, version: int, form: str) -> None:
    """A boolean matrix, such as of open peaks, becomes one of zeros and ones."""
    values = np.arange(12).reshape(4, 3) % 5 > 2
    matrix = values if form == "dense" else sp.csr_matrix(values).asformat(form)
    with ad.settings.override(zarr_write_format=version):
        ad.AnnData(matrix).write_zarr(tmp_path / "source.zarr")
    for backend in BACKENDS:
        scdl.convert(tmp_path / "source.zarr", tmp_path / backend, backend=backend)
        found = scdl.open(tmp_path / backend).read_rows(range(4)).to_dense()
        np.testing.assert_array_equal(found, values.astype("f4"))


@pytest.mark.parametrize("form", ["csr", "dense"])
def test_stores_of_complex_numbers(tmp_path: Path, form: str) -> None:
    values = np.array([[1j, 0], [0, 2]], "c8")
    matrix = values if form == "dense" else sp.csr_matrix(values)
    ad.AnnData(matrix).write_zarr(tmp_path / "source.zarr")
    with pytest.raises(scdl.errors.SourceError, match=r"a matrix of numbers.*found complex64$"):
        scdl.convert(tmp_path / "source.zarr", tmp_path / "archive")


@pytest.mark.parametrize("version", [2, 3])
def test_truth_values_in_obsm_of_stores(tmp_path: Path, version: int) -> None:
    flags = np.arange(12).reshape(4, 3) % 2 > 0
    adata = ad.AnnData(sp.csr_matrix(np.eye(4, dtype="f4")), obsm={"flags": flags})
    with ad.settings.override(zarr_write_format=version):
        adata.write_zarr(tmp_path / "source.zarr")
    scdl.convert(tmp_path / "source.zarr", tmp_path / "archive", obsm="flags")
    found = scdl.open(tmp_path / "archive").read_rows([3, 0], obsm="flags").obsm["flags"]
    np.testing.assert_array_equal(found, flags[[3, 0]].astype("u1"))
