"""The command: ``python -m benchmarks generate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.options import subject_parser
from benchmarks.generate.files import generate
from benchmarks.generate.formats import FORMATS, write_as
from benchmarks.generate.real_cells import celltypist_cells, synthetic_cells
from benchmarks.generate.spec import DataSpec


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate a file."""
    default, parser = DataSpec(), subject_parser(__package__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="file to write")
    add("--cells", type=int, default=default.cells)
    add("--genes", type=int, default=default.genes)
    add("--nnz-per-cell", type=float, default=default.nnz_per_cell, help="mean stored values")
    add("--compression", default=default.compression, help="none, lzf or gzip-4")
    add("--no-raw", "--x-only", action="store_true", help="counts in X; default: in raw.X")
    add("--neighbors", type=int, default=0, metavar="K", help="neighbours of each cell in obsp")
    add("--seed", type=int, default=default.seed)
    add("--format", choices=FORMATS, help="write the counts in this format; default: h5ad")
    add("--source", choices=("celltypist", "synthetic"), default="celltypist")
    options = parser.parse_args(arguments)
    spec = DataSpec(
        cells=options.cells,
        genes=options.genes,
        nnz_per_cell=options.nnz_per_cell,
        compression=options.compression,
        # Other formats hold the counts alone.
        raw=not options.no_raw and options.format in (None, "h5mu"),
        neighbors=options.neighbors,
        seed=options.seed,
    )
    templates = celltypist_cells() if options.source == "celltypist" else synthetic_cells()
    out = options.out
    h5ad = out if options.format is None else out.with_name(f"{out.name}.h5ad")
    nnz = generate(h5ad, spec, templates, progress=True)
    if options.format is not None:
        write_as(options.format, h5ad, out)
        h5ad.unlink()
    print(f"{options.out}: {spec.cells:,} cells x {spec.genes:,} genes, {nnz:,} stored values")
    return 0
