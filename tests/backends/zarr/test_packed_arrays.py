"""The codec scdl.packed in zarr-python and anndata, with and without its package."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import packed_reader as reader
import pytest
import zarr
from annotated import counts
from packed_chunks import TYPES, values_of
from places import ROOT
from zarr.codecs import Crc32cCodec

import scdl
from storage_backends.zarr.codecs.zarr_codec import PackedCodec
from storage_backends.zarr.writer import ZarrWriter

#: Saves an array that zarr-python reads, which finds codecs by their entry points.
CHILD = """
import sys
import numpy as np, zarr, zarr.registry
if sys.argv[3] == "without":
    names = "__codec_registries", "_codec_registries"
    registries = next(getattr(zarr.registry, n) for n in names if hasattr(zarr.registry, n))
    registries.pop(sys.argv[4], None)
np.save(sys.argv[2], zarr.open_array(sys.argv[1], mode="r")[:])
"""


def create(store: Any, codecs: list[Any] | None = None, **settings: Any) -> Any:
    return zarr.create_array(store, serializer=PackedCodec(), compressors=codecs, **settings)


@pytest.mark.parametrize("dtype", [*TYPES, ">u4", ">f8"])
@pytest.mark.parametrize("shape", [(2_500,), (50, 50)])
@pytest.mark.parametrize("sharded", [False, True])
def test_arrays_of_zarr(dtype: str, shape: tuple[int, ...], sharded: bool) -> None:
    rng = np.random.default_rng(0)
    chunks = {1: (600,), 2: (20, 30)}[len(shape)]
    shards = {1: (1_200,), 2: (40, 30)}[len(shape)] if sharded else None
    for kind in ("bits", "counts", "rising"):
        values = values_of(kind, dtype.lstrip(">"), 2_500, rng).reshape(shape).astype(dtype)
        store: dict[str, Any] = {}
        create(store, shape=shape, dtype=dtype, chunks=chunks, shards=shards)[...] = values
        array = zarr.open_array(store, mode="r+")
        # The metadata do not tell the order of bytes in memory.
        values = values.astype(array.dtype)
        assert array.dtype == dtype.lstrip(">")
        assert array[...].tobytes() == values.tobytes()
        assert array[7:33].tobytes() == values[7:33].tobytes()
        # Parts of chunks are read, changed and written.
        array[3:41], values[3:41] = array[5:43], values[5:43].copy()
        assert zarr.open_array(store)[...].tobytes() == values.tobytes()
        if not sharded:
            data = store["c/0" if len(shape) == 1 else "c/0/0"].to_bytes()
            first = values[tuple(slice(n) for n in chunks)]
            assert reader.decode(data, first.dtype).tobytes() == first.tobytes()


@pytest.mark.parametrize(
    ("shape", "chunks"), [((), ()), ((0,), (5,)), ((3, 0), (2, 1)), ((1,), (9,))]
)
def test_small_arrays_of_zarr(shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    array = create({}, shape=shape, dtype="i4", chunks=chunks)
    array[...] = -3
    np.testing.assert_array_equal(array[...], np.full(shape, -3))


@pytest.mark.parametrize("dtype", ["bool", "complex64", "datetime64[s]", "S4", "U3"])
def test_types_that_are_no_numbers(dtype: str) -> None:
    with pytest.raises(ValueError, match=r"scdl\.packed stores integers and floats, not"):
        create({}, shape=(9,), dtype=dtype, chunks=(3,))


def test_a_configuration() -> None:
    codec: dict[str, Any] = {"name": "scdl.packed", "configuration": {"level": 3}}
    with pytest.raises(ValueError, match=r"scdl\.packed has no configuration: .*level"):
        zarr.create_array(
            {}, shape=(9,), dtype="u2", chunks=(3,), serializer=codec, compressors=None
        )
    with pytest.raises(ValueError, match=r"scdl\.packed has no configuration"):
        PackedCodec.from_dict(codec)
    assert PackedCodec.from_dict({"name": "scdl.packed"}) == PackedCodec()
    assert PackedCodec().to_dict() == {"name": "scdl.packed"}


def test_damage_is_an_error_in_zarr_too(tmp_path: Path) -> None:
    for codecs in ([], [Crc32cCodec()]):
        path = tmp_path / f"{len(codecs)}.zarr"
        create(path, codecs, data=np.arange(1_000), chunks=(500,))
        file = path / "c" / "1"
        data = bytearray(file.read_bytes())
        data[40] ^= 1
        file.write_bytes(data)
        array = zarr.open_array(path)
        assert array[499] == 499
        with pytest.raises(ValueError, match=r"checksum|damaged"):
            array[500]


@pytest.mark.parametrize("profile", ["packed", "packed-fast"])
def test_archives_that_anndata_reads(profile: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for n_obs, n_vars, dtype in [(700, 300, "f4"), (30, 9, "f8"), (90, 70, "i4"), (50, 40, "u2")]:
        X = counts(n_obs, n_vars, rng, dtype)
        if dtype[0] == "f":
            X.data[:50] = rng.random(50)
        cells, path = anndata.AnnData(X), tmp_path / f"{n_obs}.zarr"
        scdl.convert(cells, path, compression=profile)
        names = {codec["name"] for codec in codecs_of(path / "X" / "data")}
        assert "scdl.packed" in names
        found = read(path)
        if (path / "var" / "original_position").exists():
            found = found[:, np.argsort(zarr.open_array(path / "var" / "original_position")[:])]
        assert found.X.dtype == X.dtype
        assert list(found.var_names) == list(cells.var_names)
        assert list(found.obs_names) == list(cells.obs_names)
        assert (found.X != X).nnz == 0
        assert (scdl.open(path).to_anndata().X != X).nnz == 0


def codecs_of(path: Path) -> list[dict[str, Any]]:
    """The codecs of an array, in its shards."""
    array = zarr.open_array(path, mode="r")
    return [codec.to_dict() for codec in getattr(array.serializer, "codecs", (array.serializer,))]


def read(path: Path) -> anndata.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.read_zarr(path)


@pytest.mark.parametrize(("profile", "codec"), [("packed", "scdl.packed"), ("archive", "scdl.ans")])
def test_zarr_finds_the_codec_by_its_entry_point(profile: str, codec: str, tmp_path: Path) -> None:
    """And names it where the package is not installed."""
    cells = anndata.AnnData(counts(900, 90, np.random.default_rng(0)))
    scdl.convert(cells, tmp_path / "cells.zarr", compression=profile)
    array, result = tmp_path / "cells.zarr" / "X" / "indices", tmp_path / "found.npy"
    info = tmp_path / "site" / "scdl_tests-1.0.dist-info"
    info.mkdir(parents=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    codecs = project["entry-points"]["zarr.codecs"].items()
    lines = "".join(f"{name} = {target}\n" for name, target in codecs)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scdl-tests\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[zarr.codecs]\n{lines}")

    def child(how: str) -> subprocess.CompletedProcess[str]:
        places = os.pathsep.join(map(str, [info.parent, ROOT]))
        return subprocess.run(
            [sys.executable, "-c", CHILD, str(array), str(result), how, codec],
            env=os.environ | {"PYTHONPATH": places},
            capture_output=True,
            text=True,
        )

    without = child("without")
    assert without.returncode != 0
    assert codec in without.stderr.splitlines()[-1]
    found = child("with")
    assert found.returncode == 0, found.stderr
    np.testing.assert_array_equal(np.load(result), zarr.open_array(array, mode="r")[:])


def test_size_without_writing(tmp_path: Path) -> None:
    X = counts(9_000, 300, np.random.default_rng(2))
    scdl.convert(anndata.AnnData(X), tmp_path / "a.zarr", compression="packed-fast")
    store = scdl.open(tmp_path / "a.zarr").store
    rows = {name: store.read(name) for name in ("data", "indices", "indptr")}
    expected = ZarrWriter.encoded_bytes(rows, n_vars=300, compression="packed-fast")
    for name in ("data", "indices"):
        (shard,) = (tmp_path / "a.zarr" / "X" / name / "c").iterdir()
        # Besides chunks the file has an index, and the last chunk is filled up.
        assert expected[name] == pytest.approx(shard.stat().st_size, rel=0.02)
