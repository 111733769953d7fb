"""Archives of other releases: of a newer format, and as earlier releases wrote them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from places import GOLDEN
from release_archives import ARCHIVES, GROWN, N_OBS, cells

import scdl
from scdl.collection.manifest import _FORMAT
from scdl.errors import NewerFormatError, SourceError
from storage_backends.directory import integrity
from storage_backends.directory.content import checksum
from storage_backends.memmap import header, layout, manifest
from storage_backends.zarr import detection
from storage_backends.zarr import layout as zarr_layout

GENES = pd.DataFrame(index=[f"gene{i}" for i in range(6)])


def write(path: Path) -> Path:
    with scdl.create(path, var=GENES) as archive:
        archive.append(sp.random(9, 6, 0.5, "csr", dtype=np.float32, random_state=0))
    return path


def edit(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def newer_manifest(path: Path) -> tuple[str, str]:
    file = path / "scdl" / "manifest.json"
    edit(file, lambda content: content.update(format=99))
    return layout.CHECKSUMS, f"{file}: its format is 99, this release reads up to 2"


def newer_header(path: Path) -> tuple[str, str]:
    file = path / "header.sch"
    content = bytearray(file.read_bytes())
    start = len(header.MAGIC)
    content[start : start + 3] = bytes([0, 9, 0])
    file.write_bytes(content)
    return layout.CHECKSUMS, f"{file}: its format is 0.9.0, this release reads up to 0.1.0"


def newer_zarr(path: Path) -> tuple[str, str]:
    edit(path / "zarr.json", lambda node: node["attributes"]["scdl"].update(format=99))
    return detection.CHECKSUMS, f"{path}: its format is 99, this release reads up to 1"


def content_of(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("name", "make_newer"),
    [("a.scdl", newer_manifest), ("a.scdl", newer_header), ("a.zarr", newer_zarr)],
)
def test_a_newer_archive_is_told_and_not_touched(
    tmp_path: Path, name: str, make_newer: Callable[[Path], tuple[str, str]]
) -> None:
    path = write(tmp_path / name)
    checksums, sentence = make_newer(path)
    # As a newer release leaves it: with the checksums of what it wrote.
    (path / checksums).unlink()
    integrity.add_checksums(str(path), checksums)
    expected = f"{sentence}; upgrade scdl-store"
    before = content_of(path)
    for use in (
        lambda: scdl.open(path),
        lambda: scdl.report(path, tmp_path / "report.html"),
    ):
        with pytest.raises(NewerFormatError) as raised:
            use()
        assert str(raised.value) == expected
    with pytest.raises(SourceError) as refused:
        scdl.convert(path, tmp_path / "copy.scdl")
    assert str(refused.value) == expected
    for options in ({}, {"deep": True}, {"repair": True}):
        report = scdl.verify(path, **options)
        # It may be as sound as the day it was written.
        assert report.verdict.name == "UNKNOWN"
        assert [finding.message for finding in report.findings] == [expected]
        assert not report.done
    assert content_of(path) == before
    assert not (tmp_path / "copy.scdl").exists()


def with_newer_chunk(path: Path, name: str, codec: str) -> None:
    """Raise the version in the first chunk of an array, under right checksums."""
    reader = scdl.open(path).store.group.array(name.removeprefix("X/")).reader
    (file,) = (path / name / "c").iterdir()
    content = bytearray(file.read_bytes())
    start, size = np.frombuffer(content[-16 * reader.grid.per_file - 4 :][:16], "<u8").tolist()
    chunk = content[start : start + size]
    # The checksum is that of the bytes from there on.
    begin, version = 0, 0
    if codec == "scdl.packed":
        begin = size - 12 - 4 * int.from_bytes(chunk[-12:-8], "little")
        version = size - 5
    assert chunk[version] == 1
    chunk[version] = 3
    chunk[-4:] = checksum(bytes(chunk[begin:-4]))
    content[start : start + size] = chunk
    file.write_bytes(content)
    (path / detection.CHECKSUMS).unlink()


@pytest.mark.filterwarnings("ignore:Numcodecs codecs")
@pytest.mark.parametrize(
    ("profile", "name", "codec"),
    [
        ("packed", "X/data", "scdl.packed"),
        ("packed-fast", "X/indices", "scdl.packed"),
        ("archive", "X/indices", "scdl.ans"),
        ("archive", "X/data", "scdl.of"),
    ],
)
def test_a_chunk_of_a_newer_codec_is_told(
    tmp_path: Path, profile: str, name: str, codec: str
) -> None:
    path, rates = tmp_path / "a.zarr", np.linspace(0, 3, 200)
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(rates, (400, 200)), dtype=np.float32)
    whole = ad.AnnData(counts.log1p(), layers={"counts": counts})
    scdl.convert(whole, path, compression=profile)
    with_newer_chunk(path, name, codec)
    told = (
        f"{path}: {name.removeprefix('X/')}: chunk 0 in {codec}: its format is 3, this release "
        "reads up to 1; upgrade scdl-store"
    )
    for rows in ([3], range(len(whole))):
        with pytest.raises(NewerFormatError) as raised:
            scdl.open(path).read_rows(rows)
        assert str(raised.value) == told
    with pytest.raises(NewerFormatError) as raised:
        scdl.convert(path, tmp_path / "copy.zarr")
    assert str(raised.value) == told
    report = scdl.verify(path, deep=True)
    assert report.verdict.name == "UNKNOWN"
    assert told in [finding.message for finding in report.findings]
    with pytest.raises(ValueError, match=f"{codec}: its format is 3"):
        zarr.open_group(path)[name][:]
    # The bytes are those that were written.
    integrity.add_checksums(str(path), detection.CHECKSUMS)
    assert scdl.verify(path, deep=True).verdict.name != "DAMAGED"


@pytest.fixture(scope="module", params=sorted(GOLDEN.glob("release_*.zip")), ids=lambda f: f.stem)
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an earlier release wrote."""
    place = tmp_path_factory.mktemp("released")
    shutil.unpack_archive(request.param, place)
    return place


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_of_an_earlier_release(released: Path, name: str) -> None:
    expected, rows = cells(), np.arange(N_OBS)[::-1]
    data = scdl.open(released / name)
    batch = data.read_rows(rows, obs=["kind", "depth"], obsm=["X_pca"])
    assert (batch.to_scipy() != expected.X[rows]).nnz == 0
    assert list(batch.obs["kind"]) == list(expected.obs["kind"].iloc[rows])
    np.testing.assert_array_equal(batch.obs["depth"], expected.obs["depth"].to_numpy()[rows])
    np.testing.assert_array_equal(batch.obsm["X_pca"], expected.obsm["X_pca"][rows])
    adata = data.to_anndata()
    for found, table in ((adata.obs, expected.obs), (adata.var, expected.var)):
        pd.testing.assert_frame_equal(found, table, check_index_type=False)
    if name != GROWN:
        assert (adata.obsp["connectivities"] != expected.obsp["connectivities"]).nnz == 0
    assert scdl.verify(released / name, deep=True).is_sound


def test_a_collection_and_a_split_of_an_earlier_release(released: Path) -> None:
    data = scdl.open(released)
    assert len(data) == len(ARCHIVES) * N_OBS
    assert list(data.read_obs(["kind"])["kind"]) == list(cells().obs["kind"]) * len(ARCHIVES)
    parts = scdl.Splits.load(released / "split.npz", scdl.open(released / "cells.scdl"))
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 30,
        "validation": 10,
    }
    assert sorted(np.concatenate(list(parts.values()))) == list(range(N_OBS))


@pytest.mark.parametrize("name", ["cells.scdl", "balanced.zarr"])
def test_an_archive_of_an_earlier_release_grows(released: Path, tmp_path: Path, name: str) -> None:
    path = shutil.copytree(released / name, tmp_path / name)
    scdl.open(path).append(cells()[:7].copy())
    data = scdl.open(path)
    assert (data.read_rows(range(N_OBS, N_OBS + 7)).to_scipy() != cells().X[:7]).nnz == 0
    assert scdl.verify(path, deep=True).is_sound


def test_every_format_that_is_written_has_an_archive_that_never_changes(tmp_path: Path) -> None:
    found: dict[str, set[int]] = {"memmap": set(), "zarr": set(), "collection": set()}
    for archive in GOLDEN.glob("release_*.zip"):
        place = tmp_path / archive.stem
        shutil.unpack_archive(archive, place)
        for file in place.glob("*.scdl/scdl/manifest.json"):
            found["memmap"].add(json.loads(file.read_text())["format"])
        for file in place.glob("*.zarr/zarr.json"):
            found["zarr"].add(json.loads(file.read_text())["attributes"]["scdl"]["format"])
        found["collection"].add(json.loads((place / "collection.json").read_text())["format"])
    written = {"memmap": manifest.FORMAT, "zarr": zarr_layout.FORMAT, "collection": _FORMAT}
    assert {kind: max(formats) for kind, formats in found.items()} == written
