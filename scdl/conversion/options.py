"""Options of conversions."""

from __future__ import annotations

import inspect
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
