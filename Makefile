# The commands of the project; `make` alone lists them. They need Python 3.11 or newer, and nothing else installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
INSTALLED := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format docs clean

help:
	@echo "make demo    set up, then train and show the small embedded model (a few minutes)"
	@echo "make test    set up, then run every gate: ruff, mypy, pytest (WORKERS=2 processes)"
	@echo "make setup   make $(VENV) and install besttake with its tests' tools into it"
	@echo "make lint    the gates without pytest"
	@echo "make docs    build the documentation into site/; a broken link is an error"
	@echo "make format  let ruff format the code and mend what it can"
	@echo "make clean   remove caches and build outputs; keeps $(VENV) and runs/"

setup: $(INSTALLED)
	@echo "==> $(VENV) is ready"

# PyTorch goes first, by itself: it is the large download, and a broken-off set-up then resumes after it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "besttake needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Name another interpreter: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
	  echo "==> Making $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv --clear $(VENV); }
	@echo "==> Installing PyTorch (large: this can take some minutes)"
	@$(PIP_INSTALL) torch
	@echo "==> Installing besttake and its tests' tools"
	@$(PIP_INSTALL) -e '.[test]'
	@touch $@

demo: setup
	@echo "==> besttake demo"
	@$(BIN)/besttake demo

lint: setup
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy

# `-v` undoes the `-q` of pyproject.toml, so that pytest prints its full closing summary. A process takes about 2 GB of
# memory and runs on one core; files go to whichever is free, in the order that tests/conftest.py gives.
test: lint
	@echo "==> pytest"
	@$(BIN)/python -m pytest -v -n $(WORKERS) --dist loadfile --no-loadscope-reorder

format: setup
	@echo "==> ruff format, ruff check --fix"
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup
	@echo "==> mkdocs build --strict"
	@$(PIP_INSTALL) -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "==> site/index.html"

clean:
	@echo "==> Removing caches and build outputs"
	@rm -rf build dist site besttake.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -path ./$(VENV) -prune -o -path ./runs -prune -o -name __pycache__ -type d -exec rm -rf {} +
