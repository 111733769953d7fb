"""Archives of the profile archive, whose tables are fitted to them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from budget import sample
from zarr.codecs import Crc32cCodec

import scdl
from scdl.errors import ScdlError
from storage_backends.zarr.codecs.ans_format import Tables
from storage_backends.zarr.codecs.zarr_codec import AnsCodec
from storage_backends.zarr.writer import ZarrWriter

ANS = "scdl.ans"
# Of the filter that narrows floats to 16 bits.
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs")


def cells(n_obs: int, n_vars: int = 400, *, seed: int = 0, dtype: Any = "f4") -> sp.csr_matrix:
    """Counts whose genes differ in their rates, and cells in their depth."""
    rng = np.random.default_rng(seed)
    rates = 3 * rng.permutation(n_vars) ** 3.0 / n_vars**3
    depth = rng.lognormal(0, 0.6, n_obs)
    return sp.csr_matrix(rng.poisson(depth[:, None] * rates), dtype=dtype)


def codec_of(path: Path, name: str = "X/data") -> dict[str, Any] | None:
    """The codec of an array if it is this one."""
    array = zarr.open_array(path / name, mode="r")
    codec = array.serializer.to_dict()
    return codec if codec["name"] == ANS else None


def read(path: Path) -> anndata.AnnData:
    """An archive as AnnData reads it, with genes in the order of the source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = anndata.read_zarr(path)
        order = zarr.open_array(path / "var" / "original_position", mode="r")[:]
    return found[:, np.argsort(order)]


@pytest.mark.parametrize("dtype", sample(["f4", "f8", "i4", "u2", "i8"], 2))
def test_archives_that_anndata_reads(dtype: str, tmp_path: Path) -> None:
    X, path = cells(700, dtype=dtype), tmp_path / "cells.zarr"
    scdl.convert(anndata.AnnData(X), path, compression="archive")
    assert codec_of(path)
    assert codec_of(path, "X/indices")
    found = read(path)
    assert found.X.dtype == X.dtype
    assert (found.X != X).nnz == 0
    data = scdl.open(path)
    assert (data.to_anndata().X != X).nnz == 0
    assert list(data.store.requires) == ["scdl-store"]
    rows = np.random.default_rng(0).permutation(len(data))[:90]
    assert (data.read_rows(rows).to_scipy() != X[rows]).nnz == 0


def test_smaller_than_pcodec(tmp_path: Path) -> None:
    X = cells(3_000, 900)
    sizes = {}
    for profile in ("archive", "balanced"):
        path = tmp_path / f"{profile}.zarr"
        scdl.convert(anndata.AnnData(X), path, compression=profile)
        sizes[profile] = sum(scdl.open(path).store.stored_bytes[n] for n in ("data", "indices"))
    assert sizes["archive"] < 0.9 * sizes["balanced"]


def test_floats_keep_pcodec(tmp_path: Path) -> None:
    X = cells(700)
    X.data = np.log1p(X.data * 1.7)
    path = tmp_path / "cells.zarr"
    scdl.convert(anndata.AnnData(X), path, compression="archive")
    assert codec_of(path) is None
    assert codec_of(path, "X/indices")
    assert (read(path).X != X).nnz == 0
    assert {*scdl.open(path).store.requires} == {"pcodec", "scdl-store"}


def test_values_that_do_not_fit_16_bits_after_many_that_do(tmp_path: Path) -> None:
    for dtype, value in (("f4", 0.5), ("f4", 70_000), ("i8", -(2**62)), ("i4", -1)):
        X = cells(900, dtype=dtype)
        X.data[-1] = value
        path = tmp_path / f"{dtype}{value}.zarr"
        scdl.convert(anndata.AnnData(X), path, compression="archive")
        assert (codec_of(path) is None) == (dtype[0] == "f")
        assert read(path).X.toarray().tobytes() == X.toarray().tobytes()


def test_ids_beyond_16_bits(tmp_path: Path) -> None:
    n_vars = 2**32
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(200_000, (300, 90)), axis=1)
    ids += np.arange(90)
    ids[7, -1] = n_vars - 1
    X = sp.csr_matrix((np.ones(ids.size, "u1"), ids.reshape(-1), np.arange(301) * 90))
    writer = ZarrWriter(str(tmp_path / "ids.zarr"), compression="archive")
    rows = {"data": X.data, "indices": X.indices.astype(np.uint32), "indptr": X.indptr}
    sizes = writer.encoded_bytes(rows, n_vars=300_000, compression="balanced")
    rows["indices"] = np.minimum(rows["indices"], 299_999)
    fitted = writer.encoded_bytes(rows, n_vars=300_000, compression="archive")
    assert fitted["indices"] < sizes["indices"]


def test_arrays_of_zarr_and_their_damage(tmp_path: Path) -> None:
    scdl.convert(anndata.AnnData(cells(300)), tmp_path / "a.zarr", compression="archive")
    for name, differences in (("X/data", False), ("X/indices", True)):
        settings = codec_of(tmp_path / "a.zarr", name)
        assert settings
        codec = AnsCodec.from_dict(settings)
        assert codec.to_dict() == settings
        assert settings["configuration"]["differences"] is differences
        for dtype in ("u1", "i2", ">u4", "i8"):
            path = tmp_path / f"{differences}{dtype}".replace(">", "big")
            values = np.random.default_rng(0).integers(-300, 300, (50, 40)).astype(dtype)
            zarr.create_array(
                path, data=values, chunks=(20, 30), serializer=codec, compressors=[Crc32cCodec()]
            )
            array = zarr.open_array(path, mode="r+")
            np.testing.assert_array_equal(array[...], values)
            array[3:9], values[3:9] = array[30:36], values[30:36].copy()
            np.testing.assert_array_equal(zarr.open_array(path)[...], values)
            file = path / "c" / "1" / "1"
            file.write_bytes(file.read_bytes()[:-4])
            with pytest.raises(ValueError, match="checksum"):
                array[20:, 30:]
    with pytest.raises(ValueError, match="stores integers, not float32"):
        zarr.create_array({}, data=np.ones(9, "f4"), serializer=codec, compressors=None)


def test_damaged_tables_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "cells.zarr"
    scdl.convert(anndata.AnnData(cells(300)), path, compression="archive")
    tables = codec_of(path)["configuration"]["tables"]  # type: ignore[index]
    for file in (path / "zarr.json", path / "X" / "data" / "zarr.json"):
        file.write_text(file.read_text().replace(tables, f"AAAA{tables}"))
    with pytest.raises(ScdlError, match=r"tables of the codec scdl\.ans are damaged"):
        scdl.open(path).read_rows(np.arange(3))


def test_archives_with_different_tables_are_read_together(tmp_path: Path) -> None:
    parts = [cells(400, seed=seed, n_vars=300) for seed in range(3)]
    parts[1].data[:] = 1 + parts[1].data % 7
    for k, X in enumerate(parts):
        scdl.convert(anndata.AnnData(X), tmp_path / f"{k}.zarr", compression="archive")
    tables = {codec_of(tmp_path / f"{k}.zarr")["configuration"]["tables"] for k in range(3)}  # type: ignore[index]
    assert len(tables) == 3
    chains = {scdl.open(tmp_path / f"{k}.zarr").store.group.array("data").kind for k in range(3)}
    assert len(chains) == 1
    data = scdl.SingleCellCollection([tmp_path / f"{k}.zarr" for k in range(3)])
    X = sp.vstack(parts).tocsr()
    rows = np.random.default_rng(0).permutation(X.shape[0])
    assert (data.read_rows(rows).to_scipy() != X[rows]).nnz == 0


def test_archives_that_grow_keep_their_tables(tmp_path: Path) -> None:
    X, path = cells(1_200), tmp_path / "cells.zarr"
    scdl.convert(anndata.AnnData(X[:500]), path, compression="archive")
    before = codec_of(path)
    scdl.open(path).append(anndata.AnnData(X[500:]))
    assert codec_of(path) == before
    assert before is not None
    assert (read(path).X != X).nnz == 0
    assert (scdl.open(path).read_rows(np.arange(1_200)).to_scipy() != X).nnz == 0


def test_layers_have_tables_of_their_own(tmp_path: Path) -> None:
    X, path = cells(700), tmp_path / "cells.zarr"
    others = cells(700, seed=1)
    source = anndata.AnnData(X, layers={"more": others})
    scdl.convert(source, path, compression="archive", layers=["more"])
    codecs = [codec_of(path, f"{name}/data") for name in ("X", "layers/more")]
    assert None not in codecs
    assert codecs[0] != codecs[1]
    found = read(path)
    assert (found.layers["more"] != others).nnz == 0


@pytest.mark.parametrize("n", [0, 1, 3])
def test_few_cells(n: int, tmp_path: Path) -> None:
    X, path = cells(n + 1)[:n], tmp_path / "cells.zarr"
    scdl.convert(anndata.AnnData(X), path, compression="archive")
    assert (scdl.open(path).read_rows(np.arange(n)).to_scipy() != X).nnz == 0


def test_size_without_writing(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    scdl.convert(anndata.AnnData(cells(4_000)), path, compression="archive")
    store = scdl.open(path).store
    rows = {name: store.read(name) for name in ("data", "indices", "indptr")}
    expected = ZarrWriter.encoded_bytes(rows, n_vars=400, compression="archive")
    for name in ("data", "indices"):
        (shard,) = (path / "X" / name / "c").iterdir()
        assert expected[name] == pytest.approx(shard.stat().st_size, rel=0.03)
    tables = codec_of(path)
    assert tables is not None
    assert len(Tables.from_text(tables["configuration"]["tables"]).weights) > 1
