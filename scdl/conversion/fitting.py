"""Fitting the genes and vectors of sources to those of an archive that gets their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from scdl.archive.elements import dense_vectors
from scdl.archive.gene_names import order_onto, strings
from scdl.archive.schema import INDEX, Info, obsm_array, var_table
from scdl.errors import GeneError, SourceError
from scdl.sources.base import Source
from scdl.sources.gene_selection import GeneChoice, SelectedGenes, select_source_genes
from storage_backends.base import ArrayStore
from storage_backends.compute import arrow

_ADVICE = (
    "pass genes='archive' to map them by name, with missing='zero' if it lacks some, or write "
    "another archive of both with scdl.convert([archive, source], path)"
)


def fitted(
    sources: Sequence[Source], store: ArrayStore, info: Info, genes: Mapping[str, Any] | None
) -> list[Source]:
    """The sources with the genes, and the table of genes, of the last feature block.

    Parameters
    ----------
    genes
        How to map genes by name; None: they are those of the block, in any order.

    Raises
    ------
    SourceError
        A source has another matrix than the archive, or lacks its dense vectors.
    GeneError
        Genes differ, or cannot be mapped.
    """
    names = {*info.matrices, *(source.matrix_name for source in sources)}
    if len(names) > 1:
        raise SourceError(
            f"{store.path}: the archive and the sources have different matrices: "
            f"{', '.join(sorted(names))}; choose one with matrix="
        )
    for source in sources:
        _check_vectors(source, store)
    var = store.read_table(var_table(len(info.blocks) - 1))
    if genes is None:
        return [_same_genes(source, var) for source in sources]
    if INDEX not in var.schema.names:
        raise GeneError(f"{store.path}: its genes have no names to map genes to")
    ids = strings(var[INDEX].combine_chunks()).to_pylist()
    selected = select_source_genes(sources, GeneChoice(ids, **genes))
    # Such a source has only the names of genes; the archive has the columns of var.
    return [SelectedGenes(source, var, None) for source in selected]


def _same_genes(source: Source, var: pa.Table) -> Source:
    own = source.var()
    order = order_onto(own, var, source.path, _ADVICE)
    places = None if order is None else np.argsort(order).astype(np.int32)
    shared = arrow.shared_columns([var, own if order is None else own.take(order)])
    return SelectedGenes(source, var, places, kept=shared.schema.names)


def _check_vectors(source: Source, store: ArrayStore) -> None:
    for key in dense_vectors(store):
        spec, reader = store.spec(obsm_array(key)), source.vectors(key)
        fits = np.can_cast(reader.dtype, spec.dtype, "same_kind")
        if tuple(reader.item_shape) != spec.item_shape or not fits:
            raise SourceError(
                f"{source.path}: obsm/{key} is {reader.dtype} {tuple(reader.item_shape)}, but "
                f"{spec.dtype} {spec.item_shape} in {store.path}"
            )
