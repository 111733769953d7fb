"""Writing the parts of a split as archives."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive.schema import unique_names
from scdl.collection.flattening import new_collection
from scdl.collection.paths import archives_below
from scdl.errors import ArchiveExistsError, DatasetTypeError
from storage_backends import registry
from storage_backends.paths import Path, absolute

if TYPE_CHECKING:
    from scdl.conversion.reporting import ConversionReport
    from scdl.dataset.dataset import SingleCellDataset

#: Characters that names of archives do not take from names of parts.
_ODD = re.compile(r"[^\w.+-]+")
#: Suffix of archives whose backend does not define one.
_SUFFIX = ".scdl"


def write_parts(
    dataset: SingleCellDataset,
    parts: Mapping[str, NDArray[np.int64]],
    directory: Path,
    backend: str | None,
    *,
    replace: bool,
    options: Mapping[str, Any],
) -> dict[str, ConversionReport]:
    """Write cells of a dataset as archives; see :meth:`scdl.Splits.write`."""
    if not hasattr(dataset, "subset"):
        raise DatasetTypeError(
            f"{dataset!r}: parts are written of one archive; flatten a collection first"
        )
    target = absolute(directory, "the path of a directory for the archives")
    chosen = registry.backend(backend or registry.of(dataset.store).name)
    names = unique_names(_ODD.sub("_", name).lstrip(".") or "part" for name in parts)
    files = [name + (chosen.suffix or _SUFFIX) for name in names]

    def write(into: str, replace: bool) -> dict[str, ConversionReport]:
        pairs = zip(parts.items(), files, strict=True)
        how = {"backend": chosen.name, "replace": replace, **options}
        reports = {
            name: dataset.subset(os.path.join(into, file), rows=rows, **how)
            for (name, rows), file in pairs
        }
        return {
            name: dataclasses.replace(report, path=os.path.join(directory, file))
            for (name, report), file in zip(reports.items(), files, strict=True)
        }

    if not os.path.lexists(target):
        with new_collection(target) as hidden:
            return write(hidden, False)
    if not replace or not os.path.isdir(target) or registry.is_archive(target):
        raise ArchiveExistsError(
            f"{target}: something exists here already; give replace=True (--overwrite) to replace "
            "archives of the same names in a directory, or choose another path"
        )
    if others := sorted({*map(os.path.basename, archives_below(target))} - {*files}):
        raise ArchiveExistsError(
            f"{target}: there are other archives here, such as {others[0]}, whose cells may be in "
            "these parts, too; remove them, or choose another path"
        )
    return write(target, True)
