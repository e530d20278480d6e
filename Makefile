# Every task of the project. `make help` lists them; each target sets up what it needs.
PYTHON ?= python3
SEEDS ?= 0
JOBS ?= $(shell nproc 2>/dev/null || echo 1)
VENV := .venv
RUN := $(VENV)/bin/python -m
RUN_TABLE = $(RUN) scripts.table action=run seeds=[$(SEEDS)] jobs=$(JOBS) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup lock test lint demo reproduce-table reproduce-table-sampling reproduce-table-ablation reproduce-table-remedies reproduce-table-remedies-photos reproduce-table-prior reproduce-table-trashcan reproduce-table-photos reproduce-table-photos-gpu reproduce-table-forms reproduce-table-bccd reproduce-table-data-seeds reproduce-table-short reproduce-table-closed reproduce-table-scratch reproduce-table-trashcan-frames report figures data-coco data-lvis data-voc clean test-faults benchmark benchmark-gpu zoo site

help:  ## this list
	@grep -hE '^[a-z][a-zA-Z0-9_%-]*:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-32s %s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## virtual environment with the exact tested packages (again: nothing to do)

$(VENV)/.ready: requirements.lock requirements.headless.lock scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh

lock: setup  ## resolve requirements.txt into requirements.lock
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh lock

test: setup  ## all tests (under 10 minutes on two cores)
	@$(RUN) pytest -n $(JOBS) --dist loadfile

test-faults: setup  ## kills, full disks, races, dead processes, damaged inputs (under 30 minutes on two cores)
	@$(RUN) pytest -m faults

lint: setup  ## style, common mistakes, types
	@$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy

demo: setup  ## two detectors, FL and AFL: their figures beside the committed ones, and a picture (a few minutes)
	@$(RUN) scripts.table action=run table=scratch jobs=$(JOBS) $(ARGS)
	@$(RUN) scripts.report gallery loss=afl output=outputs/tables/scratch/found.jpg

reproduce-table: setup  ## run the missing cells of the embedded benchmark, then print their table beside the committed one (SEEDS=0,1,2)
	@$(RUN_TABLE) table=shapes

reproduce-table-sampling: setup  ## the same with every remedy for class imbalance, on three detectors
	@$(RUN_TABLE) table=sampling

reproduce-table-ablation: setup  ## AFL taken apart, with its controls
	@$(RUN_TABLE) table=ablation

reproduce-table-remedies: setup  ## every remedy for long tails on six detectors, with its controls (SEEDS=0,1,2)
	@$(RUN_TABLE) table=remedies

reproduce-table-remedies-photos: setup  ## twelve of them on photographs (ARGS="paths.data=FOLDER")
	@$(RUN_TABLE) table=remedies_photos

reproduce-table-data-seeds: SEEDS = 1,2,3
reproduce-table-data-seeds: setup  ## another data set for every seed
	@$(RUN_TABLE) table=data_seeds

reproduce-table-short: setup  ## a quarter of the training: what a remedy costs while nothing is fitted yet
	@$(RUN_TABLE) table=short

reproduce-table-closed: setup  ## stopped before AFL's gate opens
	@$(RUN_TABLE) table=closed

reproduce-table-scratch: setup  ## without pre-trained features: where features, not gradient, are what the tail lacks
	@$(RUN_TABLE) table=scratch

reproduce-table-prior: setup  ## control: heat-map heads that start as anchor heads do
	@$(RUN_TABLE) table=prior

reproduce-table-trashcan: setup  ## a real long tail, small enough for a CPU (ARGS="paths.data=FOLDER")
	@$(RUN_TABLE) table=trashcan

reproduce-table-trashcan-frames: setup  ## its photos split by frame instead of by video (ARGS="paths.data=FOLDER")
	@$(RUN_TABLE) table=trashcan_frames

reproduce-table-photos: setup  ## photographs from ImageNet features, real long tails (ARGS="paths.data=FOLDER")
	@$(RUN_TABLE) table=photos

reproduce-table-photos-gpu: setup  ## FOD-A, many cells side by side on one GPU (JOBS=18 ARGS="paths.data=FOLDER")
	@$(RUN_TABLE) table=photos_gpu

reproduce-table-forms: setup  ## forms of AFL on generated images, the development set of results/protocol.md (SEEDS=0,1)
	@$(RUN_TABLE) table=forms

reproduce-table-bccd: setup  ## a nearly balanced real set, where nothing should be lost (ARGS="paths.data=FOLDER")
	@$(RUN_TABLE) table=bccd

reproduce-table-%: setup  ## the paper's: coco, lvis, voc, lvis-sampling, lvis-ablation (ARGS="launch=[hydra/launcher=submitit_slurm]")
	@$(RUN) scripts.table table=$(subst -,_,$*) action=run seeds=[$(SEEDS)] $(ARGS)

plan-table-%: setup  ## runs, hours and disk that a table needs, and what is done already
	@$(RUN) scripts.table table=$(subst -,_,$*) action=plan seeds=[$(SEEDS)] $(ARGS)

table-%: setup  ## rebuild results/NAME (shapes, sampling, ablation, coco, ...) from its records, without training
	@$(RUN) scripts.table table=$(subst -,_,$*) publish=true $(ARGS)

report: setup  ## all tables and figures in one page, outputs/report.html
	@$(RUN) scripts.report html

benchmark-gpu: setup  ## losses and steps on this machine's GPU, three minutes
	@$(RUN) scripts.benchmark gpu $(ARGS)

benchmark: setup  ## losses, steps, evaluation, input, decoding against others on this machine (ARGS="loss" for one)
	@$(RUN) scripts.benchmark $(ARGS)

figures: setup  ## draw the figures of results/figures
	@$(RUN) scripts.report figures

data-coco: setup  ## download, verify and unpack MS COCO 2017 (ARGS="dataset.root=/data/coco")
	@$(RUN) scripts.prepare_data coco $(ARGS)

data-lvis: setup  ## the same for LVIS v1, reusing COCO's images
	@$(RUN) scripts.prepare_data lvis $(ARGS)

data-voc: setup  ## the same for PASCAL VOC 07+12
	@$(RUN) scripts.prepare_data voc $(ARGS)

zoo: setup  ## train and write the detectors that conf/zoo.yaml lists and zoo/ lacks (ARGS="paths.data=FOLDER")
	@$(RUN) scripts.zoo make $(ARGS)

site: setup  ## the documents as a website, outputs/site (ARGS="serve" shows it); links are checked
	@$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python -r docs/requirements.txt
	@$(RUN) scripts.site $(ARGS)

clean:  ## remove runs and caches, keep the environment and downloaded data
	rm -rf outputs .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
