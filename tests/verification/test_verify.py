"""Findings of ``verify``, its repairs, and inconclusive results."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import shutil
import struct
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pyarrow as pa
import pytest
import zarr
from headers import header_bytes, header_of
from hypothesis import given
from hypothesis import strategies as st
from interleaving import between, some_lines
from places import GOLDEN
from sources import random_cells, write_h5ad
from typer.testing import CliRunner

import scdl
from scdl.cli.app import app_for
from scdl.collection import verification as member_verification
from scdl.verification import structure
from scdl.verification import verify as verification
from storage_backends import registry
from storage_backends.capabilities import Finding, Verdict
from storage_backends.compute import threads
from storage_backends.directory import comparison, locks
from storage_backends.directory import content as content_sums
from storage_backends.directory.checksums import RunningChecksums, Table, file_checksums
from storage_backends.directory.content import crc32c
from storage_backends.directory.recorder import Recorder
from storage_backends.errors import (
    ArchiveFormatError,
    ArchiveNotFoundError,
    BackendOptionError,
    OutputError,
)
from storage_backends.testing.archives import (
    FLOATS,
    ROUND_TRIPS,
    UNSIGNED,
    Contents,
    flip_bit,
    index_column,
    large_archive,
    small_archive,
)
from storage_backends.zarr import layout

BACKENDS = ["memmap", "zarr"]
CHECKSUMS = {"memmap": "scdl/checksums.bin", "zarr": "scdl.checksums"}
CELLS = random_cells(30, 20, dtype="<u2", seed=1)

pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
    pytest.mark.filterwarnings("ignore:Object at scdl.checksums is not recognized"),
]


def write(contents: Contents, path: str, backend: str = "memory") -> str:
    with registry.create(path, registry.backend(backend)) as writer:
        contents.write(writer)
        writer.commit(contents.attrs)
    return path


_numbers = itertools.count()


def damage(contents: Contents) -> list[Finding]:
    """Findings of damage in an archive in memory, which is written unchecked."""
    report = scdl.verify(write(contents, f"ram:{next(_numbers)}"), deep=True)
    return [f for f in report.findings if f.verdict is Verdict.DAMAGED]


def assert_finding(findings: list[Finding], *texts: str) -> None:
    """Check that there is one finding of one line that contains all texts."""
    assert len(findings) == 1, findings
    assert "\n" not in findings[0].message
    for text in texts:
        assert text in findings[0].message


@pytest.fixture(params=BACKENDS)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A backend and an archive of it."""
    source = write_h5ad(
        tmp_path / "cells.h5ad",
        CELLS,
        obsm={"X_pca": np.eye(30, 2)},
        obsp={"next_cell_ids": random_cells(30, 30, seed=3)},
    )
    path = tmp_path / "archive"
    scdl.convert(source, path, backend=request.param, obsm=["X_pca"], neighbor_key="next_cell_ids")
    return request.param, path


# -- structure -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*ROUND_TRIPS, "large"])
def test_well_formed_archives_are_not_damaged(case: str) -> None:
    contents = large_archive() if case == "large" else ROUND_TRIPS[case]()
    assert damage(contents) == []


@pytest.mark.parametrize("data", [*UNSIGNED, *FLOATS])
@pytest.mark.parametrize("ids", UNSIGNED)
def test_well_formed_types_are_not_damaged(data: str, ids: str) -> None:
    assert damage(small_archive(dtypes=(data, ids, ids), density=0.08)) == []


def sparse(**parts: Any) -> Contents:
    """Three cells with the genes 0, 2, 4 and 1, 3 and none, with parts replaced."""
    return small_archive(
        3,
        6,
        {
            "data": np.ones(5, "f4"),
            "indices": np.array([0, 2, 4, 1, 3], "u2"),
            "indptr": np.array([0, 3, 5, 5], "u4"),
            "sorted": True,
            **parts,
        },
    )


def test_unchanged_archive_is_sound() -> None:
    assert damage(sparse()) == []


@pytest.mark.parametrize(
    ("indptr", "found"),
    [
        ([1, 3, 5, 5], "found 1 at row 0"),
        ([0, 4, 3, 5], "found 3 at row 2"),
        ([0, 6, 6, 5], "found 6 at row 1"),
        ([0, 3, 3, 3], "found 3 at the end"),
        ([0, 3, 5, 2**32 - 1], "found 4,294,967,295 at row 3"),
        ([0, 3, 5], "(3)|3; expected"),
    ],
)
def test_offsets(indptr: list[int], found: str) -> None:
    contents = sparse(indptr=np.array(indptr, "u4"))
    if len(indptr) == 3:
        assert_finding(damage(contents), "blocks end at row 3", "2 cells")
    else:
        assert_finding(
            damage(contents),
            "indptr",
            found,
            "ascending offsets from 0" if "row" in found else "up to 5",
        )


@pytest.mark.parametrize(
    ("indices", "where"),
    [
        ([0, 2, 6, 1, 3], "found 6 in row 0, at position 2"),
        ([0, 2, 4, 1, 65535], "found 65,535 in row 1, at position 4"),
        ([0, 4, 2, 1, 3], "found 2 in row 0, at position 2"),
        ([0, 2, 4, 3, 3], "found 3 in row 1, at position 4"),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2, 1 << 20])
def test_ids(indices: list[int], where: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_VALUES", at_once)
    assert_finding(
        damage(sparse(indices=np.array(indices, "u2"))), "indices", "from 0 to 5, ascending", where
    )


def test_unsorted_ids_are_allowed_unless_declared_sorted() -> None:
    assert damage(sparse(indices=np.array([4, 0, 0, 3, 1], "u2"), sorted=False)) == []
    negative = damage(sparse(indices=np.array([4, -1, 0, 3, 1], "i2"), sorted=False))
    assert_finding(negative, "found -1 in row 0")


def test_ids_of_each_feature_block(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [{"stop": 1, "n_vars": 6, "label": None}, {"stop": 3, "n_vars": 3, "label": None}]
    parts = {"blocks": blocks, "var/1": pa.table(index_column(3))}
    for offsets_at_once in (1, 100):
        monkeypatch.setattr(structure, "_OFFSETS", offsets_at_once)
        assert_finding(damage(sparse(**parts)), "from 0 to 2", "found 3 in row 1, at position 4")


def test_lengths_of_the_matrix() -> None:
    assert_finding(damage(sparse(data=np.ones(4, "f4"))), "data has 4", "indices 5")


@pytest.mark.parametrize(
    ("part", "values", "texts"),
    [
        ("indices", [0, 3], ["graphs/knn/indices", "from 0 to 2", "found 3 in row 2"]),
        ("indptr", [0, 2, 1, 2], ["graphs/knn/indptr", "found 1 at row 2"]),
        ("indptr", [0, 2], ["graphs/knn/indptr 2", "4 offsets"]),
        ("data", [1.0], ["graphs/knn/data has 1"]),
    ],
)
def test_graphs(part: str, values: list[float], texts: list[str]) -> None:
    graph = {"data": [1.0, 1.0], "indices": [2, 0], "indptr": [0, 1, 1, 2]}
    dtypes = {"data": "f4", "indices": "u4", "indptr": "u8"}
    parts = {f"graphs/knn/{k}": np.array(v, dtypes[k]) for k, v in graph.items()}
    assert damage(sparse(**parts)) == []
    assert_finding(
        damage(sparse(**parts | {f"graphs/knn/{part}": np.array(values, dtypes[part])})), *texts
    )
    without = {k: v for k, v in parts.items() if k != f"graphs/knn/{part}"}
    assert_finding(damage(sparse(**without)), f"graphs/knn/{part} is missing")


def test_tables_and_vectors_have_a_row_for_each_cell_or_gene() -> None:
    assert_finding(
        damage(sparse(obs=pa.table(index_column(2)))), "obs", "expected 3 rows", "found 2"
    )
    assert_finding(
        damage(sparse(**{"var/0": pa.table(index_column(7))})), "var/0", "expected 6", "found 7"
    )
    assert_finding(
        damage(sparse(**{"obsm/X": np.zeros((4, 2), "f4")})), "obsm/X", "expected 3", "found 4"
    )


def test_missing_attributes_tables_or_matrix() -> None:
    assert_finding(damage(sparse(blocks=[])), "feature blocks")
    contents = sparse()
    assert_finding(damage(Contents(contents.arrays, {}, contents.attrs)), "var/0 is missing")
    arrays = {k: v for k, v in contents.arrays.items() if k != "indices"}
    assert_finding(damage(Contents(arrays, contents.tables, contents.attrs)), "indices is missing")


def test_in_parallel_draws_items_lazily() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    results = threads.in_parallel(lambda i: i * i, items(), 3)
    assert next(results)[1] in {i * i for i in range(6)}
    assert len(taken) <= 7
    assert sorted(i for i, _ in results)[-1] == 99
    with pytest.raises(ZeroDivisionError):
        list(threads.in_parallel(lambda i: 1 // i, [1, 0, 1], 2))


# -- checksums -----------------------------------------------------------------------------


def test_new_archives_are_sound(archive: tuple[str, Path]) -> None:
    _, path = archive
    report = scdl.open(path).verify(deep=True)
    assert report.is_sound
    assert report.verdict is Verdict.SOUND
    assert report.findings == ()
    files = [file for file in path.rglob("*") if file.is_file()]
    covered = sum(f.stat().st_size for f in files if not f.name.endswith(("s.bin", ".checksums")))
    assert report.nbytes == covered
    assert "sound" in str(report)
    assert scdl.verify(path).is_sound


def test_warnings_are_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may restore its warning filters while zarr opens an archive."""
    write_h5ad(tmp_path / "a.h5ad", random_cells(20, 30))
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "a", backend="zarr")
    monkeypatch.setattr(layout, "ignore_zarr_warnings", nullcontext)
    assert scdl.open(tmp_path / "a").verify(deep=True).findings == ()


CHANGES: dict[str, Callable[[Any], object]] = {
    "cast": lambda ds: ds.cast_data_to_dtype("float64"),
    "concat": lambda ds: ds.concat(scdl.open(ds.data_path)),
    "save": lambda ds: ds.save(),
    "load_h5ad": lambda ds: ds.load_h5ad(Path(ds.data_path).with_name("cells.h5ad")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:.*is left out:UserWarning")
def test_changes_in_place_keep_checksums_right(archive: tuple[str, Path], change: str) -> None:
    _, path = archive
    CHANGES[change](scdl.open(path))
    assert scdl.verify(path, deep=True).is_sound
    scdl.open(path).save(path.with_name("copy"))
    assert scdl.verify(path.with_name("copy"), deep=True).is_sound


def test_bit_flip_is_found_only_by_deep_verification(archive: tuple[str, Path]) -> None:
    backend, path = archive
    file = path / ("data.npy" if backend == "memmap" else "X/data/c/0")
    flip_bit(str(file), 5, 3)
    assert scdl.verify(path).is_sound
    report = scdl.verify(path, deep=True)
    assert report.verdict is Verdict.DAMAGED
    assert_finding(
        list(report.findings), str(file), "bytes 0 to", "expected the checksum", "copy the archive"
    )


def test_the_damaged_block_is_named(tmp_path: Path) -> None:
    path = write(small_archive(1000, 300, density=1), str(tmp_path / "a"), "memmap")
    assert scdl.verify(path, deep=True).is_sound
    flip_bit(f"{path}/data.npy", 1_100_000, 0)
    (finding,) = scdl.verify(path, deep=True).findings
    assert "data.npy: bytes 1,048,576 to 1,200,000 differ" in finding.message


def test_missing_truncated_and_added_files(archive: tuple[str, Path]) -> None:
    backend, path = archive
    added = path / "notes.txt"
    added.write_text("mine")
    report = scdl.verify(path)
    assert report.verdict is Verdict.SOUND, "what is not read does no harm"
    assert_finding(list(report.findings), "notes.txt")
    added.unlink()
    # The archive would read this file.
    added = path / ("neighbor_values.npy" if backend == "memmap" else "layers/zarr.json")
    if not added.exists():
        added.parent.mkdir(exist_ok=True)
        added.write_text("mine")
        report = scdl.verify(path)
        assert report.verdict is not Verdict.SOUND
        assert_finding(list(report.findings), added.name)
        added.unlink()
    file = path / ("scdl/arrays/0.bin" if backend == "memmap" else "obsm/X_pca/c/0/0")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert_finding(
        list(scdl.verify(path).findings), str(file), f"{len(content)}", f"{len(content) - 1}"
    )
    file.unlink()
    assert_finding(list(scdl.verify(path).findings), str(file), "found no file")


@pytest.mark.parametrize(
    "name", [".DS_Store", "._data", "Thumbs.db", "desktop.ini", "README.md", ".nfs0001", "x.txt"]
)
def test_files_of_other_programs_are_a_remark(archive: tuple[str, Path], name: str) -> None:
    backend, path = archive
    for directory in (path, path / ("var_features" if backend == "memmap" else "X")):
        if backend == "zarr" or directory == path or name.startswith("."):
            (directory / name).write_bytes(b"\0\1")
    for deep in (False, True):
        report = scdl.verify(path, deep=deep)
        assert report.verdict is Verdict.SOUND
        assert_finding(list(report.findings), name, "is not read")


def test_links_give_the_same_errors_as_opening(archive: tuple[str, Path], tmp_path: Path) -> None:
    _, path = archive
    link = tmp_path / "link"
    link.symlink_to(path)
    assert scdl.verify(link, deep=True).is_sound
    nowhere = tmp_path / "nowhere"
    nowhere.symlink_to(tmp_path / "absent")
    for call in (scdl.open, scdl.verify):
        with pytest.raises(ArchiveNotFoundError, match=r"a broken link to .*absent"):
            call(nowhere)
    file = next(
        p for p in path.rglob("*") if (p.is_file() and "c" in p.parts) or p.suffix == ".npy"
    )
    moved = tmp_path / "moved"
    file.rename(moved)
    file.symlink_to(moved)
    report = scdl.verify(path)
    assert report.verdict is Verdict.UNKNOWN
    assert_finding(list(report.findings), str(file), "a link leads out of the archive", "cp -rL")


def test_archive_without_its_markers(archive: tuple[str, Path]) -> None:
    _, path = archive
    for name in ("header.sch", "data.npy", "zarr.json"):
        (path / name).unlink(missing_ok=True)
    report = scdl.verify(path)
    assert report.verdict is Verdict.DAMAGED
    assert all("found no file" in finding.message for finding in report.findings)


def test_archive_that_is_replaced_during_verification(
    archive: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checksums of the old archive and files of the new one are not reported as damage."""
    backend, path = archive
    other, looked = path.with_name("other"), 0
    scdl.open(path).save(other)
    scdl.open(other).cast_data_to_dtype("float64")
    store = registry.backend(backend).store
    examine = store.examine

    def examine_and_replace(place: str) -> Any:
        nonlocal looked
        looked += 1
        found = examine(place)
        if other.exists():
            shutil.rmtree(path)
            other.rename(path)
        return found

    monkeypatch.setattr(store, "examine", examine_and_replace)
    assert scdl.verify(path, deep=True).is_sound
    assert looked == 2


def test_pipes_and_dangling_links_are_ignored(archive: tuple[str, Path]) -> None:
    backend, path = archive
    (path / CHECKSUMS[backend]).unlink()
    os.mkfifo(path / "pipe")
    (path / "link").symlink_to("nothing")
    assert scdl.verify(path, deep=True).verdict is Verdict.UNKNOWN
    assert scdl.verify(path, deep=True, add_checksums=True).is_sound


def test_number_of_listed_findings_is_limited(archive: tuple[str, Path]) -> None:
    _, path = archive
    for file in path.rglob("*"):
        if file.is_file() and not file.name.endswith(("checksums.bin", ".checksums")):
            file.write_bytes(file.read_bytes() + b"x")
    full = scdl.verify(path).findings
    assert len(full) > 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "_MAX_FINDINGS", 3)
        few = scdl.verify(path).findings
    assert few[:3] == full[:3]
    assert few[3].message == f"{path}: there are {len(full) - 3} more findings"
    assert few[3].verdict is Verdict.DAMAGED


@pytest.mark.parametrize(
    ("code", "verdict"), [(errno.EIO, Verdict.DAMAGED), (errno.EACCES, Verdict.UNKNOWN)]
)
def test_files_that_cannot_be_read(
    archive: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, code: int, verdict: Verdict
) -> None:
    class Unreadable(io.BytesIO):
        def readinto(self, _: Any) -> int:
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(comparison, "open", lambda *_, **__: Unreadable(), raising=False)
        report = scdl.verify(archive[1], deep=True)
    assert report.verdict is verdict
    assert os.strerror(code) in report.findings[0].message
    assert scdl.verify(archive[1], deep=True).is_sound


@pytest.mark.parametrize("deep", [False, True])
def test_without_checksums_the_verdict_is_unknown(archive: tuple[str, Path], deep: bool) -> None:
    backend, path = archive
    (path / CHECKSUMS[backend]).unlink()
    report = scdl.verify(path, deep=deep)
    assert report.verdict is Verdict.UNKNOWN
    assert_finding(list(report.findings), "no checksums", "--add-checksums")


def test_without_checksums_every_chunk_of_zarr_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", CELLS), path)
    (path / "scdl.checksums").unlink()
    flip_bit(str(path / "X/data/c/0"), 5, 3)
    assert scdl.verify(path).verdict is Verdict.UNKNOWN
    report = scdl.verify(path, deep=True)
    assert report.verdict is Verdict.DAMAGED
    assert "chunk 0 is damaged" in report.findings[0].message


@pytest.mark.parametrize("name", sorted(p.name for p in GOLDEN.iterdir() if p.is_dir()))
def test_add_checksums_to_foreign_archives(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.copytree(GOLDEN / name, path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    report = scdl.verify(path, deep=True)
    assert report.verdict is Verdict.UNKNOWN
    assert [f.verdict for f in report.findings] == [Verdict.UNKNOWN]
    report = scdl.verify(path, deep=True, add_checksums=True)
    assert report.is_sound, report
    assert len(report.done) == 1
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert after.pop(path / "scdl/checksums.bin")
    assert after == before
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(OutputError, match="already has checksums"):
        scdl.verify(path, add_checksums=True)


def test_no_checksums_are_added_to_damaged_archives(tmp_path: Path) -> None:
    contents = small_archive(parts={"sorted": True})
    contents.arrays["indices"][0] = 39
    path = write(contents, str(tmp_path / "a"), "memmap")
    os.remove(f"{path}/scdl/checksums.bin")
    report = scdl.verify(path, add_checksums=True)
    assert report.verdict is Verdict.DAMAGED
    assert report.done == ()
    assert not os.path.exists(f"{path}/scdl/checksums.bin")


def test_foreign_zarr_stores_with_anndata(tmp_path: Path) -> None:
    path = tmp_path / "other.zarr"
    anndata.read_h5ad(write_h5ad(tmp_path / "a.h5ad", CELLS)).write_zarr(path)
    report = scdl.verify(path, deep=True)
    assert report.verdict is Verdict.UNKNOWN, report
    assert scdl.verify(path, deep=True, add_checksums=True).is_sound
    assert anndata.read_zarr(path).shape == (30, 20)


def test_checksums_of_remote_archives_are_not_read(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", CELLS), tmp_path / "a.zarr")
    place = f"/{tmp_path.name}"
    fsspec.filesystem("memory").put(str(tmp_path / "a.zarr"), place, recursive=True)
    report = scdl.verify(f"memory:/{place}", deep=True)
    assert report.verdict is Verdict.UNKNOWN
    assert_finding(list(report.findings), "remote archives", "local path")
    for change in ("repair", "add_checksums"):
        with pytest.raises(BackendOptionError, match="remote archive"):
            scdl.verify(f"memory:/{place}", **{change: True})


# -- repairs -------------------------------------------------------------------------------


def make_stale(path: Path) -> bytes:
    """Write a header with the lengths of fewer cells; returns the original one."""
    header = path / "header.sch"
    before, fields = header.read_bytes(), header_of(header)
    fields["arrays"] = [(name, n - 2, *rest) for name, n, *rest in fields["arrays"]]
    fields["indexes"] = [(name, n - 2, *rest) for name, n, *rest in fields["indexes"]]
    header.write_bytes(header_bytes(**fields))
    return before


def test_two_archives_that_are_verified_at_the_same_time(tmp_path: Path) -> None:
    """Each report is of its own archive, and warning filters are restored."""
    for name in ("one", "two"):
        make_stale(Path(write(small_archive(), str(tmp_path / name), "memmap")))
    before = list(warnings.filters), warnings.showwarning
    within = (
        "/scdl/verification/verify.py",
        "/storage_backends/memmap/store.py",
        "/storage_backends/memmap/layout.py",
        "/storage_backends/directory/store.py",
    )

    def verified(name: str) -> tuple[Verdict, list[str]]:
        report = scdl.verify(tmp_path / name)
        return report.verdict, [found.message for found in report.findings]

    expected = verified("one"), verified("two")
    assert all(any("--repair" in text for text in told) for _, told in expected)
    for line in some_lines(lambda: verified("one"), 60, within):
        other: list[Any] = []
        got = between(
            line,
            lambda: verified("one"),
            lambda other=other: other.append(verified("two")),
            within,
        )
        assert (got, *other) == expected
    assert (list(warnings.filters), warnings.showwarning) == before


@pytest.mark.parametrize("checksums", [True, False])
def test_stale_header_is_repaired(tmp_path: Path, checksums: bool) -> None:
    path = Path(write(small_archive(), str(tmp_path / "a"), "memmap"))
    if not checksums:
        (path / "scdl/checksums.bin").unlink()
    before = make_stale(path)
    report = scdl.verify(path)
    assert report.verdict is Verdict.DAMAGED
    assert any(f.mendable and "--repair" in f.message for f in report.findings)
    report = scdl.verify(path, deep=True, repair=True)
    assert report.verdict is (Verdict.SOUND if checksums else Verdict.UNKNOWN)
    assert len(report.done) == 1
    assert "header.sch" in report.done[0]
    assert (path / "header.sch").read_bytes() == before
    assert scdl.verify(path, repair=True).done == ()
    assert os.listdir(tmp_path) == ["a"]


def test_header_of_every_reference_version_is_restored(tmp_path: Path) -> None:
    for name in ("ragged_v013", "ragged_head", "neighbors_v013"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
        before = make_stale(tmp_path / name)
        assert len(scdl.verify(tmp_path / name, repair=True).done) == 1
        mended, header = header_of(tmp_path / name / "header.sch"), tmp_path / "before.sch"
        header.write_bytes(before)
        assert mended["arrays"] == header_of(header)["arrays"]
        lengths = [(name, length) for name, length, *_ in mended["indexes"]]
        assert lengths == [(name, length) for name, length, *_ in header_of(header)["indexes"]]


def test_missing_consolidated_metadata_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", CELLS), path)
    before = (path / "zarr.json").read_bytes()
    metadata = json.loads(before)
    del metadata["consolidated_metadata"]
    (path / "zarr.json").write_text(json.dumps(metadata))
    report = scdl.verify(path)
    assert report.verdict is Verdict.DAMAGED
    assert any(f.mendable and "not consolidated" in f.message for f in report.findings)
    report = scdl.verify(path, deep=True, repair=True)
    assert report.is_sound, report
    assert (path / "zarr.json").read_bytes() == before
    # If other files differ, too, the repair would be ambiguous.
    metadata["attributes"]["scdl"]["attrs"]["matrices"] = ["layers/other"]
    (path / "zarr.json").write_text(json.dumps(metadata))
    report = scdl.verify(path, repair=True)
    assert (report.verdict, report.done) == (Verdict.DAMAGED, ())


@pytest.mark.parametrize("version", [2, 3])
def test_foreign_stores_are_consolidated(tmp_path: Path, version: int) -> None:
    path = tmp_path / "other.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for name in ("obs", "var"):
        frame = group.create_group(name)
        frame.create_array("_index", data=np.arange(3))
        kind = {"encoding-type": "dataframe", "encoding-version": "0.2.0"}
        frame.attrs.update({**kind, "_index": "_index", "column-order": []})
    matrix = group.create_group("X")
    matrix.attrs.update({"encoding-type": "csr_matrix", "shape": [3, 3]})
    for name, values in {"data": [1.0, 2.0], "indices": [0, 2], "indptr": [0, 1, 1, 2]}.items():
        matrix.create_array(name, data=np.array(values))
    group.attrs["encoding-type"] = "anndata"
    report = scdl.verify(path)
    assert report.verdict is Verdict.UNKNOWN
    assert [f.verdict for f in report.findings if f.mendable] == [Verdict.SOUND]
    report = scdl.verify(path, deep=True, repair=True, add_checksums=True)
    assert report.is_sound
    assert len(report.done) == 2
    assert report.findings == ()


def test_archives_that_cannot_be_opened_are_not_repaired(archive: tuple[str, Path]) -> None:
    backend, path = archive
    file = path / ("header.sch" if backend == "memmap" else "zarr.json")
    flip_bit(str(file), 0, 0)
    (path / CHECKSUMS[backend]).unlink()
    report = scdl.verify(path, repair=True)
    assert report.verdict is Verdict.DAMAGED
    assert report.done == ()


# -- the file of checksums -----------------------------------------------------------------

TABLE = Table(
    {
        "a": file_checksums(b"123456789"),
        "b/c": file_checksums(b""),
        "ü": file_checksums(bytes(3 << 20)),
    }
)


def test_checksums_are_crc32c_of_blocks(tmp_path: Path) -> None:
    # The standard check value of CRC-32C (Castagnoli).
    assert TABLE.files["a"].blocks.tolist() == [0xE3069283]
    again = Table.from_bytes(TABLE.to_bytes(), "here")
    assert {k: (s.size, s.blocks.tolist()) for k, s in again.files.items()} == {
        k: (s.size, s.blocks.tolist()) for k, s in TABLE.files.items()
    }


@given(st.binary(max_size=3000), st.integers(1, 64), st.lists(st.integers(0, 99), max_size=9))
def test_checksums_do_not_depend_on_pieces(data: bytes, block: int, lengths: list[int]) -> None:
    running, position = RunningChecksums(block), 0
    for length in lengths:
        running.update(data[position : position + length])
        position = min(position + length, len(data))
    running.update(data[position:])
    found, expected = running.result(), file_checksums(data, block)
    blocks = [crc32c(data[i : i + block]) for i in range(0, len(data), block)]
    assert found.blocks.tolist() == expected.blocks.tolist() == blocks
    assert found.size == len(data)


def test_checksums_without_the_compiled_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_sums, "_EXTEND", 0)
    assert file_checksums(b"123456789").blocks.tolist() == [0xE3069283]
    assert file_checksums(b"123456789" * 9, 10).blocks.tolist() == [
        crc32c((b"123456789" * 9)[i : i + 10]) for i in range(0, 81, 10)
    ]


def checked(said: bytes, sums: bytes = b"") -> bytes:
    content = struct.pack("<8sQ", b"SCDLCRC1", len(said)) + said + sums
    return content + struct.pack("<I", crc32c(content))


HOSTILE = [
    b"",
    b"[" * 100_000,
    b"[]",
    b'{"block": 0, "files": []}',
    b'{"block": 1048576}',
    b'{"block": true, "files": []}',
    b'{"block": 1152921504606846976, "files": []}',
    b'{"block": 1048576, "files": [["a", -1]]}',
    b'{"block": 1048576, "files": [["a", 1.0]]}',
    b'{"block": 1, "files": [["a", 9223372036854775807]]}',
    b'{"block": 1048576, "files": [["a", 0], ["a", 0]]}',
    *(b'{"block": 9, "files": [["%s", 0]]}' % p for p in (b"../a", b"/a", b"a//b", b".", b"")),
    b'{"block": 9, "files": [["a\\u0000", 0]]}',
    b'{"block": 9, "files": [[["a"], 0]]}',
]


@pytest.mark.parametrize("said", HOSTILE, ids=lambda said: said[:60])
def test_hostile_checksums_are_refused(said: bytes) -> None:
    with pytest.raises(ArchiveFormatError, match="here: this is not a file of scdl checksums"):
        Table.from_bytes(checked(said), "here")


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for content in (data, b"SCDLCRC1" + data, checked(data), TABLE.to_bytes()[: len(data)]):
        with pytest.raises(ArchiveFormatError, match="here"):
            Table.from_bytes(content, "here")


def test_recorder_renames_and_removes(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path))
    for name in ("a/x", "a/y", "ab", "b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        recorder.write(str(tmp_path / name), name.encode())
    recorder.rename(str(tmp_path / "a"), str(tmp_path / "c"))
    assert sorted(recorder.table().files) == ["ab", "b", "c/x", "c/y"]
    assert recorder.table().files["c/x"].blocks.tolist() == [crc32c(b"a/x")]
    recorder.remove(str(tmp_path / "c"))
    assert sorted(recorder.table().files) == ["ab", "b"]
    assert sorted(os.listdir(tmp_path)) == ["ab", "b"]


# -- collections ---------------------------------------------------------------------------


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """A collection with an archive of each backend."""
    write_h5ad(tmp_path / "cells.h5ad", CELLS)
    place = tmp_path / "atlas"
    place.mkdir()
    scdl.convert(tmp_path / "cells.h5ad", place / "a")
    scdl.convert(tmp_path / "cells.h5ad", place / "b.zarr", data_dtype="float32")
    return place


@pytest.mark.parametrize("manifest", [False, True])
def test_every_archive_of_a_collection_is_verified(atlas: Path, manifest: bool) -> None:
    made = scdl.open(atlas)
    if manifest:
        made.save_manifest()
    for report in (scdl.verify(atlas, deep=True), made.verify(deep=True)):
        assert (report.verdict, report.findings) == (Verdict.SOUND, ())
        alone = [scdl.verify(atlas / name, deep=True).nbytes for name in ("a", "b.zarr")]
        assert report.nbytes == sum(alone)
        assert str(report).startswith(f"{atlas} (a collection of 2): sound")
    flip_bit(str(atlas / "a/data.npy"), 17, 3)
    for report in (scdl.verify(atlas, deep=True), made.verify(deep=True)):
        assert report.verdict is Verdict.DAMAGED
        assert_finding(report.findings, "atlas/a/data.npy")
    assert scdl.verify(atlas).is_sound


def test_archives_must_match_the_manifest(atlas: Path) -> None:
    scdl.open(atlas).save_manifest()
    scdl.open(atlas / "a").cast_data_to_dtype("float64")
    report = scdl.verify(atlas)
    assert report.verdict is Verdict.DAMAGED
    assert_finding(report.findings, "atlas/a: the archive changed", "refresh()")
    shutil.rmtree(atlas / "b.zarr")
    (atlas / "b.zarr").write_text("no archive")
    assert [f.verdict for f in scdl.verify(atlas).findings] == [Verdict.DAMAGED] * 2
    (atlas / "b.zarr").unlink()
    found = [f.message for f in scdl.verify(atlas).findings]
    assert any("atlas/b.zarr: this member of the collection is missing" in text for text in found)
    (atlas / "collection.json").write_text("{")
    report = scdl.verify(atlas)
    assert_finding(report.findings, "collection.json")
    assert report.backend == "a collection of 1"


def test_further_findings_are_counted(atlas: Path) -> None:
    scdl.open(atlas).save_manifest()
    manifest = json.loads((atlas / "collection.json").read_text())
    manifest["members"] = [{**manifest["members"][0], "path": f"gone{i}"} for i in range(250)]
    (atlas / "collection.json").write_text(json.dumps(manifest))
    report = scdl.verify(atlas)
    assert len(report.findings) == 101
    assert "there are 150 more findings" in report.findings[-1].message


def test_inconclusive_errors_are_not_damage(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locks.write_locked(str(atlas / "b.zarr")):
        (atlas / "b.zarr" / CHECKSUMS["zarr"]).unlink()
        report = scdl.verify(atlas, add_checksums=True)
    assert report.verdict is Verdict.UNKNOWN
    assert_finding(report.findings, "atlas/b.zarr", "another process or thread")
    scdl.open(atlas).save_manifest()

    def refuse(directory: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", directory)

    monkeypatch.setattr(member_verification, "read_manifest", refuse)
    assert scdl.verify(atlas).verdict is Verdict.UNKNOWN


def test_archives_of_a_collection_are_repaired_and_get_checksums(atlas: Path) -> None:
    scdl.open(atlas).save_manifest()
    for name, checksums in ("a", CHECKSUMS["memmap"]), ("b.zarr", CHECKSUMS["zarr"]):
        (atlas / name / checksums).unlink()
    before = make_stale(atlas / "a")
    report = scdl.verify(atlas, repair=True, add_checksums=True)
    assert report.is_sound
    assert len(report.done) == 3
    assert (atlas / "a/header.sch").read_bytes() == before
    # Existing checksums are kept.
    assert scdl.verify(atlas, add_checksums=True, deep=True).done == ()


# -- the command ---------------------------------------------------------------------------


def test_the_command(archive: tuple[str, Path]) -> None:
    backend, path = archive

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        done = CliRunner().invoke(app_for(["verify"]), ["verify", *map(str, arguments)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    code, told, wrong = run(path, "--deep")
    assert (code, wrong) == (0, "")
    assert told.splitlines()[-1].startswith(f"{path} ({backend}): sound")
    (path / CHECKSUMS[backend]).unlink()
    assert run(path, "--quiet") == (2, "", "")
    code, told, _ = run(path, "--add-checksums")
    assert code == 0
    assert "done: " in told
    code, _, wrong = run(path, "--add-checksums")
    assert code == 2
    assert "already has checksums" in wrong
    flip_bit(str(next(path.rglob("*.json"))), 0, 0)
    code, told, _ = run(path, "--deep", "--repair")
    assert code == 1
    assert told.startswith("damaged: ")


def test_the_command_on_a_collection(atlas: Path) -> None:
    done = CliRunner().invoke(app_for(["verify"]), ["verify", str(atlas), "--deep"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "a collection of 2" in done.stdout
    shutil.rmtree(atlas / "a/var_features")
    done = CliRunner().invoke(app_for(["verify"]), ["verify", str(atlas)])
    assert done.exit_code == 1
    assert "atlas/a" in done.stdout


def test_exit_code_of_the_process(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_python("-m", "scdl", "verify", tmp_path / "nothing")
    assert done.returncode == 2
    assert "there is no archive here" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ArchiveNotFoundError):
        scdl.verify(tmp_path / "nothing")
