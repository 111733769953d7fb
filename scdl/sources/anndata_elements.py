"""Elements of an AnnData as objects of anndata."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from storage_backends.compute.warning_filters import ignore_warnings


def read_element(element: Any) -> Any:
    """Read an element of an HDF5 file that anndata wrote."""
    import scipy.sparse as sp
    from anndata.io import read_elem

    if element.attrs.get("encoding-type") == "coo_matrix":
        # anndata does not read this encoding.
        data, rows, columns = (element[part][()] for part in ("data", "row", "col"))
        return sp.coo_matrix((data, (rows, columns)), tuple(element.attrs["shape"])).tocsr()
    # anndata warns about elements that were written by early releases.
    with ignore_warnings(""):
        return read_elem(element)


def writing_strings() -> AbstractContextManager[None]:
    """Allow anndata to write strings with nulls, which releases before 0.11 cannot read."""
    import anndata

    settings: AbstractContextManager[None] = anndata.settings.override(
        allow_write_nullable_strings=True
    )
    return settings


def is_accepted(name: str, element: Any) -> bool:
    """Whether AnnData accepts an element in its mapping; tested with the first row.

    Parameters
    ----------
    name
        Name of the element, such as ``obsm/X_pca``.
    element
        An object of the correct shape, or a reader of an array.
    """
    import anndata
    import pandas as pd

    place = name.rpartition("/")[0].removeprefix("raw/")
    try:
        length = element.shape[0] if hasattr(element, "shape") else len(element)
        n = min(length, 1)
        rows = element.iloc if hasattr(element, "iloc") else element
        sample = element.read(0, n) if hasattr(element, "item_shape") else rows[:n]
        frame = pd.DataFrame(index=["0"][:n])
        if hasattr(sample, "columns"):
            sample = sample.set_axis(frame.index, axis=0)
        with ignore_warnings(""):
            if place in ("obsm", "obsp"):
                square = sample[:, :n] if place == "obsp" else sample
                anndata.AnnData(obs=frame, **{place: {"key": square}})
            elif place in ("varm", "varp"):
                square = sample[:, :n] if place == "varp" else sample
                anndata.AnnData(var=frame, **{place: {"key": square}})
            else:
                genes = pd.DataFrame(index=list(map(str, range(sample.shape[1]))))
                matrix = {"layers": {"key": sample}} if place == "layers" else {"X": sample}
                anndata.AnnData(obs=frame, var=genes, **matrix)
    except Exception:  # noqa: BLE001 - reading the archive would raise the same error
        return False
    return True
