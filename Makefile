# Every target makes its own environment in $(VENV); nothing is installed outside of it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out
RUNS ?= runs/pocket
export JAX_PLATFORMS ?= cpu

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-torch notebooks check fmt pocket pocket-eval bench soak plan maxtext clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(VENV)/base.stamp: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "aqaa_jax needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/base.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/base.stamp ## ask the shipped pocket model a spoken question; writes out/answer.{wav,txt,png}
	@mkdir -p $(OUT)
	$(BIN)/aqaa ask examples/question.wav -o $(OUT)/answer.wav --text $(OUT)/answer.txt --plot $(OUT)/answer.png

test: $(VENV)/dev.stamp ## the fast tests
	$(BIN)/python -m pytest -n 2 -m 'not long'

test-all: $(VENV)/dev.stamp ## all tests, the long ones too, on programs compiled as for users
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest

$(VENV)-torch/stamp: setup.py
	$(PYTHON) -m venv $(VENV)-torch
	$(VENV)-torch/bin/pip install --quiet --disable-pip-version-check -e '.[dev,torch,voice,notebook]'
	@touch $@

test-torch: $(VENV)-torch/stamp ## the tests that need PyTorch and transformers, in an environment of their own
	$(VENV)-torch/bin/python -m pytest -m torch

notebooks: $(VENV)-torch/stamp ## run all notebooks from top to bottom, experiments at toy size
	$(VENV)-torch/bin/python -m pytest tests/test_notebooks.py

check: $(VENV)/dev.stamp ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

fmt: $(VENV)/dev.stamp ## format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Large pages save a tenth of the training time with glibc; elsewhere the variable means nothing.
pocket: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
pocket: $(VENV)/base.stamp ## train the pocket model from nothing into runs/pocket; resumes
	$(BIN)/aqaa train --config=configs/pocket.py --run_dir=$(RUNS) --jobs=2

pocket-eval: $(VENV)/base.stamp ## judge the shipped model (or MODEL=dir) on held-out spoken questions
	$(BIN)/aqaa pocket-eval $(if $(MODEL),--model $(MODEL)) --json $(OUT)/pocket_eval.json

$(VENV)-peers/stamp: benchmarks/peers.txt benchmarks/peers-bare.txt
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	$(VENV)-peers/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers-bare.txt
	@touch $@

bench: $(VENV)/base.stamp $(VENV)-peers/stamp ## full-size speed against PyTorch modules, which get an environment of their own
	$(BIN)/python benchmarks/bench.py --peers-python $(VENV)-peers/bin/python --json $(OUT)/bench.json

soak: $(VENV)/base.stamp ## kill, restart and resume training runs for some minutes; report and plot in out/soak.{json,png}
	$(BIN)/python benchmarks/soak.py --json $(OUT)/soak.json --plot $(OUT)/soak.png $(if $(PARTS),--parts $(PARTS))

plan: $(VENV)/dev.stamp ## compile the 130 B plans for TPU pods, hours of two cores, and remake docs/plans.md; resumes
	$(BIN)/python benchmarks/plans.py $(if $(ONLY),--only $(ONLY))

$(VENV)-maxtext/stamp: benchmarks/maxtext.txt benchmarks/maxtext-bare.txt
	$(PYTHON) -m venv $(VENV)-maxtext
	$(VENV)-maxtext/bin/pip install --quiet --disable-pip-version-check -r benchmarks/maxtext.txt
	$(VENV)-maxtext/bin/pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -r benchmarks/maxtext-bare.txt
	@touch $@

maxtext: $(VENV)/dev.stamp $(VENV)-maxtext/stamp ## compile MaxText's step of the 130 B for the same pods, in its own environment; docs/peers
	$(BIN)/python benchmarks/maxtext.py --maxtext-python $(VENV)-maxtext/bin/python $(if $(ONLY),--only $(ONLY))

clean: ## remove environments and outputs
	rm -rf $(VENV) $(VENV)-peers $(VENV)-torch $(VENV)-maxtext $(OUT) build *.egg-info
