"""Files that benchmarks read: data is kept from run to run, archives are made anew."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.generate.files import generate
from benchmarks.common.measure import ChildRun, run_child
from benchmarks.common.peers import Peer
from benchmarks.generate.real_cells import TemplateCells
from benchmarks.generate.spec import DataSpec

_FEW_CELLS = 64


@dataclass(frozen=True)
class Workspace:
    """A directory of generated files and converted archives.

    Attributes
    ----------
    directory
        Where everything goes.
    spec
        The data of this run, uncompressed.
    templates
        Gives the cells that data is resampled from; called when a file is missing.
    """

    directory: Path
    spec: DataSpec
    templates: Callable[[], TemplateCells]
    _converted: set[Path] = field(default_factory=set, init=False, repr=False)

    def h5ad(self, *, compression: str = "none", times: int = 1, cells: int | None = None) -> Path:
        """The data, compressed or not, with its own, several times its own or some `cells`."""
        wanted = self.spec.cells * times if cells is None else cells
        spec = dataclasses.replace(self.spec, compression=compression, cells=wanted)
        path = self.directory / f"{self._stem(spec)}-{compression}.h5ad"
        if not path.exists():
            generate(path, spec, self.templates(), progress=True)
        return path

    def archive(self, peer: Peer, *, times: int = 1) -> Path:
        """The data converted by a library, uncompressed: once in the life of this object."""
        spec = dataclasses.replace(self.spec, cells=self.spec.cells * times)
        path = self.directory / f"{self._stem(spec)}.{peer.name}"
        if path not in self._converted:
            self._convert(peer, self.h5ad(times=times), path)
            self._converted.add(path)
        return path

    def conversion(self, peer: Peer, source: Path) -> ChildRun:
        """Measure one conversion; its archive is removed."""
        target = self.directory / f"measured.{peer.name}"
        try:
            return self._convert(peer, source, target)
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def _convert(self, peer: Peer, source: Path, target: Path) -> ChildRun:
        shutil.rmtree(target, ignore_errors=True)
        few = self.h5ad(cells=min(_FEW_CELLS, self.spec.cells))
        _read_through(source)
        # What was written before must not be written back at the expense of this conversion.
        os.sync()
        arguments = [peer.name, *(str(path.resolve()) for path in (source, target, few))]
        return run_child("benchmarks.readers.child", arguments)

    @staticmethod
    def _stem(spec: DataSpec) -> str:
        return f"{spec.cells}x{spec.genes}-{spec.nnz_per_cell:g}-seed{spec.seed}"


def _read_through(path: Path) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(1 << 22)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
