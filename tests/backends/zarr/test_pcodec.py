"""Compiled decoding of pcodec's files against the package that writes them."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_backends.directory.content import Content, checksum
from storage_backends.zarr.codecs import bit_lanes, blosc
from storage_backends.zarr.codecs import pcodec as _pcodec

pcodec = pytest.importorskip("pcodec")
standalone = pytest.importorskip("pcodec.standalone")

N = 700
KINDS = ["constant", "few", "counts", "rising", "any", "multiples", "wide"]


def numbers(kind: str, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = {
        "constant": lambda: np.full(n, rng.integers(65_536)),
        "few": lambda: rng.integers(0, 3, n),
        "counts": lambda: rng.negative_binomial(1, 0.4, n) + 1,
        "rising": lambda: np.sort(rng.integers(0, 65_536, n)),
        "any": lambda: rng.integers(0, 65_536, n),
        "multiples": lambda: rng.integers(0, 90, n) * 700,
        "wide": lambda: np.where(rng.random(n) < 0.01, 65_535, rng.integers(0, 2, n)),
    }[kind]()
    return made.astype(np.uint16)


def encoded(values: np.ndarray, order: int, level: int, mode: str = "classic") -> bytes:
    none = getattr(pcodec.DeltaSpec, "no_op", None) or pcodec.DeltaSpec.none
    config = pcodec.ChunkConfig(
        compression_level=level,
        mode_spec=getattr(pcodec.ModeSpec, mode)(),
        delta_spec=pcodec.DeltaSpec.try_consecutive(order) if order else none(),
        paging_spec=pcodec.PagingSpec.equal_pages_up_to(1 << 18),
    )
    data: bytes = standalone.simple_compress(values, config)
    return data


def content(files: list[bytes]) -> Content:
    """Files with their checksums, in memory that ends with the last of them."""
    owners = [np.frombuffer(data + checksum(data), np.uint8) for data in files]
    addresses = np.array([owner.ctypes.data for owner in owners], np.int64)
    return Content(addresses, np.array([len(owner) for owner in owners], np.int64), owners)


def problem(found: int) -> tuple[int, str] | None:
    """What a kernel found; SOUND and nothing where it decoded all."""
    return (blosc.SOUND, "") if found == blosc.SOUND else blosc.problem_at(found)


def decode(read: Content, out: np.ndarray) -> tuple[int, str] | None:
    return problem(_pcodec.decode(read, np.full(len(out), out.shape[1]), out))


def decoded(data: bytes, n: int) -> tuple[Any, np.ndarray]:
    """What the decoder says, and its output; nothing beside that may change."""
    guarded = np.full((3, n), 4_711, np.uint16)
    found = decode(content([data]), guarded[1:2])
    assert (guarded[[0, 2]] == 4_711).all()
    return found, guarded[1]


@given(
    st.sampled_from(KINDS),
    st.one_of(st.integers(1, 600), st.sampled_from([255, 256, 257, 512, 4_096, 16_384])),
    st.integers(0, 1),
    st.sampled_from([0, 4, 8, 12]),
    st.integers(0, 99),
)
def test_equals_the_package(kind: str, n: int, order: int, level: int, seed: int) -> None:
    values = numbers(kind, n, seed)
    found, out = decoded(encoded(values, order, level), n)
    if n == order:  # Without a difference there is nothing to decode.
        assert found is None
        return
    assert found == (blosc.SOUND, "")
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_what_is_not_known_is_left_to_the_package(kind: str, order: int) -> None:
    values = numbers(kind, N, 1)
    found, out = decoded(encoded(values, order, 8, "auto"), N)
    assert found in (None, (blosc.SOUND, ""))
    if found is not None:
        np.testing.assert_array_equal(out, values)


def test_other_variants_are_not_known() -> None:
    assert decoded(encoded(numbers("rising", N, 0), 2, 8), N)[0] is None
    assert decoded(encoded(numbers("multiples", N, 0), 0, 8, "auto"), N)[0] is None
    wide: bytes = standalone.simple_compress(np.arange(N), pcodec.ChunkConfig())
    assert decoded(wide, N)[0] is None
    assert decoded(b"no pcodec at all", N)[0] is None


@pytest.mark.parametrize("order", [0, 1])
def test_the_first_numbers_of_each_chunk(order: int) -> None:
    values = numbers("counts", 10 * N, 2).reshape(10, N)
    needed = np.linspace(1, N, 10).astype(np.int64)
    out = np.empty_like(values)
    read = content([encoded(chunk, order, 8) for chunk in values])
    assert problem(_pcodec.decode(read, needed, out)) == (blosc.SOUND, "")
    for n, found, expected in zip(needed, out, values, strict=True):
        np.testing.assert_array_equal(found[:n], expected[:n])


@given(st.sampled_from(["counts", "rising", "any"]), st.integers(0, 1), st.data())
def test_damage_is_found_or_harmless(kind: str, order: int, data: st.DataObject) -> None:
    """Bits are flipped before the checksum is taken: nothing tells but the content itself."""
    values = numbers(kind, 300, 3)
    damaged = bytearray(encoded(values, order, 8))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    found, _ = decoded(bytes(damaged[:cut]), 300)
    assert found is None or found[0] in (blosc.SOUND, 0)
    if cut < len(damaged) - 1:
        assert found is None or found[0] == 0


def test_a_wrong_checksum_is_found() -> None:
    data = encoded(numbers("counts", N, 4), 0, 8)
    read = content([data, data])
    flipped = np.frombuffer(bytearray(read.owners[1].tobytes()), np.uint8)
    flipped[20] ^= 1
    read.addresses[1] = flipped.ctypes.data
    out = np.empty((2, N), np.uint16)
    assert decode(read, out) == (1, "its checksum is wrong")


@pytest.mark.skipif(not bit_lanes.IS_KNOWN, reason="the processor has no AVX-512")
@pytest.mark.crossed
@pytest.mark.parametrize("skip", [0, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 255, 256])
def test_lanes_give_what_numbers_one_by_one_give(n: int, skip: int) -> None:
    rng = np.random.default_rng(n)
    for most_bits in (0, 1, 5, 16):
        n_bits = rng.integers(0, most_bits + 1, n, dtype="u4")
        # The lowest bits are for others.
        bins = rng.integers(0, 256, n, dtype="u4") | n_bits << 8
        bins |= rng.integers(0, 1 << 16, n, dtype="u4") << 16
        offsets = rng.integers(0, 256, 2 * n + bit_lanes.LOADED_BYTES, dtype="u1")
        begin = 8 * int(offsets.ctypes.data) + skip
        # One more may follow the differences of the last batch.
        for total in (n, n + 1):
            found = []
            for done in (0, n & -bit_lanes.LANES):
                out = np.full(total + 3, 7, np.uint16)
                target = int(out.ctypes.data) + 2
                position, moment = _pcodec.sum_up_in_lanes(
                    begin, bins, done, np.uint64(40_000), target
                )
                position, moment = _pcodec.sum_up(
                    position, bins, done, n, moment, out[: total + 1], 1
                )
                found.append((position, moment & 0xFFFF, out.tolist()))
            assert found[0] == found[1]
            assert found[0][0] == begin + int(n_bits.sum())
            ends = (out[0], *out[total + 1 :])
            assert ends == (7, 7, 7)
            assert total == n or n == 256 or found[0][2][total] == found[0][1]
        found = []
        for done in (0, n & -bit_lanes.LANES):
            out = np.full(n + 2, 7, np.uint16)
            target = int(out.ctypes.data) + 2
            position = _pcodec.add_offsets_in_lanes(begin, bins, done, target)
            position = _pcodec.add_offsets(position, bins, done, n, out, 1)
            found.append((position, out.tolist()))
        assert found[0] == found[1]
        assert (out[0], out[-1]) == (7, 7)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are guarded by Linux's mprotect")
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_behind_a_file_is_read(kind: str, order: int) -> None:
    """What follows it in memory may not be there, which would end the process."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 65 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    end = start + 64 * page
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), page, 0) == 0
    for n in (2, 100, 256, 300, 16_384):
        data = encoded(numbers(kind, n, n), order, 8)
        data += checksum(data)
        ctypes.memmove(end - len(data), data, len(data))
        read = Content(np.array([end - len(data)]), np.array([len(data)]), memory)
        out = np.empty((1, n), np.uint16)
        assert decode(read, out) == (blosc.SOUND, "")
        np.testing.assert_array_equal(out[0], numbers(kind, n, n))
