"""The default backend: BioNeMo-SCDL's format of raw NumPy arrays."""

from storage_backends.base import Backend

BACKEND = Backend(
    "memmap",
    "storage_backends.memmap.store:MemmapStore",
    "storage_backends.memmap.writer:MemmapWriter",
    # Archives without a header are valid, so a header is not the only marker.
    markers=("row_ptr.npy", "header.sch", "scdl/checksums.bin"),
)
