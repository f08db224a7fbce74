# Two commands on a fresh machine with Python 3.11+ and make: `make quickstart` and `make test`.
PYTHON ?= python3
EXTRAS ?= dev
PYTEST ?= -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile
# Tests compile a great deal and compute little.
XLA ?= --xla_backend_optimization_level=0
BIN := .venv/bin

.PHONY: quickstart test lint clean

quickstart: .venv/.train
	$(BIN)/xdistil quickstart

test: .venv/.$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	XLA_FLAGS="$(XLA)" $(BIN)/python -m pytest $(PYTEST)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.%: setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch "$@"

clean:
	rm -rf .venv
