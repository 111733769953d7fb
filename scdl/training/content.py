"""What batches hold: cells of a dataset, in some genes, with some of what belongs to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.gene_names import check_one_space
from scdl.archive.gene_space import OWN, is_own
from scdl.archive.schema import INDEX
from scdl.dataset.batch import CellBatch
from scdl.dataset.reader import CellReader, as_cells
from scdl.errors import LoaderError
from scdl.training.assembly import Assembly
from scdl.training.modalities import Modality, modalities_of
from scdl.training.options import LoaderOptions
from scdl.training.vocabulary import ObsColumn, obs_column
from storage_backends.compute.caching import cached_property


@dataclass(frozen=True)
class BatchContent:
    """The cells that batches come from, and what is read of them.

    Parameters
    ----------
    cells
        The dataset.
    rows
        Its cells to use; None: all.
    options, assembly
        All options of the loader, and the assembly of batches that they describe.
    modalities
        Other datasets of the cells, by the name of the field that they become.
    identity
        Identity of the archives when the loader was created.
    """

    cells: CellReader
    rows: NDArray[np.int64] | None
    options: LoaderOptions
    assembly: Assembly
    modalities: Mapping[str, Modality]
    identity: object

    @classmethod
    def of(cls, dataset: CellReader, rows: csr.Rows | None, options: LoaderOptions) -> BatchContent:
        """Select the matrix, genes and cells of a dataset that the options name.

        Raises
        ------
        LoaderError
            The options of the assembly contradict each other.
        DatasetTypeError, RowIndexError, GeneError
            It is not a dataset, or has no such cells or genes.
        CellNotFoundError
            A modality lacks some of the cells.
        """
        cells = as_cells(dataset)
        if options["matrix"] is not None:
            cells = cells.select_matrix(options["matrix"])
        if options["genes"] is not None and not is_own(options["genes"]):
            cells = cells.select_genes(
                options["genes"],
                gene_column=options["gene_column"],
                missing=options["missing"],
                duplicates=options["duplicates"],
            )
        # A copy, so that later changes of the caller's array have no effect.
        selected = None if rows is None else csr.positions(rows, cells.n_obs).copy()
        # Any cell may be a neighbour.
        needed = None if options["neighbors"] else selected
        modalities = modalities_of(options["modalities"], as_cells(dataset), needed)
        identity = _identity(cells, modalities)
        return cls(cells, selected, options, Assembly.of(options), modalities, identity)

    def check(self) -> None:
        """Find out now, and not in the first batch, what the cells do not have.

        Raises
        ------
        LoaderError
            There are no cells, or no graph of neighbours.
        GeneError
            The cells have different genes.
        FeatureNotFoundError, ColumnTypeError
            There is no such column, vector or field, or it cannot become a tensor.
        """
        if len(self) == 0:
            raise LoaderError("there are no cells to load: the dataset or the subset is empty")
        if self.options["neighbors"] and self.cells.graph is None:
            raise LoaderError(
                "neighbors=… needs a neighbour graph, which the dataset lacks or was opened without"
            )
        if not self.in_own_genes or self.options["tokenizer"] is not None:
            spaces = (
                self.cells.gene_spaces if self.rows is None else self.cells.spaces_of(self.rows)
            )
            if spaces is not None:
                check_one_space(spaces, "the cells to load")
        for name, laid in self.assembly.laid_fields.items():
            if name in self.modalities and laid.kind.follows:
                raise LoaderError(
                    f"the modality {name!r} has other genes than the matrix, so that its layout "
                    f"cannot be {laid.layout!r}"
                )
        self.columns  # noqa: B018
        if self.options["obsm"]:
            self.cells.read_rows([], obsm=self.options["obsm"])
        self.bytes_per_cell  # noqa: B018

    def check_unchanged(self) -> None:
        """Raise LoaderError if an archive was replaced."""
        if _identity(self.cells, self.modalities) != self.identity:
            raise LoaderError(
                "an archive was replaced since the loader was created; open the dataset again and "
                "create a new loader"
            )

    def __len__(self) -> int:
        return self.cells.n_obs if self.rows is None else len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        # Workers compute anew what derives from the archive and the options.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def in_own_genes(self) -> bool:
        """Whether each cell is read in the genes of its own gene space."""
        return is_own(self.options["genes"])

    @cached_property
    def columns(self) -> Mapping[str, ObsColumn]:
        """Columns of obs, for all cells of the dataset."""
        return {name: obs_column(self.cells, name) for name in self.options["obs"]}

    @cached_property
    def _values(self) -> dict[str, NDArray[Any]]:
        return {name: column.values for name, column in self.columns.items()}

    @cached_property
    def _gene_names(self) -> NDArray[Any] | None:
        if self.options["tokenizer"] is None:
            return None
        first = 0 if self.rows is None else int(self.rows[0])
        return self.cells.var_features().blocks[self.cells.info.block_of(first)].column(INDEX)

    @cached_property
    def bytes_per_cell(self) -> float:
        """Average bytes of a cell in memory, with the fields and modalities that are read."""
        further = sum(self.cells._field(name).nbytes for name in self._fields)
        others = sum(modality.cells.bytes_per_cell for modality in self.modalities.values())
        return self.cells.bytes_per_cell + others + further / max(self.cells.n_obs, 1)

    @cached_property
    def in_chunks(self) -> bool:
        """Whether a dataset is stored in chunks of several cells, best read together."""
        datasets = [self.cells, *(modality.cells for modality in self.modalities.values())]
        return any(cells.storage.cells_per_chunk > 1 for cells in datasets)

    @cached_property
    def _fields(self) -> tuple[str, ...]:
        """Names of the fields of the dataset itself."""
        return tuple(name for name in self.assembly.fields if name not in self.modalities)

    def will_need(self, rows: NDArray[np.int64]) -> Any:
        """Announce rows to the storage; keep the result until they were read."""
        others = [one.cells.will_need(one.places(rows)) for one in self.modalities.values()]
        return [self.cells.will_need(rows, self._fields), *others]

    def read_rows(self, rows: NDArray[np.int64]) -> CellBatch:
        """Read rows of the dataset as the assembly needs them, with their modalities as fields."""
        read = self._read_own_rows(rows)
        if not self.modalities:
            return read
        how = {"ordered": self.assembly.needs_order, "sum_dtype": self.assembly.sum_dtype}
        others = {name: modality.read(read, **how) for name, modality in self.modalities.items()}
        return replace(read, fields={**read.fields, **others})

    @cached_property
    def _read_own_rows(self) -> partial[CellBatch]:
        assembly = self.assembly
        # Column ids with the dtype of CSR tensors if it holds them all.
        fits = np.can_cast(self.cells.index_dtype, np.int32, "safe")
        return partial(
            self.cells.read_rows,
            obsm=self.options["obsm"],
            fields=self._fields,
            genes=OWN if self.in_own_genes else None,
            ordered=assembly.needs_order,
            index_dtype=np.int32 if fits and assembly.layout == "csr" else None,
            sum_dtype=assembly.sum_dtype,
            totals=assembly.needs_totals,
        )

    def assemble(self, cells: CellBatch, neighbors: CellBatch | None, key: int) -> Any:
        """Assemble one batch; `key` is its random key."""
        return self.assembly(cells, neighbors, self._gene_names, self._values, key)

    @cached_property
    def digest(self) -> str:
        """Hash of the identity of the archives and of the cells to use."""
        rows = b"" if self.rows is None else self.rows.tobytes()
        return hashlib.sha256(repr(self.identity).encode() + rows).hexdigest()[:16]

    def __str__(self) -> str:
        """What a batch holds, in words."""
        options = self.options
        parts = [f"{options['layout']} {self.assembly.dtype or 'as stored'}".replace("torch.", "")]
        if options["tokenizer"] is not None:
            parts = ["tokens"]
        for name, column in self.columns.items():
            labels = "" if column.names is None else f" ({len(column.names)} labels)"
            parts.append(f"obs {name!r}{labels}")
        parts += [f"obsm {key!r}" for key in options["obsm"]]
        for name, laid in self.assembly.laid_fields.items():
            kind = "modality" if name in self.modalities else "field"
            parts.append(f"{kind} {name!r} ({laid.layout})")
        if options["neighbors"]:
            parts.append(f"{options['neighbors']} neighbours a cell")
        return ", ".join(parts)


def _identity(cells: CellReader, modalities: Mapping[str, Modality]) -> tuple[Any, ...]:
    """A key that differs if archives at the same paths change."""
    of_others = [modality.cells.identity for modality in modalities.values()]
    return (*cells.identity, *of_others)
