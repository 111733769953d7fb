"""Outputs of Cell Ranger: HDF5 of both versions, and directories in Matrix Market form."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
import scipy.io
import scipy.sparse as sp
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import random_cells, write_h5ad
from tenx import (
    BARCODES,
    EXPECTED,
    GENOMES,
    IDS,
    NAMES,
    PACK,
    TYPES,
    h5_of_version_2,
    h5_of_version_3,
    market,
)

import scdl
from scdl.errors import OptionError, SourceError, SourceNotFoundError
from scdl.sources import market as market_text

GENES = [i for i, kind in enumerate(TYPES) if kind == "Gene Expression"]


def check(report: Any, genes: Any = slice(None)) -> Any:
    ds = scdl.open(report.path)
    np.testing.assert_array_equal(ds.read_rows(slice(None)).to_dense(), EXPECTED[:, genes])
    assert ds.obs_names.tolist() == BARCODES
    assert ds.var_names.tolist() == list(np.array(NAMES)[genes])
    assert ds.var["gene_ids"].tolist() == list(np.array(IDS)[genes])
    return ds


def test_h5_of_version_3(tmp_path: Path) -> None:
    source = h5_of_version_3(tmp_path / "filtered_feature_bc_matrix.h5")
    report = scdl.convert(source, tmp_path / "a")
    ds = check(report, GENES)
    assert report.not_carried == (
        "1 features of type Antibody Capture", "1 features of type CRISPR Guide Capture"
    )  # fmt: skip
    assert list(ds.var.columns) == ["gene_ids", "feature_types", "genome", "pattern"]
    ds = check(scdl.convert(source, tmp_path / "b.zarr", feature_types="all"))
    assert ds.var["feature_types"].tolist() == TYPES
    assert ds.var["genome"].tolist() == GENOMES
    check(scdl.convert(source, tmp_path / "c", feature_types="Antibody Capture"), [3])
    both = ["Antibody Capture", "Gene Expression"]
    check(scdl.convert(source, tmp_path / "d", feature_types=both), [0, 1, 2, 3, 5])
    check(scdl.convert(source, tmp_path / "e", genome="mm10"), [2, 5])


def test_probes(tmp_path: Path) -> None:
    """Files of probes have truth values, ids of genes beside those of probes, and panels."""
    source = h5_of_version_3(tmp_path / "raw_probe_bc_matrix.h5")
    probes = [f"{gene}|{i}" for i, gene in enumerate(IDS)]
    with h5py.File(source, "r+") as file:
        file["matrix/filtered_barcodes"] = np.arange(9) % 2 == 0
        features = file["matrix/features"]
        features["gene_id"], features["filtered_probes"] = features["id"][()], np.arange(6) > 2
        del features["id"]
        features["id"] = np.array(probes, "S")
        features["feature_type"][...] = b"Gene Expression"
        features.create_group("target_sets")["a panel"] = np.arange(3, dtype="u4")
    report = scdl.convert(source, tmp_path / "a")
    assert report.not_carried == ("features/target_sets",)
    ds = check(report)
    # Columns and their names are those that scanpy gives.
    assert list(ds.obs.columns) == ["filtered_barcodes"]
    assert ds.obs["filtered_barcodes"].tolist() == [i % 2 == 0 for i in range(9)]
    assert list(ds.var.columns) == [
        "gene_ids", "probe_ids", "feature_types", "filtered_probes", "genome", "pattern"
    ]  # fmt: skip
    assert ds.var["probe_ids"].tolist() == probes
    assert ds.var["filtered_probes"].tolist() == [False] * 3 + [True] * 3
    with h5py.File(source, "r+") as file:
        del file["matrix/filtered_barcodes"]
        file["matrix/filtered_barcodes"] = np.ones(8, bool)
    with pytest.raises(SourceError, match="filtered_barcodes"):
        scdl.convert(source, tmp_path / "b")


def test_memory_does_not_grow_with_barcodes(tmp_path: Path) -> None:
    peaks = {}
    for n in (1 << 17, 1 << 19):
        with h5py.File(h5_of_version_3(tmp_path / f"{n}.h5"), "r+") as file:
            group = file["matrix"]
            for name in ("barcodes", "data", "indices", "indptr"):
                del group[name]
            group["barcodes"] = np.char.mod("%016d-1", np.arange(n)).astype("S")
            group["data"], group["indices"] = np.ones(n, "u1"), np.zeros(n, "u1")
            group["indptr"], group["shape"][1] = np.arange(n + 1), n
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        try:
            scdl.convert(tmp_path / f"{n}.h5", tmp_path / f"{n}")
            peaks[n] = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before
        finally:
            tracemalloc.stop()
    assert peaks[1 << 19] < 1.2 * peaks[1 << 17]
    assert list(scdl.open(tmp_path / f"{1 << 19}").obs.index[-2:]) == [
        "0000000000524286-1",
        "0000000000524287-1",
    ]


def test_h5_of_version_2(tmp_path: Path) -> None:
    source = h5_of_version_2(tmp_path / "matrix.h5")
    ds = check(scdl.convert(source, tmp_path / "a"))
    assert set(ds.var["genome"]) == {"hg19"}
    two = h5_of_version_2(tmp_path / "two.h5", ("hg19", "mm10"))
    with pytest.raises(SourceError, match="several genomes; choose one with genome=: hg19, mm10"):
        scdl.convert(two, tmp_path / "b")
    assert set(check(scdl.convert(two, tmp_path / "b", genome="mm10")).var["genome"]) == {"mm10"}
    with pytest.raises(OptionError, match="there is no genome 'rn6'; the file has: hg19, mm10"):
        scdl.convert(two, tmp_path / "c", genome="rn6")


def test_parts(tmp_path: Path) -> None:
    """Large files are divided among workers, with the options of their format."""
    source = h5_of_version_3(tmp_path / "a.h5")
    options: Any = {"workers": 2, "use_processes": False, "split_bytes": 1}
    check(scdl.convert_in_parts(source, tmp_path / "a", feature_types="all", **options))
    check(scdl.convert_in_parts(source, tmp_path / "b", **options), GENES)


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("version", [2, 3])
def test_directories(tmp_path: Path, version: int, packed: str) -> None:
    source = market(tmp_path / "in", version=version, packed=packed, prefix="GSM1_x_")
    genes = GENES if version == 3 else slice(None)
    check(scdl.convert(source, tmp_path / "a", block_values=5), genes)
    # The path of the matrix will do, and is needed if there are several.
    market(source, version=version, packed=packed, prefix="GSM2_")
    with pytest.raises(SourceError, match=r"several matrices; .*GSM1_x_matrix.mtx.*GSM2_matrix"):
        scdl.convert(source, tmp_path / "b")
    matrix = source / f"GSM2_matrix.mtx{packed}"
    check(scdl.convert(matrix, tmp_path / "b", shuffle=None), genes)


numbers = st.one_of(
    st.integers(-(10**17), 10**17).map(str),
    st.floats(allow_nan=False).map(repr),
    st.floats(allow_nan=False, width=32).map(lambda x: f"{x:.9g}"),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.sampled_from(["0", "-0.0", "1e22", "1e-22", "+3", "1.", ".5", "5E-324", "1e23", "00012"]),
)


@given(st.data())
@settings(max_examples=examples(25))
def test_any_numbers_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Values are those that Python reads, bit for bit, whatever the order of the lines is."""
    place = tmp_path_factory.mktemp("market")
    cells = st.tuples(st.integers(1, 6), st.integers(1, 9))
    places = data.draw(st.lists(cells, unique=True))
    if data.draw(st.booleans()):
        places.sort(key=lambda entry: entry[1])
    texts = [data.draw(numbers) for _ in places]
    blank = st.sampled_from([" ", "\t", "  "])
    lines = [
        f"{g}{data.draw(blank)}{c}{data.draw(blank)}{v}"
        for (g, c), v in zip(places, texts, strict=True)
    ]
    end = data.draw(st.sampled_from(["\n", "\r\n", " \n", "\n\n"]))
    text = f"%%MatrixMarket matrix coordinate real general\n6 9 {len(lines)}\n" + end.join(lines)
    source = market(place / "in", text=text + data.draw(st.sampled_from(["", "\n"])), packed="")
    scdl.convert(source, place / "a", data_dtype="f8", feature_types="all", block_values=3)
    expected = np.zeros((9, 6))
    for (gene, cell), value in zip(places, texts, strict=True):
        expected[cell - 1, gene - 1] = float(value)
    rows = scdl.open(place / "a").read_rows(slice(None))
    assert rows.to_dense().tobytes() == expected.tobytes()
    assert len(rows.data) == len(texts)


@pytest.mark.filterwarnings("ignore:The default value for `spmatrix`:DeprecationWarning")
def test_the_same_as_scipy_reads(tmp_path: Path) -> None:
    """Of many lines, so that pieces of text begin and end anywhere."""
    cells = sp.random(2_000, 6, 0.7, "csr", random_state=0)
    cells.data = np.ceil(cells.data * 1e6) / 1e3
    path = market(tmp_path / "in", packed="") / "matrix.mtx"
    scipy.io.mmwrite(path, cells.T.tocoo())
    (tmp_path / "in" / "barcodes.tsv").write_text("".join(f"c{i}\n" for i in range(2_000)))
    expected = scipy.io.mmread(path).T.toarray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(market_text, "PIECE", 1_000)
        scdl.convert(tmp_path / "in", tmp_path / "a", data_dtype="f8", feature_types="all")
    found = scdl.open(tmp_path / "a").read_rows(slice(None)).to_dense()
    np.testing.assert_array_equal(found, expected)


HEADER = "%%MatrixMarket matrix coordinate integer general\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected '%%MatrixMarket matrix coordinate' in its first line, found ''"),
        ("<html>", "expected '%%MatrixMarket"),
        (HEADER.replace("coordinate", "array"), "expected '%%MatrixMarket matrix coordinate'"),
        (HEADER.replace("general", "symmetric") + "6 9 0\n", "found symmetric integer"),
        (HEADER.replace("integer", "complex") + "6 9 0\n", "found general complex"),
        (HEADER + "six 9 0\n", "expected the numbers of genes, cells and values"),
        (HEADER + "6 8 0\n", "has 6 genes and 8 cells, expected 6 and 9"),
        (HEADER + "6 9 2\n1 1 1\n", "found 1 values, expected 2; the file is cut short"),
        (HEADER + "6 9 1\n1 1 1\n1 2 1\n", "found 2 values, expected 1"),
        (HEADER + "6 9 1\n1 1\n", "expected a line of a gene, a cell and a value, found '1 1'"),
        (HEADER + "6 9 1\n1 x 1\n", "expected a line of a gene, a cell and a value"),
        (HEADER + "6 9 1\n1 1 1 1\n", "expected an integer, found '1 1'"),
        (HEADER + "6 9 1\n1 1 1.5\n", "expected an integer, found '1.5'"),
        (HEADER + "6 9 1\n7 1 1\n", r"found index 6 in genes, expected indices in \[0, 6\)"),
        (HEADER + "6 9 1\n0 1 1\n", r"found index -1 in genes"),
        (HEADER + "6 9 1\n1 10 1\n", r"found index 9 in cells"),
    ],
)
def test_damaged_matrices(tmp_path: Path, text: str, message: str) -> None:
    source = market(tmp_path / "in", text=text, packed="")
    with pytest.raises(SourceError, match=message) as raised:
        scdl.convert(source, tmp_path / "a")
    assert "matrix.mtx" in str(raised.value)
    assert not (tmp_path / "a").exists()


def test_files_that_are_cut_short(tmp_path: Path) -> None:
    """None of them is taken for a shorter one."""
    h5 = h5_of_version_3(tmp_path / "a.h5")
    h5.write_bytes(h5.read_bytes()[:-900])
    with pytest.raises(SourceError, match=r"a\.h5"):
        scdl.convert(h5, tmp_path / "out")
    for name in ("matrix.mtx", "features.tsv", "barcodes.tsv"):
        source = market(tmp_path / f"of {name}")
        path = source / f"{name}.gz"
        path.write_bytes(path.read_bytes()[:-12])
        with pytest.raises(SourceError, match=f"{name}.gz"):
            scdl.convert(source, tmp_path / "out")
        path.unlink()
        if name != "matrix.mtx":
            with pytest.raises(SourceNotFoundError, match=f"there is no .*{name}"):
                scdl.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_entries_that_lose_their_order_late(tmp_path: Path) -> None:
    lines = [f"1 {i // 6000 % 9 + 1} 1" for i in range(60_000)]
    source = market(tmp_path / "in", text=f"{HEADER}6 9 60000\n" + "\n".join(lines), packed="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(market_text, "PIECE", 10_000)
        with pytest.raises(SourceError, match="later ones are"):
            scdl.convert(source, tmp_path / "a")


def test_parts_of_an_h5_that_do_not_fit(tmp_path: Path) -> None:
    for part, message in {
        "barcodes": "expected .* 8 barcodes",
        "features/id": "gene_ids has 5 values, expected 6 genes",
        "data": "data has 5",
    }.items():
        path = h5_of_version_3(tmp_path / "a.h5")
        with h5py.File(path, "r+") as file:
            dataset = file[f"matrix/{part}"]
            values = dataset[:5] if part == "data" else dataset[:-1]
            del file[f"matrix/{part}"]
            file[f"matrix/{part}"] = values
        with pytest.raises(SourceError, match=message):
            scdl.convert(path, tmp_path / "out")


def test_a_group_in_another_file(tmp_path: Path) -> None:
    """Looking for a matrix never fails, so that other files of a directory are converted."""
    h5_of_version_3(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["matrix"] = h5py.ExternalLink(str(tmp_path / "a.h5"), "/matrix")
    with pytest.raises(SourceError, match=r"b\.h5"):
        scdl.convert(tmp_path / "b.h5", tmp_path / "out")
    report = scdl.convert_directory(tmp_path, tmp_path / "all", workers=1)
    assert len(report.archives) == 1


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_no_cells(tmp_path: Path, packed: str) -> None:
    source = market(tmp_path / "in", text=HEADER + "6 0 0\n", packed=packed)
    (source / f"barcodes.tsv{packed}").write_bytes(PACK[packed](b""))
    assert scdl.convert(source, tmp_path / "a").n_obs == 0


def test_options_of_other_formats(tmp_path: Path) -> None:
    source = h5_of_version_3(tmp_path / "a.h5")
    with pytest.raises(OptionError, match="no feature type 'RNA'; the file has: Gene Expression, "):
        scdl.convert(source, tmp_path / "a", feature_types="RNA")
    with pytest.raises(SourceError, match="there is no matrix raw/X; the file has: X"):
        scdl.convert(source, tmp_path / "a", matrix="raw/X")
    write_h5ad(tmp_path / "b.h5ad", random_cells(3, 2))
    with pytest.raises(OptionError, match=r"b.h5ad: the option genome is for 10x HDF5, 10x Matrix"):
        scdl.convert(tmp_path / "b.h5ad", tmp_path / "a", genome="mm10")
    with pytest.raises(OptionError, match="no genome 'x'; the file has: none"):
        scdl.convert(market(tmp_path / "in"), tmp_path / "a", genome="x")
