"""Decoding with the instructions of other processors: those of this one, restricted, and of Arm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import packed_reader as reader
import pytest
from budget import WHOLE, whole_only
from llvmlite import binding, ir
from packed_chunks import EDGES, KINDS, values_of
from places import ROOT, SUPPORT
from test_ans import fitted

from storage_backends.compute import jit
from storage_backends.directory.content import checksum
from storage_backends.zarr.codecs import frame_lanes
from storage_backends.zarr.codecs.frame_format import KINDS as KINDS_OF_ITEMS
from storage_backends.zarr.codecs.frame_writing import encode

_HERE = Path(__file__).parent
#: Features by LLVM's names, the instruction that picks bytes, and whether numbers are in lanes.
PATHS = {
    "generic": ("", None, False),
    "ssse3": ("+ssse3", "llvm.x86.ssse3.pshuf.b.128", False),
    "avx2": ("+avx2", "llvm.x86.avx2.pshuf.b", False),
    "avx512f": ("+avx2,+avx512f", "llvm.x86.avx2.pshuf.b", True),
    "avx512bw": ("+avx2,+avx512f,+avx512bw", "llvm.x86.avx512.pshuf.b.512", True),
}
#: The first differs in all kernels, and the last two are of few processors, and of this one.
BRIEFLY = ("generic", "ssse3", "avx2")
CODECS = ("frames", "frame_rows", "hostile_frames", "pcodec", "ans")


def child(path: str, cache: Path, *arguments: str) -> None:
    """Run Python for a processor with some of the features of this one."""
    features = PATHS[path][0]
    here = binding.get_host_cpu_features()
    if not all(here.get(feature.removeprefix("+")) for feature in features.split(",") if feature):
        pytest.skip(f"the processor has not {features}")
    environment = os.environ | {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(cache),
        "PYTHONPATH": os.pathsep.join(map(str, [_HERE, SUPPORT, ROOT])),
        "SCDL_TESTS": "",
    }
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of items of four bytes, each padded to one size, as loads exceed frames."""
    rng, heads, contents, items = np.random.default_rng(0), [], [], []
    for dtype in ("u4", "i4", "f4"):
        for kind in KINDS:
            for n in EDGES:
                values = values_of(kind, dtype, n, rng)
                for frame in reader.frames(encode(values)):
                    content = frame.content[:-4]
                    contents.append(content.ljust(4 * 4_096 + 32, b"\xff"))
                    heads.append((len(content), frame.n, KINDS_OF_ITEMS[dtype[0]]))
                items.append(values.view("u4"))
    path = tmp_path_factory.mktemp("frames") / "frames.npz"
    together = np.frombuffer(b"".join(contents), np.uint8).reshape(len(contents), -1)
    np.savez(path, contents=together, heads=heads, items=np.concatenate(items))
    return path


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chunks of the codecs that decode numbers of varying widths in lanes; they share kernels."""
    rng, found = np.random.default_rng(0), dict[str, Any]()
    for kind in ("counts", "gaps", "bits") if WHOLE else ():
        for n in (1, 15, 16, 17, 255, 256, 257, 5_000):
            values = values_of(kind, "u2", n, rng)
            for differences in (False, True):
                codec = fitted(values, np.array([n]), differences=differences)
                key = f"ans {differences} {codec.text}"
                found[key], found[f"of {key}"] = values, codec.encode(values)
    try:
        from test_pcodec import KINDS as kinds_of_numbers
        from test_pcodec import encoded, numbers
    except pytest.skip.Exception:
        kinds_of_numbers = []
    for kind in kinds_of_numbers:
        for n in (2, 17, 256, 300, 5_000):
            for order in (0, 1):
                key, values = f"pcodec {kind} {n} {order}", numbers(kind, n, n)
                data = encoded(values, order, 8)
                found[key], found[f"of {key}"] = values, data + checksum(data)
    path = tmp_path_factory.mktemp("coded") / "coded.npz"
    as_bytes = {k: np.frombuffer(v, "u1") if isinstance(v, bytes) else v for k, v in found.items()}
    np.savez(path, **as_bytes)
    return path


@pytest.mark.crossed
@pytest.mark.parametrize("path", PATHS if WHOLE else BRIEFLY)
def test_each_path_decodes_what_was_written(
    path: str, frames: Path, coded: Path, tmp_path: Path
) -> None:
    _, pick, in_lanes = PATHS[path]
    script, most = str(SUPPORT / "decoding_child.py"), "40" if WHOLE else "4"
    # Compiling takes most of the time, and paths differ in few kernels.
    files = [str(frames)] if WHOLE or path != "ssse3" else []
    files += [str(coded)] if WHOLE or path == "generic" else []
    child(path, tmp_path, script, str(pick), str(in_lanes), most, *files)


@whole_only
@pytest.mark.parametrize("path", PATHS)
def test_each_path_passes_the_tests_of_the_codecs(path: str, tmp_path: Path) -> None:
    files = [str(_HERE / f"test_{name}.py") for name in CODECS]
    child(path, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)


def test_features_are_those_that_numba_compiles_for(monkeypatch: pytest.MonkeyPatch) -> None:
    here = binding.get_host_cpu_features()
    for name in ("sse2", "avx2", "avx512f"):
        assert jit.target_has(name) == bool(here.get(name))
    monkeypatch.setattr(numba.config, "ENABLE_AVX", 0)
    assert not jit.target_has("avx2")
    assert jit.target_has("sse2") == bool(here.get("sse2"))
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx2,-avx512f")
    assert jit.target_has("avx2")
    assert not jit.target_has("avx512f")
    for triple in ("aarch64-unknown-linux-gnu", "arm64-apple-darwin", "armv7l-unknown-linux"):
        monkeypatch.setattr(binding, "get_process_triple", lambda triple=triple: triple)
        assert jit.target_has("neon") == ("64" in triple)


def test_arm_picks_bytes_with_one_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for the least of its processors, as these tests run on others."""
    pick = next(rest for name, *rest in frame_lanes._PICKS if name == "neon")
    monkeypatch.setattr(frame_lanes, "PICK", pick)
    module, number = ir.Module(), ir.IntType(64)
    module.triple = "aarch64-unknown-linux-gnu"
    out = ir.IntType(16).as_pointer()
    decoder = ir.Function(module, ir.FunctionType(ir.VoidType(), [number, number, out]), "decode")
    builder = ir.IRBuilder(decoder.append_basic_block())
    address, width, target = decoder.args
    frame_lanes._store(builder, frame_lanes._unpacked(builder, address, width), target)
    builder.ret_void()
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        arm = binding.Target.from_triple(module.triple)
    except RuntimeError:
        pytest.skip("llvmlite has no target for AArch64")
    machine = arm.create_target_machine(cpu="generic", features="", opt=3)
    compiled = binding.parse_assembly(str(module))
    compiled.verify()
    lines = [line.split() for line in machine.emit_assembly(compiled).splitlines()]
    used = [words[0] for words in lines if words]
    # One for every eight numbers, and no function is called.
    assert used.count("tbl") == 4
    assert not {"bl", "blr", "b."}.intersection(used)
