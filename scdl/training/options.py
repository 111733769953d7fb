"""Options of a loader."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from scdl.archive.gene_space import Duplicates, Genes, Missing, is_own
from scdl.archive.schema import names_of
from scdl.dataset.reader import CellReader
from scdl.errors import LoaderError, OptionError
from scdl.training.batch import Tokenizer
from scdl.training.layouts import Choice
from scdl.training.orders import Remainder


class FieldOptions(TypedDict, total=False):
    """The layout of a field; keys that are missing take the value of the matrix."""

    layout: str
    length: int
    choose: Choice | None


class LoaderOptions(TypedDict, total=False):
    """Options of :class:`~scdl.SingleCellLoader`; every key may be left out.

    Examples
    --------
    >>> from scdl.training.options import LoaderOptions
    >>> options: LoaderOptions = {"layout": "padded", "length": 3, "choose": "largest"}
    >>> next(iter(scdl.SingleCellLoader(data, 2, order="sequential", **options))).x
    tensor([[2., 1., 0.],
            [3., 0., 0.]])
    """

    layout: str
    dtype: torch.dtype | DTypeLike | None
    length: int | None
    choose: Choice | None
    by_value: bool
    obs: str | Sequence[str]
    obsm: str | Sequence[str]
    fields: str | Sequence[str] | Mapping[str, str | FieldOptions]
    modalities: Mapping[str, CellReader]
    matrix: str | None
    genes: Genes | None
    gene_column: str | None
    missing: Missing
    duplicates: Duplicates
    neighbors: int
    transforms: Sequence[Any]
    tokenizer: Tokenizer | None
    block: int | None
    buffer: int | None
    memory_mb: float
    weights: NDArray[Any] | None
    by: str | Sequence[str] | None
    control: Any
    match: str | Sequence[str] | None
    remainder: Remainder | None
    prefetch: int
    threads: int
    workers: int
    rank: int | None
    world_size: int | None


DEFAULTS: LoaderOptions = {
    "layout": "csr",
    "dtype": torch.float32,
    "length": None,
    "choose": None,
    "by_value": False,
    "obs": (),
    "obsm": (),
    "fields": (),
    "modalities": {},
    "matrix": None,
    "genes": None,
    "gene_column": None,
    "missing": "error",
    "duplicates": "error",
    "neighbors": 0,
    "transforms": (),
    "tokenizer": None,
    "block": None,
    "buffer": None,
    "memory_mb": 256.0,
    "weights": None,
    "by": None,
    "control": None,
    "match": None,
    "remainder": None,
    "prefetch": 4,
    "threads": 2,
    "workers": 0,
    "rank": None,
    "world_size": None,
}


#: Minimum of each integer option.
_MINIMA = {"prefetch": 1, "threads": 1, "workers": 0, "neighbors": 0, "block": 1, "buffer": 1,
           "length": 1}  # fmt: skip


def complete(options: LoaderOptions) -> LoaderOptions:
    """Validate options and add the defaults of those that were left out.

    Arrays and lists are copied, so that later changes by the caller have no effect.

    Raises
    ------
    LoaderError
        An option does not exist or has an invalid value; the message names it.
    """
    unknown = options.keys() - DEFAULTS.keys()
    if unknown:
        raise LoaderError(f"there is no option {min(unknown)!r}; there are: {', '.join(DEFAULTS)}")
    completed: dict[str, Any] = {**DEFAULTS, **options}
    for name, least in _MINIMA.items():
        if completed[name] is not None:
            completed[name] = whole_number(name, completed[name], least)
    memory = completed["memory_mb"]
    if not isinstance(memory, int | float | np.number) or not 0 < memory < math.inf:
        raise LoaderError(f"memory_mb must be a positive number, not {memory!r}")
    try:
        for name in ("obs", "obsm"):
            completed[name] = names_of(completed[name], name)
        fields = completed["fields"]
        names = names_of(fields, "fields")
        own = isinstance(fields, Mapping)
        modalities = completed["modalities"]
        if not isinstance(modalities, Mapping):
            raise OptionError(
                "modalities must be a dict of name to dataset, as in {'protein': protein}, not "
                f"{modalities!r:.200}"
            )
        completed["modalities"] = dict(modalities)
        # Those that are not named have the layout of the loader.
        names = tuple(dict.fromkeys((*names, *names_of(modalities, "modalities"))))
        layouts = fields if own else {}
        completed["fields"] = {n: layouts.get(n, completed["layout"]) for n in names}
        for name in ("by", "match"):
            completed[name] = None if completed[name] is None else names_of(completed[name], name)
    except OptionError as error:
        raise LoaderError(str(error)) from error
    if completed["weights"] is not None:
        completed["weights"] = np.array(completed["weights"])
    if completed["by_value"]:
        if completed["choose"] not in (None, "largest"):
            raise LoaderError(f"by_value=True means choose='largest', not {completed['choose']!r}")
        completed["choose"] = "largest"
    transforms = completed["transforms"]
    completed["transforms"] = (
        tuple(transforms) if isinstance(transforms, Iterable) else (transforms,)
    )
    completed["dtype"] = torch_dtype(completed["dtype"])
    if completed["genes"] is None or is_own(completed["genes"]):
        for name in ("gene_column", "missing", "duplicates"):
            if completed[name] != DEFAULTS[name]:  # type: ignore[literal-required]
                raise LoaderError(f"{name}= requires genes=, the gene space to train in")
    return cast(LoaderOptions, completed)


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """An option as an integer of at least `least`; LoaderError otherwise."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError as error:
        raise LoaderError(f"{name} must be a whole number, not {value!r:.200}") from error
    if least is not None and number < least:
        raise LoaderError(f"{name} must be at least {least}, not {number}")
    return number


def rank_and_world_size(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of ranks: as given, or those of the process group."""
    if (rank is None) != (world_size is None):
        raise LoaderError("rank and world_size must be given together")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
    rank, world_size = whole_number("rank", rank, 0), whole_number("world_size", world_size, 1)
    if not rank < world_size:
        raise LoaderError(f"rank must be in [0, {world_size}), not {rank}")
    return rank, world_size


def torch_dtype(dtype: torch.dtype | DTypeLike | None) -> torch.dtype | None:
    """The torch dtype for a torch dtype, a NumPy dtype or a name."""
    if dtype is None:
        return None
    converted: Any = dtype
    if isinstance(dtype, str):
        converted = getattr(torch, dtype.removeprefix("torch."), None)
    elif not isinstance(dtype, torch.dtype):
        try:
            converted = getattr(torch, np.dtype(dtype).name, None)
        except TypeError:
            converted = None
    if not isinstance(converted, torch.dtype) or converted.is_complex or converted in _QUANTIZED:
        raise LoaderError(
            f"dtype must be a numeric type, such as 'float32' or torch.bfloat16, not {dtype!r}"
        )
    return converted


#: Quantized types, whose values are not plain numbers.
_QUANTIZED = (torch.quint8, torch.qint8, torch.qint32)
