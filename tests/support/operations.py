"""What writes archives and collections, each as one operation that is tried under harm."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import scdl
from benchmarks.torture.archives import KINDS, write_archive, write_source
from scdl.collection.paths import MANIFEST
from scdl.errors import ArchiveExistsError, CollectionError, OutputError
from storage_backends.capabilities import Verdict


@dataclass(frozen=True)
class Ground:
    """Where an operation works.

    Attributes
    ----------
    sources
        What is only read: h5ad files and archives.
    place
        Where everything is written.
    kind
        Of archives, one of ``KINDS``.
    crew
        Who works, where several do, as the keywords of a conversion.
    """

    sources: Path
    place: Path
    kind: str
    crew: Mapping[str, Any] = field(default_factory=lambda: {"workers": 2, "use_processes": False})

    @property
    def target(self) -> Path:
        return self.place / "archive"

    @property
    def pristine(self) -> Path:
        return self.sources / self.kind

    @property
    def options(self) -> dict[str, Any]:
        return {**KINDS[self.kind], "block_values": 200}

    @property
    def split_bytes(self) -> int:
        """Such that a file is divided."""
        return (self.sources / "files" / "0.h5ad").stat().st_size // 2 + 1


def write_sources(place: Path, kinds: list[str]) -> None:
    """All that operations read."""
    source = write_source(place / "cells.h5ad", cells=40, genes=30)
    for kind in kinds:
        write_archive(source, place / kind, kind)
        write_archive(source, place / f"{kind}, too", kind)
        scdl.convert(source, place / f"{kind}, bare", only_matrix=True, **KINDS[kind])
    (place / "files").mkdir()
    for i in range(2):
        write_source(place / "files" / f"{i}.h5ad", cells=30, genes=30, seed=i)


@dataclass(frozen=True)
class Operation:
    """Something that writes.

    Attributes
    ----------
    act
        Does it.
    prepare
        Makes what it changes.
    is_new
        Whether it makes ``archive``, where nothing may be.
    is_one
        Whether it is done as a whole, or not at all.
    adds
        Whether doing it twice does it twice.
    again
        What removes what a killed one left, where `archive` is there already.
    """

    act: Callable[[Ground], object]
    prepare: Callable[[Ground], object] = lambda ground: None
    is_new: bool = False
    is_one: bool = True
    adds: bool = False
    again: Callable[[Ground], object] = lambda ground: None


def _copied(ground: Ground) -> None:
    shutil.copytree(ground.pristine, ground.target)


def _copied_to_grow(ground: Ground) -> None:
    """An archive without layers, which cannot grow."""
    keeps_layers = KINDS[ground.kind]["backend"] != "memmap"
    source = ground.sources / f"{ground.kind}, bare" if keeps_layers else ground.pristine
    shutil.copytree(source, ground.target)


def _copied_plainly(ground: Ground) -> None:
    """What no product may do; the harness must find it."""
    for path in sorted(ground.pristine.rglob("*")):
        target = ground.target / path.relative_to(ground.pristine)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def _convert(ground: Ground) -> None:
    scdl.convert(ground.sources / "cells.h5ad", ground.target, **ground.options)


def _shuffle(ground: Ground) -> None:
    scdl.convert(ground.sources / "cells.h5ad", ground.target, shuffle=3, **ground.options)


def _collection(ground: Ground) -> scdl.SingleCellCollection:
    return scdl.SingleCellCollection([ground.pristine, ground.sources / f"{ground.kind}, too"])


def _flatten(ground: Ground) -> None:
    backend = KINDS[ground.kind]["backend"]
    _collection(ground).flatten(ground.target, backend=backend, extend_copy_size=800)


def _members(ground: Ground) -> None:
    """Members that may go, and a manifest of them."""
    for name in ("a", "b"):
        shutil.copytree(ground.sources / f"{ground.kind}, bare", ground.place / name)
    scdl.SingleCellCollection(ground.place).save_manifest()


def _flatten_and_remove(ground: Ground) -> None:
    backend = KINDS[ground.kind]["backend"]
    scdl.open(ground.place).flatten(ground.target, destroy_on_copy=True, backend=backend)


def _save_anew(ground: Ground) -> None:
    scdl.open(ground.pristine).save(ground.target)


def _stale(ground: Ground) -> None:
    """An archive that its next `repair` mends."""
    _copied(ground)
    if KINDS[ground.kind]["backend"] == "memmap":
        header = ground.target / "header.sch"
        # The length of the first array, as a reader that does not know better leaves it.
        data = bytearray(header.read_bytes())
        nnz = scdl.open(ground.pristine).number_nonzero_values()
        at = data.index(nnz.to_bytes(8, "big"))
        data[at : at + 8] = (nnz + 1).to_bytes(8, "big")
        header.write_bytes(data)
    else:
        metadata = ground.target / "zarr.json"
        content = json.loads(metadata.read_text())
        del content["consolidated_metadata"]
        metadata.write_text(json.dumps(content))


def _without_checksums(ground: Ground) -> None:
    _copied(ground)
    for name in ("scdl/checksums.bin", "scdl.checksums"):
        (ground.target / name).unlink(missing_ok=True)


def _add_checksums(ground: Ground) -> None:
    with contextlib.suppress(OutputError):  # there already
        scdl.verify(ground.target, add_checksums=True)


def _begun_collection(ground: Ground) -> None:
    scdl.SingleCellCollection([ground.pristine]).save_manifest(ground.place)


def _add(ground: Ground) -> None:
    with contextlib.suppress(CollectionError):  # a member already
        scdl.open(ground.place).add(ground.sources / f"{ground.kind}, too")


def _convert_directory(ground: Ground) -> None:
    scdl.convert_directory(
        ground.sources / "files",
        ground.place,
        resume=True,
        split_bytes=ground.split_bytes,
        **ground.crew,
        **ground.options,
    )


def _convert_in_parts(ground: Ground) -> None:
    source = ground.sources / "cells.h5ad"
    scdl.convert_in_parts([source], ground.target, **ground.crew, **ground.options)


def _convert_in_parts_again(ground: Ground) -> None:
    with contextlib.suppress(ArchiveExistsError):
        _convert_in_parts(ground)


OPERATIONS = {
    "convert": Operation(_convert, is_new=True),
    "flatten": Operation(_flatten, is_new=True),
    "shuffle": Operation(_shuffle, is_new=True),
    "flatten and remove": Operation(
        _flatten_and_remove,
        _members,
        is_new=True,
        is_one=False,
        again=lambda g: scdl.SingleCellCollection(g.place).save_manifest(),
    ),
    "save": Operation(_save_anew, is_new=True),
    "cast": Operation(lambda g: scdl.open(g.target).cast_data_to_dtype("float64"), _copied),
    "concat": Operation(
        lambda g: scdl.open(g.target).concat(scdl.open(g.pristine)), _copied, adds=True
    ),
    "append": Operation(
        lambda g: scdl.open(g.target).append(g.sources / "files/0.h5ad"), _copied_to_grow, adds=True
    ),
    "load": Operation(lambda g: scdl.open(g.target).load_h5ad(g.sources / "files/1.h5ad"), _copied),
    "repair": Operation(lambda g: scdl.verify(g.target, repair=True), _stale),
    "checksums": Operation(_add_checksums, _without_checksums),
    "add": Operation(_add, _begun_collection),
    "directory": Operation(_convert_directory, is_one=False),
    "parts": Operation(_convert_in_parts, is_new=True, again=_convert_in_parts_again),
    "careless": Operation(_copied_plainly, is_new=True),
}

#: Of something that stands in a place: what it is, or what is wrong with it.
State = dict[str, Any]


def state(place: Path) -> State:
    """What stands in a place, each archive read whole and compared with its checksums."""
    return {p.name: _digest(p) for p in sorted(place.iterdir()) if not p.name.startswith(".")}


def _digest(path: Path) -> Any:
    try:
        if path.name == MANIFEST:
            return _content(scdl.open(path.parent))
        report = scdl.verify(path, deep=True)
        if report.verdict is Verdict.DAMAGED:
            mendable = all(f.mendable for f in report.findings if f.verdict is Verdict.DAMAGED)
            if not mendable:
                # Not the report, which says how long it took.
                return f"damaged: {[finding.message for finding in report.findings]}"
        return [report.verdict.name, *_content(scdl.open(path))]
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what stands there
        return repr(error)


def _content(cells: Any) -> list[Any]:
    batch = cells.read_rows(slice(None))
    sums = np.asarray(batch.data, np.float64).sum(), np.asarray(batch.indices, np.int64).sum()
    return [len(cells), str(batch.data.dtype), *map(float, sums)]
