"""Writing one archive from open sources."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

from tqdm import tqdm

from scdl.conversion.opening import open_sources
from scdl.conversion.options import (
    TARGET,
    ConvertOptions,
    Meter,
    Settings,
    keywords,
    storage_options,
)
from scdl.conversion.reporting import ConversionReport, report_of
from scdl.conversion.run import Conversion
from scdl.errors import BackendOptionError
from scdl.sources.base import Source
from storage_backends import registry
from storage_backends.base import ArrayStore
from storage_backends.directory import publication
from storage_backends.errors import refused_write
from storage_backends.paths import Path, absolute, path_of

_log = logging.getLogger(__name__)


def reconvert(
    source: Path, store: ArrayStore, neighbor_key: str | None, options: Mapping[str, Any]
) -> None:
    """Replace an open archive with the converted contents of a source; see :func:`convert`.

    Raises
    ------
    ArchiveChangedError, ArchiveLockedError
        As raised by :func:`storage_backends.registry.rewrite`.
    """
    backend, given = registry.of(store).name, cast(ConvertOptions, options)
    settings = Settings(backend, neighbor_key, given)
    opening = partial(open_sources, [source], settings, store.path)
    write_archive(opening, store.path, settings, instead_of=store)


def write_archive(
    opening: Callable[[ExitStack], Sequence[Source]],
    path: Path,
    settings: Settings,
    meter: Meter | None = None,
    *,
    replace: bool = False,
    instead_of: ArrayStore | None = None,
) -> ConversionReport:
    """Write one archive; the sources are opened after its path was checked and reserved.

    Parameters
    ----------
    opening
        Opens the sources and registers them with the stack, which closes them.
    path, settings, replace
        As for :func:`convert`.
    meter
        Receives the progress, in stored values.
    instead_of
        An open archive at the path; it is replaced unless it was changed in the meantime.
    """
    started = time.perf_counter()
    meter = tqdm(disable=True) if meter is None else meter
    options = settings.options
    target = registry.for_target(path, settings.backend)
    storage = storage_options(options, target)
    with ExitStack() as stack:
        if instead_of is None:
            writer = registry.create(path_of(path, TARGET), target, replace=replace, **storage)
        else:
            writer = registry.rewrite(instead_of, target, **storage)
        stack.enter_context(writer)
        opened = opening(stack)
        conversion = Conversion(opened, writer.path, settings, keeps_elements=writer.keeps_elements)
        for source in opened:
            size = source.n_obs, source.n_vars
            _log.info("%s: %s, %d cells x %d genes", source.path, source.matrix_name, *size)
        meter.reset(conversion.work)
        info = conversion.run(writer, meter)
    report = report_of(
        path_of(path),
        writer.path,
        target,
        info,
        conversion.caster.dtype,
        conversion.tally,
        started,
        reordered=conversion.reordered,
        differing_var=conversion.differing_var,
        not_carried=conversion.not_carried,
        changed_columns=conversion.changed_columns,
        unmatched=tuple(line for source in opened for line in source.unmatched),
        cells_left_out=sum(conversion.left_out[0]),
        genes_left_out=conversion.left_out[1],
        fields=info.fields,
    )
    _log.info("%s: %d bytes in %.1f s", path, report.nbytes, report.seconds)
    return report


def check_free(path: str, *, replace: bool) -> None:
    """Raise the errors with which an archive at a path would not be begun.

    Raises
    ------
    ArchiveExistsError, ArchivePlaceError, ArchiveWriteError
        As for :func:`convert`.
    """
    registry.check_target(path, replace=replace)
    publication.require_absent(path, replace=replace)
    with refused_write(path):
        publication.require_parent(absolute(path))


def check_storage(backend: str, options: Mapping[str, Any], call: Callable[..., Any]) -> None:
    """Raise BackendOptionError for an option that the backend does not have."""
    known = registry.backend(backend).options
    for name in options:
        if name not in known:
            raise BackendOptionError(
                f"the storage backend {backend} has no option {name!r}; there are: "
                f"{', '.join([*keywords(call), *known])}"
            )
