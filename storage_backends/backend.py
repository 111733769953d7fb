"""How a storage backend is announced."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage_backends.base import ArrayStore, ArrayWriter


@dataclass(frozen=True)
class Backend:
    """A storage backend, as the registry and third parties' entry points announce it.

    Parameters
    ----------
    name
        What ``backend=`` calls it.
    store_class, writer_class
        Its classes, or where they are (``module:name``), to be imported on first use.
    options
        Keywords of ``writer.open`` besides `replace`, which conversions pass on.
    suffix
        End of a path that asks for this backend where none is named.
    markers
        Files of which one stands in the directory of every archive.
    elsewhere
        Whether an archive is at a path that is no directory, such as a URL; cheap, never raises.
    """

    name: str
    store_class: type[ArrayStore] | str
    writer_class: type[ArrayWriter] | str
    options: tuple[str, ...] = ()
    suffix: str | None = None
    markers: tuple[str, ...] = ()
    elsewhere: Callable[[str], bool] | None = None

    @property
    def store(self) -> type[ArrayStore]:
        """Opens archives."""
        found: type[ArrayStore] = _imported(self.store_class)
        return found

    @property
    def writer(self) -> type[ArrayWriter]:
        """Writes archives."""
        found: type[ArrayWriter] = _imported(self.writer_class)
        return found

    def detect(self, path: str) -> bool:
        """Whether what stands at a path looks like this backend's."""
        if any(os.path.isfile(os.path.join(path, name)) for name in self.markers):
            return True
        return self.elsewhere is not None and self.elsewhere(path)


def _imported(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    module, _, name = given.partition(":")
    return getattr(import_module(module), name)
