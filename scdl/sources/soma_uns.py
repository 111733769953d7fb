"""Entries of uns of TileDB-SOMA experiments, as ``tiledbsoma.io.to_anndata`` reads them.

A mapping is a collection. Its numbers and text are metadata, its arrays of text are data frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from scdl.errors import SourceError
from scdl.sources.soma_arrays import INDEX_NAMED, JOINID, readable

#: What metadata of tiledbsoma itself begins with, and what says that a data frame was an array.
_OWN, _HINT = "soma_", "soma_uns_outgest_hint"
#: Values of the hint: arrays with one and with two dimensions.
_LIST, _TABLE = "array_1d", "array_2d"
#: Column with the names of rows, if a data frame does not say which it is.
_INDEX = "index"
#: Types of collections of tiledbsoma that may be mappings.
_MAPPINGS = ("SOMACollection",)


class SomaUns:
    """The entries of a collection and of all collections in it.

    Parameters
    ----------
    where
        Path and name, for messages.
    collection
        The open collection.
    """

    def __init__(self, where: str, collection: Any) -> None:
        with readable(where):
            #: The collection, and the key there, of each entry by its name.
            self._places = {"/".join(keys): (at, keys[-1]) for at, keys in _entries(collection)}
        self._where = where

    @property
    def names(self) -> list[str]:
        """Names of all entries, such as ``neighbors/params/method``."""
        return [*self._places]

    def read(self, name: str) -> Any:
        """An entry, in memory.

        Raises
        ------
        SourceError
            It cannot be read, or AnnData has nothing like it.
        """
        holder, key = self._places[name]
        where = f"{self._where}/{name}"
        with readable(where):
            if key not in holder:
                return holder.metadata[key]
            found = holder[key]
            if found.soma_type == "SOMADenseNDArray":
                return found.read().to_numpy()
            if found.soma_type == "SOMADataFrame":
                return _frame(where, found)
            if found.soma_type in _MAPPINGS:
                return {}
            raise SourceError(f"{where}: an AnnData cannot have a {found.soma_type} here")


def _entries(collection: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Each entry that is not a mapping, or an empty one: the collection that holds it, its keys."""
    for key in collection:
        keys = (*above, key)
        inner = collection[key] if collection[key].soma_type in _MAPPINGS else None
        below = [] if inner is None else [*_entries(inner, keys)]
        yield from below or [(collection, keys)]
    for key in collection.metadata:
        if not key.startswith(_OWN):
            yield collection, (*above, key)


def _frame(where: str, found: Any) -> Any:
    """A data frame, or the array of text that it was."""
    frame = found.read().concat().to_pandas().sort_values(JOINID).drop(columns=JOINID)
    hint = found.metadata.get(_HINT)
    if hint == _LIST:
        return np.array(frame.iloc[:, 0].tolist(), object)
    if hint == _TABLE:
        names = [f"values_{i}" for i in range(frame.shape[1])]
        # In the order of C: Zarr does not keep the order of text in that of Fortran.
        return np.array(frame[names].values.tolist(), object)
    original = json.loads(found.metadata.get(INDEX_NAMED, "null"))
    index = original if original in frame else _INDEX
    if index not in frame:
        return frame.reset_index(drop=True)
    return frame.set_index(index).rename_axis(original)
