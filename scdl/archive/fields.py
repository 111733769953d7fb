"""Named fields: further matrices of the cells and genes of an archive, such as spliced counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scdl.archive.casting import common_dtype
from scdl.archive.schema import DATA, INDICES, Info, field_element, field_prefix
from scdl.errors import FeatureNotFoundError
from storage_backends.base import ArrayStore
from storage_backends.capabilities import Sparse


class Field(NamedTuple):
    """How a field is stored.

    Attributes
    ----------
    dtype, index_dtype
        Names of the dtypes of values and column ids.
    n_values
        Number of stored values.
    is_sorted
        Whether the column ids of each row are stored in strictly increasing order.
    """

    dtype: str
    index_dtype: str
    n_values: int
    is_sorted: bool

    @property
    def nbytes(self) -> int:
        """Size of the values and column ids in memory, in bytes."""
        return self.n_values * sum(np.dtype(name).itemsize for name in self[:2])


def fields_of(store: ArrayStore, info: Info) -> dict[str, Field]:
    """The fields of an archive by name: layers that are stored by rows and have its genes."""
    found, like = {}, Sparse("csr", (info.n_obs, info.max_n_vars))
    for element, sparse in store.sparse.items():
        name = element.removeprefix(field_element(""))
        if name == element or element == info.element or sparse != like:
            continue
        # The genes of other layers may be those of var while the matrix has those of raw/var.
        if name in info.fields or not info.element.startswith("raw/"):
            specs = [store.spec(field_prefix(name) + part) for part in (DATA, INDICES)]
            dtypes = [spec.dtype.name for spec in specs]
            found[name] = Field(dtypes[0], dtypes[1], specs[0].length, info.sorts(name))
    return found


def shared_names(fields: Sequence[Collection[str]]) -> list[str]:
    """The fields that all of several archives have, in the order of the first."""
    if not fields:
        return []
    return [name for name in fields[0] if all(name in other for other in fields[1:])]


def joint_field(parts: Mapping[str, Field]) -> Field:
    """A field of several archives, given by path, in dtypes that hold the values of all.

    Raises
    ------
    CastError
        Some archives hold integers and others floats.
    """
    advice = "convert the sources again, with one dtype of this layer"
    dtype = common_dtype(((path, part.dtype) for path, part in parts.items()), advice)
    fields = parts.values()
    return Field(
        dtype.name,
        np.result_type(*(part.index_dtype for part in fields)).name,
        sum(part.n_values for part in fields),
        all(part.is_sorted for part in fields),
    )


def check_field(where: str, name: str, known: Collection[str]) -> None:
    """Raise FeatureNotFoundError, which lists the known fields, unless the name is among them."""
    if name not in known:
        raise FeatureNotFoundError(
            f"{where}: there is no field {name!r}; it has: {', '.join(known) or 'none'}; layers "
            "become fields with scdl.convert(…, layers=[…])"
        )
