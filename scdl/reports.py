"""Reports of what was done, which are printed as text or as JSON."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from typing import Any


class Report:
    """Base class of reports, which are dataclasses; ``str()`` is their text."""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as types that JSON has; members of enumerations by their name.

        Examples
        --------
        >>> scdl.convert("cells.h5ad", "planned.scdl", dry_run=True).to_dict()["n_obs"]
        6
        """
        return _fields(self)

    def to_json(self) -> str:
        """The fields as a JSON document.

        Examples
        --------
        >>> import json
        >>> json.loads(data.verify().to_json())["verdict"]
        'sound'
        """
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)


def _fields(value: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value)]
    return {name: _plain(getattr(value, name)) for name in names}


def _plain(value: Any) -> Any:
    """A value as types that JSON has; numbers that it lacks become null."""
    if isinstance(value, Report):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        # NumPy's numbers and arrays.
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)
