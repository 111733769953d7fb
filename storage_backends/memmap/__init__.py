"""The default backend: BioNeMo-SCDL's format of raw NumPy arrays."""

from storage_backends.base import Backend

BACKEND = Backend(
    "memmap",
    "storage_backends.memmap.store:MemmapStore",
    "storage_backends.memmap.writer:MemmapWriter",
    # An archive that has lost its header, or never had one, is still an archive.
    markers=("row_ptr.npy", "header.sch", "scdl/checksums.bin"),
)
