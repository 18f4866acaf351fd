# Every target makes .venv when it is missing and does nothing when it is there.
# `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.r1lite-installed

# Tests start several processes: a waiting OpenMP thread must sleep, or they fall
# to a fraction of their speed. A run is alone, and there waking a sleeping thread
# costs more than the small product it is woken for: 7 k against 12 k tokens/s.
test: export OMP_WAIT_POLICY = PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help install run test book site refresh lint bench

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

install: $(STAMP) ## make .venv with the tested versions and the package
	@:

run: $(STAMP) ## train the nano recipe end to end (about ten minutes)
	@$(BIN)/r1lite run nano
	@echo
	@echo "report:  runs/nano/report.html (open it in a browser)"
	@echo "chat:    $(BIN)/r1lite chat runs/nano/final"

test: $(STAMP) ## run every test and every notebook
	@$(BIN)/python -m pytest -n 2 --dist loadfile

book: $(STAMP) ## open the chapters in JupyterLab
	@$(BIN)/jupyter lab chapters

site: $(STAMP) ## build the book as web pages in _build/site
	@$(BIN)/python chapters/site/build.py

refresh: $(STAMP) ## run every chapter again and store the new outputs
	@$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.record_timing=False --log-level=WARN chapters/*.ipynb

lint: $(STAMP) ## style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP) ## measure speed on this machine
	@for b in tests/benchmarks/bench_*.py; do \
	  $(BIN)/python $$b --machine "$$(uname -m), $$(getconf _NPROCESSORS_ONLN) cores" \
	    || exit 1; done

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "R1-lite needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
	    "name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip -q
	@echo "installing the tested versions into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -q -r requirements.lock
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@
