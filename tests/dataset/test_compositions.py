"""Selections of genes of selections of genes; many more: make compositions."""

from __future__ import annotations

import pytest
from budget import examples

from benchmarks.compositions import cases as compositions
from benchmarks.compositions.command import main


@pytest.mark.parametrize("kind", compositions.KINDS)
def test_compositions_are_those_of_anndata(kind: str) -> None:
    assert list(compositions.run(examples(300), kind, seed=1)) == []


def test_the_number_of_findings_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cases", "2"]) == 0
    assert "memmap: 2 cases" in capsys.readouterr().out
