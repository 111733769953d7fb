"""``scdl bench``."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scdl.cli.output import Json, Quiet, Verbose, show
from scdl.errors import MissingCodecError
from storage_backends.paths import path_of

if TYPE_CHECKING:
    from scdl.training.bounds import Machine, Measurement


def bench(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An archive, a collection or a URL.")],
    order: Annotated[
        list[str] | None,
        typer.Option(
            help="Order to measure; may be repeated. [default: block, random and sequential]"
        ),
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(help="Layout of batches to measure; may be repeated. [default: csr]"),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Measure the layouts csr, dense and padded.")
    ] = False,
    seconds: Annotated[
        float,
        typer.Option(min=0.01, help="Least seconds of each measurement; epochs are repeated."),
    ] = 3.0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Cells per batch. [default: 64, or all cells if fewer]"),
    ] = None,
    memory_mb: Annotated[
        float, typer.Option(help="Megabytes for cells, as for the loader.")
    ] = 256.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads, as for the loader.")] = 2,
    obs: Annotated[
        str | None,
        typer.Option(help="Column of obs: compare its entropy in batches with random order."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure how fast an archive or a collection is loaded on this machine.

    For each order and layout: cells per second, the first batch, the bytes that are read, memory,
    and in one sentence what the bound is and what would help. Nothing is written.
    """
    if everything and layout:
        raise typer.BadParameter("--all measures all layouts; leave out --layout")
    path = path_of(path)
    try:
        from scdl.training import measurement
    except ModuleNotFoundError as error:
        raise MissingCodecError(
            f"measuring a loader needs {error.name}, which is not installed; "
            'pip install "scdl-store[torch]"'
        ) from error
    import scdl
    from scdl.training.measurement import ALL_LAYOUTS, ORDERS, Options
    from storage_backends.compute.traffic import TRAFFIC

    options = Options(
        seconds=seconds, batch_size=batch_size, memory_mb=memory_mb, threads=threads, obs=obs
    )
    layouts = ALL_LAYOUTS if everything else layout or ("csr",)
    before = TRAFFIC.counts()
    data = scdl.open(path)
    opening = TRAFFIC.counts().since(before)
    found = list(measurement.measure(data, order or ORDERS, layouts, options))
    machine = measurement.machine_of(path, opening)
    if as_json:
        show(_as_json(path, machine, found), quiet=quiet, as_json=as_json)
    elif not quiet:
        _print(machine, found)


def _as_json(path: str, machine: Machine, found: list[Measurement]) -> dict[str, Any]:
    from scdl.training.bounds import bound_of, sentence

    return {
        "path": path,
        "machine": dataclasses.asdict(machine),
        "measurements": [
            dataclasses.asdict(one)
            | {
                "cells_per_second": one.cells_per_second,
                "read_amplification": one.read_amplification,
                "bound": bound_of(one, machine).kind,
                "sentence": sentence(one, machine),
            }
            for one in found
        ],
    }


def _print(machine: Machine, found: list[Measurement]) -> None:
    from rich.console import Console
    from rich.table import Table

    from scdl.training.bounds import sentence

    table = Table(box=None, pad_edge=False)
    table.add_column("order")
    table.add_column("layout")
    numbers = ["cells/s", "first batch", "waiting", "needed", "asked", "read", "memory"]
    if any(one.entropy_share is not None for one in found):
        numbers.append("entropy")
    for name in numbers:
        table.add_column(name, justify="right")
    for one in found:
        cells = [
            f"{one.cells_per_second:,.0f}",
            f"{one.first_batch:.3f} s",
            f"{one.wait_share:.0%}",
            _number(one.needed_bytes, "{:,.0f} B"),
            _number(one.asked_bytes, "{:,.0f} B"),
            _number(one.read_bytes, "{:,.0f} B"),
            _number(one.memory_bytes, "{:,.0f} MB", 1e-6),
            _number(one.entropy_share, "{:.3f}"),
        ]
        table.add_row(one.order, one.layout, *cells[: len(numbers)])
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(table)
    rates = [f"copies {machine.copy_rate / 1e9:,.1f} GB/s in one thread"]
    if machine.plain_rate is not None:
        rates.append(f"reads the files with {machine.plain_rate / 1e6:,.0f} MB/s from disk")
    if machine.latency is not None:
        rates.append(f"waits {machine.latency * 1e3:,.0f} ms for a small request")
    console.print(f"\nThis machine has {machine.cores} cores, {', '.join(rates)}.")
    for one in found:
        console.print(f"\n{sentence(one, machine)}", soft_wrap=True, markup=False)


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "–" if value is None else form.format(value * factor)
