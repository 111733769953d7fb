"""The packages of annbatch, and the settings at which it is fastest."""

from __future__ import annotations

# pcodec is needed to read archives of scdl in two of the profiles.
PACKAGES = (
    "annbatch==0.3.1", "anndata==0.13.4", "zarr==3.4.2", "zarrs==0.2.3", "pcodec==1.1.0"
)  # fmt: skip

# Thousands of cells a second as measured by --tune, by cells of a chunk (rows) and blocks of 64
# that the loader takes at a time (columns; 400 are all cells of the data); medians of 3 to 5:
#
#           16     64    256    400    random cells, 4,096 at a time
#     4    100    123    123    127      8
#     8    107    131    131    139     11
#    16    116    138    132    142     10
#    32    102    120    123    120      7.5
#    64     93    106     69     85      4.7    annbatch's default chunk
#   128     79     88     89     96      3.0
#   256     61     61     41     55      1.8
#
# Shards of 16 MB to 256 MB instead of 1 GB, its default, make no difference beyond the noise, which
# is 10 % and more. Without compression it reaches 180, at 48 bits per value.
CELLS_PER_CHUNK = 16
SHARD = "1GB"
PRELOAD = 64
# From disk, thousands of cells a second of a shuffled collection of 11 GB, by cells of a block and
# blocks at a time; medians of 3, while other processes ran: 64 and 64 17; 32 and 256, of its first
# example, 16; 32 and 512 15; 512 and 32, its defaults, 29; 256 and 32 18; 256 and 64 32.
DISK_BLOCK, DISK_PRELOAD = 256, 64
PRELOAD_CELLS = 4_096
"""Single random cells that the loader takes at a time."""
