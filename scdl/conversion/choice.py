"""Choosing cells, genes and columns when sources are opened, for sources of every format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive.filters import Filter
from scdl.conversion.chosen_cells import Cells, chosen_rows, matching
from scdl.conversion.unique_names import with_unique_names
from scdl.errors import FeatureNotFoundError, FilterError, OptionError
from scdl.sources.base import Source
from scdl.sources.chosen import Chosen
from scdl.sources.chosen_tables import columns_of, kept_columns, unknown
from scdl.sources.cuts import Cut, cut_matrix
from scdl.sources.matrices import Bounds
from scdl.sources.quality import Counted, Figures, Group, Groups

_Positions: TypeAlias = NDArray[np.int64]
#: Figures of quality: whether to compute them, or groups of genes by name.
Quality: TypeAlias = bool | Mapping[str, Group]


@dataclass(frozen=True)
class Choice:
    """What to convert of the sources; see :func:`scdl.convert` for the parameters."""

    where: Filter | None = None
    cells: Cells | None = None
    genes_where: Filter | None = None
    obs_columns: Mapping[str, str] | None = None
    var_columns: Mapping[str, str] | None = None
    unique_names: bool = False
    quality: Groups | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Choice | None:
        """Validate options of a conversion; None if everything is converted.

        Raises
        ------
        FilterError
            A condition is not valid, or names no column.
        OptionError
            Another option is not valid.
        """
        given: dict[str, Any] = {name: options.get(name) for name in cls.__dataclass_fields__}
        if all(value is None or value is False for value in given.values()):
            return None
        for name, table in (("where", "obs"), ("genes_where", "var")):
            if given[name] is not None:
                given[name] = _filter(given[name], table)
        for name in ("obs_columns", "var_columns"):
            if given[name] is not None:
                given[name] = columns_of(name, given[name])
        given["unique_names"] = bool(given["unique_names"])
        given["quality"] = _groups(given["quality"])
        return cls(**given)

    def applied(self, sources: Sequence[Source], bounds: Bounds) -> list[Source]:
        """The sources with the chosen cells, genes and columns only.

        Parameters
        ----------
        sources
            The sources whose cells are concatenated.
        bounds
            Sizes of the pieces in which matrices are read, if a condition needs figures of quality.

        Raises
        ------
        CellNotFoundError, CellListNotFoundError, RowIndexError
            Cells do not exist.
        FeatureNotFoundError
            Columns do not exist.
        FilterError
            A condition does not fit the columns.
        GeneError
            Genes of a group do not exist.
        """
        sources = [*sources]
        rows: list[_Positions | None] = [None] * len(sources)
        if self.cells is not None:
            rows = [*chosen_rows(sources, self.cells)]
        figures: list[Figures | None] = [None] * len(sources)
        is_known = self._needs_figures()
        if self.quality is not None and is_known:
            figures = [*self._measured(sources, rows, bounds)]
        if self.where is not None:
            found = matching(self.where, sources, rows, figures)
            figures = [one and one.chosen(at) for one, at in zip(figures, found, strict=True)]
            rows = [at if old is None else old[at] for old, at in zip(rows, found, strict=True)]
        cuts = [*map(Cut, rows, self._genes(sources))]
        if self.quality is not None and not is_known:
            figures = [*self._empty_figures(sources, rows)]
        chosen = self._chosen(sources, cuts, [None] * len(sources) if is_known else figures)
        if self.unique_names:
            for one, table in zip(chosen, with_unique_names([s.obs for s in chosen]), strict=True):
                one.obs = table
        for one, values in zip(chosen, figures, strict=True):
            if values is not None:
                one.labelled = values.appended_to(one.cells)
                one.obs_is_last = not is_known
        return [*chosen]

    def _chosen(
        self, sources: Sequence[Source], cuts: Sequence[Cut], figures: Sequence[Figures | None]
    ) -> list[Chosen]:
        """The sources with their cuts; `figures` are those that are filled when values are read."""
        if self.obs_columns is not None:
            schemas = [source.obs.schema for source in sources]
            _check_columns("obs_columns", self.obs_columns, schemas)
        if self.var_columns is not None:
            schemas = [source.var().schema for source in sources]
            _check_columns("var_columns", self.var_columns, schemas)
        chosen = [
            Chosen(source, cut, self._obs_columns(source), self.var_columns, one)
            for source, cut, one in zip(sources, cuts, figures, strict=True)
        ]
        _join_neighbors(chosen, sources)
        return chosen

    def _obs_columns(self, source: Source) -> Mapping[str, str] | None:
        """Name in a source of each column of obs to have; figures of quality replace columns."""
        if self.quality is None:
            return self.obs_columns
        kept = kept_columns(source.obs.schema, self.obs_columns)
        return {new: old for new, old in kept.items() if new not in self.quality.columns}

    def _genes(self, sources: Sequence[Source]) -> list[_Positions | None]:
        """The chosen genes of each source."""
        if self.genes_where is None:
            return [None] * len(sources)
        chosen: list[_Positions | None] = []
        for source in sources:
            table, absent = source.var(), set[str]()
            chosen.append(self.genes_where.positions(table, absent))
            if absent:
                name = min(absent)
                raise FeatureNotFoundError(
                    f"{source.path}: genes_where names the column {name!r}, which {source.genes} "
                    f"lacks; {unknown(name, table.schema.names)}"
                )
        return chosen

    # -- quality -----------------------------------------------------------------------------

    def _needs_figures(self) -> bool:
        """Whether cells are chosen by their quality, so that values are read once more before."""
        if self.quality is None or self.where is None:
            return False
        return bool(self.where.columns(self.quality.columns))

    def _empty_figures(
        self, sources: Sequence[Source], rows: Sequence[_Positions | None]
    ) -> list[Figures]:
        assert self.quality is not None
        members = self.quality.members([source.var() for source in sources])
        n_obs = [source.n_obs if own is None else len(own)
                 for source, own in zip(sources, rows, strict=True)]  # fmt: skip
        return [*map(partial(Figures, self.quality.columns), members, n_obs)]

    def _measured(
        self, sources: Sequence[Source], rows: Sequence[_Positions | None], bounds: Bounds
    ) -> Iterator[Figures]:
        """The figures of the cells, for which all their values are read."""
        matrices = [cut_matrix(s.matrix, r, None) for s, r in zip(sources, rows, strict=True)]
        for matrix, figures in zip(matrices, self._empty_figures(sources, rows), strict=True):
            for _ in Counted(matrix, figures).blocks(bounds):
                pass
            yield figures


def _filter(condition: Any, table: str) -> Filter:
    chosen = Filter(condition, table)
    if isinstance(condition, str) and not chosen.names:
        raise FilterError(f"the filter {condition!r:.200} names no column of {table}")
    return chosen


def _groups(quality: Any) -> Groups | None:
    if quality is None or quality is False:
        return None
    if quality is True:
        return Groups({})
    if not isinstance(quality, Mapping):
        raise OptionError(
            f"quality must be True, or groups of genes by name as in {{'mt': '^MT-'}}, not "
            f"{quality!r:.100}"
        )
    return Groups(quality)


def _check_columns(option: str, kept: Mapping[str, str], schemas: Sequence[pa.Schema]) -> None:
    """Raise FeatureNotFoundError for a column that no source has."""
    known = dict.fromkeys(name for schema in schemas for name in schema.names)
    for name in kept.values():
        if name not in known:
            raise FeatureNotFoundError(
                f"{option}: there is no column {name!r} in {option[:3]}; {unknown(name, known)}"
            )


def _join_neighbors(chosen: Sequence[Chosen], sources: Sequence[Source]) -> None:
    """Neighbours of feature blocks of one archive may be in other blocks of it."""
    archives: list[list[int]] = []
    for i, source in enumerate(sources):
        if source.first_row and archives:
            archives[-1].append(i)
        else:
            archives.append([i])
    for blocks in archives:
        first, rows = 0, [chosen[i].cut.rows for i in blocks]
        for i, own in zip(blocks, rows, strict=True):
            if own is not None:
                pairs = zip(blocks, rows, strict=True)
                kept = [sources[j].first_row + r for j, r in pairs if r is not None]
                chosen[i].first_row, chosen[i].neighbors = first, np.concatenate(kept)
                first += len(own)
