# Everything a newcomer needs. `make help` lists it; every target sets up what it needs by itself.
PYTHON ?= python3
SEEDS ?= 0
JOBS ?= $(shell nproc 2>/dev/null || echo 1)
VENV := .venv
RUN := $(VENV)/bin/python -m

.DEFAULT_GOAL := help
.PHONY: help setup lock test lint reproduce-table table-shapes clean

help:  ## this list
	@grep -hE '^[a-z][a-zA-Z0-9_%-]*:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-28s %s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## virtual environment with the exact tested packages (again: nothing to do)

$(VENV)/.ready: requirements.lock scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh

lock: setup  ## resolve requirements.txt anew into requirements.lock
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh lock

test: setup  ## all tests (under 10 minutes on two cores)
	@$(RUN) pytest

lint: setup  ## style and common mistakes
	@$(RUN) ruff check . && $(RUN) ruff format --check .

reproduce-table: setup  ## run the missing cells of the embedded benchmark, then print its table (SEEDS=0,1,2)
	@$(RUN) scripts.table table=shapes action=run seeds=[$(SEEDS)] jobs=$(JOBS)

table-shapes: setup  ## rebuild that table from its records, without training
	@$(RUN) scripts.table table=shapes

clean:  ## remove runs and caches, keep the environment and downloaded data
	rm -rf outputs .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
