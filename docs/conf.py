"""Settings of the documentation site, which `make docs` builds."""

import os
import sys
from pathlib import Path

import scdl

sys.path.append(str(Path(__file__).parent / "_extensions"))
# Cells of pages call commands of this environment, whose output is that of a plain, wide terminal.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ |= {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
# Pages run side by side: threads of PyTorch that wait for a core would only take it from others.
os.environ["OMP_NUM_THREADS"] = "1"

project = "scdl"
author = "The scdl-store developers"
copyright = author
release = version = scdl.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "command_reference",
    "repository_pages",
]
exclude_patterns = ["_build", "README.md", "_inventories"]
templates_path = ["_templates"]
default_role = "literal"
nitpicky = True

html_theme = "sphinx_book_theme"
html_title = "scdl"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "home_page_in_toc": True,
    # Each page would otherwise hold links to all others, which takes half of the time of a build.
    "collapse_navbar": True,
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autosummary_generate = True
autosummary_imported_members = True
autodoc_member_order = "groupwise"
napoleon_google_docstring = False
napoleon_use_ivar = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# Types in prose; and in signatures: packages by their usual abbreviations, aliases of types, which
# each parameter's text explains, and internal classes.
nitpick_ignore_regex = [
    ("py:class", r".*[ {}\"].*|optional|sequence|mapping|path|array-like|ndarray|dtype"),
    ("py:class", r"numpy\..*\._\w+|numpy\.random\._generator\.Generator"),
    ("py:class", r"(np|pa|pd|csr|orders)\..*|(NDArray|DTypeLike|Expression|MuData|Steps)"),
    ("py:class", r"CellNames|Columns|Convertible|Duplicates|Genes|Missing|Names|NewArchive|Path"),
    ("py:class", r"Remainder|WorkersLike|\w*Options|CellReader|OpenedArchive|RowReader|RowsRead"),
    ("py:class", r"scdl\.dataset\.(cells\.(Origin|Storage)|neighbor_methods\.CellReader)"),
    ("py:class", r"scdl\.archive\.(features|schema|requests|csr)\.\w+"),
]

# Inventories in the repository, with the names that pages link to, so that a build needs no network
# and gives the same links anywhere.
intersphinx_mapping = {
    name: (address, f"_inventories/{name}.txt")
    for name, address in {
        "python": "https://docs.python.org/3/",
        "anndata": "https://anndata.readthedocs.io/en/stable/",
        "numpy": "https://numpy.org/doc/stable/",
        "pandas": "https://pandas.pydata.org/docs/",
        "pyarrow": "https://arrow.apache.org/docs/",
        "scanpy": "https://scanpy.readthedocs.io/en/stable/",
        "scipy": "https://docs.scipy.org/doc/scipy/",
        "torch": "https://docs.pytorch.org/docs/stable/",
        "zarr": "https://zarr.readthedocs.io/en/stable/",
    }.items()
}
