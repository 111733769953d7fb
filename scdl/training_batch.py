"""What a training step takes: a batch of cells as tensors, and how it is assembled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from scdl import _kernels, tensors
from scdl.batch import CellBatch
from scdl.errors import LoaderError
from scdl.transforms import Log1p, NormalizeTotal

Layout = Literal["csr", "coo", "dense", "padded"]

#: Of a batch: its cells with their gene names, to anything that a model takes.
Tokenizer = Callable[[CellBatch, NDArray[Any]], Any]

_LAYOUTS = ("csr", "coo", "dense", "padded")


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """A batch of n cells as tensors.

    Attributes
    ----------
    x
        Expression of n x n_vars, sparse or dense; of layout ``padded`` the values of
        n x length, padded with zeros; None where a tokenizer takes its place.
    rows
        Row of each cell in its dataset, int64.
    genes
        Of layout ``padded`` the gene of each value, int64, padded with n_vars.
    lengths
        Of layout ``padded`` how many values of each cell are there, int64.
    obs
        Columns of obs: numbers as they are stored, labels as int64 codes (-1: none).
    obsm
        Dense vectors, n x width.
    neighbors
        The sampled neighbours, n x k cells: those of the first cell, of the second, and so on.
    tokens
        What the tokenizer made of the batch.
    present
        With ``missing="mask"``: which genes each gene space of the archives has, bool, spaces x
        n_vars; the same tensor in every batch.
    spaces
        With ``missing="mask"`` the row of `present` that each cell has, int64:
        ``present[spaces]`` is n x n_vars. With ``genes="own"`` the gene space whose genes the
        column ids of each cell mean, as ``gene_spaces`` of the dataset numbers them.
    """

    x: torch.Tensor | None
    rows: torch.Tensor
    genes: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    obs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    obsm: Mapping[str, torch.Tensor] = field(default_factory=dict)
    neighbors: TrainingBatch | None = None
    tokens: Any = None
    present: torch.Tensor | None = None
    spaces: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, *args: Any, **kwargs: Any) -> TrainingBatch:
        """The batch with every tensor moved by ``torch.Tensor.to``."""
        return self._map(lambda part: part.to(*args, **kwargs))

    def pin_memory(self) -> TrainingBatch:
        """The batch in page-locked memory, for copies to a GPU; itself where there is no GPU."""
        if not torch.cuda.is_available():
            return self
        return self._map(lambda part: part.pin_memory())

    def _map(self, change: Callable[[Any], Any]) -> TrainingBatch:
        def changed(part: Any) -> Any:
            if isinstance(part, Mapping):
                return {name: changed(value) for name, value in part.items()}
            if isinstance(part, TrainingBatch):
                return part._map(change)
            return change(part) if isinstance(part, torch.Tensor) else part

        return replace(self, **{f.name: changed(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """How cells become tensors.

    Parameters
    ----------
    layout
        ``csr``, ``coo``, ``dense`` or ``padded``.
    dtype
        Of the values; None: the stored one, or the next that torch computes with.
    length
        Values of a cell in the layout ``padded``.
    by_value
        Whether those with the largest values come first.
    transforms
        At most one :class:`NormalizeTotal` and one :class:`Log1p` in this order, then functions
        that take a :class:`TrainingBatch` and return what takes its place.
    tokenizer
        Takes the cells, transformed, and the names of the genes; its result becomes the batch's
        ``tokens``, and ``x`` is left out.
    """

    layout: Layout = "csr"
    dtype: torch.dtype | None = torch.float32
    length: int | None = None
    by_value: bool = False
    transforms: Sequence[Any] = ()
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        if self.layout not in _LAYOUTS:
            raise LoaderError(f"layout must be one of {', '.join(_LAYOUTS)}, not {self.layout!r}")
        if (self.layout == "padded") != (self.length is not None):
            raise LoaderError(
                "the layout 'padded' needs a length, in values a cell, and no other layout has one"
            )
        if self.length is not None and self.length < 1:
            raise LoaderError(f"length must be at least 1, not {self.length}")
        if self.by_value and self.layout != "padded":
            raise LoaderError("by_value=True is for the layout 'padded'")
        known = [type(t) for t in self.transforms if isinstance(t, NormalizeTotal | Log1p)]
        first = self.transforms[: len(known)]
        in_order = known in ([], [NormalizeTotal], [Log1p], [NormalizeTotal, Log1p])
        if not in_order or [type(t) for t in first] != known:
            raise LoaderError(
                "transforms begin with NormalizeTotal and Log1p, each at most once and in this "
                "order; functions follow"
            )
        if known and self.dtype is not None and not self.dtype.is_floating_point:
            raise LoaderError(f"transformed values need a floating dtype, not {self.dtype}")

    @property
    def needs_order(self) -> bool:
        """Whether the genes of each cell must come in rising order, each once."""
        # The logarithm of a sum is not the sum of logarithms, and integers may not hold it.
        adds = self.dtype is not None and self.dtype.is_floating_point and not self._logs
        return self.layout != "dense" or not adds or self.tokenizer is not None

    @property
    def needs_totals(self) -> bool:
        """Whether the values of each cell must be added up over all of its genes."""
        return self._normalization is not None and self._normalization.over == "all"

    @property
    def sum_dtype(self) -> np.dtype[Any] | None:
        """Type that values of one gene are added in; None: the stored one."""
        if self.dtype is not None and not self.dtype.is_floating_point:
            return np.dtype(np.int64)
        return tensors.sum_dtype(self.dtype)

    @property
    def _normalization(self) -> NormalizeTotal | None:
        return next((t for t in self.transforms if isinstance(t, NormalizeTotal)), None)

    @property
    def _logs(self) -> bool:
        return any(isinstance(t, Log1p) for t in self.transforms)

    def __call__(
        self,
        cells: CellBatch,
        neighbors: CellBatch | None = None,
        gene_names: NDArray[Any] | None = None,
        columns: Mapping[str, NDArray[Any]] | None = None,
    ) -> Any:
        """Assemble one batch.

        Parameters
        ----------
        cells, neighbors
            As they were read.
        gene_names
            For the tokenizer.
        columns
            Columns of obs, of all cells of the dataset.
        """
        columns = columns or {}
        batch = self._tensors(cells, gene_names, columns)
        if neighbors is not None:
            batch = replace(batch, neighbors=self._tensors(neighbors, gene_names, columns))
        for transform in self.transforms:
            if not isinstance(transform, NormalizeTotal | Log1p):
                batch = transform(batch)
        return batch

    def _tensors(
        self,
        cells: CellBatch,
        gene_names: NDArray[Any] | None,
        columns: Mapping[str, NDArray[Any]],
    ) -> TrainingBatch:
        cells.check_genes()
        cells = self._transformed(cells)
        batch = TrainingBatch(
            x=None,
            rows=torch.from_numpy(cells.rows),
            obs={name: tensors.numbers(values[cells.rows]) for name, values in columns.items()},
            obsm={key: tensors.numbers(vectors) for key, vectors in cells.obsm.items()},
            present=None if cells.present is None else torch.from_numpy(cells.present),
            spaces=None if cells.spaces is None else torch.from_numpy(cells.spaces),
        )
        if self.tokenizer is not None:
            assert gene_names is not None
            return replace(batch, tokens=self.tokenizer(cells, gene_names))
        if self.layout == "padded":
            return self._padded(cells, batch)
        x = tensors.batch_tensor(cells, self.layout, self.dtype, _index_dtype(cells))
        return replace(batch, x=x)

    def _transformed(self, cells: CellBatch) -> CellBatch:
        """The cells with other values."""
        if not self.transforms:
            return cells
        normalization = self._normalization
        if normalization is None and not self._logs:
            return cells
        wide = cells.data.dtype == np.float64 or self.dtype == torch.float64
        values = cells.data.astype(np.float64 if wide else np.float32)
        if normalization is not None:
            use = cells.totals if normalization.over == "all" else None
            totals = cells.row_totals() if use is None else use
            _kernels.scale_rows(values, cells.indptr, totals, normalization.target_sum, values)
        if self._logs:
            torch.from_numpy(values).log1p_()
        return replace(cells, data=values)

    def _padded(self, cells: CellBatch, batch: TrainingBatch) -> TrainingBatch:
        cells.check_columns()
        assert self.length is not None
        data = tensors.computable(cells.data)
        data = data.astype(np.float32) if data.dtype == np.float16 else data
        values = np.zeros((len(cells), self.length), data.dtype)
        genes = np.full(values.shape, cells.n_vars, np.int64)
        _kernels.fill_padded(data, cells.indices, cells.indptr, self.by_value, values, genes)
        lengths = np.minimum(np.diff(cells.indptr), self.length)
        return replace(
            batch,
            x=tensors.as_dtype(torch.from_numpy(values), self.dtype),
            genes=torch.from_numpy(genes),
            lengths=torch.from_numpy(lengths),
        )


def _index_dtype(cells: CellBatch) -> type[np.signedinteger[Any]]:
    """Half the memory to write, and what MKL computes with."""
    wide = max(len(cells.data), cells.n_vars) > np.iinfo(np.int32).max
    return np.int64 if wide else np.int32
