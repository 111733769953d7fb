"""Fitting the genes and elements of sources to those of an archive that gets their cells."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from scdl.archive.elements import dense_vectors
from scdl.archive.frames import table_of
from scdl.archive.gene_names import order_onto, strings
from scdl.archive.schema import INDEX, Info, obsm_array, var_table
from scdl.conversion.grown_matrices import check_truth
from scdl.conversion.grown_tables import joined_table
from scdl.errors import GeneError, SourceError
from scdl.sources.base import Source, genes_of, is_matrix, matrix_of
from scdl.sources.gene_selection import GeneChoice, SelectedGenes, select_source_genes
from scdl.sources.matrices import Matrix, check_shape
from scdl.sources.wrapped import Wrapped
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
    return _onto(sources, store.read_table(var_table(len(info.blocks) - 1)), store.path, genes)


class Others(NamedTuple):
    """What the elements of an archive get whose columns are not the genes of its matrix.

    Attributes
    ----------
    matrices
        For each element the matrix of every source, with the columns of the element.
    tables
        For each table of obsm that of the archive with the rows of all sources.
    changed
        Columns of these tables whose values are converted.
    carried, lost
        Names of the tables of genes that the sources share with the archive, and of the columns of
        those tables that differ.
    """

    matrices: Mapping[str, Sequence[Matrix]]
    tables: Mapping[str, Any]
    changed: Sequence[str]
    carried: Collection[str]
    lost: Sequence[str]


def fitted_others(
    sources: Sequence[Source],
    store: ArrayStore,
    elements: Sequence[str],
    genes: Mapping[str, Any] | None,
) -> Others:
    """The elements of sources that an archive has besides matrices of its genes, with its columns.

    Parameters
    ----------
    elements
        Names of the elements, see :func:`~scdl.conversion.grown_matrices.growing_elements`.
    genes
        As for :func:`fitted`.

    Raises
    ------
    SourceError
        A source lacks an element, or has another number of columns.
    GeneError
        Genes differ, or cannot be mapped.
    """
    for source in sources:
        if missing := sorted({*elements}.difference(source.names_of_rest())):
            raise SourceError(
                f"{source.path}: {', '.join(missing)} is missing, which {store.path} has for all "
                "of its cells; add it to the source, or write another archive without it with "
                "scdl.convert([archive, source], path)"
            )
    found: dict[str, Sequence[Matrix]] = {}
    tables, lost = dict.fromkeys(genes_of(name) for name in elements if is_matrix(name)), []
    for table in tables:
        own = [name for name in elements if is_matrix(name) and genes_of(name) == table]
        others = [_OfOtherGenes(source, own) for source in sources]
        fitting = _onto(others, table_of(store.read_element(table)), store.path, genes)
        found |= {name: [one.fields[name] for one in fitting] for name in own}
        lost += [name for one in fitting for name in one.not_carried(set())]
    joined, changed = dict[str, Any](), list[str]()
    for name in elements:
        if is_matrix(name):
            continue
        old: Any = store.sparse[name] if name in store.sparse else store.read_element(name)
        if hasattr(old, "columns"):
            joined[name], changes, left_out = joined_table(name, old, sources, store.path)
            changed += changes
            lost += left_out
            continue
        if name not in store.sparse:
            check_truth(f"{store.path}: {name}", old)
        found[name] = [_of_width(source, name, old.shape[1]) for source in sources]
    return Others(found, joined, changed, [*tables], lost)


class _OfOtherGenes(Wrapped):
    """The matrices of a source that have other genes than its main one, as fields.

    Parameters
    ----------
    source, elements
        The source, and names of these matrices, which have the same genes.
    """

    def __init__(self, source: Source, elements: Sequence[str]) -> None:
        super().__init__(source)
        self.element = elements[0]
        self.fields = {name: _matrix(source, name) for name in elements}
        self.matrix = self.fields[self.element]
        frame: Any = source.element_of_rest(self.genes)
        self._var = table_of(frame)

    def var(self) -> pa.Table:
        return self._var

    def not_carried(self, carried: set[str]) -> list[str]:
        return []


def _matrix(source: Source, name: str) -> Matrix:
    return matrix_of(f"{source.path}: {name}", source.element_of_rest(name))


def _of_width(source: Source, name: str, n: int) -> Matrix:
    matrix = _matrix(source, name)
    check_shape(matrix.where, matrix.shape, (source.n_obs, n))
    return matrix


def _onto(
    sources: Sequence[Source], var: pa.Table, path: str, genes: Mapping[str, Any] | None
) -> list[Source]:
    """Sources with the genes, and the table of genes, of the archive at a path."""
    if genes is None:
        return [_same_genes(source, var) for source in sources]
    if INDEX not in var.schema.names:
        raise GeneError(f"{path}: its genes have no names to map genes to")
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
