"""Every code block of the documentation runs, in order, in a directory with the files it names."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import budget
import lists
import loompy
import mudata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import tenx
from places import ROOT

DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in DOCS.rglob("*.md") if DOCS / "_build" not in page.parents),
]
TUTORIALS = sorted(DOCS.glob("tutorials/*.md"))
# A language, or a directive of the site; its options begin with colons.
BLOCK = re.compile(r"^```(\w*|\{[^\n]*)\n(?:^:[^\n]*\n)*(.*?)^```$", re.MULTILINE | re.DOTALL)
# What CI itself runs, or a person would in another place.
ELSEWHERE = {"make", "pip"}
# Shown, not run.
SHOWN = {"toml", "r", ""}


def write_cells(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = sp.random(60, 40, 0.3, "csr", rng=rng, data_rvs=lambda n: rng.integers(1, 9, n))
    counts = counts.astype(np.float32)
    genes = pd.DataFrame(
        {"gene_name": [f"GENE{i}" for i in range(40)]}, index=[f"ENSG{i:05}" for i in range(40)]
    )
    adata = ad.AnnData(
        counts.log1p(),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical(rng.choice(["B", "NK", "T"], 60)),
                "donor": rng.choice(["d1", "d2"], 60),
            },
            index=[f"cell{seed}-{i}" for i in range(60)],
        ),
        var=genes,
        layers={"counts": counts},
        obsm={"X_pca": rng.normal(size=(60, 5)).astype(np.float32)},
        obsp={"connectivities": sp.random(60, 60, 0.1, "csr", rng=rng, dtype=np.float32)},
        uns={"title": "made for the documentation"},
    )
    adata.raw = ad.AnnData(counts, var=genes)
    adata.write_h5ad(path)


def write_mudata(path: Path) -> None:
    cells = [f"cell{i}" for i in range(20)]
    parts = {
        name: ad.AnnData(
            np.ones((20, n), np.float32),
            pd.DataFrame(index=cells),
            pd.DataFrame(index=[f"{name}{i}" for i in range(n)]),
        )
        for name, n in (("rna", 5), ("prot", 3))
    }
    with mudata.set_options(pull_on_update=False):
        mudata.MuData(parts).write(path)


def write_loom(path: Path) -> None:
    names = {"Gene": np.array(["a", "b", "c"]), "Accession": np.array(["E1", "E2", "E3"])}
    counts = np.arange(12).reshape(3, 4)
    loompy.create(
        str(path), {"": counts, "spliced": counts}, names, {"CellID": np.array(list("wxyz"))}
    )


def write_soma(path: Path) -> None:
    soma = pytest.importorskip("tiledbsoma.io")
    obs = pd.DataFrame({"cell_type": ["B", "T"] * 5, "n_genes": np.arange(10) + 6})
    obs.index = [f"cell{i}" for i in range(10)]
    adata = ad.AnnData(np.ones((10, 3), np.float32), obs, pd.DataFrame(index=["a", "b", "c"]))
    adata.layers["raw"] = adata.X
    soma.from_anndata(str(path), adata, measurement_name="RNA")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("docs")
    write_cells(directory / "cells.h5ad", 0)
    write_cells(directory / "more.h5ad", 1)
    (directory / "folder").mkdir()
    shutil.copy(directory / "cells.h5ad", directory / "folder")
    write_mudata(directory / "cells.h5mu")
    write_loom(directory / "velocity.loom")
    write_soma(directory / "experiment.soma")
    tenx.h5_of_version_3(directory / "filtered_feature_bc_matrix.h5")
    tenx.market(directory / "filtered_feature_bc_matrix")
    tenx.market(directory, prefix="GSM123_")
    (directory / "tahoe" / "data").mkdir(parents=True)
    lists.write_vocabulary(directory / "tahoe" / "gene_metadata.parquet")
    for i in range(2):
        name = f"train-{i:05}-of-00002.parquet"
        pq.write_table(lists.some_cells(9, i, marker=True), directory / "tahoe" / "data" / name)
    return directory


def run_console(block: str, run_command: Callable[..., Any], prompt: str = "$ ") -> None:
    for line in block.splitlines():
        assert line.startswith(prompt), f"not a command: {line}"
        name, *arguments = shlex.split(line.removeprefix(prompt))
        if name not in ELSEWHERE:
            done = run_command(name, *arguments)
            assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore:.*rounded them by up to:UserWarning")
# anndata: of its own defaults, where a Zarr archive keeps a whole AnnData
@pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning")
# anndata: of the loader that a page says how to leave
@pytest.mark.filterwarnings("ignore:The function AnnLoader is deprecated:FutureWarning")
# matplotlib: of plots by scanpy
@pytest.mark.filterwarnings("ignore:.*will be deprecated in a future:PendingDeprecationWarning")
def test_code_blocks_run(
    page: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_command: Callable[..., Any],
) -> None:
    blocks = BLOCK.findall(page.read_text())
    if page in TUTORIALS and not budget.WHOLE:
        pytest.skip("long; `make docs` and `make test-whole` run it")
    if any(word in code for word in ("torch", "collate", "Loader(") for _, code in blocks):
        pytest.importorskip("torch")
    for package in ("distributed", "bionemo.scdl"):
        if any(package in code for language, code in blocks if language == "python"):
            pytest.importorskip(package)
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, code in blocks:
        if language == "{code-cell}" and code.lstrip().startswith("!"):
            run_console(code.strip(), run_command, prompt="!")
        elif language in ("python", "{code-cell}"):
            exec(compile(code, f"{page.name}", "exec"), names)
        elif language == "console":
            run_console(code, run_command)
        else:
            is_shown = language in SHOWN or language.startswith("{")
            assert is_shown, f"{page.name} has a block of {language!r} that nothing runs"


@pytest.mark.parametrize("page", [DOCS / "start.md", *TUTORIALS], ids=lambda page: page.stem)
def test_site_runs_the_cells_of_a_page(page: Path) -> None:
    text = page.read_text()
    assert text.startswith("---\nfile_format: mystnb\nkernelspec:\n  name: python3\n")
    cells = [code for language, code in BLOCK.findall(text) if language == "{code-cell}"]
    assert len(cells) == text.count("\n```{code-cell}\n") > 5
    for code in cells:
        if not code.lstrip().startswith("!"):
            compile(code, page.name, "exec")
    settings = (DOCS / "conf.py").read_text()
    assert 'nb_execution_mode = "cache"\n' in settings
    assert "nb_execution_raise_on_error = True\n" in settings


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_parts_of_included_pages_have_their_marks() -> None:
    found = 0
    for page in PAGES:
        for target, options in re.findall(
            r"^```\{include\} (\S+)\n((?:^:[^\n]*\n)*)", page.read_text(), re.MULTILINE
        ):
            text = (page.parent / target).read_text()
            for mark in re.findall(r'^:(?:start-after|end-before): "(.*)"$', options, re.MULTILINE):
                found += 1
                assert mark in text, f"{page.name}: {target} has no {mark!r}"
    assert found
