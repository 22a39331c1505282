# Each target sets itself up: a virtual environment in .venv with the tested versions, checked by their hashes.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo earn-quick test test-all format lock clean

demo: .venv/installed
	$(BIN)/lorachord demo

# Two of the settings in recipes/earn, shortened to minutes; docs/compare.md. DATA: a folder with a folder per GLUE task.
QUICK := --seeds 1 --jobs 2 --set evaluation.max_rows=200
earn-quick: .venv/installed
	$(BIN)/lorachord compare recipes/earn/coding.yaml $(QUICK) $(if $(DATA),--data $(DATA)) --out runs/earn_quick/coding \
	  --methods 'mtl_lora,hydralora,comol' --rates 1e-3 --set training.epochs=null --set training.max_steps=100 --time 280s
	$(BIN)/lorachord compare recipes/earn/cue.yaml $(QUICK) --budget own --out runs/earn_quick/cue \
	  --methods 'hydralora[r=1],comol[r=1],mtl_lora[r=1]' --rates 1e-3 --set training.max_steps=120 --time 280s

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

# What a user has. Builds of torch differ from machine to machine, so that its version alone is fixed.
.venv/installed: pyproject.toml constraints.txt requirements.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --require-hashes --no-deps --requirement requirements.txt
	$(INSTALL) --constraint constraints.txt torch
	$(INSTALL) --no-deps --editable .
	touch $@

# And what a developer needs besides.
.venv/ready: .venv/installed requirements-dev.txt
	$(INSTALL) --require-hashes --no-deps --requirement requirements-dev.txt
	touch $@

# After a change of pyproject.toml or constraints.txt: all packages, for each system and Python, with their hashes.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command 'make lock' --constraint constraints.txt --no-emit-package torch pyproject.toml
lock:
	$(LOCK) --extra dev --output-file requirements-dev.txt
	$(LOCK) --constraint requirements-dev.txt --output-file requirements.txt

clean:
	rm -rf .venv
