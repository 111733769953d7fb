"""Experiments of TileDB-SOMA as sources, through the package tiledbsoma.

Cells are read in the order of their ``soma_joinid``, which may have gaps. Names and columns are
those of ``tiledbsoma.io.to_anndata``. Source: the specifications of SOMA and of the CELLxGENE
Census.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from scdl.errors import MissingPackageError, OptionError, SourceError
from scdl.sources.base import Source, choose_matrix
from scdl.sources.matrices import Matrix, Reader
from scdl.sources.soma_arrays import JOINID, SomaMatrix, SomaTable, SomaVectors, joinids, readable
from scdl.sources.soma_uns import SomaUns
from storage_backends.compute.caching import cached_property
from storage_backends.errors import one_line
from storage_backends.paths import is_url

OPTIONS = ("measurement", "obs_query")
#: Files and directories of TileDB groups and arrays.
_SCHEMA = "__schema"
_MARKERS = ("__tiledb_group.tdb", "__group", _SCHEMA)
#: The measurement that is taken by default, as in the Census.
_RNA = "RNA"
#: Size of the buffer of each column that TileDB reads.
_BUFFER, _BUFFER_BYTES = "soma.init_buffer_bytes", 1 << 26
#: Layers of X that are taken by default: that of tiledbsoma.io, and that of the Census.
_DEFAULTS = ("data", "raw")
#: Collections of arrays of cells or genes.
_KINDS = ("obsm", "varm", "obsp", "varp")


def is_soma(path: str) -> bool:
    """Whether a path is a TileDB group or array; a URL is judged by its name."""
    if is_url(path):
        names = path.rstrip("/").split("/")
        return path.startswith("tiledb://") or any(
            n == "soma" or n.endswith(".soma") for n in names
        )
    return any(os.path.exists(os.path.join(path, name)) for name in _MARKERS)


def sources_below(directory: str) -> Iterator[str]:
    """Paths of the experiments in a directory: groups with a table of cells and measurements."""
    seen = set()
    for path, below, _ in os.walk(directory, followlinks=True):
        real = os.path.realpath(path)
        is_group = is_soma(path)
        if is_group and is_soma(os.path.join(path, "obs")) and is_soma(os.path.join(path, "ms")):
            yield path
            below.clear()
        elif real in seen or (is_group and _SCHEMA in below):
            # The files of an array are no sources.
            below.clear()
        seen.add(real)


def open_sources(
    path: str,
    matrix: str | None,
    stack: ExitStack,
    *,
    measurement: str | None = None,
    obs_query: str | None = None,
) -> list[Source]:
    """Open a measurement of an experiment as a source; see :func:`scdl.convert` for the options.

    Raises
    ------
    MissingPackageError
        tiledbsoma is not installed.
    SourceError
        It is not an experiment or is damaged, or lacks the matrix.
    OptionError
        There is no such measurement, or the query is not valid.
    """
    try:
        import tiledbsoma
    except ImportError as error:
        raise MissingPackageError(
            f"{path}: a TileDB-SOMA experiment needs the package tiledbsoma, which is not "
            "installed; install it with: pip install 'scdl-store[soma]'"
        ) from error
    with readable(path):
        # TileDB does not know when the working directory changes.
        uri = path if is_url(path) else os.path.abspath(path)
        # By default every column that is read takes 1 GiB of address space, of which too much is
        # in use while an error is handled for the process to be forked.
        context = tiledbsoma.SOMATileDBContext(tiledb_config={_BUFFER: _BUFFER_BYTES})
        experiment = stack.enter_context(tiledbsoma.open(uri, context=context))
        if not isinstance(experiment, tiledbsoma.Experiment):
            members = list(experiment) if isinstance(experiment, tiledbsoma.Collection) else []
            inside = f"; give the path of one in it: {', '.join(members)}" if members else ""
            raise SourceError(
                f"{path}: expected a SOMA experiment, found a {experiment.soma_type}{inside}"
            )
        return [SomaSource(path, experiment, matrix, measurement, obs_query)]


class SomaSource(Source):
    """A measurement of an experiment.

    Parameters
    ----------
    path, experiment
        Path or URL of the experiment, and the open experiment.
    matrix
        ``X``, the default layer, or ``layers/<key>``; None: ``X``.
    measurement, obs_query
        As for :func:`scdl.convert`.
    """

    def __init__(
        self,
        path: str,
        experiment: Any,
        matrix: str | None,
        measurement: str | None,
        obs_query: str | None,
    ) -> None:
        self.label = path
        name = _measurement(path, list(experiment.ms), measurement)
        self.path = f"{path}/ms/{name}"
        self._measurement = experiment.ms[name]
        self.outside = [f"ms/{other}" for other in experiment.ms if other != name]
        self.outside += [key for key in experiment if key not in ("obs", "ms")]
        self._cells, self._is_query = _selected(path, experiment.obs, obs_query), bool(obs_query)
        self._genes = joinids(self._measurement.var)
        self.obs = self._obs = SomaTable(f"{path}: obs", experiment.obs, self._cells, ("obs_id",))
        # The Census has no names of genes but these.
        names = ("var_id", "feature_id")
        self._var = SomaTable(f"{self.path}: var", self._measurement.var, self._genes, names)
        self._layers = _layers(self._keys("X"))
        # The default layer may be named too.
        named = {f"layers/{key}": name for name, key in self._layers.items()}
        chosen = named.get(matrix or "", matrix)
        self.matrix_name = self.element = choose_matrix(
            self.path, "experiment", chosen, [*named.values()]
        )
        self.matrix = self._matrix(self.element)

    @property
    def n_vars(self) -> int:
        return len(self._genes)

    def var(self) -> pa.Table:
        return pa.Table.from_batches([self._var.read(0, self._var.num_rows)])

    def graph(self, key: str) -> Matrix | None:
        return self._matrix(f"obsp/{key}") if key in self._keys("obsp") else None

    def vectors(self, key: str) -> Reader:
        known = self._keys("obsm")
        if key not in known:
            raise SourceError(
                f"{self.path}: obsm/{key} is missing; obsm has: {', '.join(known) or 'nothing'}"
            )
        return self._vectors(f"obsm/{key}")

    @property
    def unread(self) -> Sequence[str]:
        """Columns of other types than those of archives."""
        tables = {"obs": self._obs, "var": self._var}
        return [f"{name}/{column}" for name, table in tables.items() for column in table.unread]

    def names_of_rest(self) -> Sequence[str]:
        names = [name for name in self._layers if name != self.element]
        names += [f"{kind}/{key}" for kind in _KINDS for key in self._keys(kind)]
        return [*names, *(f"uns/{name}" for name in self._uns.names)] if self._uns else names

    def element_of_rest(self, name: str) -> Matrix | Reader | Any:
        kind, _, key = name.partition("/")
        if kind == "uns" and self._uns:
            return self._uns.read(key)
        return self._vectors(name) if kind in ("obsm", "varm") else self._matrix(name)

    @cached_property
    def _uns(self) -> SomaUns | None:
        where = f"{self.path}: uns"
        return SomaUns(where, self._measurement["uns"]) if "uns" in self._measurement else None

    def _keys(self, collection: str) -> list[str]:
        return list(self._measurement[collection]) if collection in self._measurement else []

    def _vectors(self, name: str) -> SomaVectors:
        kind, _, key = name.partition("/")
        ids = self._cells if kind == "obsm" else self._genes
        return SomaVectors(f"{self.path}: {name}", self._measurement[kind][key], ids)

    def _matrix(self, name: str) -> SomaMatrix:
        where = f"{self.path}: {name}"
        if name in self._layers:
            array = self._measurement.X[self._layers[name]]
            matrix = SomaMatrix(where, array, self._cells, self._genes, "var")
            if not self._is_query:
                matrix.check_rows("obs")
            return matrix
        kind, _, key = name.partition("/")
        ids = self._cells if kind == "obsp" else self._genes
        return SomaMatrix(where, self._measurement[kind][key], ids, ids)


def _measurement(path: str, names: Sequence[str], chosen: str | None) -> str:
    """The chosen measurement, the only one, or that of RNA."""
    known = ", ".join(names) or "none"
    if chosen is not None:
        if chosen not in names:
            raise OptionError(
                f"{path}: there is no measurement {chosen!r}; the experiment has: {known}"
            )
        return chosen
    if len(names) == 1 or _RNA in names:
        return _RNA if _RNA in names else names[0]
    raise SourceError(
        f"{path}: choose one of the measurements of the experiment with measurement=: {known}"
    )


def _layers(keys: Sequence[str]) -> dict[str, str]:
    """Keys of X by the names of matrices; ``X`` is the default one, if there is one."""
    default = next((key for key in _DEFAULTS if key in keys), keys[0] if len(keys) == 1 else None)
    names = {} if default is None else {"X": default}
    names |= {f"layers/{key}": key for key in keys if key != default}
    return names


def _selected(path: str, obs: Any, query: str | None) -> Any:
    """The sorted ids of the cells that a query selects."""
    try:
        return joinids(obs, query)
    except Exception as error:
        if query is None:
            raise
        raise OptionError(
            f"{path}: obs_query={query!r} cannot be applied to obs, which has the columns "
            f"{', '.join(name for name in obs.schema.names if name != JOINID)}: "
            f"{one_line(error):.300}"
        ) from error
