"""One case: convert a file to an archive of a backend, export it, and describe differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scdl
from benchmarks.roundtrip.compare import (
    counts_of,
    difference,
    differences,
    elements,
    is_listed,
    read,
)
from benchmarks.roundtrip.files import spoil
from benchmarks.roundtrip.generate import Maker
from scdl.conversion.export import export
from storage_backends.zarr.codecs.profiles import PROFILES

Exported = Callable[[Path, Path, Sequence[str]], list[str]]


def try_case(path: Path, seed: int, backend: str) -> list[str]:
    """Problems of a round trip of a file, which may be changed."""
    maker = Maker(seed + (3 << 32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = read(path)
        added = spoil(path, seed)
        try:
            work = _whole if backend == "zarr" else _for_training
            wrong = work(path, given, added, maker)
            if maker.chance(0.3):
                wrong += _several(path, given, maker, backend)
        except Exception as error:  # noqa: BLE001 - any error is a finding
            said = " ".join(str(error).split())
            return [f"{type(error).__name__}: {said[:500]}"]
    return wrong


def _exported(archive: Path) -> anndata.AnnData:
    target = archive.with_name(f"{archive.name}.back.h5ad")
    export(scdl.open(archive).store, target, replace=True)
    return read(target)


def _whole(path: Path, given: anndata.AnnData, added: list[str], maker: Maker) -> list[str]:
    archive, profile = path.with_suffix(".scdl.zarr"), maker.one(list(PROFILES))
    report = scdl.convert(path, archive, compression=profile, replace=True)
    listed = report.not_carried
    wrong = [f"{name} cannot be read, but is not listed" for name in added if name not in listed]
    backs = {"export": _exported(archive)}
    ds = scdl.open(archive)
    backs["to_anndata"] = ds.to_anndata()
    if given.n_obs:
        rows = maker.rng.integers(0, given.n_obs, 3)
        assert ds.to_anndata(rows).shape == (3, given.n_vars if "var" not in listed else 0)
    anndata.read_zarr(archive)
    if maker.chance(0.3):
        again = path.with_suffix(".again.zarr")
        second = scdl.convert(archive, again, compression=maker.one(list(PROFILES)), replace=True)
        wrong += [f"{name} is lost from archive to archive" for name in second.not_carried]
        backs["archive to archive"] = _exported(again)
    for how, back in backs.items():
        wrong += [f"{how}: {said}" for said in differences(given, back, listed, report.matrices[0])]
    return wrong


def _for_training(path: Path, given: anndata.AnnData, added: list[str], maker: Maker) -> list[str]:
    numeric = [
        k for k, v in given.obsm.items() if isinstance(v, np.ndarray) and v.dtype.kind in "biuf"
    ]
    vectors = [key for key in numeric if maker.chance(0.7)]
    graphs = [key for key in given.obsp if maker.chance(0.7) and _is_graph(given.obsp[key])]
    archive = path.with_suffix(".scdl")
    report = scdl.convert(path, archive, obsm=vectors, neighbor_key=graphs or None, replace=True)
    back, listed = _exported(archive), report.not_carried
    wrong = [f"{name} cannot be read, but is not listed" for name in added
             if not is_listed(name, listed)]  # fmt: skip
    matrix, is_store = report.matrices[0], path.suffix == ".zarr"
    if matrix == "raw/X" and given.raw is None:
        # Of a store without cells anndata makes no raw.
        return wrong
    genes = "raw/var" if matrix == "raw/X" else "var"
    found, expected = elements(back), elements(given)
    # Stores, which may be archives, keep the types of their values where they can.
    assert is_store or report.dtype == "float32", report.dtype
    kept = {"X": counts_of(given, matrix, report.dtype)}
    # A store keeps graphs and vectors without being asked to.
    vectors += [key for key in numeric if is_store and f"obsm/{key}" in found]
    graphs += [key for key in given.obsp if is_store and f"obsp/{key}" in found]
    kept |= {f"obsm/{key}": _as_stored(expected[f"obsm/{key}"]) for key in vectors}
    kept |= {f"obsp/{key}": sp.csr_matrix(given.obsp[key], dtype=np.float32) for key in graphs}
    for name in expected:
        if name.partition("/")[0] == "obs":
            kept[name] = expected[name]
        elif name == genes or name.startswith(f"{genes}/"):
            kept[name.removeprefix("raw/")] = expected[name]
    for name, value in kept.items():
        original = name.replace("var", genes, 1) if name.startswith("var") else name
        if is_listed(original, listed):
            continue
        if said := difference(found.get(name), value):
            wrong.append(f"{name}: {said}")
    taken = {matrix, *kept} | {name for name in expected if name.startswith((genes, "obs/"))}
    taken -= {"X"} - {matrix}
    wrong += [
        f"{name} is neither kept nor listed"
        for name in expected
        if name not in taken and not is_listed(name, listed)
    ]
    return wrong


def _is_graph(value: object) -> bool:
    """Whether weights of a graph fit its type, float32."""
    data = value.data if sp.issparse(value) else value
    finite = np.asarray(data, np.float64)
    return bool((np.abs(finite[np.isfinite(finite)]) < 1e30).all())


def _as_stored(values: np.ndarray) -> np.ndarray:
    # Archives store no booleans.
    return values.astype(np.uint8) if values.dtype == bool else values


def _several(path: Path, given: anndata.AnnData, maker: Maker, backend: str) -> list[str]:
    """Cells of several sources with the same genes follow one another."""
    order = maker.rng.permutation(given.n_obs)[: max(given.n_obs // 2, 0)]
    is_store = path.suffix == ".zarr"
    if is_store and not given.n_obs:
        # Of a store without cells anndata makes no raw, which a part would then lack.
        return []
    other = path.with_name(f"{path.stem}.part{path.suffix}")
    with anndata.settings.override(remove_unused_categories=False):
        part = given[order].copy()
    # It is not compared, and anndata does not write all numbers that it reads from stores.
    part.uns.clear()
    write = part.write_zarr if is_store else part.write_h5ad
    write(other, convert_strings_to_categoricals=False)
    archive = path.with_name(f"{path.stem}.several{'.zarr' if backend == 'zarr' else ''}")
    report = scdl.convert([path, other], archive, replace=True)
    matrix, back = report.matrices[0], _exported(archive)
    both = [counts_of(cells, matrix, report.dtype) for cells in (given, part)]
    expected = sp.vstack(both, format="csr")
    said = difference(sp.csr_matrix(back.X), sp.csr_matrix(expected))
    wrong = [f"several sources: X: {said}"] if said else []
    frames = {"obs": pd.concat([given.obs, part.obs])}
    frames["var"] = given.raw.var if matrix == "raw/X" else given.var
    for name, frame in frames.items():
        stored = getattr(back, name)
        if list(stored.index) != list(frame.index):
            wrong.append(f"several sources: other names in {name}")
        for column in frame:
            original = (
                f"raw/var/{column}" if (name, matrix) == ("var", "raw/X") else f"{name}/{column}"
            )
            if is_listed(original, report.not_carried):
                continue
            held = stored[[column]] if column in stored else None
            if said := difference(held, frame[[column]]):
                wrong.append(f"several sources: {name}/{column}: {said}")
    return wrong
