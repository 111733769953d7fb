"""Whether what a writer was given is an archive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage_backends.base import ArraySpec
from storage_backends.errors import OutputError

_MATRIX = ("data", "indices", "indptr")


def check_complete(
    path: str,
    specs: Mapping[str, ArraySpec],
    last_offset: int | None,
    table_rows: Mapping[str, int],
    attrs: Mapping[str, Any],
) -> tuple[int, int]:
    """Cells and stored values; OutputError where arrays, tables and attributes disagree.

    Parameters
    ----------
    last_offset
        The last number of ``indptr``.
    """
    missing = [name for name in _MATRIX if name not in specs]
    if missing:
        raise OutputError(f"{path}: cannot commit: {', '.join(missing)} not written")
    lengths = {name: specs[name].length for name in _MATRIX}
    n_obs, nnz = lengths["indptr"] - 1, lengths["data"]
    stops = [block["stop"] for block in attrs.get("blocks", [])]
    tables = [f"var/{i}" for i in range(len(stops))]
    rows = {name: n for name, n in table_rows.items() if name != "obs"}
    if n_obs < 0 or not last_offset == nnz == lengths["indices"]:
        problem = (
            f"offsets end at {last_offset}, with {nnz} values and {lengths['indices']} column ids"
        )
    elif not stops or stops[-1] != n_obs:
        problem = f"blocks end at {stops}, with {n_obs} cells"
    elif sorted(rows) != sorted(tables):
        problem = f"blocks need the tables {tables}, written were {sorted(rows)}"
    elif [rows[table] for table in tables] != [b["n_vars"] for b in attrs["blocks"]]:
        problem = f"var tables have {rows} rows, the blocks say {attrs['blocks']}"
    elif table_rows.get("obs", n_obs) != n_obs:
        problem = f"obs has {table_rows['obs']} rows, with {n_obs} cells"
    else:
        return n_obs, nnz
    raise OutputError(f"{path}: cannot commit: {problem}")
