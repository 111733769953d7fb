"""Opening the sources of a conversion, with everything that is chosen or joined."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from scdl.conversion.choice import Choice
from scdl.conversion.options import Settings, bounds_of, layers_of
from scdl.sources.base import Source
from scdl.sources.beside import Beside
from scdl.sources.formats import open_source


def open_sources(
    opening: Sequence[Any], settings: Settings, target: str, stack: ExitStack
) -> list[Source]:
    """Open what is chosen of paths and objects until the stack closes, labelled if asked for.

    Temporary files are created next to the path `target`.
    """
    options = settings.options
    numbers, sources = list[int](), list[Source]()
    tables = Beside(options.get("obs"), options.get("var"))
    layers = layers_of(options.get("layers"))
    for number, one in enumerate(opening):
        found = open_source(one, options.get("matrix"), stack, options)
        if layers is not None:
            others = {
                name: open_source(one, matrix, stack, options) for name, matrix in layers.items()
            }
            for i, source in enumerate(found):
                source.take_fields({name: several[i] for name, several in others.items()})
        sources += map(tables.joined, found)
        numbers += [number] * len(found)
    if (choice := Choice.of(options)) is not None:
        sources = choice.applied(sources, bounds_of(options, target))
    if settings.origins is not None:
        for number, source in zip(numbers, sources, strict=True):
            source.labelled = settings.origins.labelled(source.cells, number, source.path)
    return sources
