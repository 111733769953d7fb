"""Archives with their cells in random order, compared row by row with unshuffled ones."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from anndata.tests.helpers import assert_equal
from annotated import annotated, columns, write
from budget import examples, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import write_members
from sources import Cells, cells, encodings, names, random_cells, write_h5ad

import scdl
from scdl.archive.csr import SparseRows
from scdl.archive.tables import EncodedTable
from scdl.conversion import external_sort, shuffled_comparison
from scdl.conversion.concatenation import obs_tables
from scdl.conversion.row_order import Shuffle
from scdl.conversion.shuffled_comparison import check_shuffled
from scdl.conversion.tables import United
from scdl.errors import (
    ArchiveExistsError,
    CollectionError,
    ConversionFailedError,
    GeneError,
    OptionError,
    ScdlWarning,
)
from scdl.sources.matrices import Bounds
from storage_backends import registry
from storage_backends.capabilities import Verdict
from storage_backends.compute.warning_filters import ignore_warnings

pytestmark = [
    pytest.mark.filterwarnings("ignore:(Variable|Observation) names are not unique"),
    pytest.mark.filterwarnings("ignore:.*columns of var that differ between feature blocks"),
]
BACKENDS: list[dict[str, Any]] = [{"backend": "memmap"}, {"backend": "zarr", "compression": "fast"}]


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sort a few rows at a time, in many buckets."""
    monkeypatch.setattr(external_sort, "_BUFFER", 300)
    monkeypatch.setattr(external_sort, "_READ", 1)


def source_rows(cells: Any, column: str = "source_row") -> np.ndarray:
    """The original row of each cell, each occurring once."""
    rows = cells.obs[column].to_numpy()
    assert rows.dtype == np.int64
    assert np.array_equal(np.sort(rows), np.arange(len(cells)))
    return rows


def assert_shuffled(shuffled: Any, plain: Any, column: str = "source_row") -> None:
    """Check that everything about each cell is that of its row in an unshuffled dataset."""
    rows = source_rows(shuffled, column)
    found, expected = shuffled.to_anndata(), plain.to_anndata()
    del found.obs[column]
    with anndata.settings.override(remove_unused_categories=False):
        assert_equal(found, expected[rows].copy())
    for key in plain.neighbor_keys:
        graphs = [cells._graph_of(key) for cells in (shuffled, plain)]
        for new, old in enumerate(rows.tolist()):
            ours, theirs = graphs[0].neighbors(new), graphs[1].neighbors(old)
            # In the same order, too.
            assert rows[ours.indices.astype(np.int64)].tolist() == theirs.indices.tolist()
            assert ours.data.tolist() == theirs.data.tolist()


# -- the external sort -------------------------------------------------------------------------


@st.composite
def pieces(draw: st.DrawFn) -> tuple[int, list[slice]]:
    """A number of rows, and how they are divided; some pieces are empty."""
    n = draw(st.integers(0, 60))
    edges = sorted(draw(st.lists(st.integers(0, n), max_size=6)))
    return n, [slice(a, b) for a, b in itertools.pairwise([0, *edges, n])]


@given(pieces=pieces(), seed=st.integers(-(2**70), 2**70), data=st.data())
@settings(max_examples=examples(100))
def test_rows_of_every_kind(pieces: tuple[int, list[slice]], seed: int, data: Any) -> None:
    n, spans = pieces
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    with tempfile.TemporaryDirectory() as place:
        order = Shuffle.order(Shuffle(seed), n, f"{place}/target")
        rows = order.sources
        assert np.array_equal(np.sort(rows), np.arange(n))
        assert np.array_equal(order.places(rows), np.arange(n))

        matrix = random_cells(n, 9, density=data.draw(st.sampled_from([0, 0.3, 1.0]))).csr()
        dtypes = np.dtype(data.draw(st.sampled_from(["f2", "f4", "f8", "u1"]))), np.dtype("u2")
        values, ids = matrix.data.astype(dtypes[0]), matrix.indices.astype(dtypes[1])
        blocks = []
        for span in spans:
            at = matrix.indptr[span.start : span.stop + 1].astype(np.int64)
            stored = slice(at[0], at[-1])
            blocks.append(SparseRows(values[stored], ids[stored], at - at[0]))
        found = [*order.rows(blocks, dtypes, matrix.nnz)]
        assert {block.data.dtype for block in found} == {dtypes[0]}
        lengths = np.concatenate([np.diff(block.indptr) for block in found])
        assert lengths.tolist() == np.diff(matrix.indptr)[rows].tolist()
        expected = np.concatenate([np.arange(*matrix.indptr[i : i + 2]) for i in rows] or [[]])
        for part, stored in ((0, values), (1, ids)):
            joined = np.concatenate([block[part] for block in found])
            assert joined.tobytes() == stored[expected.astype(int)].tobytes()

        vectors = rng.random((n, *data.draw(st.sampled_from([(), (3,), (2, 2), (0,)]))))
        moved = order.items([vectors[span] for span in spans], vectors[:0])
        assert np.array_equal(np.concatenate([*moved]), vectors[rows])

        frame = columns(n, rng, "cell").drop(columns="numbered")
        table = pa.Table.from_pandas(frame.reset_index(), preserve_index=False)
        united = United([EncodedTable(table, {})])
        assert order.table(united).read_all().equals(united.reader().read_all().take(rows))


@pytest.mark.skipif(sys.platform != "linux", reason="holes in files are those of Linux")
def test_temporary_file_shrinks_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, width, files = 4_096, 1_000, []
    monkeypatch.setattr(external_sort, "_BUFFER", 1 << 19)
    scratch_file = external_sort.scratch_file

    @contextlib.contextmanager
    def kept(bounds: Bounds) -> Iterator[BinaryIO]:
        with scratch_file(bounds) as file:
            files.append(file)
            yield file

    monkeypatch.setattr(external_sort, "scratch_file", kept)
    values = np.random.default_rng(0).integers(0, 256, (n, width), dtype=np.uint8)
    order = Shuffle.order(Shuffle(0), n, str(tmp_path / "target"))
    read, sizes = 0, []
    for piece in order.items(np.split(values, 16), values[:0]):
        read += len(piece)
        sizes.append(os.fstat(files[0].fileno()).st_blocks * 512)
        # What is read is in memory: this piece and the next.
        assert sizes[-1] < (n - read) * (width + 8) + (1 << 19)
    assert sizes[0] > n * width / 2
    assert sizes[-1] < 1 << 16


def test_order_is_uniform() -> None:
    """Over many seeds each row goes to each place equally often."""
    counts = np.zeros((6, 6))
    for seed in range(6_000):
        places = Shuffle.order(Shuffle(seed), 6, "").places(np.arange(6))
        counts[np.arange(6), places] += 1
    # Five standard deviations of a binomial distribution.
    assert np.abs(counts - 1_000).max() < 5 * np.sqrt(6_000 * (1 / 6) * (5 / 6))


def test_buffers_grow_with_the_square_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the data, a bucket takes at least `_READ` bytes of each sorted run."""
    monkeypatch.undo()
    for nbytes in (10**8, 10**11, 10**13):
        buffer, n_buckets = external_sort.sizes(nbytes, 10**9)
        assert buffer / n_buckets >= external_sort._READ * 0.99
        assert buffer * n_buckets >= nbytes
        assert buffer <= max(1 << 25, 1.01 * np.sqrt(nbytes * external_sort._READ))


# -- archives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", BACKENDS, ids=["memmap", "zarr"])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("kind", ["h5ad", "store", "archive"])
def test_everything_goes_along(
    tmp_path: Path, options: dict[str, Any], raw: bool, kind: str
) -> None:
    source = tmp_path / ("a.zarr" if kind == "store" else "a.h5ad")
    with anndata.settings.override(zarr_write_format=3), ignore_warnings(""):
        write(annotated(40, 12, seed=1, raw=raw), source)
    if kind == "archive":
        scdl.convert(source, tmp_path / "source.zarr")
        source = tmp_path / "source.zarr"
    if options["backend"] == "memmap":
        options = options | {"obsm": ["X_pca", "cube"], "neighbor_key": ["graph", "csc"]}
    plain = scdl.convert(source, tmp_path / "plain", **options)
    shuffled = scdl.convert(source, tmp_path / "shuffled", shuffle=5, **options)
    assert shuffled.not_carried == plain.not_carried
    assert (shuffled.nnz, shuffled.dtype, shuffled.matrices) == (
        plain.nnz, plain.dtype, plain.matrices,
    )  # fmt: skip
    assert_shuffled(scdl.open(shuffled.path), scdl.open(plain.path))
    assert scdl.verify(shuffled.path, deep=True).verdict is Verdict.SOUND


@given(cells=cells(), encoding=encodings(), seed=st.integers(0, 9), data=st.data())
@settings(max_examples=examples(40))
def test_any_file_in_any_encoding(cells: Cells, encoding: Any, seed: int, data: Any) -> None:
    """Without cells, with empty cells, repeated genes and entries, unsorted genes."""
    options = data.draw(st.sampled_from(BACKENDS))
    n_obs, n_vars = cells.shape
    repeated = data.draw(st.booleans())
    var = pd.DataFrame(index=["gene"] * n_vars if repeated else names("gene", n_vars))
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        layers = {"too": cells} if options["backend"] == "zarr" else None
        source = write_h5ad(place / "a.h5ad", cells, encoding, var=var, layers=layers)
        more = {"data_dtype": "float64", "block_values": 20, **options}
        try:
            plain = scdl.convert(source, place / "plain", **more)
        except scdl.errors.ScdlError as error:
            with pytest.raises(type(error)):
                scdl.convert(source, place / "shuffled", shuffle=seed, **more)
            return
        shuffled = scdl.convert(source, place / "shuffled", shuffle=seed, **more)
        assert shuffled.duplicates_summed == plain.duplicates_summed
        one, other = scdl.open(plain.path), scdl.open(shuffled.path)
        rows = source_rows(other)
        expected, found = one.read_rows(rows), other.read_rows(slice(None))
        for part in ("data", "indices", "indptr"):
            assert np.array_equal(getattr(expected, part), getattr(found, part))
        if layers:
            whole = [cells.to_anndata().layers["too"] for cells in (one, other)]
            expected, found = (x.toarray() if sp.issparse(x) else x for x in whole)
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected[rows])
        assert other.obs_names.tolist() == one.obs_names[rows].tolist() if n_obs else True


def test_order_depends_on_seed_and_cells_alone(tmp_path: Path) -> None:
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(50, 9))
    other = write_h5ad(tmp_path / "b.h5ad", random_cells(50, 4, seed=7))
    orders = []
    for i, (path, seed, options) in enumerate(
        [(source, 3, BACKENDS[0]), (other, 3, BACKENDS[1]), (source, 4, BACKENDS[0])]
    ):
        scdl.convert(path, tmp_path / str(i), shuffle=seed, **options)
        orders.append(source_rows(scdl.open(tmp_path / str(i))).tolist())
    assert orders[0] == orders[1] != orders[2]
    scdl.convert_in_parts(source, tmp_path / "parts", shuffle=3, workers=1, split_bytes=500)
    assert_equal(*(scdl.open(tmp_path / name).to_anndata() for name in ("parts", "0")))


def test_several_sources_are_shuffled_together(tmp_path: Path) -> None:
    """Their genes come in any order; obs is united, and var has what all sources share."""
    sources = {}
    for i, n in enumerate((20, 0, 30)):
        part = annotated(n, 12, seed=i)
        part = part[:, ::-1].copy() if i == 2 else part
        part.var = part.var[["category"]].assign(shared="s", own=i)
        part.obs = part.obs[["category", "nullable"]].assign(**({"more": 1.5} if i else {}))
        sources[f"sample {i}"] = path = tmp_path / f"{i}.h5ad"
        write(part, path)
    more: dict[str, Any] = {"label": "sample", "neighbor_key": "graph", "obsm": "X_pca"}
    for options in BACKENDS:
        place = tmp_path / options["backend"]
        place.mkdir()
        plain = scdl.convert(sources, place / "plain", **more, **options)
        report = scdl.convert(sources, place / "shuffled", shuffle=1, **more, **options)
        assert "var/own" in report.not_carried
        assert report.n_vars == [12]
        assert report.reordered == plain.reordered
        one, other = scdl.open(plain.path), scdl.open(report.path)
        assert_shuffled(other, one)
        assert set(np.diff(other.obs["sample"].cat.codes)) > {0}


def test_different_genes_need_one_gene_space(tmp_path: Path) -> None:
    ragged = write_members(tmp_path / "members")
    collection = scdl.open(tmp_path / "members")
    for call in (
        lambda path: scdl.convert(ragged.paths, path, shuffle=1, data_dtype="float64"),
        lambda path: collection.flatten(path, shuffle=1),
    ):
        with pytest.raises(GeneError, match="genes='union' with missing='zero'"):
            call(tmp_path / "out")
        assert not (tmp_path / "out").exists()
    union: dict[str, Any] = {"genes": "union", "missing": "zero"}
    collection.flatten(tmp_path / "plain", **union)
    collection.flatten(tmp_path / "flat", shuffle=1, **union)
    assert_shuffled(scdl.open(tmp_path / "flat"), scdl.open(tmp_path / "plain"))
    union["data_dtype"] = "float64"
    scdl.convert(ragged.paths, tmp_path / "unmoved", **union)
    scdl.convert(ragged.paths, tmp_path / "made", shuffle=1, **union)
    assert_shuffled(scdl.open(tmp_path / "made"), scdl.open(tmp_path / "unmoved"))


@pytest.mark.parametrize("options", sample(BACKENDS, 1))
def test_flattened_collections(tmp_path: Path, options: dict[str, Any]) -> None:
    more: dict[str, Any] = {"obsm": "X_pca", "neighbor_key": "graph", "only_matrix": True}
    (tmp_path / "members").mkdir()
    for i, n in enumerate((15, 0, 25)):
        source, target = tmp_path / f"{i}.h5ad", tmp_path / "members" / f"m{i}"
        write(annotated(n, 12, seed=i), source)
        scdl.convert(source, target, **more, **BACKENDS[i % 2])
    collection = scdl.open(tmp_path / "members", label="member")
    collection.flatten(tmp_path / "plain", cell_names="prefix", **options)
    with pytest.warns(ScdlWarning, match="columns of var .* left out.*: category, float"):
        collection.flatten(tmp_path / "flat", cell_names="prefix", shuffle=2, **options)
    assert_shuffled(scdl.open(tmp_path / "flat"), scdl.open(tmp_path / "plain"))
    assert scdl.verify(tmp_path / "flat", deep=True).verdict is Verdict.SOUND


def test_one_member_keeps_everything(tmp_path: Path) -> None:
    write(annotated(30, 12), tmp_path / "a.h5ad")
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr")
    scdl.SingleCellCollection([tmp_path / "a.zarr"]).flatten(tmp_path / "b.zarr", shuffle=2)
    assert_shuffled(scdl.open(tmp_path / "b.zarr"), scdl.open(tmp_path / "a.zarr"))


def test_shuffled_again_under_another_name(tmp_path: Path) -> None:
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(20, 9))
    scdl.convert(source, tmp_path / "once", shuffle=1)
    with pytest.raises(OptionError, match=r"obs has a column 'source_row' already.*row_column="):
        scdl.convert(tmp_path / "once", tmp_path / "twice", shuffle=2)
    collection = scdl.SingleCellCollection([tmp_path / "once"])
    with pytest.raises(OptionError, match=r"obs has a column 'source_row' already.*row_column="):
        collection.flatten(tmp_path / "twice", shuffle=2)
    assert [*tmp_path.glob("*twice*")] == []
    scdl.convert(tmp_path / "once", tmp_path / "twice", shuffle=2, row_column="once")
    assert_shuffled(scdl.open(tmp_path / "twice"), scdl.open(tmp_path / "once"), "once")


def test_refused_options(tmp_path: Path) -> None:
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(20, 9))
    with pytest.raises(OptionError, match="row_column= has no effect without shuffle="):
        scdl.convert(source, tmp_path / "b", row_column="row")
    with pytest.raises(OptionError, match="shuffle must be an integer"):
        scdl.convert(source, tmp_path / "b", shuffle=1.5)
    scdl.convert(source, tmp_path / "b")


def test_commands(tmp_path: Path, run_command: Any) -> None:
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(20, 9))
    scdl.convert(source, tmp_path / "expected", shuffle=7)
    expected = source_rows(scdl.open(tmp_path / "expected")).tolist()
    done = run_command("scdl", "convert", source, "made", "--shuffle", "7", "--row-column", "row")
    assert done.returncode == 0, done.stderr
    assert source_rows(scdl.open(tmp_path / "made"), "row").tolist() == expected
    (tmp_path / "members").mkdir()
    scdl.convert(source, tmp_path / "members" / "one")
    done = run_command("scdl", "flatten", "members", "flat.zarr", "--shuffle", "7")
    assert done.returncode == 0, done.stderr
    assert source_rows(scdl.open(tmp_path / "flat.zarr")).tolist() == expected


# -- directories of files ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of 15, 0 and 25 cells with the same genes, one of them in a subdirectory."""
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    for name, n in (("b", 15), ("sub/a", 0), ("sub/c", 25)):
        write(annotated(n, 12, seed=n), tmp_path / "folder" / f"{name}.h5ad")
    return tmp_path / "folder"


@pytest.mark.filterwarnings("ignore:.*columns of var")
@pytest.mark.parametrize("suffix", sample(["", ".zarr"], 1))
def test_files_become_shuffled_shards(folder: Path, suffix: str) -> None:
    options: dict[str, Any] = {"obsm": ["X_pca"], "only_matrix": True, "workers": 1}
    options["backend"] = "zarr" if suffix else "memmap"
    place, kept = folder.parent, {"label": "file", "shuffle": 2}
    scdl.convert_directory(folder, place / "each", **options)
    expected = scdl.open(place / "each", label="file")
    expected.flatten(place / "expected", shuffle=2)
    report = scdl.convert_directory(folder, place / f"one{suffix}", **options, **kept)
    assert {*report.archives.values()} == {str(place / f"one{suffix}")}
    assert sum(each.n_obs for each in report.reports.values()) == 40
    one = scdl.open(place / f"one{suffix}")
    assert_equal(one.to_anndata(), scdl.open(place / "expected").to_anndata())
    assert set(one.obs["file"]) == {f"b{suffix or '.scdl'}", f"sub_c{suffix or '.scdl'}"}
    shards = place / "shards"
    scdl.convert_directory(folder, shards, shard_cells=12, **options, **kept)
    assert (shards / "collection.json").exists()
    assert [path.suffix for path in scdl.open(shards).fname_to_mmap] == [suffix] * 4
    assert_equal(scdl.open(shards).to_anndata(), one.to_anndata())
    assert [*place.glob(".*")] == []


@pytest.mark.filterwarnings("ignore:.*columns of var")
def test_files_that_fail(folder: Path) -> None:
    (folder / "d.h5ad").write_text("no HDF5")
    target, how = folder.parent / "out", {"workers": 1, "shuffle": 1}
    with pytest.raises(ConversionFailedError, match=r"d.h5ad.*nothing was written") as failed:
        scdl.convert_directory(folder, target, **how)
    assert failed.value.report.archives == {}
    assert [*folder.parent.iterdir()] == [folder]
    report = scdl.convert_directory(folder, target, skip_failed=True, **how)
    assert [*report.failed] == [str(folder / "d.h5ad")]
    assert source_rows(scdl.open(target)).shape == (40,)


def test_refused_options_of_directories(folder: Path) -> None:
    target = folder.parent / "out"
    for options, told in (
        ({"label": "file"}, "pass shuffle="),
        ({"shard_cells": 3}, "pass shuffle="),
        ({"genes": "union"}, "pass shuffle="),
        ({"missing": "zero", "shuffle": 1}, "genes"),
        ({"row_column": "row"}, "without shuffle="),
        ({"shuffle": 1, "resume": True}, "resume=True"),
        ({"shuffle": 1, "shard_cells": 3, "replace": True}, "replaces one archive"),
    ):
        with pytest.raises(OptionError, match=told):
            scdl.convert_directory(folder, target, workers=1, **options)
    target.mkdir()
    for how in ({}, {"shard_cells": 3}):
        with pytest.raises(ArchiveExistsError):
            scdl.convert_directory(folder, target, workers=1, shuffle=1, **how)
    target.rmdir()
    planned = scdl.convert_directory(folder, target, workers=1, shuffle=1, dry_run=True)
    assert planned.path == str(target)
    assert sum(each.n_obs for each in planned.reports.values()) == 40
    assert [*folder.parent.iterdir()] == [folder]


def test_command_for_directories(folder: Path, run_command: Any) -> None:
    done = run_command(
        *("scdl", "convert", "folder", "made", "--shuffle", "7", "--shard-cells", "25"),
        *("--label", "file", "--row-column", "row", "--workers", "1"),
    )
    assert done.returncode == 0, done.stderr
    made = scdl.open(folder.parent / "made")
    assert [len(made.read_rows(rows)) for rows in ([0], range(25, 40))] == [1, 15]
    assert source_rows(made, "row").shape == (40,)
    assert set(made.obs["file"]) == {"b.scdl", "sub_c.scdl"}
    done = run_command("scdl", "convert", "folder", "x", "--label", "file")
    assert done.returncode == 2
    done = run_command("scdl", "convert", "folder/b.h5ad", "x", "--shard-cells", "3")
    assert "--shard-cells apply only to a" in done.stderr


# -- shards ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", sample(BACKENDS, 1))
def test_shards_are_the_shuffled_archive_in_pieces(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "members").mkdir()
    for i, n in enumerate((15, 0, 25)):
        write(annotated(n, 12, seed=i), tmp_path / f"{i}.h5ad")
        more: dict[str, Any] = {"obsm": ["X_pca"], "only_matrix": True}
        scdl.convert(tmp_path / f"{i}.h5ad", tmp_path / "members" / f"m{i}", **more)
    collection = scdl.open(tmp_path / "members")
    with pytest.warns(ScdlWarning, match="columns of var"):
        collection.flatten(tmp_path / "flat", shuffle=2, **options)
    with pytest.warns(ScdlWarning, match="columns of var"):
        collection.flatten(tmp_path / "shards", shuffle=2, shard_cells=12, **options)
    assert (tmp_path / "shards" / "collection.json").exists()
    shards = scdl.open(tmp_path / "shards")
    assert [len(scdl.open(path)) for path in shards.fname_to_mmap] == [12, 12, 12, 4]
    assert_equal(shards.to_anndata(), scdl.open(tmp_path / "flat").to_anndata())
    assert shards.verify(deep=True).verdict is Verdict.SOUND
    assert [*tmp_path.glob(".*")] == []


def test_shards_leave_out_graphs(tmp_path: Path) -> None:
    ragged = write_members(tmp_path / "members")
    collection = scdl.SingleCellCollection(ragged.paths[:1])
    with pytest.warns(ScdlWarning, match="obsp/next_cell_ids is left out"):
        collection.flatten(tmp_path / "shards", shuffle=2, shard_cells=100)
    assert scdl.open(tmp_path / "shards").neighbor_keys == []
    assert source_rows(scdl.open(tmp_path / "shards")).shape == (20,)


def test_refused_shards(tmp_path: Path) -> None:
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(20, 9))
    (tmp_path / "members").mkdir()
    scdl.convert(source, tmp_path / "members" / "one")
    collection = scdl.open(tmp_path / "members")
    for options, told in (
        ({"shard_cells": 3}, "pass shuffle="),
        ({"shard_cells": 0, "shuffle": 1}, "at least 1, not 0"),
        ({"shard_cells": 3, "shuffle": 1, "replace": True}, "replaces one archive"),
    ):
        with pytest.raises(OptionError, match=told):
            collection.flatten(tmp_path / "out", **options)
    with pytest.raises(ArchiveExistsError):
        collection.flatten(source, shuffle=1, shard_cells=3)


def test_a_failure_between_shards_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "members").mkdir()
    write_h5ad(tmp_path / "a.h5ad", random_cells(20, 9))
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "members" / "one")
    create, paths = registry.create, []

    def failing(path: str, *arguments: Any, **options: Any) -> Any:
        paths.append(path)
        if len(paths) == 3:
            raise RuntimeError("in the middle")
        return create(path, *arguments, **options)

    monkeypatch.setattr(registry, "create", failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        scdl.open(tmp_path / "members").flatten(tmp_path / "out", shuffle=1, shard_cells=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5ad", "members"]


# -- removing what was shuffled ----------------------------------------------------------------


def made(place: Path, adata: anndata.AnnData, name: str, **options: Any) -> Path:
    """An archive of an AnnData, with its graph, vectors and a field."""
    write(adata, place / f"{name}.h5ad")
    more = {"obsm": ["X_pca"], "neighbor_key": "graph", "layers": ["spliced"]}
    scdl.convert(place / f"{name}.h5ad", place / name, **more, **options)
    return place / name


def alike(n: int, seed: int) -> anndata.AnnData:
    """Cells whose var is that of any other number of cells."""
    adata = annotated(n, 12, seed=seed)
    adata.var = adata.var[[]]
    adata.layers["spliced"] = random_cells(n, 12, seed=seed).csr().astype(np.float32)
    return adata


@pytest.mark.parametrize("shard_cells", [None, 12])
@pytest.mark.parametrize("options", BACKENDS, ids=["memmap", "zarr"])
def test_members_are_removed(
    tmp_path: Path, options: dict[str, Any], shard_cells: int | None
) -> None:
    place = tmp_path / "members"
    place.mkdir()
    for i, n in enumerate((15, 1, 25)):
        adata = alike(n, i)
        if shard_cells:
            del adata.obsp
        source = tmp_path / f"{i}.h5ad"
        write(adata, source)
        more: dict[str, Any] = {"obsm": ["X_pca"], "layers": ["spliced"], "only_matrix": True}
        more["neighbor_key"] = () if shard_cells else "graph"
        scdl.convert(source, place / f"m{i}", **more, **BACKENDS[i % 2])
    collection = scdl.open(place, label="member")
    how: dict[str, Any] = {"cell_names": "prefix", "shuffle": 2, "shard_cells": shard_cells}
    collection.flatten(tmp_path / "expected", **how, **options)
    collection.save_manifest()
    collection.flatten(tmp_path / "flat", destroy_on_copy=True, **how, **options)
    assert [path.name for path in place.iterdir()] == ["collection.json"]
    assert len(collection) == len(scdl.open(place)) == 0
    flat, expected = (scdl.open(tmp_path / name) for name in ("flat", "expected"))
    assert_equal(flat.to_anndata(), expected.to_anndata())
    assert source_rows(flat).shape == (41,)


@pytest.mark.parametrize("options", [{}, {"shard_cells": 12}])
def test_members_stay_if_something_would_be_lost(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "members").mkdir()
    paths = [made(tmp_path, alike(n, n), f"members/m{n}") for n in (15, 25)]
    (tmp_path / "members" / "m15.h5ad").unlink()
    (tmp_path / "members" / "m25.h5ad").unlink()
    collection = scdl.open(tmp_path / "members")

    def refused(match: str) -> None:
        with pytest.raises(CollectionError, match=match):
            collection.flatten(tmp_path / "flat", destroy_on_copy=True, shuffle=1, **options)
        assert sorted((tmp_path / "members").iterdir()) == paths
        assert [path.name for path in tmp_path.iterdir()] == ["members"]

    if options:
        refused("obsp/graph is left out.*destroy_on_copy")
        return
    sums = shuffled_comparison._sums

    def other(side: Any, *arguments: Any) -> dict[str, int]:
        found = sums(side, *arguments)
        return found | {"values": found["values"] + (side[0].store.path == str(paths[0]))}

    monkeypatch.setattr(shuffled_comparison, "_sums", other)
    refused("differs \\(values\\)")


def test_var_that_is_not_shared_is_kept_with_its_member(tmp_path: Path) -> None:
    (tmp_path / "members").mkdir()
    for i in range(2):
        write(annotated(9, 12, seed=i), tmp_path / f"{i}.h5ad")
        scdl.convert(tmp_path / f"{i}.h5ad", tmp_path / "members" / f"m{i}")
    collection = scdl.open(tmp_path / "members")
    with pytest.raises(CollectionError, match=r"columns of var .* left out.*destroy_on_copy"):
        collection.flatten(tmp_path / "flat", destroy_on_copy=True, shuffle=1)
    assert len(scdl.open(tmp_path / "members")) == 18
    assert not (tmp_path / "flat").exists()


def test_what_cannot_be_compared_is_not_removed(tmp_path: Path) -> None:
    write(annotated(30, 12), tmp_path / "a.h5ad")
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr")
    collection = scdl.SingleCellCollection([tmp_path / "a.zarr"])
    with pytest.raises(CollectionError, match="cannot be compared after a shuffle"):
        collection.flatten(tmp_path / "b.zarr", destroy_on_copy=True, shuffle=1)
    assert len(scdl.open(tmp_path / "a.zarr")) == 30
    assert not (tmp_path / "b.zarr").exists()


def _value(adata: anndata.AnnData) -> None:
    adata.X.data[3] += 1


def _gene(adata: anndata.AnnData) -> None:
    adata.X = adata.X[:, [1, 0, *range(2, 12)]]


def _two_cells(adata: anndata.AnnData) -> None:
    adata.X = adata.X[[1, 0, *range(2, 25)]]


def _spliced(adata: anndata.AnnData) -> None:
    adata.layers["spliced"] = adata.layers["spliced"][::-1]


def _vector(adata: anndata.AnnData) -> None:
    adata.obsm["X_pca"] = adata.obsm["X_pca"][:, ::-1].copy()


def _vectors_of_two(adata: anndata.AnnData) -> None:
    adata.obsm["X_pca"] = adata.obsm["X_pca"][[1, 0, *range(2, 25)]]


def _neighbors(adata: anndata.AnnData) -> None:
    adata.obsp["graph"] = adata.obsp["graph"][:, ::-1]


def _names(adata: anndata.AnnData) -> None:
    adata.obs_names = [*adata.obs_names[[1, 0]], *adata.obs_names[2:]]


def _column(adata: anndata.AnnData) -> None:
    adata.obs["float"] = adata.obs["float"].to_numpy()[::-1]


def _dropped(adata: anndata.AnnData) -> None:
    del adata.obs["category"]


def _gene_names(adata: anndata.AnnData) -> None:
    adata.var_names = adata.var_names[::-1]


ALTERED = {
    "values": (_value, _gene, _two_cells),
    "layers/spliced": (_spliced,),
    "obsm/X_pca": (_vector, _vectors_of_two),
    "graph 'graph'": (_neighbors,),
    "obs column '_index'": (_names,),
    "obs column 'float'": (_column,),
    "obs column 'category'": (_dropped,),
    "genes of feature block 0": (_gene_names,),
}


@pytest.mark.parametrize("options", sample(BACKENDS, 1))
def test_every_difference_is_found(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {**options, "only_matrix": True}
    shuffle = Shuffle(3)
    original = scdl.open(made(tmp_path, alike(25, 0), "original")).store

    def check(name: str, alter: Any) -> None:
        adata = alike(25, 0)
        alter(adata)
        copy = scdl.open(made(tmp_path, adata, name, shuffle=3, **options)).store
        check_shuffled([original], [copy], shuffle, obs_tables([original]))

    check("same", lambda adata: None)
    for part, alterations in ALTERED.items():
        for alter in alterations:
            with pytest.raises(CollectionError, match=f"differs .{part}"):
                check(alter.__name__, alter)
