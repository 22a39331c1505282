# Each target sets itself up: a virtual environment in .venv with the tested versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo earn-quick test test-all format clean

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
