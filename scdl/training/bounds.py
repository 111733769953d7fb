"""What bounds the rate of a loader: a rule over measured numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

#: What a loader may wait for.
Kind = Literal["assembling", "decoding", "disk", "latency", "bandwidth", "memory"]

#: Share of the usable cores above which these are the bound, whatever else is under way.
BUSY = 0.7
#: Threads in the queue for a core that are worth telling.
QUEUED = 0.2
#: Share of the time with requests under way above which a network is the bound.
NETWORK_BUSY = 0.5
#: Share of the asked bytes that comes from the disk above which the page cache is of little help.
FROM_DISK = 0.5
#: Share of the rate of plain reading above which the disk gives what it can.
DISK_FULL = 0.6
#: How many times longer than a small request others take if the bandwidth is the bound.
SLOWED = 2.0
#: How many times more bytes than needed are a waste.
WASTE = 1.5


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the machine can do, to compare loaders with.

    Parameters
    ----------
    cores
        Cores that this process may use.
    copy_rate
        Bytes per second that one thread copies in memory.
    plain_rate
        Bytes per second of large reads of the archive's files in several threads, past the page
        cache; None if unknown.
    latency
        Mean seconds of the small requests of opening an archive; None for local archives.
    """

    cores: int
    copy_rate: float
    plain_rate: float | None = None
    latency: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How an order and a layout were loaded.

    Parameters
    ----------
    order, layout
        Options of the loader.
    cells, seconds
        Cells loaded, and how long that took, with the first batches of epochs.
    first_batch
        Seconds from the creation of the loader to the first batch.
    wait_share
        Share of the time in which the consumer, which does nothing else, waited.
    cpu_seconds, queued_seconds
        Time of all threads of the process on a core, and their time in the queue for one, in which
        other threads and processes had it; 0 if unknown.
    decoding_seconds
        The part of it that reading the same bytes takes alone, for archives that are stored in
        chunks; 0 for others.
    usable_cores
        Cores that the loader can keep busy: `threads`, or all if chunks are decoded.
    asked_bytes, needed_bytes
        Bytes of the storage per cell: of what was asked for, and of what is asked for consecutive
        cells. None if the backend does not tell.
    read_bytes
        Bytes read per cell from the disk, or received from a remote storage; None if unknown.
    requests, request_seconds, busy_seconds
        Number of requests, the sum of their durations, and the time with at least one under way.
    in_flight_bytes
        Most bytes that were requested at once.
    memory_bytes
        Peak of anonymous memory over that before; None if unknown.
    entropy_share
        Mean label entropy of the batches over that of random order; None if not asked for.

    Examples
    --------
    >>> from scdl.training.measurement import Options, measure
    >>> measured = next(measure(data, ["random"], options=Options(seconds=0.01)))
    >>> measured.order, measured.layout
    ('random', 'csr')
    """

    order: str
    layout: str
    cells: int
    seconds: float
    first_batch: float
    wait_share: float
    cpu_seconds: float
    decoding_seconds: float
    usable_cores: int
    queued_seconds: float = 0.0
    asked_bytes: float | None = None
    needed_bytes: float | None = None
    read_bytes: float | None = None
    requests: int = 0
    request_seconds: float = 0.0
    busy_seconds: float = 0.0
    in_flight_bytes: int = 0
    memory_bytes: int | None = None
    entropy_share: float | None = None

    @property
    def cells_per_second(self) -> float:
        """Cells per second."""
        return self.cells / self.seconds

    @property
    def read_amplification(self) -> float | None:
        """Bytes read over bytes asked for."""
        if self.read_bytes is None or not self.asked_bytes:
            return None
        return self.read_bytes / self.asked_bytes

    @property
    def busy_cores(self) -> float:
        """Cores that were busy with it on average."""
        return self.cpu_seconds / self.seconds

    @property
    def queued_threads(self) -> float:
        """Threads that waited for a core on average."""
        return self.queued_seconds / self.seconds

    @property
    def read_rate(self) -> float:
        """Bytes read per second; 0 if unknown."""
        return (self.read_bytes or 0.0) * self.cells_per_second


class Bound(NamedTuple):
    """What bounds a loader.

    Attributes
    ----------
    kind
        ``"assembling"`` or ``"decoding"``, by the processor; ``"disk"``; ``"latency"`` or
        ``"bandwidth"`` of a network; ``"memory"``, of which more would make another bound cheaper.
    reason, advice
        The figures that say so, and what would help.
    """

    kind: Kind
    reason: str
    advice: str


def bound_of(measured: Measurement, machine: Machine) -> Bound:
    """Tell what bounds a loader, and what would help.

    A disk is the bound if it gives bytes about as fast as it can, and is closer to its limit than
    the cores to theirs. If the usable cores are busy, they are the bound: chunks are decoded, or
    batches assembled. Otherwise the loader waits: for a network, if requests were under way most of
    the time, or for a disk, if that gave most of the bytes. If many more bytes are
    decoded or read than the cells need, the order is the cause: in block order, blocks that are too
    small for the storage, which follow from the memory budget.
    """
    found = _by_processor(measured, machine)
    busy = (measured.busy_cores + measured.queued_threads) / measured.usable_cores
    if not measured.requests and _disk_share(measured, machine) / DISK_FULL >= max(1, busy / BUSY):
        found = _by_disk(measured, machine)
    elif busy < BUSY:
        if measured.requests and measured.busy_seconds >= NETWORK_BUSY * measured.seconds:
            found = _by_network(measured, machine)
        elif not measured.requests and (measured.read_amplification or 0.0) >= FROM_DISK:
            found = _by_disk(measured, machine)
    times = _times_needed(measured, found.kind)
    if times < WASTE or measured.order == "sequential":
        return found
    reason = f"{found.reason}, for {times:.1f} times the bytes of the cells"
    if measured.order == "block":
        return Bound("memory", reason, "a larger memory_mb=, for larger blocks,")
    return Bound(found.kind, reason, 'order="block"')


def _times_needed(measured: Measurement, kind: Kind) -> float:
    """What is decoded or read over what the cells need; 1 if unknown, or if it does not matter."""
    if not measured.needed_bytes or kind == "assembling":
        return 1.0
    asked, read = measured.asked_bytes or 0.0, measured.read_bytes or 0.0
    # Chunks that several buffers ask for may be decoded often, and received once.
    moved = {"decoding": asked, "disk": max(asked, read)}.get(kind, read)
    # A cell without values needs next to nothing.
    return moved / max(measured.needed_bytes, 1.0)


def _disk_share(measured: Measurement, machine: Machine) -> float:
    """Share of what plain reading gives; 0 if unknown."""
    return measured.read_rate / machine.plain_rate if machine.plain_rate else 0.0


def _by_processor(measured: Measurement, machine: Machine) -> Bound:
    cores = f"{measured.busy_cores:.1f} of {measured.usable_cores} cores were busy"
    if measured.queued_threads >= QUEUED:
        cores += f" and {measured.queued_threads:.1f} threads waited for a core"
    decoding = measured.decoding_seconds / max(measured.cpu_seconds, 1e-9)
    if decoding >= 0.5:
        reason = f"{cores}, {min(decoding, 1.0):.0%} of that with reading chunks"
        return Bound("decoding", reason, "a compression that decodes faster or more cores")
    if measured.usable_cores < machine.cores:
        return Bound("assembling", cores, f"threads= up to {machine.cores}")
    if measured.layout == "dense":
        return Bound("assembling", cores, 'layout="csr", made dense on the device')
    return Bound("assembling", cores, "a larger batch_size or more cores")


def _by_network(measured: Measurement, machine: Machine) -> Bound:
    mean = measured.request_seconds / measured.requests
    at_once = measured.request_seconds / max(measured.busy_seconds, 1e-9)
    reason = f"{at_once:,.1f} requests at once gave {_rate(measured.read_rate)}, after "
    reason += f"{mean * 1e3:,.0f} ms each"
    if machine.latency is not None:
        reason += f" where a small one takes {machine.latency * 1e3:,.0f} ms"
        if mean < SLOWED * machine.latency:
            return Bound("latency", reason, "a larger memory_mb=, to request more at once,")
    return Bound("bandwidth", reason, "a copy that is nearer or compressed more")


def _by_disk(measured: Measurement, machine: Machine) -> Bound:
    reason = f"{_rate(measured.read_rate)} came from it"
    if machine.plain_rate is None:
        return Bound("disk", reason, "a compressed archive or memory for the page cache")
    share = _disk_share(measured, machine)
    reason += f", {share:.0%} of what plain reading of large parts gives"
    if share >= DISK_FULL or measured.order == "sequential":
        return Bound("disk", reason, "an archive compressed more or memory for the page cache")
    if measured.order == "block":
        return Bound("disk", reason, "a larger memory_mb=, for larger blocks,")
    return Bound("disk", reason, 'order="block"')


def _rate(rate: float) -> str:
    return f"{rate / 1e6:,.0f} MB/s"


_NAMES: dict[Kind, str] = {
    "assembling": "assembling of batches",
    "decoding": "decoding of chunks",
    "disk": "disk",
    "latency": "latency of the network",
    "bandwidth": "bandwidth of the network",
    "memory": "memory budget",
}


def sentence(measured: Measurement, machine: Machine) -> str:
    """One sentence: what bounds the loader, why, and what would help."""
    kind, reason, advice = bound_of(measured, machine)
    loaded = f"Order {measured.order}, layout {measured.layout}"
    return f"{loaded}: the {_NAMES[kind]} is the bound, as {reason}; {advice} would help."
