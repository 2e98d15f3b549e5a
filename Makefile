# make help lists the targets. Every target makes .venv and installs what it needs first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUICK ?=
FAULT_TABLE ?=
JOBS ?= auto
PROFILE ?= cpu
# Every study of sweeps/ but the example; those that read another study's weights come last.
SWEEPS := $(filter-out tiny,$(patsubst sweeps/%.yaml,%,$(wildcard sweeps/*.yaml)))
READING := $(patsubst sweeps/%.yaml,%,$(shell grep -lE '^ +sweeps:|base: *[{] *sweeps:' sweeps/*.yaml))
STUDIES := $(filter-out $(READING),$(SWEEPS)) $(filter $(READING),$(SWEEPS))
# Studies of the paper's figures.
FIGURES := injection_layer injection_count topk_window memory_size
# Small tensors on many threads fight over the cores; tests run in processes instead.
export OMP_NUM_THREADS ?= 1

# A study and its report, which ends with the table on screen; killed, the same command goes on.
study = $(BIN)/unimem-sweep sweeps=$(1) profile=$(PROFILE) && \
  $(BIN)/unimem-report $(1)$(if $(filter-out cpu,$(PROFILE)),-$(PROFILE))

.DEFAULT_GOAL := help
.PHONY: help install quickstart reproduce-table2 reproduce-figures reproduce-all test test-slow test-faults bench bench-gpu lint types format clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 20

install: $(VENV)/installed ## make .venv and install the tested set of packages

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older; use make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "== installing into $(VENV): torch, transformers and the rest, about 2.3 GB"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: install ## train with and without memory, show what memory does (QUICK=1: in a minute)
	@$(BIN)/python -m unimem.cli.quickstart $(if $(QUICK),--quick)

reproduce-table2: install ## the paper's Table 2: methods x corpora (PROFILE=cpu, tinyllama, llama2_7b)
	@$(call study,table2)

reproduce-figures: install ## the paper's studies of layers, budgets and sizes (PROFILE=)
	@$(foreach name,table2 $(FIGURES),$(call study,$(name)) &&) true

reproduce-all: install ## every study of sweeps/ but tiny, an example (PROFILE=)
	@$(foreach name,$(STUDIES),$(call study,$(name)) &&) true

test: install ## the whole suite but what takes long
	@echo "== the suite, without the tests marked slow (make test-slow)"
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m 'not slow'

test-slow: install ## the tests that take long
	@echo "== the tests marked slow"
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m 'slow and not fault'

test-faults: install ## processes killed, files damaged, disks full: docs/reliability.md (FAULT_TABLE=)
	@echo "== the faults of docs/reliability.md, injected"
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m fault tests/faults $(if $(FAULT_TABLE),--fault-table $(FAULT_TABLE))

bench: install ## what memory costs on this CPU: outputs/bench/bench.md and bench.png
	@$(BIN)/unimem-bench shape=tinyllama_layer device=cpu
	@$(BIN)/unimem-bench shape=nano 'what=[train_step,document]' 'sizes=[2048,10240]' device=cpu

bench-gpu: install ## TinyLLaMA-1.1B on a CUDA GPU: training, search, a long document, gradients
	@$(BIN)/unimem-bench what=gpu

lint: install ## style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install ## types
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: install ## bring the style in order
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## remove .venv and caches; outputs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist
