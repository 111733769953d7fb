"""Differences between an AnnData and its round trip, as the installed anndata reads them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.tests.helpers import assert_equal

MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp")

#: Whether to treat all types of plain text as equal. Releases of pandas and anndata have several,
#: which pandas 3, and files of another release, do not distinguish.
ANY_TEXT = False


def read(path: Path) -> anndata.AnnData:
    """Read an h5ad file, or a Zarr store if the path ends in ``.zarr``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


def elements(adata: anndata.AnnData) -> dict[str, Any]:
    """All elements of an AnnData, by name."""
    found: dict[str, Any] = {"X": adata.X}
    found |= _columns("obs", adata.obs) | _columns("var", adata.var)
    for mapping in MAPPINGS:
        held = getattr(adata, mapping).items()
        # anndata 0.13 has a layer of no name, which is X.
        found |= {f"{mapping}/{key}": value for key, value in held if key is not None}
    if adata.raw is not None:
        found |= {"raw/X": adata.raw.X} | _columns("raw/var", adata.raw.var)
        found |= {f"raw/varm/{key}": value for key, value in adata.raw.varm.items()}
    found |= dict(_leaves("uns", adata.uns))
    return {name: value for name, value in found.items() if value is not None or name[:4] == "uns/"}


def _columns(name: str, frame: pd.DataFrame) -> dict[str, Any]:
    return {f"{name}/{column}": frame[[column]] for column in frame} | {name: frame[[]]}


def _leaves(path: str, mapping: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(f"{path}/{key}", value)
        else:
            yield f"{path}/{key}", value


def differences(
    given: anndata.AnnData, back: anndata.AnnData, listed: Sequence[str], matrix: str
) -> list[str]:
    """Describe elements that changed although they are not listed as not carried over.

    Parameters
    ----------
    matrix
        Name of the matrix that the archive stores.
    """
    expected, found = elements(given), elements(back)
    wrong = []
    # Archives store it by rows, and booleans as numbers.
    for held in (expected, found):
        if matrix in held:
            held[matrix] = _by_rows(held[matrix])
    if getattr(elements(given).get(matrix), "dtype", None) == np.dtype(bool):
        expected[matrix], found[matrix] = (x[matrix].astype(bool) for x in (expected, found))
    for name, value in expected.items():
        if is_listed(name, listed):
            continue
        if name not in found:
            wrong.append(f"{name} is lost")
        elif said := difference(found[name], value):
            wrong.append(f"{name}: {said}")
    # Of a store without cells anndata makes no raw.
    known = {name for name in found if given.n_obs == 0 and name.startswith("raw/")}
    wrong += [f"{name} came from nowhere" for name in found if name not in {*expected, *known}]
    return wrong


def is_listed(name: str, listed: Sequence[str]) -> bool:
    """Whether an element, or what it is part of, is listed."""
    above = name.split("/")
    return any("/".join(above[:i]) in listed for i in range(1, len(above) + 1))


def difference(found: Any, expected: Any) -> str | None:
    """How two elements differ; None where they are the same."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if sp.issparse(expected):
                _assert_same(found, expected)
            elif isinstance(expected, pd.DataFrame):
                if ANY_TEXT:
                    found, expected = (_with_plain_text(frame) for frame in (found, expected))
                named = bool(len(expected)) or not ANY_TEXT
                pd.testing.assert_frame_equal(found, expected, check_index_type=named)
            elif type(expected).__module__.startswith("awkward"):
                assert found.to_list() == expected.to_list()
                return None
            elif isinstance(expected, float):
                np.testing.assert_equal(found, expected)
            elif isinstance(expected, np.ndarray) and expected.dtype.kind in "fc":
                np.testing.assert_array_equal(found, expected, strict=True)
            else:
                assert_equal(found, expected, exact=True)
        ours, theirs = (getattr(value, "dtype", None) for value in (found, expected))
        # NumPy has text of its own, which anndata makes of Zarr stores.
        is_text = {getattr(dtype, "kind", "") for dtype in (ours, theirs)} <= set("OT")
        # Of a number anndata makes one of Python, or of NumPy in old files.
        plain = ANY_TEXT and np.ndim(expected) == 0
        assert is_text or plain or ours == theirs, f"{ours}, expected {theirs}"
    except Exception as error:  # noqa: BLE001 - anndata may fail to compare, which is to be seen
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None


def _with_plain_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Plain text, of columns, names and categories, as objects; not columns that have nulls."""
    made = frame.set_axis(_as_objects(frame.index), axis=0)
    for name, column in frame.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            categories = _as_objects(column.cat.categories)
            made[name] = pd.Categorical.from_codes(
                column.cat.codes, categories, ordered=column.dtype.ordered
            )
        elif isinstance(column.dtype, pd.StringDtype) and column.dtype.na_value is not pd.NA:
            made[name] = column.to_numpy(object)
    return made


def _as_objects(index: pd.Index) -> pd.Index:
    return index.astype(object) if isinstance(index.dtype, pd.StringDtype) else index


def _assert_same(found: Any, expected: Any) -> None:
    """Check that sparse matrices are the same, also where they are not numbers."""
    assert sp.issparse(found), f"{type(found).__name__} instead of a sparse matrix"
    assert found.format == expected.format, f"{found.format}, expected {expected.format}"
    assert found.shape == expected.shape, f"{found.shape}, expected {expected.shape}"
    ours, theirs = (made.copy() for made in (found, expected))
    for made in (ours, theirs):
        made.has_canonical_format = made.has_sorted_indices = False
        made.sum_duplicates()
    assert np.array_equal(ours.indptr, theirs.indptr), "other rows"
    assert np.array_equal(ours.indices, theirs.indices), "other columns"
    assert np.array_equal(ours.data, theirs.data, equal_nan=True), "other values"


def _by_rows(matrix: Any) -> sp.csr_matrix:
    made = sp.csr_matrix(matrix, copy=True)
    made.sum_duplicates()
    return made


def counts_of(adata: anndata.AnnData, name: str, dtype: str) -> sp.csr_matrix:
    """A matrix as an archive for training has it: by rows, sorted, of the type it reports."""
    made = sp.csr_matrix(adata.raw.X if name == "raw/X" else adata.X, dtype=dtype, copy=True)
    made.sum_duplicates()
    return made
