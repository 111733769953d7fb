"""A column of every kind that pandas has, and of one that archives no longer take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

N = 6
COLUMNS: dict[str, Any] = {
    "floats": np.array([0.5, np.nan, -1, np.inf, 0, 1e300]),
    "float32": np.arange(N, dtype="f4") / 3,
    "ints": np.array([-(2**40), 0, 1, 2, 3, 2**40]),
    "int8": np.arange(N, dtype="i1"),
    "uint16": np.arange(N, dtype="u2"),
    "uint64": np.arange(N, dtype="u8") + np.uint64(2**63),
    "bools": np.array([True, False, True, True, False, False]),
    "categories": pd.Categorical(list("abcabc")),
    "unused categories": pd.Categorical(list("ababab"), categories=list("zyxba")),
    "ordered": pd.Categorical(list("lmhlmh"), categories=list("lmh"), ordered=True),
    "categories with nulls": pd.Categorical(["a", None, "b", None, "a", "a"]),
    "no categories": pd.Categorical([None] * N, categories=pd.Index([], dtype=object)),
    "numeric categories": pd.Categorical([3, 1, 3, 1, 3, 1]),
    "boolean categories": pd.Categorical([True, False] * 3),
    "nullable ints": pd.array([1, None, 3, None, 2**60, -1], dtype="Int64"),
    "nullable uint8": pd.array([1, None, 3, None, 255, 0], dtype="UInt8"),
    "nullable bools": pd.array([True, None, False, None, True, True], dtype="boolean"),
    "strings": np.array(["a", "", "ccc", "ä", "日本", "a\nb"], dtype=object),
    "strings with nulls": pd.array(["a", None, "", "b", None, "c"], dtype="string"),
}


def with_times(archive: Path, table: str) -> None:
    """Give a memmap archive a column `time`, as releases wrote that took every type of Arrow."""
    (file,) = (archive / f"{table}_features").glob("*.parquet")
    columns = pq.read_table(file)
    times = pa.array(np.arange(len(columns)), pa.timestamp("ns"))
    pq.write_table(columns.append_column("time", times), file)
