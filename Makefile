# Each target sets itself up: a virtual environment in .venv with the tested versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test test-all format clean

demo: .venv/installed
	$(BIN)/lorachord demo

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto

test-all: .venv/ready
	$(BIN)/python -m pytest -n auto -m "slow or not slow"

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What a user has.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	touch $@

# And what a developer needs besides.
.venv/ready: .venv/installed
	$(INSTALL) '.[dev]'
	touch $@

clean:
	rm -rf .venv
