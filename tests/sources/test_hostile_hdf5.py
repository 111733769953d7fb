"""HDF5 files that mean harm: nothing outside is read, and no claim is believed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hostile import refusal

import scdl
from benchmarks.torture.archives import write_source
from scdl.sources import hdf5_guard
from scdl.sources.h5ad import H5adFile


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("hdf5") / "cells.h5ad", 30, 25)


@pytest.fixture
def source(seed: Path, tmp_path: Path) -> Path:
    """A copy to spoil, beside another file that nobody named."""
    shutil.copy2(seed, tmp_path / "other.h5ad")
    return Path(shutil.copy2(seed, tmp_path / "cells.h5ad"))


def replace(file: h5py.File, name: str, *args: object, **options: object) -> None:
    del file[name]
    file.create_dataset(name, *args, **options)


def external_link(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = h5py.ExternalLink("other.h5ad", f"/{name}")


def soft_then_external(file: h5py.File) -> None:
    del file["X"]
    file["there"] = h5py.ExternalLink("other.h5ad", "/X")
    file["X"] = h5py.SoftLink("/there")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((30,), "i8")
    layout[:] = h5py.VirtualSource("other.h5ad", "obs/age", (30,))
    attributes = dict(file["obs/age"].attrs)
    del file["obs/age"]
    file.create_virtual_dataset("obs/age", layout).attrs.update(attributes)


def soft_loop(file: h5py.File) -> None:
    del file["X"]
    file["X"], file["Y"] = h5py.SoftLink("/Y"), h5py.SoftLink("/X")


def diamond(file: h5py.File) -> None:
    """Each group holds the next twice: 2^40 ways to the last."""
    at = file["uns"]
    for _ in range(40):
        below = at.create_group("a")
        below.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        at["b"] = below
        at = below


def opaque(file: h5py.File) -> None:
    """Bytes that say they are objects of Python."""
    type_ = h5py.h5t.create(h5py.h5t.OPAQUE, 8)
    type_.set_tag(b"NUMPY:|O")
    del file["obs/age"]
    h5py.h5d.create(file["obs"].id, b"age", type_, h5py.h5s.create_simple((30,)))


def odd_float(file: h5py.File) -> None:
    type_ = h5py.h5t.IEEE_F32LE.copy()
    type_.set_fields(31, 20, 11, 0, 20)
    del file["obs/score"]
    h5py.h5d.create(file["obs"].id, b"score", type_, h5py.h5s.create_simple((30,)))


ATTACKS: dict[str, Callable[[h5py.File], object]] = {
    "the matrix by an external link": lambda f: external_link(f, "X"),
    "values by an external link": lambda f: external_link(f, "X/data"),
    "obs by an external link": lambda f: external_link(f, "obs"),
    "a column by an external link": lambda f: external_link(f, "obs/age"),
    "categories by an external link": lambda f: external_link(f, "obs/type/categories"),
    "an external link behind a soft one": soft_then_external,
    "a virtual dataset": virtual,
    "external storage": lambda f: replace(
        f, "obs/age", (30,), "i8", external=[("/etc/passwd", 0, 240)]
    ),
    "soft links in a circle": soft_loop,
    "a group within itself": lambda f: f["uns"].__setitem__("loop", f["uns"]),
    "2^40 ways to a group": diamond,
    "2^60 values": lambda f: replace(f, "X/data", (2**60,), "f4", chunks=(2**20,)),
    "2^40 names": lambda f: replace(
        f, "obs/_index", (2**40,), h5py.string_dtype(), chunks=(2**16,)
    ),
    "a chunk of 4 GiB": lambda f: replace(
        f, "obs/age", (30,), "i8", chunks=(2**28,), maxshape=(None,)
    ),
    "bytes that are objects": opaque,
    "floats of no processor": odd_float,
    "ids as text": lambda f: replace(f, "X/indices", data=np.array(["a"] * 30, "S")),
    "negative offsets": lambda f: f["X/indptr"].__setitem__(3, -5),
    "offsets beyond the values": lambda f: f["X/indptr"].__setitem__(3, 2**30),
    "a shape that is text": lambda f: f["X"].attrs.__setitem__("shape", "many"),
    "no columns": lambda f: f["obs"].attrs.__setitem__("column-order", 3.5),
    "a group in the place of a column": lambda f: (
        f.__delitem__("obs/age"), f.create_group("obs/age/age"),
        f["obs"].attrs.__setitem__("_index", "age"),
    ),
}  # fmt: skip


LEFT_OUT = {
    "a group within itself": "uns/loop",
    "2^40 ways to a group": "uns/b",
    "a column by an external link": "obs/age",
    "categories by an external link": "obs/type",
    "a virtual dataset": "obs/age",
    "external storage": "obs/age",
    "bytes that are objects": "obs/age",
    "floats of no processor": "obs/score",
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("backend", ["memmap", "zarr"])
def test_attacks(source: Path, tmp_path: Path, name: str, backend: str) -> None:
    with h5py.File(source, "r+") as file:
        ATTACKS[name](file)
    # What is beside the matrix, and a column that nobody understands or that lies elsewhere, is
    # left out, and told.
    told: list[str] = []

    def convert() -> None:
        told.extend(scdl.convert(source, tmp_path / "archive", backend=backend).not_carried)

    error = refusal(convert)
    assert (error is None) == (name in LEFT_OUT)
    assert (tmp_path / "archive").exists() == (name in LEFT_OUT)
    if name in LEFT_OUT:
        assert LEFT_OUT[name] in told or (backend == "memmap" and "uns" in told)


def test_what_lies_elsewhere_is_named(source: Path, tmp_path: Path) -> None:
    with h5py.File(source, "r+") as file:
        external_link(file, "X")
    with pytest.raises(scdl.errors.SourceError, match="link to another file"):
        scdl.convert(source, tmp_path / "archive")
    (tmp_path / "other.h5ad").unlink()
    with pytest.raises(scdl.errors.SourceError, match="link to another file"):
        H5adFile(source)


def test_a_collection_of_text_that_never_ends(source: Path, tmp_path: Path) -> None:
    """HDF5 stays for ever at a free object of no size."""
    data = bytearray(source.read_bytes())
    start = data.index(b"GCOL\x01")
    data[start + 16 : start + 32] = bytes(16)
    source.write_bytes(data)
    error = refusal(lambda: scdl.convert(source, tmp_path / "archive"))
    assert error is not None
    assert "global heap collection" in str(error)


def test_collections_are_found_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any byte, at the borders of what is searched at once, and cut off by the end."""
    monkeypatch.setattr(hdf5_guard, "_PIECE", 64)
    path = tmp_path / "bytes"
    for start in range(200):
        path.write_bytes(b"GCO" + bytes(start) + b"GCOLGCOLGCO")
        with path.open("rb") as file:
            assert sorted(hdf5_guard._find_word(file, b"GCOL")) == [3 + start, 7 + start]


@pytest.mark.parametrize("name", ["obs", "X", "uns"])
def test_soft_links_within_the_file_are_followed(source: Path, tmp_path: Path, name: str) -> None:
    with h5py.File(source, "r+") as file:
        file.move(name, "elsewhere")
        file[name] = h5py.SoftLink("elsewhere")
    report = scdl.convert(source, tmp_path / "archive", backend="zarr")
    assert report.n_obs == 30
