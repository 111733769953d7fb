"""Archives in an object store and on web servers, some of which fail."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import logging
import multiprocessing
import operator
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import write_elem
from budget import sample
from zarr.core.sync import sync
from zarr.storage import MemoryStore

boto3 = pytest.importorskip("boto3")
fsspec = pytest.importorskip("fsspec")
moto_server = pytest.importorskip("moto.server")
pytest.importorskip("obstore")

import scdl
from scdl.errors import OptionError
from storage_backends import registry
from storage_backends.errors import (
    ArchiveFormatError,
    ArchiveNotFoundError,
    BackendOptionError,
    MissingCodecError,
    RemoteError,
)
from storage_backends.testing.archives import (
    ODD_KEYS,
    Contents,
    every_type,
    random_numbers,
    small_archive,
)
from storage_backends.testing.assertions import assert_holds, assert_same_bits
from storage_backends.zarr import remote
from storage_backends.zarr.chunks import remote_files, spans
from storage_backends.zarr.codecs.profiles import PROFILES

pytestmark = pytest.mark.filterwarnings(
    # anndata: of its own defaults
    "ignore:zarr v3 autosharding:UserWarning",
    "ignore:Writing zarr v2 data:UserWarning",
    # zarr: of what anndata writes
    "ignore:Consolidated metadata is currently not part",
    # CPython 3.12: of threads that moto has
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",
)

BUCKET = "bucket"
KEYS = {"aws_access_key_id": "id", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
STORED = ("balanced", "archive", "fast")
COLUMNS = ["_index", "string", "int16", "float32", "bool", "categories", "float64"]
N_OBS, N_VARS = 4096, 800

# -- a proxy that counts and fails ---------------------------------------------------------

#: What is done to a request, by its number and path: the name of a fault, or nothing.
Faults = Callable[[int, str], str | None]


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to another server, some of them badly."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream
        self.requests: list[str] = []
        self.n_bytes = 0
        self.n_faults = 0
        self.faults: Faults = lambda number, path: None
        self.ended = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, path: str) -> str | None:
        with self.lock:
            self.requests.append(path)
            fault = self.faults(len(self.requests), path)
            self.n_faults += fault is not None
            return fault

    def every(self, n: int, *faults: str) -> None:
        """Each n-th request from now on fails, in turns."""
        first = len(self.requests)
        self.faults = lambda number, path: (
            None if (number - first) % n else faults[(number - first) // n % len(faults)]
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client need not wait for an answer."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        fault = self.server.next_fault(self.path)
        if fault == "stall":
            self.server.ended.wait()
        if fault in ("stall", "cut"):
            self.close_connection = True
        elif fault is not None and fault.isdecimal():
            self.send_error(int(fault))
        else:
            self.answer(fault)

    do_HEAD = do_GET

    def answer(self, fault: str | None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream)
        try:
            connection.request(self.command, self.path, headers=dict(self.headers))
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        length = response.getheader("Content-Length", "0")
        if response.status < 300 and body:
            with self.server.lock:
                self.server.n_bytes += len(body)
            if fault == "flipped":
                middle = len(body) // 2
                body = body[:middle] + bytes([body[middle] ^ 16]) + body[middle + 1 :]
            elif fault is not None:
                # "truncated" promises the whole, "short" does not
                body = body[: len(body) // 2]
                length = str(len(body)) if fault == "short" else length
                self.close_connection = True
        self.send_response(response.status)
        for name in ("Content-Range", "Content-Type", "ETag", "Last-Modified"):
            if (value := response.getheader(name)) is not None:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


# -- what is in the store ------------------------------------------------------------------


def make_cells() -> Contents:
    """Counts, columns, and vectors under odd names."""
    parts: dict[str, Any] = {
        f"obsm/{key}": random_numbers("float32", (N_OBS, 2), i)
        for i, key in enumerate(ODD_KEYS[:4])
    }
    parts |= {"obs": every_type(N_OBS).select(COLUMNS), "sorted": True}
    cells = small_archive(N_OBS, N_VARS, parts, density=0.15)
    counts = np.random.default_rng(0).geometric(0.4, len(cells.arrays["data"])).astype("float32")
    return Contents(cells.arrays | {"data": counts}, cells.tables, cells.attrs)


def make_anndata() -> anndata.AnnData:
    matrix = sp.random_array((300, 70), density=0.2, format="csr", rng=np.random.default_rng(1))
    adata = anndata.AnnData(
        matrix.astype("float32"),
        obs=pd.DataFrame({"n": np.arange(300)}, index=[f"c{i}" for i in range(300)]),
        var=pd.DataFrame({"kind": pd.Categorical(["a", "b"] * 35)}, index=map(str, range(70))),
    )
    adata.obsm["X_pca"] = random_numbers("float32", (300, 5))
    return adata


class Uploaded:
    """Archives as local directories, and under their names in a bucket."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory, self.port = directory, port
        self.cells = make_cells()
        self.adata = make_anndata()
        for profile in STORED:
            path = directory / f"{profile}.zarr"
            with registry.create(path, registry.backend("zarr"), compression=profile) as writer:
                self.cells.write(writer)
                writer.commit(self.cells.attrs)
        for zarr_format in (2, 3):
            group = zarr.open_group(directory / f"v{zarr_format}.zarr", zarr_format=zarr_format)
            write_elem(group, "/", self.adata)  # which consolidates no metadata
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **KEYS)
        client.create_bucket(Bucket=BUCKET)
        for file in (file for file in directory.rglob("*") if file.is_file()):
            key = file.relative_to(directory).as_posix()
            client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes(), ACL="public-read")
        client.close()

    def path(self, name: str = "balanced") -> str:
        return str(self.directory / f"{name}.zarr")


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploaded]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield Uploaded(tmp_path_factory.mktemp("uploaded"), server.get_host_and_port()[1])
    server.stop()


@pytest.fixture
def proxy(uploaded: Uploaded, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that is the endpoint of S3."""
    server = Proxy(uploaded.port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    use_endpoint(monkeypatch, server.url)
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.002)
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["aws_secret_access_key"])
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, KEYS["region_name"])


def opened(path: str) -> contextlib.closing[Any]:
    return contextlib.closing(scdl.open(path))


def url_of(name: str = "balanced") -> str:
    return f"s3://{BUCKET}/{name}.zarr"


def request_for_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "GAP_BYTES", 0)
    monkeypatch.setattr(spans, "REQUEST_BYTES", remote_files.PAGE_BYTES)


def assert_same_batch(actual: Any, expected: Any) -> None:
    for name in ("data", "indices", "indptr"):
        assert_same_bits(getattr(actual, name), getattr(expected, name), name)
    for key, values in expected.obsm.items():
        assert_same_bits(actual.obsm[key], values, key)


def assert_same_dataset(remote: Any, path: str) -> None:
    with opened(path) as local:
        rows = np.random.default_rng(0).integers(0, local.n_obs, 200)
        obsm = [name.removeprefix("obsm/") for name in local.store.arrays if "obsm/" in name]
        for chosen in (slice(None), rows):
            ours, theirs = (ds.read_rows(chosen, obsm=obsm) for ds in (remote, local))
            assert_same_batch(ours, theirs)
        pd.testing.assert_frame_equal(remote.obs, local.obs)
        pd.testing.assert_frame_equal(remote.var, local.var)


# -- reading -------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", sample(STORED, 1))
def test_archives_in_s3_hold_what_was_written(
    profile: str, uploaded: Uploaded, proxy: Proxy
) -> None:
    with opened(url_of(profile)) as ds:
        assert_same_dataset(ds, uploaded.path(profile))
        cells = uploaded.cells.arrays
        batch = ds.read_rows(slice(None))
        assert_same_bits(batch.data, cells["data"], "data")
        np.testing.assert_array_equal(batch.indices, cells["indices"])
        with opened(uploaded.path(profile)) as local:
            assert ds.store.stored_bytes == local.store.stored_bytes
            assert ds.store.nbytes == local.store.nbytes


def test_everything_on_the_seam_is_read(uploaded: Uploaded, proxy: Proxy) -> None:
    # The profile that keeps the genes of a cell in the order in which they were written.
    url = url_of("fast")
    with registry.detect(url).store.open(url + "/") as store:
        assert_holds(store, uploaded.cells)


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_anndata_of_others_without_consolidated_metadata(
    name: str, uploaded: Uploaded, proxy: Proxy
) -> None:
    with opened(url_of(name)) as ds:
        assert_same_dataset(ds, uploaded.path(name))
        np.testing.assert_array_equal(
            ds.read_rows([5, 3]).to_dense(), uploaded.adata.X[[5, 3]].toarray()
        )


def test_requests_are_few(
    uploaded: Uploaded, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    def counted(action: Callable[[], Any]) -> int:
        before = len(proxy.requests)
        action()
        return len(proxy.requests) - before

    def epoch() -> None:
        for start in range(0, N_OBS, 1024):
            ds.read_rows(slice(start, start + 1024))

    rows = np.random.default_rng(0).permutation(N_OBS)[:1024]
    opening = counted(lambda: scdl.open(url_of()).close())
    with opened(url_of()) as ds:
        random = counted(lambda: ds.read_rows(rows))
    with opened(url_of()) as ds:
        sequential = counted(epoch)
        table = counted(lambda: ds.obs)
    n_chunks = 2 * -(-len(uploaded.cells.arrays["data"]) // PROFILES["balanced"].chunk_items)
    with capsys.disabled():
        print(  # noqa: T201
            f"\nrequests: open {opening}, 1,024 random cells {random}, {-(-N_OBS // 1024)} batches "
            f"in order {sequential}, obs {table}; {n_chunks} chunks, {proxy.n_bytes} bytes"
        )
    assert n_chunks > 50
    assert opening <= 3
    assert random <= 10
    assert sequential <= 40


def test_cells_that_are_decoded_in_memory_are_not_announced(
    uploaded: Uploaded, proxy: Proxy
) -> None:
    with opened(url_of()) as ds:
        ds.read_rows(slice(0, 50))
        before = len(proxy.requests)
        fetched = ds.will_need(np.arange(50))
        ds.read_rows(slice(0, 50))
        assert len(proxy.requests) == before
        del fetched


def test_a_second_epoch_makes_no_requests_for_cells(
    uploaded: Uploaded, proxy: Proxy, tmp_path: Path
) -> None:
    def epoch(cells: Any) -> list[Any]:
        return [cells.read_rows(slice(i, i + 512)) for i in range(0, N_OBS, 512)]

    with opened(uploaded.path()) as local, contextlib.ExitStack() as stack:
        expected = epoch(local)
        first = stack.enter_context(contextlib.closing(scdl.open(url_of(), cache_dir=tmp_path)))
        for ours, theirs in zip(epoch(first), expected, strict=True):
            assert_same_batch(ours, theirs)
        again = stack.enter_context(contextlib.closing(pickle.loads(pickle.dumps(first))))
        proxy.requests.clear()
        for ours, theirs in zip(epoch(again), expected, strict=True):
            assert_same_batch(ours, theirs)
        assert not proxy.requests
        # Damaged pages are fetched again.
        for path in tmp_path.rglob("*.sums"):
            path.write_bytes(b"damaged" * 100)
        anew = stack.enter_context(contextlib.closing(scdl.open(url_of(), cache_dir=tmp_path)))
        for ours, theirs in zip(epoch(anew), expected, strict=True):
            assert_same_batch(ours, theirs)
        assert any("/X/data/" in request for request in proxy.requests)


def test_a_cache_needs_checksums(uploaded: Uploaded, proxy: Proxy, tmp_path: Path) -> None:
    with pytest.raises(BackendOptionError, match="needs an archive with checksums"):
        scdl.open(url_of("v3"), cache_dir=tmp_path)
    for size in (0, -1, float("nan"), "much"):
        with pytest.raises(OptionError, match="cache_mb"):
            scdl.open(url_of(), cache_dir=tmp_path, cache_mb=size)  # type: ignore[arg-type]


READS: Sequence[Callable[[Any], Any]] = (
    lambda ds: ds.read_rows(slice(None)),
    lambda ds: ds.read_rows([0], obsm=["X_pca"]),
    lambda ds: ds.obs,
    lambda ds: ds.var,
)

# -- faults --------------------------------------------------------------------------------


def test_failing_requests_are_repeated(
    uploaded: Uploaded, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_for_each_chunk(monkeypatch)
    proxy.every(7, "500", "cut", "503", "truncated")
    with opened(url_of()) as ds:
        assert_same_dataset(ds, uploaded.path())
    assert proxy.n_faults > 10


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        *((fault, "balanced") for fault in ("500", "cut", "truncated", "stall", "403")),
        ("500", "v3"),
    ],
)
def test_a_store_that_fails_for_good_is_an_error(
    fault: str, name: str, uploaded: Uploaded, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    if fault == "stall":
        monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.3)
    with opened(url_of(name)) as ds:
        proxy.every(1, fault)
        for action in READS:
            start, before = time.monotonic(), len(proxy.requests)
            with pytest.raises(RemoteError, match=rf"^{url_of(name)}: \S+ could not be") as caught:
                action(ds)
            assert time.monotonic() - start < 3
            assert len(str(caught.value)) < 500
            assert "\n" not in str(caught.value)
            if fault == "403":
                assert len(set(proxy.requests[before:])) == len(proxy.requests[before:])


@pytest.mark.parametrize("fault", ["500", "403", "stall", "truncated"])
def test_a_store_that_fails_at_opening(
    fault: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.1)
    proxy.every(1, fault)
    with pytest.raises(RemoteError, match=r"zarr\.json could not be read"):
        scdl.open(url_of())


@pytest.mark.parametrize("fault", ["short", "flipped"])
@pytest.mark.parametrize("profile", STORED)
def test_damaged_answers_are_never_data(
    fault: str, profile: str, uploaded: Uploaded, proxy: Proxy
) -> None:
    with opened(url_of(profile)) as ds:
        proxy.every(1, fault)
        for action in READS:
            with pytest.raises((ArchiveFormatError, RemoteError)):
                action(ds)


@pytest.mark.parametrize("missing", [f"s3://{BUCKET}/nothing.zarr", "s3://no-bucket/a.zarr"])
def test_nothing_there(missing: str, proxy: Proxy) -> None:
    assert registry.detect(missing).name == "zarr"
    assert proxy.requests == []
    with pytest.raises(ArchiveNotFoundError, match=f"^{missing}: "):
        scdl.open(missing)


def test_an_endpoint_that_nobody_listens_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.01)
    use_endpoint(monkeypatch, f"http://127.0.0.1:{port}")
    for url in (url_of(), f"http://127.0.0.1:{port}/a.zarr"):
        with pytest.raises(RemoteError, match=f"^{url}: zarr.json could not be read"):
            scdl.open(url)


@pytest.mark.parametrize("url", ["s3://not a bucket/x", "http://a b/c", "az://no-account/x"])
def test_a_url_that_means_nothing(url: str) -> None:
    assert registry.detect(url).name == "zarr"
    with pytest.raises(RemoteError, match=f"^{url}: "):
        scdl.open(url)


@pytest.mark.parametrize("url", ["s3://", "nothing://a/b", "s3:/a/b", "://"])
def test_what_is_no_url_is_a_path(url: str) -> None:
    assert not registry.backend("zarr").detect(url)
    with pytest.raises(ArchiveNotFoundError):
        scdl.open(url)


def test_archives_are_not_written_to_urls() -> None:
    with pytest.raises(BackendOptionError, match="local paths"):
        registry.create(url_of(), registry.backend("zarr"))


# -- other stores --------------------------------------------------------------------------


def test_web_servers(uploaded: Uploaded, proxy: Proxy) -> None:
    url = f"{proxy.url}/{BUCKET}/balanced.zarr"
    with opened(url) as ds:
        assert_same_dataset(ds, uploaded.path())
        # Nothing to count them by.
        assert ds.store.nbytes == 0
    with pytest.raises(ArchiveNotFoundError):
        scdl.open(f"{proxy.url}/{BUCKET}/nothing.zarr")
    with pytest.raises(ArchiveFormatError, match="listing"):
        scdl.open(f"{proxy.url}/{BUCKET}/v3.zarr")


class WithoutRanges(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_a_web_server_without_ranges(uploaded: Uploaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(uploaded.directory)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WithoutRanges) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/balanced.zarr"
        with pytest.raises(RemoteError, match=r"X/indptr/c/0 .*Range request not supported"):
            scdl.open(url)
        server.shutdown()
        thread.join()


def test_filesystems_of_fsspec(uploaded: Uploaded) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(uploaded.path(), "/test_remote/a.zarr", recursive=True)
    try:
        with opened("memory://test_remote/a.zarr") as ds:
            assert_same_dataset(ds, uploaded.path())
            with opened(uploaded.path()) as local:
                assert ds.store.nbytes == local.store.nbytes
    finally:
        memory.rm("/test_remote", recursive=True)
    with pytest.raises(ArchiveNotFoundError):
        scdl.open("memory://test_remote/a.zarr")


class Silent(MemoryStore):
    async def get(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.sleep(60)


def test_filesystems_that_know_no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.02)
    store = remote.PatientStore(Silent(), "memory://a.zarr")
    with pytest.raises(RemoteError, match=r"^memory://a.zarr: k .* 2 attempts.*TimeoutError"):
        sync(store.get("k"))


def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingCodecError, match="pip install obstore"):
        scdl.open(url_of())


# -- other processes -----------------------------------------------------------------------


def test_spawned_processes_open_it_again(uploaded: Uploaded, proxy: Proxy) -> None:
    rows = np.random.default_rng(0).integers(0, N_OBS, 50)
    with opened(url_of("archive")) as ds:
        assert len(pickle.dumps(ds)) < 2000
        expected = ds.read_rows(rows)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            read = pool.submit(operator.methodcaller("read_rows", rows), ds)
            assert_same_batch(read.result(timeout=60), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_forked_processes_are_told_not_to(uploaded: Uploaded, proxy: Proxy) -> None:
    def failure(action: Callable[[], Any]) -> str:
        with pytest.raises(RemoteError) as caught:
            action()
        return str(caught.value)

    with opened(url_of()) as ds:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                said = [
                    failure(lambda: ds.read_rows([0])),
                    failure(lambda: scdl.open(url_of("portable"))),
                ]
                os.write(writing, "\n".join(said).encode())
            finally:
                os._exit(0)
        ready, _, _ = select.select([reading], [], [], 20)
        said = os.read(reading, 10_000).decode() if ready else "nothing"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
        assert [line.partition(": ")[0] for line in said.split("\n")] == [
            url_of(),
            url_of("portable"),
        ]
        assert said.count("was forked") == 2
        assert_same_batch(ds.read_rows([0]), scdl.open(uploaded.path()).read_rows([0]))
