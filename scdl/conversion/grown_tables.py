"""Tables in obsm that get the rows of further cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from scdl.archive.frames import frame_of
from scdl.archive.tables import row_names
from scdl.conversion.tables import United
from scdl.errors import SourceError
from scdl.sources.anndata_object import storable
from scdl.sources.base import Source


class Joined(NamedTuple):
    """A table with the rows of others.

    Attributes
    ----------
    frame
        The data frame.
    changes
        Columns whose values were converted.
    lost
        Columns of the others that archives do not store.
    """

    frame: Any
    changes: Sequence[str]
    lost: Sequence[str]


def joined_table(name: str, table: Any, sources: Sequence[Source], path: str) -> Joined:
    """A table of an archive with the rows of those of sources; columns are united as those of obs.

    Parameters
    ----------
    name
        Name of the element, such as ``obsm/scores``.
    table
        The data frame of the archive.
    path
        Path of the archive, for messages.

    Raises
    ------
    SourceError
        A source has something other than a table of its cells, or a column of the archive cannot
        get rows.
    """
    own, others = storable(name, table)
    if others:
        raise SourceError(
            f"{path}: {', '.join(others)}: columns of this kind cannot get rows; convert the "
            "archive to another one without them"
        )
    parts, lost = [own], list[str]()
    for source in sources:
        where, found = f"{source.path}: ", cast("Any", source.element_of_rest(name))
        if not hasattr(found, "columns"):
            raise SourceError(
                f"{where}{name} is a table in {path}, but not here; make it a data frame"
            )
        if list(found.index) != row_names(source.obs):
            raise SourceError(
                f"{where}{name} is a table whose row names differ from those of obs; correct the "
                "source"
            )
        columns, others = storable(name, found)
        parts.append(columns)
        lost += others
    united = United(parts)
    changes = united.warn(path, name)
    return Joined(frame_of(united.reader().read_all()), changes, lost)
