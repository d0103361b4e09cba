# medsa: `make demo` shows it, `make test` proves it. `make help` lists the rest.
VENV ?= .venv
PORT ?= 8000
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test unit lint bench bench-adapters starter-adapter clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## install the Python packages into .venv (about 4 minutes the first time)
	@echo "ready: . $(BIN)/activate, then medsa --help or monailabel start_server --app apps/medsa --studies ..."

$(STAMP): requirements.txt pyproject.toml $(wildcard third_party/pydicom_seg/*.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medsa needs Python 3.11 or newer; name it: make PYTHON=python3.11 ...")'
	@scripts/system-packages venv
	@echo "installing the Python packages into $(VENV) (a few minutes the first time)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(BIN)/python -m pip check --disable-pip-version-check
	@touch $(STAMP)

demo: $(STAMP)  ## start Orthanc, demo studies and the server; CHECK=1 does it without a person
	@scripts/system-packages orthanc
	@exec $(BIN)/python -m medsa.demo --port $(PORT) $(if $(filter-out 0 no,$(CHECK)),--check)

test: $(STAMP)  ## everything: unit, real Orthanc, real browser (half an hour to an hour)
	@scripts/system-packages orthanc chromium dciodvfy
	@$(MAKE) --no-print-directory unit
	@$(BIN)/python -m pytest tests/integration tests/browser $(ARGS)

unit: $(STAMP)  ## the unit tests alone, on all cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(STAMP)  ## ruff, mypy and, for the panel in OHIF, oxlint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/oxlint --deny-warnings lib tests

bench: $(STAMP)  ## speed and memory, side by side with MONAI Label's SAM 2 task
	@scripts/system-packages orthanc
	@$(BIN)/python benchmarks/speed.py

bench-adapters: $(STAMP)  ## what each method costs beside the base: time, memory, a training step
	@$(BIN)/python benchmarks/adapters.py $(ARGS)

starter-adapter: $(STAMP)  ## train the adapter that ships, from scratch, into .starter (about an hour on two cores)
	@$(BIN)/python -m medsa.training.starter --out .starter

clean:  ## remove what make made: .venv, .starter, caches, and .demo with the labels that were saved in it
	rm -rf $(VENV) .demo .starter .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis test-results build lib/medsa.egg-info
	rm -rf apps/medsa/bin apps/medsa/lib apps/medsa/logs apps/medsa/model
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
