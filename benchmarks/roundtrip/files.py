"""Write the files of some cases with the installed anndata: one line of JSON per case.

``python -m benchmarks.roundtrip.files DIRECTORY FIRST COUNT [--zarr 2|3]``
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import anndata
import h5py
import numpy as np
import zarr

from benchmarks.roundtrip import generate
from benchmarks.roundtrip.generate import Maker, make, written


def write(directory: Path, seed: int, zarr_format: int | None = None) -> Path:
    """Write the file of a case, and return its path."""
    maker = Maker(seed + (1 << 32))
    path = directory / f"{seed}{'.zarr' if zarr_format else '.h5ad'}"
    adata = make(seed)
    if zarr_format:
        shutil.rmtree(path, ignore_errors=True)
        written(
            adata,
            lambda a: a.write_zarr(path, convert_strings_to_categoricals=False),
            lambda: zarr.group(store={}, zarr_format=zarr_format),
        )
        return path
    compression = maker.one((None, None, "gzip", "lzf"))
    as_is = maker.chance(0.7)
    written(
        adata,
        lambda a: a.write_h5ad(
            path, compression=compression, convert_strings_to_categoricals=not as_is
        ),
        lambda: h5py.File("x", "w", driver="core", backing_store=False),
    )
    return path


def spoil(path: Path, seed: int) -> list[str]:
    """Add elements that no release of anndata reads, and return their names."""
    maker = Maker(seed + (2 << 32))
    if path.suffix == ".zarr" or not maker.chance(0.2):
        return []
    added = []
    with h5py.File(path, "r+") as file:
        n_obs, n_vars = (_length(file[name]) for name in ("obs", "var"))
        for name, length in (("uns/novel", 3), ("obsm/novel", n_obs), ("varm/novel", n_vars)):
            if maker.chance(0.5) and name.partition("/")[0] in file and name not in file:
                if maker.chance(0.5):
                    file.create_group(name).attrs["encoding-type"] = "novel"
                else:
                    file[name] = np.zeros((length, 2), np.longdouble)
                    file[name].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
                added.append(name)
    return added


def _length(frame: h5py.Group) -> int:
    index = frame[frame.attrs["_index"]]
    return int((index["values"] if isinstance(index, h5py.Group) else index).shape[0])


def main(arguments: Sequence[str]) -> None:
    """Write the files of a range of cases."""
    directory, first, count = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    zarr_format = int(arguments[4]) if len(arguments) > 4 else None
    warnings.simplefilter("ignore")
    settings(zarr_format)
    for seed in range(first, first + count):
        path = write(directory, seed, zarr_format)
        print(json.dumps({"seed": seed, "path": str(path)}), flush=True)


def settings(zarr_format: int | None = None) -> None:
    """Let anndata write everything that it can."""
    warnings.filterwarnings("ignore")
    anndata.settings.allow_write_nullable_strings = True
    if zarr_format and hasattr(anndata.settings, "zarr_write_format"):
        anndata.settings.zarr_write_format = zarr_format
    if zarr_format:
        # Stores cannot have these names: a metadata file, a separator, the parent group.
        unlike = ("zarr.json", "a\\b", "..")
        generate.NAMES[:] = [name for name in generate.NAMES if name not in unlike]


if __name__ == "__main__":
    main(sys.argv[1:])
