"""What a training step takes: a batch of cells as tensors, and how it is assembled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from scdl.dataset import tensors
from scdl.dataset.batch import CellBatch
from scdl.errors import LoaderError
from scdl.kernels import dense as dense_kernels
from scdl.kernels import hashing
from scdl.training.batch import Tokenizer, TrainingBatch
from scdl.training.layouts import LAYOUTS, Asked, Choice
from scdl.training.transforms import Log1p, NormalizeTotal
from storage_backends.compute.caching import cached_property


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """How cells become tensors.

    Parameters
    ----------
    layout
        One of :data:`~scdl.training.layouts.LAYOUTS`.
    dtype
        Of the values; None: the stored one, or the next that torch computes with.
    length
        Values of a cell in the layout ``padded``.
    choose
        Of these: ``first``: those of the genes that come first; ``largest``: the largest values,
        which then come first; ``random``: some at random, as their genes rise.
    transforms
        At most one :class:`NormalizeTotal` and one :class:`Log1p` in this order, then functions
        that take a :class:`TrainingBatch` and return what takes its place. One that has a
        parameter `rng` is given a generator of random numbers.
    tokenizer
        Takes the cells, transformed, and the names of the genes, and `rng` where it has such a
        parameter; its result becomes the batch's ``tokens``, and ``x`` is left out.
    """

    layout: str = "csr"
    dtype: torch.dtype | None = torch.float32
    length: int | None = None
    choose: Choice | None = None
    transforms: Sequence[Any] = ()
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise LoaderError(f"layout must be one of {', '.join(LAYOUTS)}, not {self.layout!r}")
        with_length = [name for name, layout in LAYOUTS.items() if layout.takes_length]
        if (self.layout in with_length) != (self.length is not None):
            named = " or ".join(map(repr, with_length))
            raise LoaderError(
                f"the layout {named} needs a length, in values a cell, and no other layout has one"
            )
        if self.length is not None and self.length < 1:
            raise LoaderError(f"length must be at least 1, not {self.length}")
        if self.choose is not None and self.layout not in with_length:
            raise LoaderError(
                f"choose={self.choose!r} and by_value=True are for the layout 'padded'"
            )
        if self.choose not in (None, *get_args(Choice)):
            choices = ", ".join(get_args(Choice))
            raise LoaderError(f"choose must be one of {choices}, not {self.choose!r}")
        if self.tokenizer is not None and self.layout != "csr":
            raise LoaderError(
                f"a tokenizer takes the place of x, and has no use for layout={self.layout!r}"
            )
        if self.tokenizer is not None and not callable(self.tokenizer):
            raise LoaderError(
                f"a tokenizer is a function of cells and gene names, not {self.tokenizer!r}"
            )
        for transform in self.transforms:
            is_ours = isinstance(transform, NormalizeTotal | Log1p)
            if not is_ours and (
                not callable(transform) or transform is Log1p or transform is NormalizeTotal
            ):
                raise LoaderError(
                    "transforms are NormalizeTotal(), Log1p() and functions of a batch, not "
                    f"{transform!r}"
                )
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
    def is_large(self) -> bool:
        """Whether batches are many times as large as what they are made from."""
        return LAYOUTS[self.layout].is_large

    @cached_property
    def needs_order(self) -> bool:
        """Whether the genes of each cell must come in rising order, each once."""
        # The logarithm of a sum is not the sum of logarithms, and integers may not hold it.
        adds = self.dtype is not None and self.dtype.is_floating_point and not self._logs
        return not (LAYOUTS[self.layout].adds and adds) or self.tokenizer is not None

    @cached_property
    def needs_totals(self) -> bool:
        """Whether the values of each cell must be added up over all of its genes."""
        return self._normalization is not None and self._normalization.over == "all"

    @cached_property
    def sum_dtype(self) -> np.dtype[Any] | None:
        """Type that values of one gene are added in; None: the stored one."""
        if self.dtype is not None and not self.dtype.is_floating_point:
            return np.dtype(np.int64)
        return tensors.sum_dtype(self.dtype)

    @cached_property
    def _normalization(self) -> NormalizeTotal | None:
        return next((t for t in self.transforms if isinstance(t, NormalizeTotal)), None)

    @cached_property
    def _logs(self) -> bool:
        return any(isinstance(t, Log1p) for t in self.transforms)

    def __call__(
        self,
        cells: CellBatch,
        neighbors: CellBatch | None = None,
        gene_names: NDArray[Any] | None = None,
        columns: Mapping[str, NDArray[Any]] | None = None,
        key: int = 0,
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
        key
            What random numbers of this batch follow from.
        """
        columns = columns or {}
        batch: Any = self._tensors(cells, gene_names, columns, (key, 0))
        if neighbors is not None:
            beside = self._tensors(neighbors, gene_names, columns, (key, 1))
            batch = replace(batch, neighbors=beside)
        for number, (function, takes_rng) in enumerate(self._functions):
            # Each has its own numbers, whatever comes before it.
            given = {"rng": _rng(key, 2, number)} if takes_rng else {}
            batch = function(batch, **given)
            if batch is None:
                raise LoaderError(
                    f"the transform {function!r} returned None; it must return what takes the "
                    "place of the batch"
                )
        return batch

    @cached_property
    def _functions(self) -> list[tuple[Callable[..., Any], bool]]:
        """Functions of the batch, and whether they take `rng`: to ask takes longer than some do."""
        functions = (t for t in self.transforms if not isinstance(t, NormalizeTotal | Log1p))
        return [(function, _takes_rng(function)) for function in functions]

    @cached_property
    def is_random(self) -> bool:
        """Whether a batch depends on its key."""
        takes_rng = self._tokenizer_takes_rng or any(takes for _, takes in self._functions)
        return takes_rng or self.choose == "random"

    @cached_property
    def _tokenizer_takes_rng(self) -> bool:
        return self.tokenizer is not None and _takes_rng(self.tokenizer)

    def _tensors(
        self,
        cells: CellBatch,
        gene_names: NDArray[Any] | None,
        columns: Mapping[str, NDArray[Any]],
        key: tuple[int, int],
    ) -> TrainingBatch:
        cells.check_genes()
        cells = self._transformed(cells)
        parts: dict[str, Any] = {
            "x": None,
            "rows": torch.from_numpy(cells.rows),
            "obs": {name: tensors.numbers(values[cells.rows]) for name, values in columns.items()},
            "obsm": {name: tensors.numbers(vectors) for name, vectors in cells.obsm.items()},
            "present": None if cells.present is None else torch.from_numpy(cells.present),
            "spaces": None if cells.spaces is None else torch.from_numpy(cells.spaces),
        }
        if self.tokenizer is not None:
            assert gene_names is not None
            given = {"rng": _rng(*key)} if self._tokenizer_takes_rng else {}
            parts["tokens"] = self.tokenizer(cells, gene_names, **given)
        else:
            asked = Asked(self.dtype, self.length, self.choose, key)
            parts |= LAYOUTS[self.layout].make(cells, asked)
        return TrainingBatch(**parts)

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
            dense_kernels.scale_rows(values, cells.indptr, totals, normalization.target_sum, values)
        if self._logs:
            torch.from_numpy(values).log1p_()
        return replace(cells, data=values)


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(hashing.mixed(*key))


def _takes_rng(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter `rng` that is to be given."""
    if isinstance(function, torch.nn.Module):
        function = function.forward
    try:
        parameter = inspect.signature(function).parameters.get("rng")
    except (TypeError, ValueError):  # of builtins that do not tell
        return False
    if parameter is None or "rng" in getattr(function, "keywords", {}):
        return False
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
