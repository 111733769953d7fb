"""Options and reports of conversions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

from numpy.typing import DTypeLike

from scdl.archive.casting import Caster
from scdl.archive.schema import field_element, names_of
from scdl.conversion.choice import Choice, Quality
from scdl.conversion.chosen_cells import Cells
from scdl.conversion.origins import Origins
from scdl.conversion.row_order import Shuffle
from scdl.errors import OptionError, UnknownOptionError
from scdl.reports import Report
from scdl.sources import formats
from scdl.sources.beside import Table
from scdl.sources.chosen_tables import Columns
from scdl.sources.columnar_lists import UnknownGenes
from scdl.sources.gene_selection import GeneChoice
from scdl.sources.gene_tables import Genes
from scdl.sources.matrices import BLOCK_VALUES, Bounds
from storage_backends.base import Backend

#: Description of the expected target path, for messages.
TARGET = "the path of the archive to write"


class ConvertOptions(TypedDict, total=False):
    """Options of a conversion; all keys are optional."""

    compression: str | None
    only_matrix: bool
    matrix: str | None
    genome: str | None
    feature_types: str | Sequence[str] | None
    obs: Table | None
    var: Table | None
    modality: str | None
    obs_names: str | None
    var_names: str | None
    measurement: str | None
    obs_query: str | None
    gene_ids: str | None
    gene_values: str | None
    vocabulary: Genes | None
    vocabulary_ids: str | None
    unknown_genes: UnknownGenes
    obsm: str | Sequence[str]
    layers: str | Sequence[str] | Mapping[str, str] | None
    data_dtype: DTypeLike | None
    data_dtype_tolerance: float
    block_values: int
    block_rows: int
    where: str | None
    cells: Cells | None
    genes_where: str | None
    obs_columns: Columns | None
    var_columns: Columns | None
    unique_names: bool
    quality: Quality | None


@dataclass(frozen=True)
class ConversionReport(Report):
    """Report of a conversion.

    Parameters
    ----------
    path, backend
        Path of the archive and name of its backend.
    n_obs, n_vars, nnz
        Number of cells, of genes of each feature block, and of stored values.
    dtype
        Dtype of the values.
    matrices
        The matrix that was converted from each source.
    rows_sorted, duplicates_summed
        Number of rows whose genes were out of order, and of stored values that were added to
        another value of the same cell and gene; of the matrix and the fields.
    reordered
        Sources with the genes of an earlier source in another order; they were reordered to match.
    differing_var
        Columns of var that sources with the same genes do not share; each source keeps its own.
    not_carried
        Elements of the sources that are not in the archive, and values that were left out.
    max_rounding
        Largest absolute rounding error of casting to `dtype`.
    is_counts
        Whether all values of the matrix are non-negative integers.
    nbytes
        Size on disk in bytes.
    seconds
        Duration in seconds. Of a dry run, NaN if no part of the matrix can be converted alone, as
        of a dense one whose chunks have all cells, and of some genes of one in CSC form.
    requires
        Packages that other programs need to read the archive.
    changed_columns
        Columns of obs whose types differ among the sources and whose values were converted to a
        common type, with a description: ``obs/flag (bool and int64 become int64)``.
    unmatched
        Sentences about names that did not match when tables were joined, for each source.
    cells_left_out
        Number of cells of all sources that were not chosen.
    genes_left_out
        Number of genes of each source that were not chosen.
    fields
        Names of the fields of the archive.
    dry_run
        Whether nothing was written, so that this is what is expected: `nbytes` and `seconds` are
        estimates, as is `nnz` of a dense matrix, and what is said of values is that of a sample.
    sampled_cells
        Number of cells of that sample. 0 if rows cannot be read alone, since all matrices are
        stored by columns: then `nbytes` is an upper bound.
    """

    path: str
    backend: str
    n_obs: int
    n_vars: list[int]
    nnz: int
    dtype: str
    matrices: list[str]
    rows_sorted: int
    duplicates_summed: int
    reordered: tuple[str, ...]
    differing_var: tuple[str, ...]
    not_carried: tuple[str, ...]
    max_rounding: float
    nbytes: int
    seconds: float
    requires: tuple[str, ...] = ()
    is_counts: bool = True
    changed_columns: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    cells_left_out: int = 0
    genes_left_out: tuple[int, ...] = ()
    fields: tuple[str, ...] = ()
    dry_run: bool = False
    sampled_cells: int = 0

    def __str__(self) -> str:
        genes = " + ".join(f"{n:,}" for n in self.n_vars)
        source = ", ".join(dict.fromkeys(self.matrices))
        lines = [
            f"{self.path} ({self.backend}): {self.n_obs:,} cells x {genes} genes, "
            f"{self.nnz:,} values as {self.dtype} from {source}",
            f"{self.nbytes / 1e6:,.1f} MB in {self.seconds:.1f} s",
        ]
        if self.cells_left_out or any(self.genes_left_out):
            genes = " or ".join(f"{n:,}" for n in dict.fromkeys(self.genes_left_out))
            lines.append(f"left out: {self.cells_left_out:,} cells, {genes} genes")
        if self.fields:
            lines.append(f"fields: {', '.join(self.fields)}")
        if self.dry_run:
            lines[1] = self._expected()
        if not self.is_counts:
            lines.append(f"not counts: values of {source} are negative or not whole numbers")
        if self.rows_sorted:
            lines.append(f"sorted: {self.rows_sorted:,} cells whose genes were out of order")
        if self.duplicates_summed:
            lines.append(f"summed: {self.duplicates_summed:,} repeated entries of a cell and gene")
        if self.reordered:
            lines.append(f"genes brought into the order of the first: {', '.join(self.reordered)}")
        if self.differing_var:
            names = ", ".join(self.differing_var)
            lines.append(f"columns of var that differ, kept for each source: {names}")
        if self.max_rounding:
            lines.append(f"rounded: by up to {self.max_rounding:.3g}")
        if self.not_carried:
            lines.append(f"not carried over: {', '.join(self.not_carried)}")
        if self.requires:
            lines.append(needed(self.requires))
        if self.changed_columns:
            lines.append(f"changed: {'; '.join(self.changed_columns)}")
        lines += [f"joined: {sentence}" for sentence in self.unmatched]
        return "\n".join(lines)

    def _expected(self) -> str:
        """What a dry run says of size and duration."""
        size = f"{self.nbytes / 1e6:,.1f} MB"
        sample = f"estimated from {self.sampled_cells:,} cells"
        if not self.sampled_cells:
            size, sample = f"at most {size}", "as cells cannot be read alone"
        time = f"in about {self.seconds:.1f} s in one process"
        if math.isnan(self.seconds):
            time = "in a time that is unknown, as no part of the matrix can be converted alone"
        about = "about " * bool(self.sampled_cells)
        return f"dry run: {about}{size} {time}, {sample}; nothing was written"


@dataclass(frozen=True)
class Settings:
    """Settings of a conversion, independent of its sources.

    Parameters
    ----------
    backend, neighbor_key, options
        As for :func:`convert`.
    caster
        Casts values to the stored dtype; None: created from the sources and options.
    origins
        Labels of the cells of each source; None: no label column.
    genes
        The gene space of the archive; None: the genes of each source.
    shuffle
        How to shuffle the cells; None: they keep the order of the sources.
    """

    backend: str | None = None
    neighbor_key: str | Sequence[str] | None = None
    options: ConvertOptions = field(default_factory=lambda: ConvertOptions())
    caster: Caster | None = None
    origins: Origins | None = None
    genes: GeneChoice | None = None
    shuffle: Shuffle | None = None


class Meter(Protocol):
    """Receives the progress of a task; implemented by progress bars of tqdm."""

    def reset(self, total: float | None = None) -> object:
        """Start again with a total amount of work."""

    def update(self, n: float = 1) -> object:
        """Add `n` to the completed work."""


def check_options(
    options: Mapping[str, Any], call: Callable[..., Any], backend: Backend, also: Sequence[str] = ()
) -> None:
    """Raise UnknownOptionError for keys that are in neither ConvertOptions nor the backend.

    Parameters
    ----------
    call
        Function whose keyword-only parameters are listed in the message as well.
    backend
        Backend that writes the archive.
    also
        Further options of `call` to list.
    """
    own = list(
        dict.fromkeys([*ConvertOptions.__annotations__, *formats.options(), *backend.options])
    )
    unknown = set(options) - set(own)
    if unknown:
        known = [*keywords(call), *also, *own]
        raise UnknownOptionError(
            f"there is no option {', '.join(map(repr, sorted(unknown)))}; there are: "
            f"{', '.join(dict.fromkeys(known))}"
        )
    # Errors in conditions are found before anything is opened.
    Choice.of(options)


def bounds_of(options: ConvertOptions, target: str) -> Bounds:
    """How much of a matrix is processed at a time; temporary files are created next to `target`.

    Raises
    ------
    OptionError
        A number is not positive.
    """
    values = _positive("block_values", options.get("block_values", BLOCK_VALUES))
    rows = _positive("block_rows", options.get("block_rows", Bounds().rows))
    return Bounds(values, min(rows, Bounds().rows), target)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise OptionError(f"{name} must be at least 1, not {value}")
    return value


def layers_of(given: Any) -> dict[str, str] | None:
    """The option `layers` as matrices of the sources by name of the field; None: not given.

    Raises
    ------
    OptionError
        It holds something other than names, or a field cannot have such a name.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        names_of(given.values(), "the matrices of layers")
        layers = {name: given[name] for name in names_of(given, "layers")}
    else:
        layers = {name: field_element(name) for name in names_of(given, "layers")}
    for name in layers:
        if not name or "/" in name:
            raise OptionError(
                f"layers: a field cannot be called {name!r}; choose a name without a slash, as in "
                "layers={'spliced': 'layers/spliced'}"
            )
    return layers


def storage_options(options: Mapping[str, Any], backend: Backend) -> dict[str, Any]:
    """The options that are passed to the backend when it creates an archive."""
    names = dict.fromkeys(["compression", *backend.options])
    return {name: options[name] for name in names if options.get(name) is not None}


def keywords(call: Callable[..., Any]) -> list[str]:
    """Names of the keyword-only parameters of a function."""
    parameters = inspect.signature(call).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def needed(packages: Sequence[str]) -> str:
    """Message about packages that other programs need to read an archive, and how to avoid them."""
    return (
        f"other programs need {', '.join(packages)} installed to read this archive; with the "
        "compressions fast and portable they need no additional packages"
    )
