"""Malicious files: each attack raises an ScdlError, needs little memory and reads no other file.

These are known attacks; ``test_fuzz.py`` generates others.
"""

from __future__ import annotations

import bz2
import io
import json
import lzma
import os
import pickle
import shutil
import struct
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import anndata as ad
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headers import header_bytes, header_of
from hostile import (
    SECRET,
    Runs,
    edit_json,
    npy,
    read_all,
    refusal,
    replace_by_link,
    verified,
    with_checksum,
    zstd_frame,
)
from places import GOLDEN

import scdl
from benchmarks.torture.archives import write_source
from storage_backends.memmap import label_pickles
from storage_backends.zarr import guards

pytestmark = pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("hostile")
    source = write_source(place / "cells.h5ad", 30, 25)
    made = {"h5ad": source}
    for name, options in {
        "memmap": {"backend": "memmap", "neighbor_key": "next_cell_ids", "obsm": ["X_pca"]},
        "zarr": {"backend": "zarr"},
        "portable": {"backend": "zarr", "compression": "portable"},
    }.items():
        scdl.convert(source, place / name, **options)
        made[name] = place / name
    made["documented"] = GOLDEN / "ragged_v013"
    with ad.settings.override(zarr_write_format=2), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.read_h5ad(source).write_zarr(place / "v2")
    made["v2"] = place / "v2"
    return made


def names_of_cells(path: Path) -> Path:
    """The array of names in a Zarr format 2 store; anndata with pandas 3 writes a mask, too."""
    index = path / "obs" / "_index"
    return index if (index / ".zarray").exists() else index / "values"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file outside the archive."""
    path = tmp_path / "outside" / "secret"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


Attack = Callable[[Path], object]


def attacked(seeds: dict[str, Path], tmp_path: Path, kind: str, attack: Attack) -> Path:
    path = tmp_path / "archive"
    shutil.copytree(seeds[kind], path)
    attack(path)
    return path


def writes(name: str, content: bytes) -> Attack:
    return lambda path: (path / name).write_bytes(content)


def header(**changes: Any) -> Attack:
    def attack(path: Path) -> None:
        fields = header_of(path / "header.sch")
        (path / "header.sch").write_bytes(header_bytes(**(fields | changes)))

    return attack


def manifest(change: Callable[[Any], Any]) -> Attack:
    return lambda path: edit_json(path / "scdl" / "manifest.json", change)


def first_array(**changes: Any) -> Attack:
    return manifest(lambda m: m["arrays"][0].update(changes))


def block(**changes: Any) -> Attack:
    return manifest(lambda m: m["attrs"]["blocks"][0].update(changes))


def pipe(name: str) -> Attack:
    def attack(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)

    return attack


def constant_rows(n: int) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"feature_id": pa.nulls(n, pa.string())}), sink)
    return sink.getvalue().to_pybytes()


STOPS, TABLE = "var_features/cumulative_sum_index.npy", "var_features/dataframe_0.parquet"
DEEP, DIGITS = b"[" * 100_000, b'{"format": ' + b"9" * 100_000 + b"}"
MEMMAP: dict[str, Attack] = {
    "header: 2^63 elements and more": header(arrays=[("DATA", 2**63, 9, None)] * 3),
    "header: 2^32 arrays": header(n_arrays=2**32 - 1),
    "header: 2^32 names": header(indexes=[("x", 1, 8, ["a"])], n_indexes=2**32 - 1),
    "header: a name of 4 GiB": header(arrays=[((2**32 - 1, b"DATA"), 1, 1, None)]),
    "header: a pipe": pipe("header.sch"),
    "stops: 2^63 of them": writes(STOPS, npy("'<i8'", "(9223372036854775808,)")),
    "stops: objects": writes(STOPS, npy("'|O'", "(2,)", pickle.dumps([-1, 30]))),
    "stops: nested": writes(STOPS, npy("'<i8'", f"{'(' * 900}2,)", bytes(16))),
    "stops: no expression": writes(STOPS, npy("'<i8'", "('''", bytes(16))),
    "stops: items of no bytes": writes(STOPS, npy("'<U0'", "(99999999999,)")),
    "stops: falling unsigned": writes(
        STOPS, npy("'<u8'", "(3,)", np.array([0, 31, 30], "<u8").tobytes())
    ),
    "stops: NaN": writes(STOPS, npy("'<f8'", "(2,)", np.array([-1, np.nan]).tobytes())),
    "stops: characters that there are not": writes(STOPS, npy("'<U1'", "(1,)", b"\xff" * 4)),
    "stops: a pipe": pipe(STOPS),
    "table: nothing": writes(TABLE, b""),
    "table: only magic": writes(TABLE, b"PAR1" * 4),
    "table: a footer of 4 GiB": writes(TABLE, b"PAR1" + b"\xff" * 8 + b"\xff\xff\xff\xffPAR1"),
    "table: more rows than genes": writes(TABLE, constant_rows(1 << 20)),
    "table: a pipe": pipe(TABLE),
    "manifest: deep": writes("scdl/manifest.json", DEEP),
    "manifest: 100,000 digits": writes("scdl/manifest.json", DIGITS),
    "manifest: infinite": manifest(lambda m: m.update(n_obs=float("inf"), format=float("inf"))),
    "manifest: no object": writes("scdl/manifest.json", b"[1]"),
    "manifest: objects": first_array(dtype="O"),
    "manifest: the matrix once more": first_array(name="data"),
    "manifest: offsets as floats": first_array(name="graphs/x/indptr", dtype="float64"),
    "manifest: a negative length": first_array(length=-1),
    "manifest: a length of half": first_array(length=0.5),
    "manifest: sizes that wrap around": first_array(item_shape=[2**32, 2**32]),
    "manifest: nothing of much": first_array(length=2**61, item_shape=[0, 2**61]),
    "manifest: 2^70 genes": block(n_vars=2**70),
    "manifest: 2^40 genes": block(n_vars=2**40),
    "manifest: another end": block(stop=2**62),
    "manifest: names that are no column": manifest(
        lambda m: m["tables"]["var/0"].update(only_names="x\n", names=None)
    ),
    "data: a device": lambda path: replace_by_link(path / "data.npy", Path("/dev/zero")),
    "data: a pipe": pipe("data.npy"),
    "checksums: a pipe": pipe("scdl/checksums.bin"),
}  # fmt: skip
#: Changes that do not affect opening or reading.
HARMLESS = {"checksums: a pipe"}


@pytest.mark.parametrize("name", MEMMAP)
def test_memmap_archives(seeds: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = attacked(seeds, tmp_path, "memmap", MEMMAP[name])
    assert (refusal(lambda: read_all(path)) is None) == (name in HARMLESS)
    verified(path)


def test_rows_of_a_documented_table_that_its_file_cannot_hold(
    seeds: dict[str, Path], tmp_path: Path
) -> None:
    """2^24 rows in a kilobyte are not a gene list."""
    attack = writes("var_features/dataframe_0.parquet", constant_rows(1 << 24))
    path = attacked(seeds, tmp_path, "documented", attack)
    error = refusal(lambda: read_all(path))
    assert error is not None
    assert "out of proportion" in str(error)


def zarr_json(change: Callable[[Any], Any]) -> Attack:
    return lambda path: edit_json(path / "zarr.json", change)


def node(name: str, **changes: Any) -> Attack:
    def change(document: Any) -> None:
        document["consolidated_metadata"]["metadata"][name].update(changes)

    return zarr_json(change)


def grid(name: str, n: int) -> Attack:
    """A grid of chunks and shards with a given number of items."""

    def change(document: Any) -> None:
        found = document["consolidated_metadata"]["metadata"][name]
        found["chunk_grid"]["configuration"]["chunk_shape"] = [n]

    return zarr_json(change)


def ours(**changes: Any) -> Attack:
    return zarr_json(lambda document: document["attributes"]["scdl"].update(changes))


def our_block(**changes: Any) -> Attack:
    def change(document: Any) -> None:
        document["attributes"]["scdl"]["attrs"]["blocks"][0].update(changes)

    return zarr_json(change)


def codec(name: str) -> Attack:
    entry = [{"name": "bytes"}, {"name": name, "configuration": {}}]
    return node("obs/_index", codecs=entry)


def elsewhere(document: Any) -> None:
    nodes = document["consolidated_metadata"]["metadata"]
    nodes["layers/../../outside"] = nodes["X/data"]


ZARR: dict[str, Attack] = {
    "metadata: deep": writes("zarr.json", DEEP),
    "metadata: no object": writes("zarr.json", b"[]"),
    "metadata: not text": writes("zarr.json", b"\xff\xfe"),
    "metadata: a pipe": pipe("zarr.json"),
    "codec: pickle": codec("numcodecs.pickle"),
    "codec: another package's": codec("somebody.elses"),
    "shape: 2^63": node("X/data", shape=[2**63]),
    "shape: 2^40": node("X/data", shape=[2**40]),
    "shape: negative": node("X/data", shape=[-1]),
    "shape: no number": node("X/data", shape=["9"]),
    "names: 2^40": node("obs/_index", shape=[2**40]),
    "chunks: 2^50": grid("obs/type/codes", 2**50),
    "shards: 2^50": grid("X/data", 2**50),
    "genes: 2^50": our_block(n_vars=2**50),
    "genes: 2^70": our_block(n_vars=2**70),
    "blocks: no objects": zarr_json(
        lambda d: d["attributes"]["scdl"]["attrs"].update(blocks=[1, 2])
    ),
    "blocks: text": our_block(stop="thirty"),
    "blocks: infinite": our_block(n_vars=float("inf")),
    "unsigned: a number": ours(unsigned=3),
    "path: out of the archive": zarr_json(elsewhere),
    "tables: no schema": node("obs", attributes={"encoding-type": "dataframe", "scdl_table": 1}),
    "index of a shard: of 4 GiB": lambda path: (path / "X/data/c/0").write_bytes(
        with_checksum(struct.pack("<QQ", 0, 2**32))
    ),
    "index of a shard: wraps around": lambda path: (path / "X/data/c/0").write_bytes(
        with_checksum(struct.pack("<QQ", 2**63, 2**63))
    ),
    "names: a frame of a terabyte": lambda path: (path / "obs/_index/c/0").write_bytes(
        with_checksum(zstd_frame(2**40))
    ),
    "values: a pipe": pipe("X/data/c/0"),
}


@pytest.mark.parametrize("name", ZARR)
def test_zarr_archives(seeds: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = attacked(seeds, tmp_path, "zarr", ZARR[name])
    assert refusal(lambda: read_all(path)) is not None
    verified(path)


def test_items_of_a_gigabyte(seeds: dict[str, Path], tmp_path: Path) -> None:
    """Of a type that only zarr knows, which opens the array after the archive."""
    attack = node(
        "obs/_index",
        data_type={"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**30}},
        codecs=[{"name": "bytes", "configuration": {"endian": "little"}}],
    )
    error = refusal(lambda: read_all(attacked(seeds, tmp_path, "zarr", attack)))
    assert "obs/_index has the declared shape" in str(error)


def test_a_chunk_that_claims_a_terabyte(seeds: dict[str, Path], tmp_path: Path) -> None:
    frame = with_checksum(zstd_frame(2**40))
    shard = frame + with_checksum(struct.pack("<QQ", 0, len(frame)))
    path = attacked(seeds, tmp_path, "portable", writes("X/data/c/0", shard))
    assert refusal(lambda: read_all(path)) is not None


@pytest.mark.parametrize(
    "file",
    [
        "header.sch",
        "scdl/manifest.json",
        "var_features/cumulative_sum_index.npy",
        "obs_features/dataframe_00.parquet",
        "data.npy",
    ],
)
def test_directories_in_the_place_of_files(
    seeds: dict[str, Path], tmp_path: Path, file: str
) -> None:
    path = tmp_path / "archive"
    shutil.copytree(seeds["memmap"], path)
    place = next(iter(path.glob(file.replace("_00", "_*"))))
    place.unlink()
    place.mkdir()
    assert refusal(lambda: read_all(path)) is not None


@pytest.mark.parametrize("compress", [bz2.compress, partial(lzma.compress, preset=0)])
def test_streams_that_end_late(compress: Callable[[bytes], bytes]) -> None:
    """Compressed streams that do not state their decompressed size."""
    name = getattr(compress, "func", compress).__module__
    guards.check(name, compress(bytes(1 << 20)))
    with pytest.raises(ValueError, match=f"of {name} decode to .*, more than"):
        guards.check(name, compress(bytes(192 << 20)))


def test_no_pickle_in_stores_of_format_2(seeds: dict[str, Path], tmp_path: Path) -> None:
    """numcodecs has a codec that loads pickles."""
    victim = tmp_path / "victim"
    path = tmp_path / "archive"
    shutil.copytree(seeds["v2"], path)
    assert refusal(lambda: scdl.convert(path, tmp_path / "sound")) is None

    def change(document: Any) -> None:
        document.update(dtype="|O", filters=[{"id": "pickle"}], compressor=None)

    edit_json(names_of_cells(path) / ".zarray", change)
    (path / ".zmetadata").unlink(missing_ok=True)
    (names_of_cells(path) / "0").write_bytes(pickle.dumps(Runs(victim)))
    assert refusal(lambda: read_all(path)) is not None
    assert refusal(lambda: scdl.convert(path, tmp_path / "copy")) is not None
    assert not victim.exists()


@pytest.mark.parametrize(
    "chunk",
    [
        # 2^32 items; a string of 4 GiB; 2 GiB in a frame of Blosc.
        b"\xff" * 4,
        b"\x1e\0\0\0" + b"\xff" * 8,
        struct.pack("<4BIII", 2, 1, 1, 1, 2**31 - 1, 2**20, 16),
    ],
)
def test_text_in_stores_of_format_2(seeds: dict[str, Path], tmp_path: Path, chunk: bytes) -> None:
    path = tmp_path / "archive"
    shutil.copytree(seeds["v2"], path)
    compressor = {"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 0, "blocksize": 0}

    def change(document: Any) -> None:
        document.update(compressor=compressor if chunk[:1] == b"\2" else None)

    edit_json(names_of_cells(path) / ".zarray", change)
    (path / ".zmetadata").unlink(missing_ok=True)
    (names_of_cells(path) / "0").write_bytes(chunk)
    assert refusal(lambda: scdl.convert(path, tmp_path / "copy")) is not None


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        *[("memmap", name) for name in ("header.sch", "data.npy", "neighbor_values.npy", STOPS)],
        *[("memmap", name) for name in (TABLE, "scdl", "scdl/manifest.json", "var_features")],
        ("memmap", "scdl/var_0.names.parquet"),
        *[("zarr", name) for name in ("zarr.json", "X", "X/data/c/0", "obs/_index/c/0")],
    ],
)
@pytest.mark.crossed
@pytest.mark.parametrize("relative", [False, True])
def test_links_out_of_an_archive(
    seeds: dict[str, Path], tmp_path: Path, outside: Path, kind: str, file: str, relative: bool
) -> None:
    path = tmp_path / "archive"
    shutil.copytree(seeds[kind], path)
    # The link leads to a copy of the file, so that only its location is wrong.
    target = outside.parent / "what was there"
    (shutil.copytree if (path / file).is_dir() else shutil.copy2)(path / file, target)
    leads = Path(os.path.relpath(target, (path / file).parent)) if relative else target
    replace_by_link(path / file, leads)
    error = refusal(lambda: read_all(path))
    assert error is not None
    assert "link leads out" in str(error)
    verified(path)


@pytest.mark.parametrize("kind", ["memmap", "zarr"])
def test_links_within_an_archive_and_to_it(
    seeds: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "archive"
    shutil.copytree(seeds[kind], path)
    file = path / ("data.npy" if kind == "memmap" else "X/data/c/0")
    file.rename(path / "moved")
    file.symlink_to(path / "moved")
    (tmp_path / "link").symlink_to(path)
    assert refusal(lambda: read_all(tmp_path / "link")) is None


class TestLabels:
    """Pickles are parsed without creating objects."""

    @pytest.mark.parametrize(
        "pickled",
        [
            pickle.dumps(Runs(Path("victim"))),
            # 2^31 memo entries; a string, bytes and an integer of 2^62 bytes.
            b"\x80\x04Nr\xff\xff\xff\x7f.",
            b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
            b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
            b"\x80\x04\x8b\xff\xff\xff\x7f.",
            b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
            b"\x80\x04" + b"(" * 100_000,
            b"\x80\x04" + b"t" * 10,
            b"\x80\x04R.",
            b"\x80\x04NNb.",
            b"I" + b"9" * 10_000 + b"\n.",
            b"cnumpy\nndarray\n(I1\ntR.",
            b"",
        ],
    )
    def test_nothing_comes_of_it(self, pickled: bytes) -> None:
        assert refusal(lambda: label_pickles.parse_labels(pickled)) is None
        assert label_pickles.parse_labels(pickled) is None
        assert not Path("victim").exists()

    def test_a_class_is_not_changed(self) -> None:
        """An unpickler that allows path classes would let a pickle set their attributes."""
        hostile = b"\x80\x04cpathlib\nPurePosixPath\n(N}\x8c\x07__str__\x8c\x01xsttb."
        pickle.loads(b"N.")
        assert label_pickles.parse_labels(hostile) is None
        assert str(PurePosixPath("a")) == "a"

    def test_parts_that_are_shared_a_thousand_times(self) -> None:
        part = "x" * 100_000
        labels = np.empty(1, object)
        labels[0] = PurePosixPath("a")
        stream = io.BytesIO()
        pickle.dump(labels, stream, protocol=4)
        many = b"\x8c\x01a".join([b"", b""])
        bomb = stream.getvalue().replace(
            b"\x8c\x01a\x94", b"X" + struct.pack("<I", len(part)) + part.encode() + b"q\x63" + many
            + b"h\x63" * 3_000 + b"0" * 3_000, 1,
        )  # fmt: skip
        refusal(lambda: label_pickles.parse_labels(bomb))


class TestCollections:
    """Manifests of collections are not trusted."""

    def entry(self, **changes: Any) -> dict[str, Any]:
        return {
            "path": "a", "n_vars": [5], "stops": [3], "labels": [None], "genes": ["x"],
            "values": 9, "dtypes": ["float32", "uint8"], "is_sorted": True,
            "values_per_chunk": 1, "has_obs": True, "graphs": [], **changes,
        }  # fmt: skip

    @pytest.mark.parametrize(
        "changes",
        [
            {"path": "a\0b"},
            {"path": "\ud800"},
            {"path": 5},
            {"path": None},
            {"path": "http://127.0.0.1:1/a.zarr"},
            {"path": "s3://bucket/a.zarr"},
            {"n_vars": [-1]},
            {"n_vars": [2**70]},
            {"n_vars": [float("nan")]},
            {"n_vars": [True]},
            {"stops": []},
            {"stops": [2**64]},
            {"stops": [9, 3], "n_vars": [5, 5], "labels": ["a", "b"], "genes": ["x", "y"]},
            {"dtypes": ["O", "uint8"]},
            {"dtypes": [["f4"], "uint8"]},
            {"values_per_chunk": 0},
            {"values": 1e300},
            {"graphs": 5},
        ],
    )
    def test_entries(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        document = {"format": 1, "members": [self.entry(**changes)]}
        (tmp_path / "collection.json").write_text(json.dumps(document))
        error = refusal(lambda: scdl.SingleCellCollection(tmp_path))
        assert isinstance(error, scdl.errors.ArchiveFormatError)

    @pytest.mark.parametrize(
        "content",
        [DEEP, DIGITS, b"", b"\xff", b"[]", b'{"format": 1e999}'],
    )
    def test_documents(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "collection.json").write_bytes(content)
        error = refusal(lambda: scdl.SingleCellCollection(tmp_path))
        assert isinstance(error, scdl.errors.ArchiveFormatError)

    def test_more_cells_than_there_are(self, tmp_path: Path, seeds: dict[str, Path]) -> None:
        shutil.copytree(seeds["memmap"], tmp_path / "a")
        scdl.SingleCellCollection(tmp_path).save_manifest()

        def change(document: Any) -> None:
            document["members"][0]["stops"] = [2**40]

        edit_json(tmp_path / "collection.json", change)

        def read() -> None:
            scdl.SingleCellCollection(tmp_path).read_rows([2**39])

        assert refusal(read) is not None

    def test_members_elsewhere_have_no_place_in_a_manifest(self) -> None:
        from scdl.collection.member import Member

        parsed = Member.from_json(self.entry(), "/archives")
        member = Member(**{**vars(parsed), "path": "s3://bucket/a.zarr"})
        with pytest.raises(scdl.errors.CollectionError, match="network"):
            member.to_json("/archives")
