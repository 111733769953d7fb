"""Archives of other releases: of a newer format, and as earlier releases wrote them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scdl
from scdl.errors import NewerFormatError, SourceError
from storage_backends.directory import integrity
from storage_backends.memmap import header, layout
from storage_backends.zarr import detection

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
    edit(file, lambda manifest: manifest.update(format=99))
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
