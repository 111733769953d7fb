"""AnnData objects with everything that anndata writes, each a function of a seed.

Only anndata is needed, so that any of its releases can write the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

#: Environment variable that is set where the reader has no awkward arrays.
PLAIN = "SCDL_ROUNDTRIP_PLAIN"
INTEGERS = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
FLOATS = ("f4", "f8")
NAMES = [
    "a b", "ü", "x.y", "__x", "-", "0", "c", "data", "indices", "indptr", "values", "mask", "codes",
    "zarr.json", "..", ".hidden", "a\\b", "line\nbreak", "é" * 60, "n" * 230, "🧬", "X", "obs",
    "shape", "index", "scdl", "matrix.part", "attrs", "None", "nan", " ", "%2F", "a:b", "UPPER",
]  # fmt: skip
WORDS = ("", "a", "é", "nan", "None", "a longer text", "🧬", "x" * 300, " ", "0", "line\nbreak")


class Maker:
    """Makes one AnnData.

    Parameters
    ----------
    seed
        Number of the case.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    # -- choices ---------------------------------------------------------------------------

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def one(self, among: Any) -> Any:
        return among[int(self.rng.integers(len(among)))]

    def name(self, prefix: str) -> str:
        return str(self.one(NAMES)) if self.chance(0.3) else f"{prefix}{self.rng.integers(9)}"

    def some(self, prefix: str, most: int, make: Callable[[], Any]) -> dict[str, Any]:
        return {self.name(prefix): make() for _ in range(int(self.rng.integers(0, most + 1)))}

    # -- arrays ----------------------------------------------------------------------------

    def numbers(self, shape: tuple[int, ...], *, halves: bool = True) -> np.ndarray:
        dtype = np.dtype(self.one(("?", *INTEGERS, *FLOATS, *(("f2",) if halves else ()))))
        if dtype.kind == "b":
            return self.rng.random(shape) < 0.5
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            low, high = (limits.min, limits.max) if self.chance(0.2) else (max(limits.min, -9), 100)
            return self.rng.integers(low, high, shape, dtype, endpoint=True)
        values = (self.rng.standard_normal(shape) * 10).astype(dtype)
        if self.chance(0.3):
            values[self.rng.random(shape) < 0.2] = self.one((np.nan, np.inf, -np.inf, -0.0))
        return values

    def matrix(self, n: int, m: int, *, counts: bool = False) -> Any:
        mask = self.rng.random((n, m)) < self.one((0.0, 0.1, 0.5, 1.0))
        if counts or self.chance(0.4):
            values = self.rng.integers(1, 9, (n, m)).astype(
                self.one(("f4", "f8", "i4", "u2", "i8"))
            )
        else:
            values = self.numbers((n, m), halves=False)
        dense = np.where(mask, values, values.dtype.type(0))
        kind = self.one(("csr", "csr", "csc", "dense"))
        if kind == "dense":
            return dense
        made = sp.csr_matrix(dense) if kind == "csr" else sp.csc_matrix(dense)
        if kind == "csr" and self.chance(0.15) and made.nnz:
            # Columns out of order, as some tools write them.
            for start, stop in zip(made.indptr[:-1], made.indptr[1:], strict=True):
                order = self.rng.permutation(int(stop - start)) + int(start)
                made.indices[start:stop] = made.indices[order]
                made.data[start:stop] = made.data[order]
            made.has_sorted_indices = False
        if self.chance(0.2):
            made = made.copy()
            made.indices = made.indices.astype(np.int64)
            made.indptr = made.indptr.astype(np.int64)
        return made

    def words(self, n: int) -> np.ndarray:
        made = np.empty(n, object)
        made[:] = [str(self.one(WORDS)) for _ in range(n)]
        return made

    # -- tables ----------------------------------------------------------------------------

    def column(self, n: int) -> Any:
        rng, some = self.rng, self.rng.random(n) < self.one((0.0, 0.3, 1.0))
        kind = int(rng.integers(12))
        if kind < 3:
            return self.numbers((n,), halves=False)
        if kind == 3:
            return self.words(n)
        if kind == 4:
            return pd.array(np.where(some, None, self.words(n)), dtype="string")
        if kind == 5:
            integers = self.one(("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt32", "UInt64"))
            values = pd.array(rng.integers(0, 100, n), dtype=integers)
            values[some] = pd.NA
            return values
        if kind == 6:
            return pd.arrays.BooleanArray(rng.random(n) < 0.5, some)
        if kind == 7:
            return np.where(some, np.nan, rng.random(n))
        return self.categories(n)

    def categories(self, n: int) -> Any:
        values: Any = self.one((
            ["b", "a", "ü", "unused"], [""], [3, 1, 2], [0.5, -1.5], [True, False], [],
            [f"category {i}" for i in range(200)],
        ))  # fmt: skip
        codes = self.rng.integers(-1, len(values), n) if values else np.full(n, -1)
        if values and self.chance(0.5):
            codes = np.maximum(codes, 0)
        return pd.Categorical.from_codes(codes, values, ordered=self.chance(0.4))

    def frame(self, index: pd.Index, most: int = 5) -> pd.DataFrame:
        columns = self.some("col", most, lambda: self.column(len(index)))
        # anndata stores a column of that name as the index.
        columns = {name: values for name, values in columns.items() if name != index.name}
        return pd.DataFrame(columns, index=index)

    def names(self, prefix: str, n: int) -> pd.Index:
        kind = self.rng.random()
        names = [f"{prefix}{i}" for i in range(n)]
        if kind < 0.15:
            names = [f"{prefix}{i // 2}" for i in range(n)]
        elif kind < 0.3:
            names = [f"{self.one(WORDS)}{i}" for i in range(n)]
        elif kind < 0.35:
            names = [str(self.one(WORDS)) for _ in range(n)]
        called = self.one((None, None, None, prefix, "ids of é", "_index"))
        return pd.Index(names, dtype=object if n == 0 else None, name=called)

    # -- the rest --------------------------------------------------------------------------

    def along(self, n: int, index: pd.Index) -> Any:
        """A value of obsm or varm."""
        kind = int(self.rng.integers(8))
        if kind < 3:
            return self.numbers((n, int(self.rng.integers(0, 5))))
        if kind == 3:
            return self.numbers((n, 2, 3))
        if kind == 4:
            return self.frame(index, 4)
        if kind == 5 and self.chance(0.3) and (ragged := self.ragged(n)) is not None:
            return ragged
        return self.matrix(n, int(self.rng.integers(1, 5)))

    def ragged(self, n: int) -> Any:
        if PLAIN in os.environ:
            return None
        try:
            import awkward
        except ImportError:
            return None
        lists = [list(range(int(self.rng.integers(0, 4)))) for _ in range(n)]
        # Without a value it has no type.
        return awkward.Array(lists) if any(lists) else None

    def leaf(self) -> Any:
        """A value of uns that is no mapping."""
        rng, n = self.rng, int(self.rng.integers(0, 5))
        makers: list[Callable[[], Any]] = [
            lambda: self.numbers((n,)),
            lambda: self.numbers((2, n)),
            lambda: self.words(n),
            lambda: np.array([["a", "b"], ["é", ""]], object),
            lambda: self.matrix(n, 3),
            lambda: self.frame(pd.Index([f"r{i}" for i in range(n)])),
            lambda: self.frame(pd.Index(range(n))),
            lambda: self.categories(n),
            lambda: pd.array([1, None, 3], dtype="Int64"),
            lambda: pd.array([True, None], dtype="boolean"),
            lambda: pd.array(["a", None], dtype="string"),
            lambda: str(self.one(WORDS)),
            lambda: float(rng.random()),
            lambda: self.one((np.nan, np.inf, 0, -1, 2**40, True, False)),
            lambda: self.one((np.float32(1.5), np.int8(-3), np.uint64(2**63), np.bool_(True))),
            lambda: None,
            lambda: np.array([(1, 2.5), (3, 4.5)], [("a", "i4"), ("b", "f8")]),
            lambda: np.array([("é", 1), ("", 2)], [("name", "U5"), ("n", "i4")]),
            lambda: np.array([("a", (1, 2, 3))], [("name", "U3"), ("xyz", "f4", (3,))]),
            lambda: np.array([b"ab", b"c"]),
            lambda: np.array([1 + 2j, 3]),
            lambda: np.array(["2020-01-01"], "M8[D]"),
            lambda: np.array([1.5], np.longdouble),
            lambda: np.ma.masked_array([1, 2], [True, False]),
            lambda: [1, 2, 3],
            lambda: ["a", "b"],
            lambda: np.zeros((0, 3)),
            lambda: np.array(3),
            dict,
        ]
        return self.one(makers)()

    def mapping(self, depth: int = 0) -> dict[str, Any]:
        made: dict[str, Any] = self.some("key", 4, self.leaf)
        if depth < 3 and self.chance(0.4):
            made[self.name("nested")] = self.mapping(depth + 1)
        return made


def make(seed: int) -> anndata.AnnData:
    """The AnnData of a seed."""
    maker = Maker(seed)
    n_obs, n_vars = maker.one((0, 1, 2, 6, 17)), maker.one((0, 1, 3, 8))
    obs = maker.frame(maker.names("cell", n_obs))
    var = maker.frame(maker.names("gene", n_vars))
    raw = maker.chance(0.3)
    X = None if raw and maker.chance(0.2) else maker.matrix(n_obs, n_vars, counts=maker.chance(0.5))
    adata = anndata.AnnData(
        X,
        obs=obs,
        var=var,
        uns=maker.mapping() if maker.chance(0.7) else {},
        layers=maker.some("layer", 2, lambda: maker.matrix(n_obs, n_vars)),
        obsm=maker.some("obsm", 3, lambda: maker.along(n_obs, obs.index)),
        varm=maker.some("varm", 2, lambda: maker.along(n_vars, var.index)),
        obsp=maker.some("obsp", 2, lambda: maker.matrix(n_obs, n_obs)),
        varp=maker.some("varp", 1, lambda: maker.matrix(n_vars, n_vars)),
    )
    if raw:
        n_raw = maker.one((1, 4, 9))
        genes = maker.frame(maker.names("raw", n_raw))
        whole = anndata.AnnData(
            maker.matrix(n_obs, n_raw, counts=True),
            obs=pd.DataFrame(index=obs.index),
            var=genes,
            varm=maker.some("varm", 1, lambda: maker.along(n_raw, genes.index)),
        )
        adata.raw = whole
    return adata


def written(
    adata: anndata.AnnData,
    write: Callable[[anndata.AnnData], None],
    store: Callable[[], Any],
) -> list[str]:
    """Write an AnnData without the elements that this release refuses, and return their names.

    Parameters
    ----------
    write
        Raises where anndata does not write it.
    store
        Makes an empty group, of a file or a store, to try elements in.
    """
    removed: list[str] = []

    def is_written(value: Any, key: str) -> bool:
        """Whether anndata writes a value under a key, and reads it again."""
        try:
            group = store()
            anndata.io.write_elem(group, key, value)
            anndata.io.read_elem(group[key])
        except Exception:  # noqa: BLE001 - files cannot have such elements
            return False
        return True

    for mapping in ("obsm", "varm", "obsp", "varp", "layers"):
        holder = getattr(adata, mapping)
        for key in [key for key in holder if key is not None]:
            if not is_written(holder[key], key):
                del holder[key]
                removed.append(f"{mapping}/{key}")
    _prune(adata.uns, "uns", removed, is_written)
    for name in ("obs", "var"):
        frame = getattr(adata, name)
        for column in list(frame):
            if not is_written(frame[[column]], "frame"):
                del frame[column]
                removed.append(f"{name}/{column}")
    if adata.raw is not None:
        for key in [key for key in adata.raw.varm if not is_written(adata.raw.varm[key], key)]:
            del adata.raw.varm[key]
            removed.append(f"raw/varm/{key}")
    write(adata)
    return removed


def _prune(
    mapping: Any, path: str, removed: list[str], is_written: Callable[[Any, str], bool]
) -> None:
    for key in list(mapping):
        if isinstance(mapping[key], Mapping):
            _prune(mapping[key], f"{path}/{key}", removed, is_written)
        if not is_written(mapping[key], key):
            del mapping[key]
            removed.append(f"{path}/{key}")
