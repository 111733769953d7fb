"""Losses when archives are concatenated."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdl.archive import csr
from scdl.archive.elements import Kind, elements_of, graph_keys
from scdl.archive.fields import fields_of
from scdl.archive.schema import (
    DATA,
    GRAPH_DTYPES,
    Info,
    field_element,
    graph_array,
    obsm_array,
)
from scdl.errors import CollectionError, OutputError, ScdlWarning
from storage_backends.base import ArrayStore, ArrayWriter
from storage_backends.capabilities import Sparse

#: Bytes of stored values copied at a time.
CHUNK_BYTES = 10_485_760


def begin_elements(
    stores: Sequence[ArrayStore], writer: ArrayWriter, vectors: Sequence[str], graphs: Sequence[str]
) -> set[str]:
    """Create the arrays of vectors and graphs, even if there are no cells.

    Returns
    -------
    set of str
        Elements whose names the writer does not support.
    """
    refused = set()
    for name in vectors:
        example = next(store for store in stores if name in store.arrays)
        try:
            writer.append(name, example.read(name, 0, 0))
        except OutputError:
            refused.add(name)
    for key in graphs:
        try:
            for part, dtype in graph_dtypes(key, stores, writer).items():
                writer.append(graph_array(key, part), np.empty(0, dtype))
        except OutputError:
            refused.add(f"obsp/{key}")
    return refused


def begin_fields(writer: ArrayWriter, fields: Iterable[str], shape: tuple[int, int]) -> set[str]:
    """Declare the matrices of fields; returns the elements that the writer does not support."""
    refused = set()
    for element in map(field_element, fields):
        try:
            writer.write_sparse(element, Sparse("csr", shape))
        except OutputError:
            refused.add(element)
    return refused


def report_losses(
    stores: Sequence[ArrayStore],
    writer: ArrayWriter,
    kept: Sequence[str] | None,
    refused: Iterable[str],
    *,
    lossless: bool,
) -> None:
    """Warn about elements that cannot be kept; with `lossless`, raise CollectionError.

    Parameters
    ----------
    kept
        Dense vectors that all archives have with the same dtype and width, and fields that all
        have; None: everything is kept.
    refused
        Elements whose names the writer does not support.
    """
    losses = [
        f"{name} is left out: the backend cannot store an element of that name" for name in refused
    ]
    unread = dict.fromkeys(name for store in stores for name in store.unread)
    elements = {name: element for store in stores for name, element in elements_of(store).items()}
    fields = {
        field_element(name)
        for store in stores
        for name in fields_of(store, Info.from_attrs(store.attrs, store.path))
    }
    if kept is None:
        elements, kept = {}, ()
    for name, element in elements.items():
        if name in kept:
            continue
        if element.kind is Kind.DENSE and name.startswith(obsm_array("")):
            losses.append(
                f"{name} is left out: not all archives have it with the same dtype and width"
            )
        elif name in fields:
            losses.append(
                f"{name} is left out: not all archives have it as a field, or no dtype represents "
                "the values of all exactly"
            )
        elif element.kind is not Kind.GRAPH:
            unread[name] = None
    if unread:
        losses.insert(0, f"{', '.join(unread)} cannot be copied and is left out")
    if lossless:
        if not writer.keeps_elements:
            losses += _rounded_weights(stores)
        if losses:
            raise CollectionError(
                f"{writer.path}: the archives cannot be removed, since the copy would be "
                f"incomplete ({'; '.join(losses)}); leave out destroy_on_copy"
            )
    for loss in losses:
        warnings.warn(f"{writer.path}: {loss}", ScdlWarning, stacklevel=5)


def report_left_out(writer: ArrayWriter, columns: Sequence[str], *, lossless: bool) -> None:
    """Warn about columns of var that a shuffled archive cannot keep, or raise CollectionError."""
    if columns:
        text = (
            f"{writer.path}: columns of var that the archives do not share are left out, since "
            f"their cells are shuffled: {', '.join(columns)}"
        )
        if lossless:
            raise CollectionError(f"{text}; leave out destroy_on_copy")
        warnings.warn(text, ScdlWarning, stacklevel=5)


def _rounded_weights(stores: Sequence[ArrayStore]) -> Iterator[str]:
    """Graphs with weights that the documented type cannot represent."""
    for store in stores:
        for key in graph_keys(store):
            name = graph_array(key, DATA)
            for start, stop in csr.spans(store.spec(name).length, CHUNK_BYTES):
                if not is_kept(store.read(name, start, stop), GRAPH_DTYPES[DATA]):
                    yield f"obsp/{key} of {store.path} would be rounded to {GRAPH_DTYPES[DATA]}"
                    break


def is_kept(values: NDArray[Any], dtype: DTypeLike) -> bool:
    """Whether a type represents all values exactly."""
    with np.errstate(over="ignore", invalid="ignore"):
        back = values.astype(dtype).astype(values.dtype)
    return np.array_equal(back, values, equal_nan=values.dtype.kind == "f")


def graph_dtypes(
    key: str, stores: Sequence[ArrayStore], writer: ArrayWriter
) -> dict[str, np.dtype[Any]]:
    """Types of the arrays of a graph; weights keep their type if the writer can store it."""
    name = graph_array(key, DATA)
    dtypes = [store.spec(name).dtype for store in stores if name in store.arrays]
    weights = {DATA: np.result_type(*dtypes)} if writer.keeps_elements else {}
    return {part: np.dtype(dtype) for part, dtype in {**GRAPH_DTYPES, **weights}.items()}
