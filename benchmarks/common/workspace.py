"""Files that benchmarks read: data is kept from run to run, archives are not."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.common.child import Child, ChildRun
from benchmarks.common.page_cache import bring_in
from benchmarks.common.peers import Scdl
from benchmarks.generate.files import generate
from benchmarks.generate.real_cells import TemplateCells
from benchmarks.generate.spec import DataSpec

FEW_CELLS = 64
_GENES = 20_000


@dataclass(frozen=True)
class Workspace:
    """A directory of generated files and converted archives.

    Attributes
    ----------
    directory
        Where all files are.
    spec
        The data of this run, uncompressed.
    templates
        Returns the cells that data is resampled from; called when a file is missing.
    """

    directory: Path
    spec: DataSpec
    templates: Callable[[], TemplateCells]
    _converted: set[Path] = field(default_factory=set, init=False, repr=False)

    def h5ad(self, *, compression: str = "none", times: int = 1, cells: int | None = None) -> Path:
        """The data, compressed or not, with `times` its cells, or with another number of cells."""
        wanted = self.spec.cells * times if cells is None else cells
        spec = dataclasses.replace(self.spec, compression=compression, cells=wanted)
        path = self.directory / f"{self._stem(spec)}-{compression}.h5ad"
        if not path.exists():
            generate(path, spec, self.templates(), progress=True)
        return path

    def gene_list(self) -> Path:
        """A file with 20,000 genes, or half of all if there are fewer, in the order of the data."""
        with h5py.File(self.h5ad()) as file:
            var = file["raw/var"]
            names = var[var.attrs["_index"]].asstr()[:]
        most = min(_GENES, len(names) // 2)
        chosen = np.random.default_rng(0).choice(len(names), most, replace=False)
        path = self.directory / f"{self._stem(self.spec)}-genes.txt"
        path.write_text("\n".join(names[np.sort(chosen)]) + "\n")
        return path.absolute()

    def archive(self, peer: Scdl, *, times: int = 1) -> Path:
        """The data converted by a library, uncompressed: once in the life of this object."""
        spec = dataclasses.replace(self.spec, cells=self.spec.cells * times)
        path = self.directory / f"{self._stem(spec)}.{peer.name}"
        if path not in self._converted:
            self._convert(peer, self.h5ad(times=times), path)
            self._converted.add(path)
        return path

    def conversion(self, peer: Scdl, source: Path) -> ChildRun:
        """Measure one conversion; its archive is removed."""
        target = self.directory / f"measured.{peer.name}"
        try:
            return self._convert(peer, source, target)
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def _convert(self, peer: Scdl, source: Path, target: Path) -> ChildRun:
        with Child("benchmarks.readers.child", threads=None) as child:
            return self.measure_conversion(child, source, target, peer=peer.name)

    def measure_conversion(
        self, child: Child, source: Path, target: Path, **options: Any
    ) -> ChildRun:
        """Convert a file, from the page cache, in a child that has converted a few cells before.

        Neither imports nor compilation count then, for time as for memory.
        """
        few = self.h5ad(cells=min(FEW_CELLS, self.spec.cells))
        with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
            other = Path(scratch).absolute() / f"few{target.suffix}"
            child.ask("convert", source=few.absolute(), target=other, **options)
        shutil.rmtree(target, ignore_errors=True)
        bring_in(source)
        # Writing back what was written before must not slow this conversion.
        os.sync()
        return child.watched(
            "convert", source=source.absolute(), target=target.absolute(), **options
        )

    @staticmethod
    def _stem(spec: DataSpec) -> str:
        return f"{spec.cells}x{spec.genes}-{spec.nnz_per_cell:g}-seed{spec.seed}"
