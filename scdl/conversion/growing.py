"""Adding the cells of sources to an archive: in place where its backend can, else by rewriting."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from scdl.archive.casting import Caster
from scdl.archive.elements import dense_vectors, elements_of, graph_keys
from scdl.archive.fields import fields_of
from scdl.archive.schema import (
    DATA,
    OBS,
    Info,
    field_element,
    obsm_array,
    unique_names,
)
from scdl.archive.tables import NoTable, StoredTable, TableSource
from scdl.conversion.convert import convert
from scdl.conversion.fitting import Others, fitted, fitted_others
from scdl.conversion.grown_graphs import GrownGraphs
from scdl.conversion.grown_matrices import GrownMatrices, growing_elements
from scdl.conversion.opening import open_sources
from scdl.conversion.options import (
    ConvertOptions,
    Meter,
    Settings,
    bounds_of,
    check_options,
    layers_of,
)
from scdl.conversion.origins import origins_of
from scdl.conversion.reporting import ConversionReport, report_of
from scdl.conversion.tables import United
from scdl.conversion.writing import write_archive
from scdl.errors import OptionError, SourceError
from scdl.progress import progress_bar
from scdl.sources.base import Source, is_matrix, sum_tallies
from scdl.sources.formats import sources_of
from scdl.sources.gene_selection import gene_choice
from scdl.sources.matrices import pieces
from storage_backends import registry
from storage_backends.base import ArrayStore, ArrayWriter

#: Options of conversions that an archive determines once it is written.
_DETERMINED = ("compression", "data_dtype", "obsm", "only_matrix")


def grow(
    store: ArrayStore,
    sources: Any,
    options: ConvertOptions,
    *,
    label: str | None,
    keys: Sequence[str] | None,
    genes: str | None,
    policies: Mapping[str, Any],
    progress: bool,
) -> ConversionReport:
    """Add cells to an open archive; see :meth:`SingleCellDataset.append`.

    Parameters
    ----------
    store
        The archive.
    sources, label, keys
        As for :func:`convert`.
    options
        Options of the sources.
    genes, policies
        ``"archive"``, and how to map genes by name; or None.
    progress
        Whether to show a progress bar.

    Raises
    ------
    OptionError
        The archive determines an option; `genes` is another value; or policies of genes are given
        without it.
    """
    opening, origins = origins_of(sources, label, keys, sources_of)
    backend = registry.of(store)
    check_options(options, convert, backend)
    if given := [name for name in (*_DETERMINED, *backend.options) if name in options]:
        raise OptionError(f"{given[0]}: the archive {store.path} determines this; leave it out")
    if genes not in (None, "archive"):
        raise OptionError(
            "genes must be 'archive', to map genes by name to those of the archive, not "
            f"{genes!r:.200}"
        )
    gene_choice(genes, policies)
    if not opening:
        raise SourceError("there is nothing to append: the list of sources is empty")
    settings = Settings(backend.name, None, options, None, origins)
    growth = Growth(store, settings, None if genes is None else policies)
    with progress_bar(unit="value", unit_scale=True, show=progress) as bar:
        return growth.run(opening, bar)


class Growth:
    """Cells to be added to an open archive; the sources are checked before anything is written.

    Parameters
    ----------
    store
        The archive.
    settings
        Settings of the conversion of the sources.
    genes
        How to map the genes of the sources by name to those of the archive; None: they are the
        same, in any order.
    """

    def __init__(
        self, store: ArrayStore, settings: Settings, genes: Mapping[str, Any] | None
    ) -> None:
        self._store, self._settings, self._genes = store, settings, genes
        self._info = Info.of(store)
        self._vectors = dense_vectors(store)
        self._graphs = [name for name in elements_of(store) if name.startswith("obsp/")]
        self._fields = fields_of(store, self._info)
        matrices, self._others = growing_elements(store, self._info)
        names = unique_names(name.removeprefix(field_element("")) for name in matrices)
        #: Elements that are further matrices with the genes of the archive, by a name in sources.
        self._matrices = dict(zip(names, matrices, strict=True))
        layers = [name for name, element in self._matrices.items() if element != "X"]
        given = layers_of(settings.options.get("layers"))
        if given is not None and {*given} != {*layers}:
            raise OptionError(
                f"layers= has {', '.join(given)}, but the layers of {store.path} are: "
                f"{', '.join(layers) or 'none'}"
            )
        if self._matrices:
            options: ConvertOptions = {
                **settings.options,
                "layers": {**self._matrices, **(given or {})},
            }
            self._settings = replace(settings, options=options)
        self._tolerance = settings.options.get("data_dtype_tolerance", 1e-8)
        self._caster = Caster.keeping(store.spec(DATA).dtype, self._tolerance)
        self._bounds = bounds_of(settings.options, store.path)

    def run(self, opening: Sequence[Any], meter: Meter) -> ConversionReport:
        """Add the cells of sources, given by path or as objects."""
        started = time.perf_counter()
        self._check_elements(by_rewriting=False)
        store, target = self._store, registry.of(self._store)
        with ExitStack() as stack:
            writer = store.grow()
            if writer is None:
                return self._rewrite(opening, meter)
            stack.enter_context(writer)
            found = open_sources(opening, self._settings, store.path, stack)
            sources = fitted(found, store, self._info, self._genes)
            others = fitted_others(found, store, self._others, self._genes)
            matrices = [m for source in sources for m in (source.matrix, *source.fields.values())]
            matrices += [matrix for several in others.matrices.values() for matrix in several]
            meter.reset(sum(matrix.size for matrix in matrices))
            info, more = self._write(writer, sources, others, meter)
        return report_of(
            store.path, writer.path, target, info, self._caster.dtype, started=started, **more
        )

    @property
    def _carried(self) -> set[str]:
        """Names of the elements that get further cells."""
        vectors = map(obsm_array, self._vectors)
        return {*self._graphs, *vectors, *self._matrices.values(), *self._others}

    @property
    def _by_rows(self) -> list[str]:
        """Keys of the graphs that are stored by rows."""
        return graph_keys(self._store)

    def _check_elements(self, *, by_rewriting: bool) -> None:
        """Raise SourceError if the archive has elements that cannot get further cells."""
        kept = self._carried
        if by_rewriting:
            # Other matrices and graphs would be stored by rows.
            kept -= {*self._matrices.values(), *self._others, *self._graphs}
            kept |= {*map(field_element, self._fields), *map("obsp/{}".format, self._by_rows)}
        refused = [
            name
            for name in elements_of(self._store)
            if name not in kept
            and (by_rewriting or is_matrix(name) or name.startswith(("obsm/", "obsp/")))
        ]
        if refused:
            raise SourceError(
                f"{self._store.path}: cells cannot be added to its elements "
                f"{', '.join(refused)}; convert it and the new cells to another archive without "
                "them: scdl.convert([archive, source], path)"
            )

    def _write(
        self, writer: ArrayWriter, sources: Sequence[Source], others: Others, meter: Meter
    ) -> tuple[Info, dict[str, Any]]:
        """Add all cells and commit; the new description, and fields of the report."""
        for key in self._vectors:
            spec = self._store.spec(obsm_array(key))
            for source in sources:
                for piece in pieces(source.vectors(key), self._bounds.values):
                    writer.append(obsm_array(key), piece.astype(spec.dtype, copy=False))
        graphs = GrownGraphs(self._store, writer, sources, self._bounds, self._info.n_obs)
        for name in self._graphs:
            graphs.add(name)
        tally = sum_tallies([source.tally for source in sources])
        matrices = [source.matrix for source in sources]
        grown = GrownMatrices(self._store, writer, self._bounds, meter, self._tolerance)
        clean, nnz = grown.add_rows("", matrices, self._caster, tally)
        for name, element in self._matrices.items():
            grown.add(element, [source.fields[name] for source in sources])
        for element, several in others.matrices.items():
            grown.add(element, several)
        for element, table in others.tables.items():
            writer.write_element(element, table)
        # Figures of quality are known when the matrix was read.
        changes = self._write_obs(writer, [source.cells for source in sources])
        info = self._grown(sources)
        # Warn before the commit, since warning filters may turn the warning into an error.
        self._caster.warn(writer.path)
        writer.commit(info.to_attrs())
        layers = layers_of(self._settings.options.get("layers")) or {}
        carried = self._carried | {*layers.values(), *others.carried}
        lost = dict.fromkeys(name for source in sources for name in source.not_carried(carried))
        lost |= dict.fromkeys(others.lost)
        return info, {
            "n_obs": info.n_obs - self._info.n_obs,
            "nnz": nnz,
            "tally": clean.tally,
            "not_carried": tuple(lost),
            "unmatched": tuple(line for source in sources for line in source.unmatched),
            "changed_columns": (*changes, *others.changed),
            "cells_left_out": sum(source.left_out[0] for source in sources),
            "genes_left_out": tuple(source.left_out[1] for source in sources),
            "matrices": [source.matrix_name for source in sources],
            "fields": tuple(self._fields),
        }

    def _grown(self, sources: Sequence[Source]) -> Info:
        """Description of the archive with the new cells, which join its last feature block."""
        info = self._info
        *blocks, last = info.blocks
        last = replace(last, stop=last.stop + sum(source.n_obs for source in sources))
        matrices = (*info.matrices, *(source.matrix_name for source in sources))
        return replace(info, blocks=(*blocks, last), matrices=matrices)

    def _write_obs(self, writer: ArrayWriter, cells: Sequence[TableSource]) -> tuple[str, ...]:
        """Add the rows of tables to obs; returns descriptions of changed columns."""
        store, n_before = self._store, self._info.n_obs
        has_obs = OBS in store.tables
        old: TableSource = StoredTable(store, OBS, n_before) if has_obs else NoTable(n_before)
        united = United([old, *cells])
        if not united.schema.names:
            return ()
        changes = united.warn(writer.path)
        if has_obs and united.extends(old.schema, old.categories):
            writer.extend_table(OBS, united.extension(old.schema))
        else:
            writer.write_table(OBS, united.reader())
        return changes

    def _rewrite(self, opening: Sequence[Any], meter: Meter) -> ConversionReport:
        """Write the archive anew, with the new cells."""
        self._check_elements(by_rewriting=True)
        store, backend = self._store, registry.of(self._store)
        # The other options are those of the new cells.
        bounds: Any = {k: v for k, v in self._settings.options.items() if k.startswith("block_")}

        def both(stack: ExitStack) -> list[Source]:
            own = open_sources([store.path], Settings(options=bounds), store.path, stack)
            added = open_sources(opening, self._settings, store.path, stack)
            return [*own, *fitted(added, store, self._info, self._genes)]

        options: Any = {**bounds, **store.options, "obsm": self._vectors}
        settings = replace(
            self._settings, backend=backend.name, neighbor_key=self._by_rows or None,
            caster=self._caster,
            options=options, origins=None,
        )  # fmt: skip
        report = write_archive(both, store.path, settings, meter, instead_of=store)
        n_obs, nnz = self._info.n_obs, store.spec(DATA).length
        return replace(report, n_obs=report.n_obs - n_obs, nnz=report.nnz - nnz)
