"""The compressed backend: Zarr v3 stores that are AnnData stores too."""

from storage_backends.base import Backend
from storage_backends.zarr import detection

BACKEND = Backend(
    "zarr",
    "storage_backends.zarr.store:ZarrStore",
    "storage_backends.zarr.writer:ZarrWriter",
    options=("compression",),
    suffix=".zarr",
    # A directory with checksums but no metadata is still treated as an archive.
    markers=(*detection.METADATA_FILES, detection.CHECKSUMS),
    elsewhere=detection.is_url_or_zip,
)
