"""Fitting the tables of an archive's arrays to samples of their rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.zarr.chunks.sizes import encoded_bytes
from storage_backends.zarr.codecs import ans_fitting
from storage_backends.zarr.codecs.profiles import Profile, fits_narrow


def fitted(
    profile: Profile, name: str, sample: NDArray[Any], ends: NDArray[np.int64], n_items: int
) -> Profile:
    """The profile with tables for an array, if they make a sample of it smaller.

    Parameters
    ----------
    name
        Name of the array in the storage interface: values or ids of a sparse matrix.
    sample, ends
        Whole rows of the array, and where each ends.
    n_items
        Items of the array.
    """
    if not profile.fits or not len(sample):
        return profile
    narrow = fits_narrow(sample) if profile.may_narrow(name, sample.dtype) else None
    values = sample if narrow is None else narrow
    if values.dtype.kind not in "iu":
        return profile
    differences = name.endswith("indices")
    tables = ans_fitting.fit(values, ends, n_items, differences=differences)
    with_tables = replace(profile, tables=tables.to_text())
    sizes = [encoded_bytes(name, sample, each, ends) for each in (profile, with_tables)]
    return with_tables if sizes[1] < sizes[0] else profile
