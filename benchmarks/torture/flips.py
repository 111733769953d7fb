"""Single bits flipped in the files of an archive, and whether they are detected."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import scdl
from benchmarks.common import page_cache
from benchmarks.common.report import Outcome
from benchmarks.torture.archives import KINDS
from benchmarks.torture.setting import Setting, all_of
from scdl.errors import ArchiveFormatError, ScdlWarning
from storage_backends.capabilities import Verdict


@dataclass(frozen=True)
class Flip:
    """One bit of a file."""

    file: Path
    offset: int
    bit: int

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Flip the bit, and flip it back at the end."""
        self._invert()
        try:
            yield
        finally:
            self._invert()

    def _invert(self) -> None:
        with self.file.open("r+b") as stream:
            stream.seek(self.offset)
            byte = stream.read(1)[0]
            stream.seek(self.offset)
            stream.write(bytes([byte ^ 1 << self.bit]))


def draw(files: Sequence[Path], n: int, seed: int = 0) -> list[Flip]:
    """Draw `n` flips, as many in small files as in large ones."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(files))
    flips = []
    for i in range(n):
        file = files[order[i % len(files)]]
        flips.append(Flip(file, int(rng.integers(file.stat().st_size)), int(rng.integers(8))))
    return flips


def missed(flips: Sequence[Flip], found: Callable[[Flip], bool]) -> list[Flip]:
    """The flips that were not found."""
    out = []
    for flip in flips:
        with flip.applied():
            if not found(flip):
                out.append(flip)
    return out


def found_by_verify(archive: Path) -> Callable[[Flip], bool]:
    """Whether ``verify(deep=True)`` reports damage, and names the file."""

    def found(flip: Flip) -> bool:
        report = scdl.verify(archive, deep=True)
        named = any(str(flip.file) in finding.message for finding in report.findings)
        return report.verdict is Verdict.DAMAGED and named

    return found


def chunks_of(archive: Path) -> list[Path]:
    """Files of a Zarr archive that hold chunks of arrays and of tables."""
    store = scdl.open(archive).store
    parts = [*(f"{name}/" for name in ("X", "raw/X", "obs", "var", "raw/var")), "obsp/", "layers/"]
    held = [file for file in page_cache.files(archive) if "/c/" in file.as_posix()]
    store.close()
    return [
        file for file in held if file.relative_to(archive).as_posix().startswith((*parts, "obsm/"))
    ]


def found_by_reading(archive: Path) -> Callable[[Flip], bool]:
    """Whether reading everything that an archive holds raises."""

    def found(flip: Flip) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScdlWarning)
            try:
                with scdl.open(archive).store as store:
                    for name in store.arrays:
                        store.read(name)
                    for name in store.tables:
                        store.read_table(name)
            except ArchiveFormatError:
                return True
        return False

    return found


def verified(setting: Setting) -> list[Outcome]:
    """Flips in any file, found by ``verify --deep``."""
    return [
        _count(
            setting,
            kind,
            page_cache.files,
            found_by_verify,
            "single-bit flips found by verify --deep",
        )
        for kind in KINDS
    ]


def read(setting: Setting) -> list[Outcome]:
    """Flips in chunks of Zarr archives, found by reading them."""
    what = "single-bit flips in chunks found while reading"
    kinds = [kind for kind in KINDS if kind != "memmap"]
    return [_count(setting, kind, chunks_of, found_by_reading, what) for kind in kinds]


def _count(
    setting: Setting,
    kind: str,
    files: Callable[[Path], list[Path]],
    finder: Callable[[Path], Callable[[Flip], bool]],
    what: str,
) -> Outcome:
    archive = setting.archive(kind)
    tried = draw(files(archive), setting.count(2_000))
    lost = missed(tried, finder(archive))
    note = f"in {len({flip.file for flip in tried})} files"
    note += "".join(f"; missed: {flip}" for flip in lost[:3])
    return all_of(f"{what}, {kind}", len(tried), len(tried) - len(lost), note)
