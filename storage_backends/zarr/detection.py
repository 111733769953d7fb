"""Detection of Zarr stores without importing zarr, which takes some tenths of a second."""

from __future__ import annotations

import os
from collections.abc import Iterable

#: The root directory of every store has one of these.
METADATA_FILES = ("zarr.json", ".zgroup")
#: File of the checksums of all others, next to the metadata of the root.
CHECKSUMS = "scdl.checksums"

#: Schemes of obstore; the others are fsspec's.
OBSTORE = ("s3", "gs", "az", "abfs", "http", "https")
FSSPEC = ("gcs", "adl", "hf", "memory", "ftp", "sftp", "webdav")


def is_url(path: str) -> bool:
    """Whether a path is a URL whose scheme obstore or fsspec supports."""
    scheme, separator, rest = path.partition("://")
    return bool(separator and rest) and scheme in (*OBSTORE, *FSSPEC)


def is_zip(path: str) -> bool:
    """Whether a path is a zip file with a store, judged by its name or its content."""
    name = path.lower()
    if not name.endswith(".zip") or not os.path.isfile(path):
        return False
    if name.endswith(".zarr.zip"):
        # A damaged zip file is still treated as a store.
        return True
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return zipped_root(archive.namelist()) is not None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def zipped_root(names: Iterable[str]) -> str | None:
    """Prefix of a store's files in a zip file: empty, or one directory."""
    found = {name.rpartition("/")[0] for name in names if name.endswith(METADATA_FILES)}
    roots = [name for name in found if "/" not in name and not name.startswith("__MACOSX")]
    if "" in roots:
        return ""
    return f"{roots[0]}/" if len(roots) == 1 else None


def is_url_or_zip(path: str) -> bool:
    """Whether a path is a URL, or a zip file with a store."""
    # A URL is not requested here, as the network may be slow; opening it shows whether it exists.
    return is_url(path) or is_zip(path)
