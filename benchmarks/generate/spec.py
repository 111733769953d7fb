"""Specification of generated data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSpec:
    """Specification of a file. Equal specifications give equal files.

    Attributes
    ----------
    cells, genes
        Shape of the matrix.
    nnz_per_cell
        Mean number of stored values of a cell.
    compression
        ``"none"``, ``"lzf"``, ``"gzip"`` or ``"gzip-<level>"``.
    raw
        Store the counts in ``raw/X`` and log-normalised values in ``X``; otherwise only counts,
        in ``X``.
    neighbors
        Neighbours of each cell in ``obsp["next_cell_ids"]``; 0 leaves it out.
    cell_types, donors
        Categories of ``obs["cell_type"]`` and ``obs["donor_id"]``.
    seed
        Seed of everything random.
    block_rows
        Cells drawn and written at a time, which bounds memory. Another size gives other cells.
    """

    cells: int = 25_382
    genes: int = 34_455
    nnz_per_cell: float = 1_062.0
    compression: str = "none"
    raw: bool = True
    neighbors: int = 0
    cell_types: int = 40
    donors: int = 25
    seed: int = 0
    block_rows: int = 1_024

    def __str__(self) -> str:
        shape = f"{self.cells:,} cells x {self.genes:,} genes"
        return f"{shape}, {self.nnz_per_cell:,.0f} stored per cell"
