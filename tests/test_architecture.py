"""What may import what: layers only downwards, heavy packages only where they are needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Top to bottom: a module imports from its own group and those below. New files get a place here.
LAYERS = [
    {"scdl", "scdl.__main__", "scdl.cli"},
    {"scdl.lightning"},
    {"scdl.loader", "scdl.splits"},
    {"scdl.loader_dataset", "scdl.loader_options", "scdl.orders", "scdl.split_drawing"},
    {"scdl.grouping"},
    {"scdl.epochs", "scdl.prefetch", "scdl.progress", "scdl.training_batch", "scdl.vocabulary"},
    {"scdl.facts"},
    {"scdl.bionemo", "scdl.collection"},
    {"scdl.flatten", "scdl.joined_cells", "scdl.member_verification"},
    {"scdl.member_graph"},
    {"scdl.members"},
    {"scdl.manifest"},
    {"scdl.dataset"},
    {"scdl.directory_conversion"},
    {"scdl.jobs"},
    {"scdl.row_parts"},
    {"scdl.cell_names", "scdl.comparison"},
    {"scdl.concatenate", "scdl.conversion", "scdl.export", "scdl.verification"},
    {"scdl.gene_selection", "scdl.h5ad", "scdl.kept_elements"},
    {"scdl.matrix_view"},
    {"scdl.sources"},
    {"scdl.anndata_elements", "scdl.dataframes", "scdl.transpose"},
    {"scdl.matrices"},
    {"scdl.hdf5_claims"},
    {"scdl.chunks", "scdl.origins", "scdl.structure", "scdl.tables", "scdl.workers"},
    {"scdl.assembly", "scdl.gene_view", "scdl.rows"},
    {"scdl.features", "scdl.joining", "scdl.neighbors", "scdl.samplers"},
    {"scdl.collate", "scdl.csr"},
    {"scdl.batch"},
    {"scdl.tensors"},
    {"scdl._join_kernels", "scdl._kernels", "scdl.cast", "scdl.genes", "scdl.transforms"},
    {
        "scdl.__version__",
        "scdl._lanes",
        "scdl.errors",
        "scdl.hashing",
        "scdl.recycled",
        "scdl.schema",
    },
    {"scdl.map_dataset", "scdl.summary"},
]
SEAM = {
    "storage_backends.base",
    "storage_backends.errors",
    "storage_backends.jit",
    "storage_backends.other_formats",
    "storage_backends.paths",
    "storage_backends.registry",
    # Files and directories, locked and put where they belong.
    "storage_backends.locks",
    "storage_backends.publication",
    # Arrow arrays, columns united, compiled loops, threads, filters of warnings, what was used
    # last, a rule of sizes: these do not know of archives.
    "storage_backends.arrow",
    "storage_backends.caching",
    "storage_backends.proportion",
    "storage_backends.recent",
    "storage_backends.rowsort",
    "storage_backends.threads",
    "storage_backends.uniting",
    "storage_backends.warning_filters",
}

# Packages that only some modules import.
CONFINED = {
    "torch": {
        "scdl.collate",
        "scdl.lightning",
        "scdl.loader",
        "scdl.loader_dataset",
        "scdl.loader_options",
        "scdl.map_dataset",
        "scdl.tensors",
        "scdl.training_batch",
    },
    "distributed": {"scdl.workers"},
    "anndata": {
        "scdl.anndata_elements",
        "scdl.assembly",
        "scdl.export",
        "storage_backends._zarr_elements",
        "storage_backends.zarr",
    },
}
# Packages that `import scdl` leaves alone.
HEAVY = {"anndata", "distributed", "h5py", "numba", "pandas", "pyarrow", "scipy", "torch", "zarr"}

TYPE_CHECKING = {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for package in ("scdl", "storage_backends")
    for path in sorted((ROOT / package).rglob("*.py"))
}
# The package itself is left out: it names everything and imports it on demand.
ABOVE_SEAM = [name for name in SOURCES if name.startswith("scdl.")]
BELOW_SEAM = [name for name in SOURCES if name.split(".")[0] == "storage_backends"]


def layer(module: str) -> int:
    """Place of a module in the table, counted from the top."""
    for depth, group in enumerate(LAYERS):
        if module in group:
            return depth
    pytest.fail(f"{module} has no place in LAYERS")


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


def imports(module: str) -> set[str]:
    """Modules that a module imports, inside functions too; ours by their full name."""
    found = set()
    for node in executed(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = SOURCES.keys() | {"scdl.__version__"}
            found |= {name if name in ours else str(node.module) for name in names}
    return found


@pytest.mark.parametrize("module", ABOVE_SEAM)
def test_layers_import_only_downwards(module):
    depth = layer(module)
    ours = {name for name in imports(module) if name.split(".")[0] == "scdl"}
    assert {name for name in ours if layer(name) < depth} == set()


@pytest.mark.parametrize("module", ABOVE_SEAM)
def test_only_the_seam_is_seen_from_above(module):
    below = {name for name in imports(module) if name.split(".")[0] == "storage_backends"}
    assert below <= SEAM


@pytest.mark.parametrize("module", BELOW_SEAM)
def test_backends_know_nothing_of_cells(module):
    assert not {name for name in imports(module) if name.split(".")[0] == "scdl"}


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


@pytest.mark.parametrize("module", SOURCES)
def test_logging_is_left_to_the_application(module):
    assert "basicConfig" not in SOURCES[module].read_text(encoding="utf-8")
