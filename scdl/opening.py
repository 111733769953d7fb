"""``scdl.open``: an archive, a manifest, or a directory of archives."""

from __future__ import annotations

import os
from typing import Any

from scdl.archive.neighbor_choice import NeighborSamplingStrategy
from scdl.archive.schema import NEIGHBOR_KEY
from scdl.collection.collection import SingleCellCollection
from scdl.collection.paths import archives_below, has_manifest
from scdl.dataset.dataset import SingleCellDataset
from scdl.dataset.opened import CACHE_MB
from scdl.errors import ArchiveFormatError, OptionError
from storage_backends import registry
from storage_backends.paths import Path, path_of


def open(
    path: Path,
    *,
    label: str | None = None,
    load_neighbors: bool | None = None,
    neighbor_key: str = NEIGHBOR_KEY,
    neighbor_sampling_strategy: NeighborSamplingStrategy | str = NeighborSamplingStrategy.RANDOM,
    fallback_to_identity: bool = True,
    matrix: str | None = None,
    cache_dir: Path | None = None,
    cache_mb: float = CACHE_MB,
) -> SingleCellDataset | SingleCellCollection:
    """Open an archive of any backend, or a directory of archives as a collection.

    Parameters
    ----------
    path
        Path of an archive, a manifest, or a directory of archives.
    label
        For a directory, as for :class:`SingleCellCollection`.
    load_neighbors, neighbor_key, neighbor_sampling_strategy, fallback_to_identity
        As for :class:`SingleCellDataset`.
    matrix
        Another matrix of an AnnData that the archive keeps completely, such as ``layers/counts``.

    cache_dir, cache_mb
        Local directory to keep what is read from a URL, so that the next epoch reads it there, and
        its maximum size in megabytes. Processes may share it; other archives may, too.

    Raises
    ------
    ArchiveNotFoundError
        There is nothing at `path`.
    ArchiveFormatError
        `path` is not an archive, or the archive is damaged.
    OptionError
        There is no such matrix, or `matrix` is given for a collection, or `label` for one archive.

    Examples
    --------
    >>> dataset = scdl.open("cells.scdl")
    >>> dataset
    SingleCellDataset('.../cells.scdl'): 6 cells x 4 genes
    >>> len(dataset), dataset.n_vars
    (6, [4])
    >>> len(scdl.open("atlas"))
    12
    """
    path = path_of(path, "the path of an archive, or of a directory of archives")
    options: dict[str, Any] = {
        "load_neighbors": load_neighbors,
        "neighbor_key": neighbor_key,
        "neighbor_sampling_strategy": neighbor_sampling_strategy,
        "fallback_to_identity": fallback_to_identity,
        "cache_dir": cache_dir,
        "cache_mb": cache_mb,
    }
    lists_members = has_manifest(path)
    if not lists_members and (not os.path.isdir(path) or registry.known(path) is not None):
        if label is not None:
            raise OptionError(
                f"{path}: label= names a column of a collection, but this is a single archive; "
                "leave it out"
            )
        if matrix is not None:
            options["matrix"] = matrix
        return SingleCellDataset(path, **options)
    if not lists_members and not any(archives_below(path)):
        raise ArchiveFormatError(
            f"{path}: this directory is neither an archive nor contains archives; convert h5ad "
            f"files first, with scdl.convert_directory or `scdl convert {path} DEST`"
        )
    if matrix is not None:
        raise OptionError(
            f"{path}: matrix= selects a matrix of one archive, but this is a collection; open its "
            "archives one by one"
        )
    return SingleCellCollection(path, label=label, **options)
