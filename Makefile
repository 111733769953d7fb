# Everything happens in .venv (and .venv-next), set up on demand: pyproject.toml names what is
# needed, constraints.txt the versions it was tested with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEXT := .venv-next
LOCK := .venv-lock
PYENV_ROOT ?= $(HOME)/.pyenv

PIP_INSTALL := -m pip install -qq --disable-pip-version-check
INSTALL := $(BIN)/python $(PIP_INSTALL) --constraint constraints.txt
# What pip would do after an installation, but on all cores, without the tests of packages, and
# without large packages of which hardly anything is imported. Some of the files are templates,
# which no Python compiles.
SKIPPED := moto|pip|sklearn|statsmodels|fontTools|aiohttp|formulaic|lightning_fabric|networkx|patsy|pygments/lexers
SKIPPED := $(SKIPPED)|pytorch_lightning|seaborn|setuptools|sympy/(combinatorics|physics|stats)
SKIPPED := $(SKIPPED)|torch/(_inductor|testing)|torchgen
COMPILE := -W ignore -m compileall -qq -j 0 -x 'site-packages/(($(SKIPPED))/|.*/tests/)'

# Pinned by hand: a newer one may come with gigabytes of CUDA.
TORCH := torch==2.13.0

# The real cells of the demo and the benchmarks are files inside these; nothing imports them.
DEMO_DATA := scanpy==1.11.5
BENCH_DATA := celltypist==1.7.1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo docs test test-whole coverage lint format types bench figures torture soak fuzz roundtrip compositions test-next wheel lock clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Convert real cells and train from them [H5AD=file] [DEST=archive]
	@$(BIN)/python -m benchmarks demo $(if $(H5AD),"$(H5AD)") $(if $(DEST),--dest "$(DEST)")

# Two tests at a time: some wait for others that have to be in time, so that it is not as many as
# there are cores. Neighbours share what is made for them, so that a process takes many of them, and
# half of what the other has left when it is done.
PYTEST := pytest --numprocesses 2 --dist worksteal

# What takes one core each goes side by side.
test: $(VENV)/.installed-test ## Run lint, types and tests
	@$(MAKE) --no-print-directory --jobs 2 types lint $(VENV)/.compiled
	$(BIN)/$(PYTEST)

# CONTRIBUTING.md says what `make test` leaves out.
test-whole: $(VENV)/.compiled ## Run the tests, whole where `make test` takes a sample
	SCDL_TESTS=whole $(BIN)/$(PYTEST)

# Includes child processes, threads and workers; see [tool.coverage] in pyproject.toml.
coverage: $(VENV)/.installed-test ## Run the tests, and list the lines of the library that none of them runs
	@rm -f .coverage .coverage.*
	$(BIN)/coverage run -m $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/.installed-test ## Check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.installed-test ## Repair style and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(VENV)/.installed-test ## Check types
	$(BIN)/mypy

# Without a subject, the list of them.
bench: $(VENV)/.installed-bench ## Run a benchmark, or list them [SUBJECT=zarr] [ARGS=...]
	@$(BIN)/python -m benchmarks $(SUBJECT) $(ARGS)

# Without reports, from the summaries that are kept beside the figures.
figures: $(VENV)/.installed-bench ## Draw the figures of the documentation [REPORTS="benchmarks/results/*.json"]
	$(BIN)/python -m benchmarks figures $(REPORTS)

torture: $(VENV)/.installed-bench ## Damage archives, and count what is found [ARGS=...]
	$(BIN)/python -m benchmarks torture $(ARGS)

soak: $(VENV)/.installed-bench ## Read for many epochs beside a writer, and look for leaks [ARGS=...]
	$(BIN)/python -m benchmarks soak $(ARGS)

fuzz: $(VENV)/.installed-bench ## Try mutated and random inputs on every parser [ARGS=...]
	$(BIN)/python -m benchmarks fuzz $(ARGS)

compositions: $(VENV)/.installed-test ## Compare selections of genes with anndata [ARGS=...]
	$(BIN)/python -W ignore -m benchmarks compositions $(ARGS)

roundtrip: $(VENV)/.installed-bench ## Convert random AnnData objects to archives and back [ARGS=...]
	$(BIN)/python -m benchmarks roundtrip $(ARGS)

# Tests of code that uses anndata, pandas, Arrow, HDF5, Zarr or numba, whose newest releases are
# installed there. `make test-next SCDL_TESTS=whole` takes all of them, and those of files and
# processes, which depend on no package.
NEXT_TESTS := $(addprefix tests/,archive backends collection conversion dataset kernels sources) \
	--ignore=tests/backends/directory/test_crash.py
NEXT_SIZE := $(or $(SCDL_TESTS),next)
ifeq ($(NEXT_SIZE),next)
NEXT_TESTS += --ignore=tests/backends/directory --ignore=tests/conversion/many
endif

# A candidate must run: pyenv's shims answer to versions that are not active.
NEXT_GOAL := .test-next
test-next: ## Run the tests on the newest Python here, with the newest dependencies
	@for version in 3.14 3.13 3.12; do \
		for python in python$$version "$(PYENV_ROOT)"/versions/$$version.*/bin/python; do \
			if "$$python" -c 'import ensurepip' 2>/dev/null; then \
				exec $(MAKE) --no-print-directory NEXT_PYTHON="$$python" $(NEXT_GOAL); \
			fi; \
		done; \
	done; \
	echo "test-next: skipped, there is no Python 3.12 or newer on this machine"

.PHONY: .test-next
.test-next: $(NEXT)/.installed
	SCDL_TESTS=$(NEXT_SIZE) $(NEXT)/bin/$(PYTEST) $(NEXT_TESTS)

.PHONY: environments
environments: ## Set up what tests need, now
	@$(MAKE) --no-print-directory --jobs 2 $(VENV)/.installed-test test-next NEXT_GOAL=$(NEXT)/.installed

# Warnings are errors, among them links that lead nowhere.
docs: $(VENV)/.installed-docs ## Build the documentation site into docs/_build/html
	$(BIN)/sphinx-build --jobs auto --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

wheel: $(VENV)/.installed-test ## Build wheel and sdist into dist/
	$(BIN)/python -m build --no-isolation

lock: ## Resolve constraints.txt anew, from the newest releases
	$(PYTHON) -m venv --clear $(LOCK)
	$(LOCK)/bin/python $(PIP_INSTALL) --editable '.[test,bench,docs]' $(TORCH)
	$(LOCK)/bin/python $(PIP_INSTALL) --no-deps $(DEMO_DATA) $(BENCH_DATA)
	{ echo "# Versions tested together on Python 3.11; written by \`make lock\`."; \
	  $(LOCK)/bin/python -m pip list --format=freeze --exclude-editable --exclude pip \
	  | sed 's/+cpu$$//'; } > constraints.txt
	rm -rf $(LOCK)

clean: ## Remove environments, caches and builds
	rm -rf .coverage .coverage.* $(VENV) $(NEXT) $(LOCK) .venv-annbatch .venv-cellstream build dist docs/_build docs/api/generated .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing scdl in $(VENV), which takes a minute or two ..."
	@$(INSTALL) --editable '.[torch]'
	@$(INSTALL) --no-deps $(DEMO_DATA)
	@touch $@

# With what $(VENV)/.installed stands for, as another run of pip takes a while.
$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing scdl and what tests need in $(VENV), which takes a minute or two ..."
	@$(INSTALL) --no-compile --editable '.[test]' $(DEMO_DATA)
	@touch $(VENV)/.installed $@

$(VENV)/.compiled: $(VENV)/.installed-test
	@$(BIN)/python $(COMPILE) $(VENV)/lib >/dev/null || true
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing what the documentation needs ..."
	@$(INSTALL) --editable '.[docs]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "Installing what benchmarks need ..."
	@$(INSTALL) --editable '.[bench]'
	@$(INSTALL) --no-deps $(BENCH_DATA)
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "scdl needs Python 3.11 or newer, and $(PYTHON) is not:" \
			"name one that is, as in 'make PYTHON=python3.12 $(MAKECMDGOALS)'" >&2; \
		exit 1; \
	}
	@$(PYTHON) -m venv $(VENV)

$(NEXT)/.installed: pyproject.toml
	@echo "Installing scdl in $(NEXT) with $(NEXT_PYTHON) ..."
	@"$(NEXT_PYTHON)" -m venv --clear $(NEXT)
	@$(NEXT)/bin/python $(PIP_INSTALL) --no-compile \
		--editable . anndata "dask[array]" hypothesis pytest pytest-xdist
	@$(NEXT)/bin/python $(COMPILE) $(NEXT)/lib >/dev/null || true
	@touch $@
