"""What may be a Zarr store, told without importing zarr, which takes some tenths of a second."""

from __future__ import annotations

import os

#: One of these stands in the directory of every store.
METADATA_FILES = ("zarr.json", ".zgroup")
#: File of the checksums of all others, beside the metadata of the root.
CHECKSUMS = "scdl.checksums"

#: Schemes of obstore; the others are fsspec's.
OBSTORE = ("s3", "gs", "az", "abfs", "http", "https")
FSSPEC = ("gcs", "adl", "hf", "memory", "ftp", "sftp", "webdav")


def is_url(path: str) -> bool:
    """Whether a path is a URL of a store that may be read."""
    scheme, separator, rest = path.partition("://")
    return bool(separator and rest) and scheme in (*OBSTORE, *FSSPEC)


def detect(path: str) -> bool:
    """Whether a path is, by its name or the files there, that of a store."""
    if is_url(path):
        # Whether something is there is found out by opening it: the network may take its time.
        return True
    try:
        # An archive that has lost its metadata is still one.
        known = (*METADATA_FILES, CHECKSUMS)
        return any(os.path.isfile(os.path.join(path, name)) for name in known)
    except (OSError, ValueError):
        return False
