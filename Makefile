# Every task of the project. `make help` lists them; each target sets up what it needs.
PYTHON ?= python3
SEEDS ?= 0
# nproc would print the value of OMP_NUM_THREADS, which limits the threads of one process.
JOBS ?= $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 1)
VENV := .venv
RUN := $(VENV)/bin/python -m
TABLE = $(RUN) scripts.table table=$(subst -,_,$*)

.DEFAULT_GOAL := help
.PHONY: help setup lock test test-faults lint demo reproduce-table report figures benchmark benchmark-gpu zoo site clean

help:  ## this list
	@grep -hE '^[a-z][a-zA-Z0-9_%-]*:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo "The tables; plan-table-NAME and table-NAME take the same names:"
	@awk '/^label:/ { name = FILENAME; gsub(/.*\/|\.yaml/, "", name); gsub(/_/, "-", name); gsub(/^label: *|"/, ""); \
		printf "  make %-40s %s\n", "reproduce-table-" name, $$0 }' $$(grep -L '^trainable: false' conf/table/*.yaml)

setup: $(VENV)/.ready  ## create the virtual environment with the exact tested packages

$(VENV)/.ready: requirements.lock requirements.headless.lock scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh

lock: setup  ## resolve requirements.txt into requirements.lock
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh lock

test: setup  ## all tests (under 10 minutes on two cores)
	@$(RUN) pytest -n $(JOBS) --dist loadfile

test-faults: setup  ## kills, full disks, races, damaged inputs (under 30 minutes on two cores)
	@$(RUN) pytest -m faults

lint: setup  ## style, common mistakes, types
	@$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy

demo: setup  ## train two detectors with FL and AFL, compare them, draw a picture (two minutes)
	@$(RUN) scripts.table action=run table=shapes table.detectors=[retinanet,centernet] table.losses=[fl,afl] jobs=$(JOBS) $(ARGS)
	@$(RUN) scripts.report gallery loss=afl output=outputs/tables/shapes/found.jpg

reproduce-table: reproduce-table-shapes  ## train the embedded benchmark, compare it with the committed one (SEEDS=0,1,2)

reproduce-table-%: setup  ## the same for a table of the list below (ARGS="paths.data=FOLDER")
	@$(TABLE) action=run seeds=[$(SEEDS)] jobs=$(JOBS) $(ARGS)

plan-table-%: setup  ## runs, hours and disk space of a table, and its finished runs
	@$(TABLE) action=plan seeds=[$(SEEDS)] $(ARGS)

table-%: setup  ## rebuild results/NAME from its records, without training
	@$(TABLE) publish=true $(ARGS)

# Each seed of these tables is another data set.
reproduce-table-data-seeds plan-table-data-seeds: SEEDS = 1,2,3
CONFIRMED := confirmation confirmation-lr confirmation-repeats confirmation-repeats-lr extremenet-threshold extremenet-threshold-repeats
$(CONFIRMED:%=reproduce-table-%) $(CONFIRMED:%=plan-table-%): SEEDS = 4,5,6
# One detector of these tables fills a machine (JOBS=2 trains two side by side).
reproduce-table-coco reproduce-table-lvis% reproduce-table-voc: JOBS = 1

report: setup  ## all tables and figures in one page, outputs/report.html
	@$(RUN) scripts.report html

benchmark-gpu: setup  ## checks and times on this machine's GPU, four minutes (ARGS=dry=true: on a CPU)
	@$(RUN) scripts.benchmark gpu $(ARGS)

benchmark: setup  ## compare the speed with other packages on this machine (ARGS="loss" for one part)
	@$(RUN) scripts.benchmark $(ARGS)

figures: setup  ## draw the figures of results/figures
	@$(RUN) scripts.report figures

data-%: setup  ## download, verify and unpack coco, lvis or voc (ARGS="dataset.root=/data/coco")
	@$(RUN) scripts.prepare_data $* $(ARGS)

zoo: setup  ## train the missing detectors of conf/zoo.yaml (ARGS="paths.data=FOLDER")
	@$(RUN) scripts.zoo make $(ARGS)

site: setup  ## build the documents as a website, outputs/site (ARGS="serve" also shows it)
	@$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python -r docs/requirements.txt
	@$(RUN) scripts.site $(ARGS)

clean:  ## remove runs and caches, keep the environment and downloaded data
	rm -rf outputs .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
