"""The reference of the site has every public name, and each has an example that runs."""

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

pytest.importorskip("torch")
pytest.importorskip("lightning")

import documented_cells
import reference

import scdl

LISTED = {name: reference.public(name) for name in reference.listed()}
PUBLIC_MODULES = [
    "scdl",
    "scdl.lightning",
    "scdl.training.loader",
    "storage_backends.base",
    "storage_backends.errors",
    "storage_backends.testing",
]


def documented() -> Iterator[tuple[str, Any]]:
    """What needs an example: what is listed, and the methods of what `scdl` has."""
    seen = set()
    for name, value in LISTED.items():
        yield name, value
        if inspect.isclass(value) and value.__name__ in scdl.__all__:
            for method, member in reference.methods(value):
                function = inspect.unwrap(getattr(member, "__func__", member))
                if function not in seen:
                    seen.add(function)
                    yield f"{name}.{method}", function


DOCUMENTED = dict(documented())


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_public_names_are_listed(module: str) -> None:
    found = importlib.import_module(module)
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    # The page of errors has all that scdl.errors has.
    known = [*LISTED.values(), *vars(scdl.errors).values()]
    missing = [
        name
        for name in found.__all__
        if not any(getattr(found, name) is value for value in known)
        and f"`{module}.{name}`" not in pages
    ]
    assert missing == []


def test_errors_have_descriptions() -> None:
    classes = [value for value in vars(scdl.errors).values() if inspect.isclass(value)]
    assert len(classes) > 30
    assert all(value.__doc__ for value in classes)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A directory with the files of the examples, and the names that they use."""
    directory = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        return directory, documented_cells.documented_cells()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_example_runs(
    name: str, names: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = inspect.getdoc(DOCUMENTED[name]) or ""
    assert "\nExamples\n--------\n" in text, f"{name} has no example"
    monkeypatch.chdir(names[0])
    test = doctest.DocTestParser().get_doctest(text, dict(names[1]), name, None, None)
    assert test.examples
    assert not any(doctest.SKIP in example.options for example in test.examples)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test, out=said.append).failed == 0, "".join(said)
