PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.epd-stamp
# Set VENV's Python up again when it is gone (an upgraded system Python leaves a dangling link).
ALIVE := $(shell $(BIN)/python -c "" 2>/dev/null && echo yes)
ifneq ($(ALIVE),yes)
.PHONY: $(STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-narrow lint format bench readme docs dist clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 10) else 'epd needs Python 3.10 or newer, $(PYTHON) is ' + sys.version.split()[0] + ': make PYTHON=python3.11')"
	@$(BIN)/python -c "" 2>/dev/null || { echo "setting up $(VENV)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@rm -f $@
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(STAMP) ## set up .venv (the other targets do it themselves)

demo: $(STAMP) ## learn a 5-call solver for the embedded digits model, compare it, draw everything into runs/demo
	$(BIN)/python -m epd.experiments.demo

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-fast: $(STAMP) ## all but the slow tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

# The rooms whose tests compute: what the others read, write and print does not depend on the width of vectors.
NUMERIC := $(addprefix tests/,denoisers solvers pipelines distill rl evaluation)
test-narrow: $(STAMP) ## the fast tests of the rooms that compute, with the narrowest vectors that torch has
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" $(NUMERIC)

lint: $(STAMP) ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(STAMP) ## what ruff can mend by itself
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## what a solver costs beside its network's bare calls, into experiments/results/benchmarks
	$(BIN)/python -m epd.experiments.benchmarks

readme: $(STAMP) ## put the numbers of experiments/results into README.md and docs
	$(BIN)/python -m epd.experiments.readme_tables

docs: $(STAMP) ## the documentation with its API reference, into build/site
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

dist: $(STAMP) ## wheel and sdist
	$(BIN)/python -m build

clean: ## what can be made again, but for runs/ and .venv
	rm -rf build dist *.egg-info .ruff_cache .hypothesis .pytest_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## .venv, too
	rm -rf $(VENV)
