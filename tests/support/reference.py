"""The public names, as the reference of the site lists them."""

import inspect
import re
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any

from places import ROOT

OURS = ("scdl", "storage_backends")
DIRECTIVE = re.compile(r"\.\. (?:module|currentmodule):: (\S+)|^   (\w[\w.]*)$", re.MULTILINE)


def listed() -> list[str]:
    """Full names in the lists of the reference."""
    names = []
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        package = ""
        for module, name in DIRECTIVE.findall(page.read_text()):
            package = module or package
            if name:
                names.append(f"{package}.{name}")
    return names


def public(name: str) -> Any:
    """What a full name stands for."""
    package, _, inner = name.partition(".")
    return resolve_name(f"{package}:{inner}") if inner.count(".") == 0 else resolve_name(name)


def methods(owner: type) -> Iterator[tuple[str, Any]]:
    """Public methods of a class that are ours, by name, inherited ones too."""
    for name, member in inspect.getmembers(owner):
        if name.startswith("_") or not (inspect.isfunction(member) or inspect.ismethod(member)):
            continue
        is_internal = ":meta private:" in (member.__doc__ or "")
        if member.__module__.partition(".")[0] in OURS and not is_internal:
            yield name, member
