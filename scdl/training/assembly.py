"""Assembly of training batches: cells to tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scdl.dataset import tensors
from scdl.dataset.batch import CellBatch
from scdl.errors import LoaderError
from scdl.kernels import dense as dense_kernels
from scdl.kernels import hashing
from scdl.training.batch import Tokenizer, TrainingBatch
from scdl.training.layouts import Choice, Laid, LayoutOptions
from scdl.training.options import LoaderOptions
from scdl.training.transforms import Log1p, NormalizeTotal
from storage_backends.compute.caching import cached_property


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Assembles cells into a batch of tensors.

    Parameters
    ----------
    layout
        One of :data:`~scdl.training.layouts.LAYOUTS`.
    dtype
        Dtype of the values; None: the stored one, or the nearest that torch computes with.
    length
        Values per cell in the layout ``padded``.
    choose
        Which values a padded cell keeps: ``first``: those of the first genes; ``largest``: the
        largest values, in descending order; ``random``: a random sample, in the order of genes.
    transforms
        At most one :class:`NormalizeTotal` and one :class:`Log1p` in this order, then functions
        that take a :class:`TrainingBatch` and return its replacement. A function with a parameter
        `rng` gets a random generator.
    tokenizer
        Takes the transformed cells and the names of the genes, and `rng` if it has such a
        parameter; its result becomes the batch's ``tokens``, and ``x`` is left out.
    fields
        How each field to include is laid out, by its name; see :meth:`Laid.field`.
    """

    layout: str = "csr"
    dtype: torch.dtype | None = torch.float32
    length: int | None = None
    choose: Choice | None = None
    transforms: Sequence[Any] = ()
    tokenizer: Tokenizer | None = None
    fields: Mapping[str, str | Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, options: LoaderOptions) -> Assembly:
        """The assembly that the options of a loader describe; LoaderError if they contradict."""
        return cls(**{field.name: options[field.name] for field in fields(cls)})  # type: ignore[literal-required]

    def __post_init__(self) -> None:
        self.laid  # noqa: B018 - checks the options, as of the matrix so of each field
        self.laid_fields  # noqa: B018
        if self.tokenizer is not None and self.layout != "csr":
            raise LoaderError(
                f"a tokenizer replaces x, so layout={self.layout!r} has no effect; leave it out"
            )
        if self.tokenizer is not None and not callable(self.tokenizer):
            raise LoaderError(
                f"tokenizer must be a function of cells and gene names, not {self.tokenizer!r}"
            )
        for transform in self.transforms:
            is_ours = isinstance(transform, NormalizeTotal | Log1p)
            if not is_ours and (
                not callable(transform) or transform is Log1p or transform is NormalizeTotal
            ):
                raise LoaderError(
                    "transforms must be NormalizeTotal(), Log1p() or functions of a batch, not "
                    f"{transform!r}"
                )
        known = [type(t) for t in self.transforms if isinstance(t, NormalizeTotal | Log1p)]
        first = self.transforms[: len(known)]
        in_order = known in ([], [NormalizeTotal], [Log1p], [NormalizeTotal, Log1p])
        if not in_order or [type(t) for t in first] != known:
            raise LoaderError(
                "transforms must begin with NormalizeTotal and Log1p, each at most once and in "
                "this order, followed by functions"
            )
        if known and self.dtype is not None and not self.dtype.is_floating_point:
            raise LoaderError(f"transformed values need a floating dtype, not {self.dtype}")

    @cached_property
    def laid(self) -> Laid:
        """How the matrix is laid out."""
        return Laid(self.layout, self.length, self.choose).checked()

    @cached_property
    def laid_fields(self) -> dict[str, Laid]:
        """How each field is laid out."""
        return {name: Laid.field(name, given, self.laid) for name, given in self.fields.items()}

    @cached_property
    def is_large(self) -> bool:
        """Whether batches are many times larger than the cells they are assembled from."""
        return any(laid.kind.is_large for laid in (self.laid, *self.laid_fields.values()))

    @cached_property
    def needs_order(self) -> bool:
        """Whether the column ids of each cell must be sorted and unique."""
        # Duplicates may be added late only if the values are floats and not logarithms.
        adds = self.dtype is not None and self.dtype.is_floating_point and not self.logs
        all_add = all(laid.kind.adds for laid in (self.laid, *self.laid_fields.values()))
        return not (all_add and adds) or self.tokenizer is not None

    @cached_property
    def needs_totals(self) -> bool:
        """Whether the total of each cell over all of its genes is needed."""
        return self.normalization is not None and self.normalization.over == "all"

    @cached_property
    def sum_dtype(self) -> np.dtype[Any] | None:
        """Dtype in which duplicate values of one gene are added; None: the stored one."""
        if self.dtype is not None and not self.dtype.is_floating_point:
            return np.dtype(np.int64)
        return tensors.sum_dtype(self.dtype)

    @cached_property
    def normalization(self) -> NormalizeTotal | None:
        """How totals are normalised; None: not at all."""
        return next((t for t in self.transforms if isinstance(t, NormalizeTotal)), None)

    @cached_property
    def logs(self) -> bool:
        """Whether values become logarithms."""
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
            The cells and their neighbours, as read.
        gene_names
            Names of the genes, for the tokenizer.
        columns
            Columns of obs, for all cells of the dataset.
        key
            Random key of this batch.
        """
        columns = columns or {}
        batch: Any = self._tensors(cells, gene_names, columns, (key, 0))
        if neighbors is not None:
            neighbor_batch = self._tensors(neighbors, gene_names, columns, (key, 1))
            batch = replace(batch, neighbors=neighbor_batch)
        return self.apply(batch, key)

    def apply(self, batch: Any, key: int = 0) -> Any:
        """Apply the functions among the transforms to a batch with this random key."""
        for number, (function, takes_rng) in enumerate(self._functions):
            # Each function has its own random numbers, independent of the other transforms.
            arguments = {"rng": _rng(key, 2, number)} if takes_rng else {}
            batch = function(batch, **arguments)
            if batch is None:
                raise LoaderError(
                    f"the transform {function!r} returned None; it must return the batch or its "
                    "replacement"
                )
        return batch

    @cached_property
    def _functions(self) -> list[tuple[Callable[..., Any], bool]]:
        """Functions of the batch, and whether they take `rng`; cached, as inspection is slow."""
        functions = (t for t in self.transforms if not isinstance(t, NormalizeTotal | Log1p))
        return [(function, _takes_rng(function)) for function in functions]

    @cached_property
    def is_random(self) -> bool:
        """Whether a batch depends on its key."""
        takes_rng = self._tokenizer_takes_rng or any(takes for _, takes in self._functions)
        chooses = any(laid.choose == "random" for laid in (self.laid, *self.laid_fields.values()))
        return takes_rng or chooses

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
        cells = self._transformed(cells) if self.transforms else cells
        rows = cells.rows
        parts: dict[str, Any] = {
            "x": None,
            "rows": torch.from_numpy(rows),
            "obs": {n: tensors.numbers(of_all[rows]) for n, of_all in columns.items()},
            "obsm": {name: tensors.numbers(vectors) for name, vectors in cells.obsm.items()},
            "present": None if cells.present is None else torch.from_numpy(cells.present),
            "spaces": None if cells.spaces is None else torch.from_numpy(cells.spaces),
        }
        if self.tokenizer is not None:
            assert gene_names is not None
            arguments = {"rng": _rng(*key)} if self._tokenizer_takes_rng else {}
            parts["tokens"] = self.tokenizer(cells, gene_names, **arguments)
        else:
            options = LayoutOptions(self.dtype, self.length, self.choose, key)
            parts |= self.laid.kind.make(cells, options)
        if self.fields:
            parts |= self._field_tensors(cells, key, parts.get("genes"))
        return TrainingBatch(**parts)

    def _field_tensors(
        self, cells: CellBatch, key: tuple[int, int], genes: torch.Tensor | None
    ) -> dict[str, dict[str, torch.Tensor]]:
        """The fields of a batch, and the genes and lengths of those that are padded."""
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for number, (name, laid) in enumerate(self.laid_fields.items()):
            # Each field draws its own random genes.
            options = LayoutOptions(self.dtype, laid.length, laid.choose, (*key, number), genes)
            made = laid.kind.make(cells.fields[name], options)
            for part, of_fields in _FIELD_PARTS.items():
                if part in made:
                    parts.setdefault(of_fields, {})[name] = made[part]
        return parts

    def _transformed(self, cells: CellBatch) -> CellBatch:
        """The cells with normalised and log-transformed values, as configured."""
        normalization = self.normalization
        if normalization is None and not self.logs:
            return cells
        wide = cells.data.dtype == np.float64 or self.dtype == torch.float64
        values = cells.data.astype(np.float64 if wide else np.float32)
        if normalization is not None:
            all_genes = cells.totals if normalization.over == "all" else None
            totals = cells.row_totals() if all_genes is None else all_genes
            dense_kernels.scale_rows(values, cells.indptr, totals, normalization.target_sum, values)
        if self.logs:
            torch.from_numpy(values).log1p_()
        return replace(cells, data=values)


#: Parts of a batch that hold what a layout makes of fields, by the part of the matrix.
_FIELD_PARTS = {"x": "fields", "genes": "field_genes", "lengths": "field_lengths"}


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(hashing.mixed(*key))


def _takes_rng(function: Callable[..., Any]) -> bool:
    """Whether a function has an unbound parameter `rng`."""
    if isinstance(function, torch.nn.Module):
        function = function.forward
    try:
        parameter = inspect.signature(function).parameters.get("rng")
    except (TypeError, ValueError):  # builtins without a signature
        return False
    if parameter is None or "rng" in getattr(function, "keywords", {}):
        return False
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
