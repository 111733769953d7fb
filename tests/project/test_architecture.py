"""What may import what: layers only downwards, heavy packages only where they are needed."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from places import ROOT

from storage_backends import registry
from storage_backends.testing.archives import index_column, small_archive

# Top to bottom: a module imports from its own folder, and from those in the rows below.
LAYERS = """
scdl.__main__
scdl.cli
scdl.inspection
scdl.opening
scdl.lightning
scdl.training
scdl.collection
scdl.dataset
scdl.conversion.many
scdl.conversion
scdl.verification
scdl.sources
scdl.archive
scdl.kernels
scdl.errors    scdl.progress    scdl.reports

storage_backends.testing
storage_backends.registry    storage_backends.memory
storage_backends.memmap      storage_backends.zarr
storage_backends.directory   storage_backends.anndata_format
storage_backends.checks
storage_backends.base
storage_backends.capabilities
storage_backends.findings    storage_backends.growth    storage_backends.placement
storage_backends.encoded
storage_backends.backend     storage_backends.contents
storage_backends.compute     storage_backends.other_formats
storage_backends.paths
storage_backends.errors
"""
# Of the package below, what the one above may know.
SEAM = {
    "storage_backends.anndata_format",
    "storage_backends.base",
    "storage_backends.capabilities",
    "storage_backends.compute",
    "storage_backends.directory.locks",
    "storage_backends.directory.publication",
    "storage_backends.directory.scratch",
    "storage_backends.encoded",
    "storage_backends.errors",
    "storage_backends.other_formats",
    "storage_backends.paths",
    "storage_backends.registry",
}

# A reader makes views of itself, which are readers: when one is asked for.
LAZY = {"scdl.dataset.rows": {"scdl.dataset.gene_view"}}

# Packages that only some modules import.
CONFINED = {
    "torch": {
        "scdl.dataset.collate",
        "scdl.lightning",
        "scdl.training.device",
        "scdl.training.loader",
        "scdl.training.iterable",
        "scdl.training.layouts",
        "scdl.training.options",
        "scdl.dataset.map_dataset",
        "scdl.dataset.tensors",
        "scdl.training.assembly",
        "scdl.training.batch",
    },
    "distributed": {"scdl.conversion.many.dask"},
    "tiledbsoma": {"scdl.sources.soma"},
    "anndata": {
        "scdl.sources.anndata_elements",
        "scdl.dataset.anndata_assembly",
        "scdl.conversion.export",
        "storage_backends.zarr.elements",
        "storage_backends.zarr.store",
    },
}
# Packages that `import scdl` leaves alone.
HEAVY = {
    "anndata", "distributed", "h5py", "numba", "pandas", "pyarrow", "scipy", "tiledbsoma", "torch",
    "zarr",
}  # fmt: skip

TYPE_CHECKING = {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for package in ("scdl", "storage_backends")
    for path in sorted((ROOT / package).rglob("*.py"))
}
# The packages themselves are left out: they name everything and import it on demand.
MODULES = [name for name in SOURCES if name not in ("scdl", "storage_backends")]
ABOVE_SEAM = [name for name in MODULES if name.startswith("scdl.")]
BELOW_SEAM = [name for name in MODULES if name.startswith("storage_backends.")]
ROWS = [row.split() for row in LAYERS.split("\n") if row]


def within(module: str, folder: str) -> bool:
    return f"{module}.".startswith(f"{folder}.")


def place(module: str) -> tuple[int, str]:
    """Row and folder of a module in the table."""
    found = [(i, name) for i, row in enumerate(ROWS) for name in row if within(module, name)]
    assert found, f"{module} has no place in LAYERS"
    return max(found, key=lambda row: len(row[1]))


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below `node`, without what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in TYPE_CHECKING:
            for statement in child.orelse:
                yield statement
                yield from executed(statement)
        else:
            yield child
            yield from executed(child)


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Modules that a module imports, inside functions too; ours by their full name."""
    found = set()
    for node in executed(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES else str(node.module) for name in names}
    return frozenset(found)


def ours(module: str) -> set[str]:
    """What a module imports of its own package."""
    package = module.partition(".")[0]
    return {name for name in imports(module) if within(name, package)}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    row, folder = place(module)
    upward = set()
    for name in ours(module) & set(MODULES):
        other, above = place(name)
        if above != folder and other <= row:
            upward.add(name)
    assert upward == set()


@pytest.mark.parametrize("module", ABOVE_SEAM)
def test_only_the_seam_is_seen_from_above(module):
    below = {name for name in imports(module) if within(name, "storage_backends")}
    known = {name for name in below for seam in SEAM if within(name, seam)}
    assert below - known <= {"storage_backends"}


@pytest.mark.parametrize("module", BELOW_SEAM)
def test_backends_know_nothing_of_cells(module):
    assert not {name for name in imports(module) if within(name, "scdl")}


def test_no_imports_in_circles():
    above = {name: (ours(name) & set(MODULES)) - LAZY.get(name, set()) for name in MODULES}
    while above:
        free = {module for module, names in above.items() if not names & above.keys()}
        assert free, f"import each other: {sorted(above)}"
        above = {module: names for module, names in above.items() if module not in free}


@pytest.mark.parametrize("package", CONFINED)
def test_package_stays_where_it_is_needed(package):
    importers = {
        module for module in SOURCES if package in {name.split(".")[0] for name in imports(module)}
    }
    assert importers <= CONFINED[package]


def test_import_is_light():
    code = f"import sys, scdl; print(*sorted({HEAVY!r} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert loaded.split() == []


def test_conversion_needs_no_pandas():
    """To import it takes as long as all else that a conversion imports; pyarrow does so lightly."""
    code = """
import sys, tempfile, h5py, numpy, scdl
with tempfile.TemporaryDirectory() as place, h5py.File(f"{place}/a.h5ad", "w") as file:
    file["X"] = numpy.eye(3, dtype="f4")
    for table in ("obs", "var"):
        file[f"{table}/_index"] = ["a", "b", "é"]
        file[f"{table}/type/codes"] = numpy.array([0, -1, 1], "i1")
        file[f"{table}/type/categories"] = ["B", "T"]
        file[f"{table}/known/values"] = numpy.arange(3)
        file[f"{table}/known/mask"] = numpy.array([True, False, False])
        file[table].attrs["column-order"] = ["type", "known"]
        file[f"{table}/type"].attrs["encoding-type"] = "categorical"
        file[f"{table}/known"].attrs["encoding-type"] = "nullable-integer"
    file.flush()
    scdl.convert(file.filename, f"{place}/a.scdl")
    print(*sorted({"pandas", "anndata", "numba", "torch", "zarr"} & set(sys.modules)))
    print(*scdl.open(f"{place}/a.scdl").obs["type"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["", "B nan T"]


@pytest.mark.parametrize("kind", ["label", "text", "number"])
def test_columns_of_a_loader_need_no_pandas(tmp_path, kind):
    """Several archives, whose lists of labels are combined."""
    for i in range(2):
        columns = {
            "label": pa.array(["B", None, "T"][i:], pa.large_string()).dictionary_encode(),
            "text": pa.array(["b", "a", "c"][i:], pa.large_string()),
            "number": pa.array([4, 5, 6][i:], pa.int64()),
        }
        parts = {"obs": pa.table({**index_column(3 - i), **columns})}
        contents = small_archive(3 - i, parts=parts)
        with registry.create(tmp_path / f"{i}", registry.backend("memmap")) as writer:
            contents.write(writer)
            writer.commit(contents.attrs)
    code = f"""
import sys, scdl
loader = scdl.SingleCellLoader(scdl.open({str(tmp_path)!r}), 5, obs=[{kind!r}], order="sequential")
print(*next(iter(loader)).obs[{kind!r}].tolist(), "pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = {"label": "0 -1 1 -1 1", "text": "1 0 2 0 2", "number": "4 5 6 5 6"}
    assert done.stdout.strip() == f"{expected[kind]} False"


@pytest.mark.parametrize("module", SOURCES)
def test_logging_is_left_to_the_application(module):
    assert "basicConfig" not in SOURCES[module].read_text(encoding="utf-8")
