"""Inputs that nobody wrote: each parser reads them or raises an ScdlError; the count: make fuzz."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from budget import examples
from hostile import bounded
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import command as fuzz
from benchmarks.fuzz import mutators, targets, workers
from benchmarks.fuzz.targets import TARGETS, Parser
from scdl.errors import ScdlError

pytestmark = pytest.mark.filterwarnings("ignore")

#: Examples of each, so that all together take seconds.
EXAMPLES = {"header": 2_000, "zarr-metadata": 100, "hdf5": 60, "parquet": 200}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return tmp_path_factory.mktemp


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_valid_is_read(name: str, tmp_path: Path) -> None:
    parse = TARGETS[name].parser(tmp_path)
    read = [workers.attempt(parse, data) for data in TARGETS[name].corpus(tmp_path)]
    assert read.count(None) >= len(read) - 3
    assert not any(read), "more than a refusal"


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_changed_is_read_or_refused(name: str, tmp_path: Path) -> None:
    parse = TARGETS[name].parser(tmp_path)
    corpus = TARGETS[name].corpus(tmp_path)

    @settings(max_examples=examples(EXAMPLES.get(name, 400)))
    @given(seed=st.integers(0, 1 << 20), number=st.integers(0, 1 << 30))
    def one(seed: int, number: int) -> None:
        assert not workers.attempt(parse, mutators.make(corpus, seed, number))

    with bounded(256, 120):
        one()


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=200))
@settings(max_examples=examples(30))
def test_any_bytes_are_read_or_refused(
    places: Callable[[str], Path], name: str, data: bytes
) -> None:
    parse = _parsers.get(name) or _parsers.setdefault(name, TARGETS[name].parser(places(name)))
    assert not workers.attempt(parse, data)


_parsers: dict[str, Parser] = {}


def test_inputs_are_functions_of_their_number() -> None:
    corpus = [b"abcdefgh" * 20, b'{"a": [1, 2, {"b": null}], "c": "d"}']
    made = [mutators.make(corpus, 1, number) for number in range(300)]
    assert made == [mutators.make(corpus, 1, number) for number in range(300)]
    assert made != [mutators.make(corpus, 2, number) for number in range(300)]
    assert len(set(made)) > 250


def _crash(data: bytes) -> None:
    faulthandler.disable()
    os.abort()


def _hang(data: bytes) -> None:
    time.sleep(3600)


def _memory(data: bytes) -> None:
    np.ones(1 << 26)


def _wrong(data: bytes) -> None:
    raise KeyError("not one of ours")


def _refuse(data: bytes) -> None:
    raise ScdlError("refused")


@pytest.mark.parametrize(
    ("bad", "said"),
    [(_crash, "crash: "), (_hang, "hang: "), (_memory, "memory: "), (_wrong, "KeyError: ")],
)
def test_what_kills_a_worker_is_found_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: Parser, said: str
) -> None:
    corpus = [b"0123456789"]
    numbers = {mutators.make(corpus, 0, number): number for number in range(40)}
    victim = mutators.make(corpus, 0, 23)

    def parser(place: Path) -> Parser:
        return lambda data: (bad if data == victim else _refuse)(data)

    target = targets.Target(parser, lambda place: corpus)
    monkeypatch.setitem(workers.TARGETS, "header", target)
    monkeypatch.setattr(workers, "HANG_SECONDS", 1.0 if bad is _hang else 20.0)
    run = workers.run("header", 40, 60, workers=2)
    assert (run.tried, run.refused) == (40, 39)
    (found,) = run.findings
    assert found.what.startswith(said)
    assert found.data == victim
    assert found.number in (numbers[victim], 23)
    assert fuzz.save(found, "header", tmp_path / "found").read_bytes() == victim


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--inputs", "50", "--workers", "2", "--found", str(tmp_path)]
    assert fuzz.main(["--only", "header", "npy", *options]) == 0
    told = capsys.readouterr().out
    assert told.count("50 inputs") == 2
    assert "0 findings" in told
