"""Pages that show what an archive holds: their numbers, and that they need no other file."""

from __future__ import annotations

import html.parser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sources import names, random_cells, write_h5ad

import scdl
from scdl.errors import ArchiveExistsError, OptionError
from scdl.inspection.distributions import Distribution, Labels, distribution

N_OBS, N_VARS = 60, 12
CELLS = random_cells(N_OBS, N_VARS, dtype="<u2", seed=3)
OBS = pd.DataFrame(
    {
        "type": pd.Categorical(["<b>B</b>", "T", None] * 20),
        "age": [float("nan"), *range(N_OBS - 1)],
        "sick": [True, False] * 30,
    },
    index=names("cell", N_OBS),
)


@pytest.fixture(params=["memmap", "zarr"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    graph = random_cells(N_OBS, N_OBS, density=0.05)
    source = write_h5ad(tmp_path / "a.h5ad", CELLS, obs=OBS, obsp={"knn": graph})
    path = tmp_path / f"a.{request.param}"
    scdl.convert(source, path, backend=request.param, neighbor_key="knn")
    return path


class Page(html.parser.HTMLParser):
    """Text of a page; fails if elements are not closed in order, or refer to other files."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {name for name, _ in attrs} & {"src", "href", "srcset", "data"}
        assert tag not in ("script", "link", "iframe", "object", "img", "b")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += f"{data}\n"
        else:
            assert "url(" not in data
            assert "@import" not in data


def test_the_numbers_are_those_of_the_cells(archive: Path) -> None:
    found, matrix = scdl.report(archive), CELLS.csr()
    assert found.n_sampled == N_OBS
    for given_, expected in (
        (found.genes_per_cell, np.diff(matrix.indptr)),
        (found.total_per_cell, np.asarray(matrix.sum(axis=1)).ravel()),
        (found.values, matrix.data),
        (found.cells_per_gene, np.bincount(matrix.indices, minlength=N_VARS) / N_OBS * 100),
        (found.obs["age"], OBS["age"].to_numpy()),
    ):
        assert given_ == Distribution.of(np.asarray(expected))
    assert found.obs["type"] == Labels(40, 20, 2, {"<b>B</b>": 20, "T": 20})
    assert found.obs["sick"] == Labels(60, 0, 2, {"True": 30, "False": 30})
    degrees = np.diff(random_cells(N_OBS, N_OBS, density=0.05).csr().indptr)
    assert found.graphs["knn"] == {
        "mean": degrees.mean(),
        "least": degrees.min(),
        "most": degrees.max(),
        "without": (degrees == 0).sum(),
    }
    assert found.verification is not None
    assert found.verification.is_sound


def test_the_page_needs_no_other_file(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    found = scdl.report(archive, out, deep=True)
    page = Page(out.read_text("utf-8"))
    for text in (str(archive), "<b>B</b>", "genes per cell", "knn", "every byte verified"):
        assert text in page.text
    assert out.read_text("utf-8") == found.to_html()
    Page(found._repr_html_())


def test_a_sample(archive: Path) -> None:
    found, other = (scdl.report(archive, cells=20, seed=seed, verify=False) for seed in (1, 2))
    assert found.n_sampled == found.genes_per_cell.n == 20
    assert found.verification is None
    assert "Not verified" in found.to_html()
    assert found.total_per_cell != other.total_per_cell
    assert scdl.report(archive, cells=20, seed=1, verify=False).obs == found.obs


def test_existing_files_are_kept(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    out.write_text("mine")
    with pytest.raises(ArchiveExistsError, match=r"out\.html"):
        scdl.report(archive, out)
    assert out.read_text() == "mine"
    scdl.report(archive, out, replace=True)
    assert out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("cells", [0, -1, 1.5, True, "3"])
def test_numbers_of_cells_that_are_none(archive: Path, cells: Any) -> None:
    with pytest.raises(OptionError, match="cells must be a positive integer"):
        scdl.report(archive, cells=cells)


def test_archives_without_cells_or_values(tmp_path: Path) -> None:
    for n, cells in enumerate((random_cells(0, 4), random_cells(4, 3, density=0))):
        source = write_h5ad(tmp_path / f"{n}.h5ad", cells)
        scdl.convert(source, tmp_path / f"{n}.scdl")
        found = scdl.report(tmp_path / f"{n}.scdl")
        assert found.values == Distribution.of(np.empty(0))
        assert "no numbers" in Page(found.to_html()).text
        assert "null" in found.to_json()


def test_damage_is_shown(archive: Path) -> None:
    assert "Sound (every byte verified)" in Page(scdl.report(archive, deep=True).to_html()).text
    data = archive / ("X/data/c/0" if archive.suffix == ".zarr" else "data.npy")
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    data.write_bytes(damaged)
    if archive.suffix == ".zarr":
        # Chunks that are read are compared with their checksums.
        with pytest.raises(scdl.errors.ArchiveFormatError, match=r"data: .*damaged"):
            scdl.report(archive)
    else:
        assert "Damaged" in Page(scdl.report(archive, deep=True).to_html()).text


def test_a_collection_of_different_genes(tmp_path: Path) -> None:
    for n in (3, 5):
        var = pd.DataFrame(index=names(f"gene{n}-", n))
        write_h5ad(tmp_path / f"{n}.h5ad", random_cells(10, n, seed=n), var=var)
        (tmp_path / "all").mkdir(exist_ok=True)
        scdl.convert(tmp_path / f"{n}.h5ad", tmp_path / "all" / f"{n}.scdl")
    found = scdl.report(tmp_path / "all")
    assert found.n_sampled == 20
    assert found.cells_per_gene is None
    stored = [np.diff(random_cells(10, n, seed=n).csr().indptr) for n in (3, 5)]
    assert found.genes_per_cell == Distribution.of(np.concatenate(stored))
    page = Page(found.to_html())
    assert "3.scdl" in page.text
    assert "5.scdl" in page.text


def test_the_command(archive: Path, run_command: Callable[..., Any]) -> None:
    done = run_command("scdl", "report", archive, "out.html", "--cells", "30", "--seed", "2")
    assert done.returncode == 0, done.stderr
    assert "distributions of 30 cells" in done.stdout
    again = run_command("scdl", "report", archive, "out.html", "-q")
    assert again.returncode == 1
    assert "out.html" in again.stderr


numbers = hnp.arrays(
    st.sampled_from(["<f4", "<f8", "<i8", "<u8", "<u2"]), st.integers(0, 200), elements=None
)


@given(numbers)
@example(np.array([2.0**53]))
@example(np.array([-(2.0**53), 2.0**54]))
@example(np.array([2.0**54]))
@example(np.array([2.0**1023, 2.0**1023]))
def test_every_number_is_counted_once(values: np.ndarray) -> None:
    found = Distribution.of(values)
    assert found.n + found.n_missing == len(values)
    assert sum(found.counts) == found.n
    assert list(found.edges) == sorted(set(found.edges))
    assert len(found.edges) == len(found.counts) + bool(found.counts)
    if found.n:
        assert found.edges[0] <= found.least <= found.median <= found.most <= found.edges[-1]


def test_columns_of_numbers_and_labels() -> None:
    assert isinstance(distribution(np.array([1.5, np.nan])), Distribution)
    assert isinstance(distribution(np.array([True])), Labels)
    many = Labels.of(np.array([f"label{i % 30}" for i in range(100)], object))
    assert (many.n, many.n_labels, len(many.largest)) == (100, 30, 12)
