"""Elements of an AnnData as the objects that anndata makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from storage_backends.warning_filters import quiet


def read_element(element: Any) -> Any:
    """An element of an HDF5 file that anndata wrote."""
    from anndata.io import read_elem

    return read_elem(element)


def writing_strings() -> AbstractContextManager[None]:
    """Let anndata write text with nulls, which its releases before 0.11 cannot read."""
    import anndata

    settings: AbstractContextManager[None] = anndata.settings.override(
        allow_write_nullable_strings=True
    )
    return settings


def legacy_rest(path: str, matrix_name: str) -> Iterator[tuple[str, Any]]:
    """Every element of a file of anndata before 0.8 besides the matrix, its genes and obs.

    anndata migrates what it reads of such files, which takes the whole of it into memory; they are
    as small as files were then.
    """
    import anndata

    # Of what it moves to where newer releases expect it.
    with quiet(""):
        adata = anndata.read_h5ad(path)
    raw = adata.raw
    found: dict[str, Any] = {"X": adata.X, "uns": dict(adata.uns) or None}
    found |= {"var" if matrix_name == "raw/X" else "": adata.var}
    if raw is not None:
        found |= {"raw/X": raw.X, "raw/var": raw.var}
        found |= {f"raw/varm/{key}": value for key, value in raw.varm.items()}
    for mapping in ("layers", "obsm", "varm", "obsp", "varp"):
        kept = getattr(adata, mapping).items()
        # The layer of no name is X.
        found |= {f"{mapping}/{key}": value for key, value in kept if key is not None}
    genes = "raw/var" if matrix_name == "raw/X" else "var"
    for name, value in found.items():
        if name not in ("", genes, matrix_name) and value is not None:
            yield name, value
