"""Elements of an AnnData as the objects that anndata makes of them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from storage_backends.compute.warning_filters import ignore_warnings


def read_element(element: Any) -> Any:
    """An element of an HDF5 file that anndata wrote."""
    from anndata.io import read_elem

    if element.attrs.get("encoding-type") == "coo_matrix":
        return _csr_of_coo(element)
    # Of elements as early releases wrote them.
    with ignore_warnings(""):
        return read_elem(element)


def _csr_of_coo(group: Any) -> Any:
    """A matrix in coordinate form, which anndata does not read."""
    import scipy.sparse as sp

    data, rows, columns = (group[part][()] for part in ("data", "row", "col"))
    return sp.coo_matrix((data, (rows, columns)), tuple(group.attrs["shape"])).tocsr()


def writing_strings() -> AbstractContextManager[None]:
    """Let anndata write text with nulls, which its releases before 0.11 cannot read."""
    import anndata

    settings: AbstractContextManager[None] = anndata.settings.override(
        allow_write_nullable_strings=True
    )
    return settings


def is_taken(name: str, element: Any) -> bool:
    """Whether an AnnData may have an element where it is, by its first row.

    Parameters
    ----------
    name
        Such as ``obsm/X_pca``.
    element
        An object whose shape fits, or a reader of an array.
    """
    import anndata
    import pandas as pd

    place = name.rpartition("/")[0].removeprefix("raw/")
    try:
        length = element.shape[0] if hasattr(element, "shape") else len(element)
        n = min(length, 1)
        few = element.read(0, n) if hasattr(element, "item_shape") else _head(element, n)
        frame = pd.DataFrame(index=["0"][:n])
        if hasattr(few, "columns"):
            few = few.set_axis(frame.index, axis=0)
        with ignore_warnings(""):
            if place in ("obsm", "obsp"):
                square = few[:, :n] if place == "obsp" else few
                anndata.AnnData(obs=frame, **{place: {"key": square}})
            elif place in ("varm", "varp"):
                square = few[:, :n] if place == "varp" else few
                anndata.AnnData(var=frame, **{place: {"key": square}})
            else:
                genes = pd.DataFrame(index=list(map(str, range(few.shape[1]))))
                matrix = {"layers": {"key": few}} if place == "layers" else {"X": few}
                anndata.AnnData(obs=frame, var=genes, **matrix)
    except Exception:  # noqa: BLE001 - whatever it is, anndata would say it of the archive
        return False
    return True


def _head(value: Any, n: int) -> Any:
    return value.iloc[:n] if hasattr(value, "iloc") else value[:n]
