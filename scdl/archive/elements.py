"""Elements of an archive other than its matrix and tables."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive.schema import MATRIX, graph_array
from storage_backends.base import ArrayStore


class Kind(Enum):
    """How an element of an archive is stored."""

    #: A cells x cells matrix in CSR form: three arrays below ``graphs/<key>``.
    GRAPH = "graph"
    #: Any other sparse matrix: three arrays below its name.
    SPARSE = "sparse"
    #: One array.
    DENSE = "dense"
    #: An element that the backend stores as one unit.
    OTHER = "other"


class Element(NamedTuple):
    """An element of an archive.

    Attributes
    ----------
    kind
        How it is stored.
    array
        Name of its array, or the common prefix of the names of its three arrays.
    """

    kind: Kind
    array: str = ""


def elements_of(store: ArrayStore) -> dict[str, Element]:
    """All elements of an archive other than its matrix and tables, by their AnnData names.

    Arrays are classified by the element they belong to, never by the end of their names: a dense
    layer may be called ``data``.
    """
    graphs = [name for name in store.arrays if name.startswith("graphs/")]
    keys = [name.removeprefix("graphs/").rpartition("/")[0] for name in graphs]
    elements = {f"obsp/{key}": Element(Kind.GRAPH, graph_array(key, "")) for key in keys}
    for name in store.sparse:
        if not name.startswith("graphs/"):
            elements[name] = Element(Kind.SPARSE, f"{name}/")
    prefixes = ["", *(element.array for element in elements.values())]
    parts = {prefix + part for prefix in prefixes for part in MATRIX}.union(graphs)
    elements |= {name: Element(Kind.DENSE, name) for name in store.arrays if name not in parts}
    for name in store.elements:
        elements.setdefault(name, Element(Kind.OTHER))
    return elements


def read_items(store: ArrayStore, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Read single items of an array, in the given order."""
    spec = store.spec(name)
    out = np.empty((len(rows), *spec.item_shape), spec.dtype)
    store.read_ranges(name, rows, rows + 1, out)
    return out


def graph_keys(store: ArrayStore) -> list[str]:
    """Keys of the graphs of an archive."""
    return _keys(store, Kind.GRAPH, "obsp/")


def dense_vectors(store: ArrayStore) -> list[str]:
    """Keys of the dense vectors of an archive."""
    return _keys(store, Kind.DENSE, "obsm/")


def _keys(store: ArrayStore, kind: Kind, prefix: str) -> list[str]:
    return [
        name.removeprefix(prefix)
        for name, element in elements_of(store).items()
        if element.kind is kind and name.startswith(prefix)
    ]
