"""Lets Markdown that also reads well in the repository be pages of the site."""

import inspect
import re
from pathlib import PurePosixPath
from typing import Any

from sphinx.application import Sphinx

#: Files outside of docs/ that pages link to, and the page of the site instead.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "storage_backends/base.py": "api/backends.md",
    "storage_backends/capabilities.py": "api/backends.md",
    "storage_backends/findings.py": "api/backends.md",
}
LINK = re.compile(r"\]\(((?:\.\./)+)([^)#\s]+)")
ANCHOR = re.compile(r'^<a id="([^"]+)"></a>$', re.MULTILINE)


def adapt(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make anchors labels, link to pages of the site, and list the pages beside a README."""
    up = "../" * (len(PurePosixPath(docname).parts) - 1)

    def link(found: re.Match[str]) -> str:
        page = PAGES.get(found[2])
        return f"]({up}{page}" if page and found[1] == f"../{up}" else found[0]

    source[0] = ANCHOR.sub(r"(\1)=", LINK.sub(link, source[0]))
    if docname.endswith("/README"):
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"


def is_foreign(
    app: Sphinx, what: str, name: str, member: object, skip: bool, options: object
) -> bool | None:
    """Leave out what classes inherit from other packages."""
    member = getattr(member, "fget", member)
    if not callable(member):
        return None
    home = getattr(member, "__objclass__", inspect.unwrap(member))
    own = str(home.__module__).partition(".")[0] in ("scdl", "storage_backends")
    return None if own else True


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("source-read", adapt)
    app.connect("autodoc-skip-member", is_foreign)
    return {"parallel_read_safe": True}
