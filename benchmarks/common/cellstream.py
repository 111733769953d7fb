"""The packages of cellstream, and the settings at which it is fastest."""

from __future__ import annotations

PACKAGES = ("cellstream==0.11.0", "anndata==0.12.19", "scipy==1.17.1")

# Of what it documents: its codec for counts, pfordelta, which is its default, reads single cells
# about ten times as fast as zstd, and is as small. Two threads are faster than one (342 and 223
# thousand cells a second of 1,024 at once). Values are float32, its default and what scdl returns;
# integers take 5 % less CPU time. Its view as AnnData calls the same function.
CODEC = "pfordelta"
