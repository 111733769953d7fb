"""The rule that tells what bounds a loader."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdl.training.bounds import Kind, Machine, Measurement, bound_of, sentence

MACHINE = Machine(cores=8, copy_rate=5e9, plain_rate=1e9, latency=None)
REMOTE = replace(MACHINE, plain_rate=None, latency=0.05)
#: Ten seconds in which nothing was waited for.
NOTHING = Measurement(
    order="block",
    layout="csr",
    cells=1_000_000,
    seconds=10.0,
    first_batch=0.1,
    wait_share=0.9,
    cpu_seconds=10.0,
    decoding_seconds=0.0,
    usable_cores=8,
    asked_bytes=6_000.0,
    needed_bytes=6_000.0,
    read_bytes=0.0,
)
CHUNKS: dict[str, Any] = {"cpu_seconds": 75.0, "decoding_seconds": 60.0}
FROM_DISK: dict[str, Any] = {"read_bytes": 6_000.0}
REQUESTS: dict[str, Any] = {
    "read_bytes": 6_000.0,
    "requests": 600,
    "request_seconds": 36.0,
    "busy_seconds": 9.0,
    "in_flight_bytes": 4_000_000,
}

CASES: list[tuple[str, dict[str, Any], Machine, Kind, str]] = [
    ("few threads", {"usable_cores": 2, "cpu_seconds": 19.0}, MACHINE, "assembling", "threads= up"),
    ("all cores", {"cpu_seconds": 76.0}, MACHINE, "assembling", "batch_size"),
    ("dense", {"cpu_seconds": 76.0, "layout": "dense"}, MACHINE, "assembling", 'layout="csr"'),
    ("neither disk nor cores", {}, MACHINE, "assembling", "batch_size"),
    (
        "cores that others use",
        {"cpu_seconds": 30.0, "queued_seconds": 40.0} | FROM_DISK,
        MACHINE,
        "assembling",
        "more cores",
    ),
    ("chunks", CHUNKS, MACHINE, "decoding", "decodes faster"),
    ("chunks, cores that others use", CHUNKS | {"cpu_seconds": 9.0, "decoding_seconds": 8.0,
     "queued_seconds": 60.0}, MACHINE, "decoding", "decodes faster"),
    ("a full disk and busy cores", {"read_bytes": 8_500.0, "cpu_seconds": 57.0}, MACHINE, "disk",
     "compressed more"),
    ("chunks from disk in time", CHUNKS | FROM_DISK, MACHINE, "decoding", "decodes faster"),
    ("chunks for few cells", CHUNKS | {"asked_bytes": 20_000.0}, MACHINE, "memory", "memory_mb="),
    (
        "chunks for single cells",
        CHUNKS | {"asked_bytes": 90_000.0, "order": "random"},
        MACHINE,
        "decoding",
        'order="block"',
    ),
    ("a full disk", FROM_DISK, MACHINE, "disk", "compressed more"),
    ("a full disk, mostly cached", {"read_bytes": 600.0}, replace(MACHINE, plain_rate=9e7), "disk",
     "compressed more"),
    ("a little from disk", {"read_bytes": 600.0}, MACHINE, "assembling", "batch_size"),
    ("small blocks", FROM_DISK | {"cells": 100_000}, MACHINE, "disk", "memory_mb="),
    ("blocks within pages", {"read_bytes": 12_000.0, "cells": 100_000}, MACHINE, "memory",
     "memory_mb="),
    ("single cells", FROM_DISK | {"cells": 9_000, "order": "random"}, MACHINE, "disk",
     'order="block"'),
    ("a disk in order", FROM_DISK | {"cells": 9_000, "order": "sequential"}, MACHINE, "disk",
     "compressed more"),
    ("no plain reading", FROM_DISK, replace(MACHINE, plain_rate=None), "disk", "compressed"),
    ("far away", REQUESTS, REMOTE, "latency", "memory_mb="),
    ("a slow line", REQUESTS | {"request_seconds": 600.0}, REMOTE, "bandwidth", "nearer"),
    ("unknown latency", REQUESTS, replace(REMOTE, latency=None), "bandwidth", "nearer"),
    ("far away, small buffers", REQUESTS | {"read_bytes": 15_000.0}, REMOTE, "memory",
     "memory_mb="),
    (
        "far away, single cells",
        REQUESTS | {"read_bytes": 90_000.0, "order": "random"},
        REMOTE,
        "latency",
        'order="block"',
    ),
    ("remote chunks", REQUESTS | CHUNKS, REMOTE, "decoding", "decodes faster"),
    ("a network that waits", REQUESTS | {"busy_seconds": 2.0, "decoding_seconds": 9.0}, REMOTE,
     "decoding", "decodes faster"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("measured", "machine", "kind", "advice"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_each_bound(measured: dict[str, Any], machine: Machine, kind: Kind, advice: str) -> None:
    found = bound_of(replace(NOTHING, **measured), machine)
    assert found.kind == kind, found
    assert advice in found.advice


def test_every_kind_has_a_case() -> None:
    assert {case[3] for case in CASES} == set(get_args(Kind))


def _amount(most: float) -> st.SearchStrategy[float]:
    return st.floats(0, most, allow_nan=False)


MEASUREMENTS = st.builds(
    Measurement,
    order=st.sampled_from(["block", "random", "sequential"]),
    layout=st.sampled_from(["csr", "dense", "padded"]),
    cells=st.integers(1, 10**9),
    seconds=st.floats(1e-3, 1e4),
    first_batch=_amount(1e3),
    wait_share=_amount(1),
    cpu_seconds=_amount(1e5),
    decoding_seconds=_amount(1e5),
    queued_seconds=_amount(1e5),
    usable_cores=st.integers(1, 256),
    asked_bytes=st.none() | _amount(1e9),
    needed_bytes=st.none() | _amount(1e6),
    read_bytes=st.none() | _amount(1e9),
    requests=st.integers(0, 10**6),
    request_seconds=_amount(1e6),
    busy_seconds=_amount(1e4),
)
MACHINES = st.builds(
    Machine,
    cores=st.integers(1, 256),
    copy_rate=st.floats(1e6, 1e12),
    plain_rate=st.none() | st.floats(1e3, 1e11),
    latency=st.none() | st.floats(1e-6, 10),
)


@given(MEASUREMENTS, MACHINES)
def test_one_sentence_of_whatever_was_measured(measured: Measurement, machine: Machine) -> None:
    text = sentence(measured, machine)
    assert text.endswith(" would help.")
    assert "\n" not in text
    assert ". " not in text
    for wrong in ("nan", "inf", "None"):
        assert wrong not in text


@given(MEASUREMENTS, MACHINES, st.sampled_from([2, 4, 1024]))
def test_measuring_longer_changes_nothing(
    measured: Measurement, machine: Machine, times: int
) -> None:
    totals = ("cells", "seconds", "cpu_seconds", "decoding_seconds", "queued_seconds", "requests",
              "request_seconds", "busy_seconds")  # fmt: skip
    longer = replace(measured, **{name: getattr(measured, name) * times for name in totals})
    assert bound_of(longer, machine)[::2] == bound_of(measured, machine)[::2]


@given(MEASUREMENTS, MACHINES)
def test_a_network_bounds_only_what_is_remote(measured: Measurement, machine: Machine) -> None:
    kind = bound_of(replace(measured, requests=0), machine).kind
    assert kind not in ("latency", "bandwidth")
    remote = replace(measured, requests=max(measured.requests, 1))
    assert bound_of(remote, machine).kind != "disk"
