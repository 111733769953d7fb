"""Training batches: tensors of some cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from scdl.dataset.summary import Facts, Summarized
from scdl.errors import BatchKeyError

#: Function of the cells of a batch and their gene names; returns any input of a model.
Tokenizer = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class TrainingBatch(Summarized):
    """A batch of n cells as tensors.

    Attributes
    ----------
    x
        Expression values, n x n_vars, sparse or dense; in the layout ``padded`` n x length values,
        padded with zeros; None if a tokenizer replaces it.
    rows
        Row of each cell in its dataset, int64.
    genes
        In the layout ``padded`` the gene of each value, int64, padded with n_vars.
    lengths
        In the layout ``padded`` the number of values of each cell, int64.
    obs
        Columns of obs: numbers as stored, labels as int64 codes (-1: missing).
    obsm
        Dense vectors, n x width.
    neighbors
        The sampled neighbours, n x k cells: those of the first cell, of the second, and so on.
    tokens
        Result of the tokenizer.
    present
        With ``missing="mask"`` a bool tensor, spaces x n_vars: whether a gene space of the archives
        has a gene. It is the same in every batch.
    spaces
        With ``missing="mask"`` the row of `present` for each cell, int64: ``present[spaces]`` is
        n x n_vars. With ``genes="own"`` the gene space to which the column ids of each cell refer,
        as in ``gene_spaces`` of the dataset.
    extra
        Named values that transforms add with :meth:`with_`, such as masks and targets.
    fields
        Values of further matrices of the cells, n x n_vars, as stored, each in its layout: n x
        length values if it is ``padded``, and those of `genes` if it is ``aligned``.
    field_genes
        For each padded field the gene of each value, int64.
    field_lengths
        For each padded field the number of values of each cell, int64.

    Examples
    --------
    >>> batch = next(iter(scdl.SingleCellLoader(data, 2, order="sequential", layout="dense")))
    >>> batch.x
    tensor([[0., 2., 0., 1.],
            [3., 0., 0., 0.]])
    >>> batch.rows
    tensor([0, 1])
    >>> batch.to("cpu").with_(target=batch.x > 0)["target"].sum()
    tensor(3)
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
    extra: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, torch.Tensor] = field(default_factory=dict)
    field_genes: Mapping[str, torch.Tensor] = field(default_factory=dict)
    field_lengths: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    #: Not iterable: `__getitem__` takes names, not positions.
    __iter__ = None

    def __getitem__(self, name: str) -> Any:
        """A value in `extra` or a field, by name; BatchKeyError if there is none."""
        if name in self.extra:
            return self.extra[name]
        names = [f.name for f in fields(self)]
        if name not in names:
            raise BatchKeyError(
                f"the batch has no {name!r}, only {', '.join([*self.extra, *names])}"
            )
        return getattr(self, name)

    def with_(self, **named: Any) -> TrainingBatch:
        """Copy of the batch with fields replaced, such as `x`; other names go to `extra`.

        Examples
        --------
        >>> batch = next(iter(scdl.SingleCellLoader(data, 2, layout="dense")))
        >>> batch.with_(mask=batch.x > 0)["mask"].shape
        torch.Size([2, 4])
        """
        own = {f.name for f in fields(self)}
        changed = {name: value for name, value in named.items() if name in own}
        added = {name: value for name, value in named.items() if name not in own}
        extra = {**changed.pop("extra", self.extra), **added}
        return replace(self, **changed, extra=extra)

    def __repr__(self) -> str:
        title, facts = self._summary()
        return f"{title} ({'; '.join(f'{name}: {fact}' for name, fact in facts.items())})"

    def _summary(self) -> tuple[str, Facts]:
        facts = {
            f.name: _shown(value)
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None
            and not (isinstance(value, Mapping) and not value)
        }
        return f"TrainingBatch of {len(self)} cells", facts

    def to(self, *args: Any, **kwargs: Any) -> TrainingBatch:
        """Move or cast all tensors of the batch, as ``torch.Tensor.to`` does.

        A dtype applies to the values: to `x` and `fields`, and to the floats in `obsm`, `extra` and
        `tokens`.
        Rows, genes, labels and other columns of obs keep their dtypes.

        Examples
        --------
        >>> import torch
        >>> batch = next(iter(scdl.SingleCellLoader(data, 2, layout="dense")))
        >>> batch.to(torch.bfloat16).x.dtype
        torch.bfloat16
        """
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        moved = {"non_blocking": non_blocking, "copy": copy}
        if memory_format is not None:
            moved["memory_format"] = memory_format

        def change(part: torch.Tensor, field_name: str) -> torch.Tensor:
            casts = field_name in _VALUES or (
                dtype is not None
                and dtype.is_floating_point
                and field_name in _FLOATS
                and part.is_floating_point()
            )
            return part.to(device, dtype if casts else None, **moved)

        return self._map(change)

    def pin_memory(self) -> TrainingBatch:
        """Copy the batch to page-locked memory; without a GPU return the batch itself.

        Examples
        --------
        >>> batch = next(iter(scdl.SingleCellLoader(data, 2))).pin_memory()
        """
        if not torch.cuda.is_available():
            return self
        return self._map(lambda part, _: part.pin_memory())

    def _map(self, change: Callable[[torch.Tensor, str], torch.Tensor]) -> TrainingBatch:
        """Copy of the batch with `change` applied to each tensor and the name of its field."""

        def changed(part: Any, name: str) -> Any:
            if isinstance(part, torch.Tensor):
                return change(part, name)
            if isinstance(part, TrainingBatch):
                return part._map(change)
            if isinstance(part, Mapping):
                return {key: changed(value, name) for key, value in part.items()}
            if isinstance(part, list | tuple) and any(isinstance(v, torch.Tensor) for v in part):
                made = [changed(value, name) for value in part]
                return type(part)(*made) if hasattr(part, "_fields") else type(part)(made)
            return part

        return replace(
            self, **{f.name: changed(getattr(self, f.name), f.name) for f in fields(self)}
        )


#: Parts that `to` casts, and those of which it casts the floats.
_VALUES = ("x", "fields")
_FLOATS = ("obsm", "extra", "tokens")


def _shown(part: Any) -> str:
    """Short description of a field of a batch."""
    if isinstance(part, torch.Tensor):
        layout = "" if part.layout == torch.strided else f"{part.layout} ".replace("torch.", "")
        size = " x ".join(map(str, part.shape))
        where = "" if part.device.type == "cpu" else f" on {part.device}"
        return f"{layout}{str(part.dtype).removeprefix('torch.')} {size}{where}"
    if isinstance(part, Mapping):
        return ", ".join(map(str, part))
    return f"{len(part)} cells" if isinstance(part, TrainingBatch) else type(part).__name__
