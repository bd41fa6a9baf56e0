# make demo    train, evaluate and answer on the embedded digits (6 minutes on 2 cores)
# make test    all tests
# make check   formatter, linter, type checker, import direction, then all tests
# make fix     let the formatter and the linter change what they can
# Each creates a virtual environment and installs the tested versions if it is missing.
#
# make test PYTHON=python3.13 CONSTRAINTS=none    another Python and the newest versions, in .venv-python3.13

PYTHON ?= python3.11
CONSTRAINTS ?= constraints.txt
VENV ?= $(if $(filter python3.11,$(notdir $(PYTHON))),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet $(if $(filter none,$(CONSTRAINTS)),,--constraint $(CONSTRAINTS))
WORKERS ?= 2
WORKDIR ?= runs/digits

.PHONY: demo test check lint fix clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run: pyproject.toml $(filter-out none,$(CONSTRAINTS)) | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/dev: pyproject.toml $(filter-out none,$(CONSTRAINTS)) | $(BIN)/python
	$(PIP) --editable '.[test,dev]'
	@touch $(VENV)/run $@

demo: $(VENV)/run
	$(BIN)/python train.py --config configs/digits_few.py --workdir $(WORKDIR)/few
	$(BIN)/python train.py --config configs/digits.py --workdir $(WORKDIR) --config.start.checkpoint $(WORKDIR)/few
	$(BIN)/python eval.py --config configs/digits.py --workdir $(WORKDIR)

test: $(VENV)/dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS)

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

fix: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
