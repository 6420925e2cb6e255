# Everyday commands; `make help` lists them. Everything lives in .venv and data/, both safe to delete.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup samples demo test test-full check calibration docs lab clean

help:  ## what each command does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	@echo "installing about 3 GB into $(VENV); this takes some minutes"
	@$(BIN)/python -m pip install --progress-bar off -c constraints.txt torch | sed -n '/^\(Collecting\|Installing\)/p'
	@$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[dev]' | sed -n '/^\(Collecting\|Installing\)/p' | cut -c1-100
	@$(BIN)/python -m pip check
	@touch $@

setup: $(READY) samples  ## environment in .venv, sample media in data/

samples: $(READY)
	@$(BIN)/omega-lab samples

demo: $(READY)  ## a whole round of the subnet on this machine
	@$(BIN)/omega-lab demo

check: $(READY)  ## quick look before a commit: export in sync, clean notebooks, ruff, types
	@$(BIN)/python tools/check.py sync clean readme
	@$(BIN)/ruff check omega_lab tests tools
	@$(BIN)/mypy

test: setup check  ## everything that fits ten minutes on two cores
	@$(BIN)/python tools/check.py outputs
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -q -n 2 --dist loadfile

test-full: test  ## and the long ones
	@$(BIN)/pytest -q -m full -s tests

calibration: setup  ## the Focus judge against recordings whose truth is known (about 30 minutes; wants Debian packages, it says which)
	@$(BIN)/python tools/focus_calibrate.py --write
	@$(BIN)/python tools/focus_canaries.py --write
	@$(BIN)/python tools/focus_copies.py --write

docs: $(READY)  ## the site, built from the notebooks into site/
	@$(BIN)/python tools/docs.py

lab: $(READY)  ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab nbs

clean:  ## remove what was built or executed (media and caches in data/ stay)
	rm -rf site _proc build dist runs data/demo *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
