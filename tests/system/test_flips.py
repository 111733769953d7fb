"""Single-bit flips in any file of an archive are found; see also ``make torture``."""

from __future__ import annotations

from pathlib import Path

import pytest
from budget import WHOLE, examples, whole_only

import scdl
from benchmarks.common import page_cache
from benchmarks.torture import command as torture
from benchmarks.torture import flips
from benchmarks.torture.archives import KINDS, write_archive, write_source
from storage_backends.capabilities import Verdict


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("flips")
    source = write_source(place / "cells.h5ad", 30, 25)
    return {kind: write_archive(source, place / kind, kind) for kind in KINDS}


pytestmark = pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning")


@pytest.mark.parametrize("kind", KINDS)
def test_a_flip_in_any_file_is_found_by_verify(written: dict[str, Path], kind: str) -> None:
    archive = written[kind]
    files = page_cache.files(archive)
    tried = flips.draw(files, 100 if WHOLE else len(files), seed=1)
    assert {flip.file for flip in tried} == {f for f in files if f.stat().st_size}
    assert flips.missed(tried, flips.found_by_verify(archive)) == []
    assert scdl.verify(archive, deep=True).verdict is Verdict.SOUND


@pytest.mark.parametrize("kind", ["zarr", "zarr, archive"])
def test_a_flip_in_a_chunk_of_zarr_is_found_while_reading(
    written: dict[str, Path], kind: str
) -> None:
    tried = flips.draw(flips.chunks_of(written[kind]), examples(60), seed=2)
    assert flips.missed(tried, flips.found_by_reading(written[kind])) == []


def test_the_bit_that_zstd_passes_over_is_found_while_reading(written: dict[str, Path]) -> None:
    archive = written["zarr"]
    unused = flips.Flip(archive / "obs/type/codes/c/0", offset=4, bit=4)
    assert flips.missed([unused], flips.found_by_reading(archive)) == []


def test_a_harness_that_finds_nothing_says_so(written: dict[str, Path]) -> None:
    archive = written["memmap"]
    tried = flips.draw(page_cache.files(archive), 5)
    assert flips.missed(tried, lambda _: False) == tried
    before = [file.read_bytes() for file in page_cache.files(archive)]
    flips.missed(tried, flips.found_by_verify(archive))
    assert [file.read_bytes() for file in page_cache.files(archive)] == before


@whole_only
def test_the_table_is_filled_on_toy_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directories = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    rows = ["--only", "flips", "chunk-flips", "checksum-cost", "verify-speed"]
    outcomes = torture.fill(["--quick", *directories, *rows]).outcomes
    assert len(outcomes) == 11
    assert all(o.passed for o in outcomes if "flips" in o.what)
    (markdown,) = (tmp_path / "results").glob("*.md")
    told = markdown.read_text()
    assert "| single-bit flips found by verify --deep, memmap | ≥ 100 % | 100 % | pass |" in told
    assert "20 of 20; in 20 files" in told
    assert "single-bit flips" in capsys.readouterr().out
    assert not list((tmp_path / "data").glob("torture-*"))
