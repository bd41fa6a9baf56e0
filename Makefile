# make demo    train and evaluate on the embedded digits (6 minutes on 2 cores); it ends with a report to look at
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

.PHONY: demo test check lint fix clean browser

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

# The report of an evaluation is tested in Chromium, which is installed where there is none and this may do so.
browser:
	@command -v chromedriver >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; } || \
	{ echo "install Chromium and ChromeDriver first: apt-get install chromium chromium-driver" >&2; exit 1; }

test: $(VENV)/dev browser
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

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
