# Every target works on a fresh machine: the environment is made first, by whoever needs it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
WORKSPACE ?= ./workspace
TEST_WORKERS ?= 2
# The tests of a file stay together, because they share Ray instances and finished days, as do files that share the two
# days (tests/conftest.py); files are taken in their order, in which none of the long ones is the last.
PYTEST := python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup daily test test-all chaos lint format reference lock doctor clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## create .venv with the locked packages (CPU)

$(STAMP): requirements/cpu.txt requirements/torch-cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12), (3, 13)) else f"Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: run make with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "torch for CPU ..."
	@$(BIN)/pip install --quiet --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) -r requirements/torch-cpu.txt
	@echo "about 170 locked packages, a few minutes ..."
	@$(BIN)/pip install --quiet --no-deps -r requirements/cpu.txt
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

daily: $(STAMP) doctor ## run two serving days on eight weeks of synthetic logs, under ./workspace
	@$(BIN)/fuxi demo --workspace $(WORKSPACE)

test: $(STAMP) doctor ## run the tests, in TEST_WORKERS (2) processes
	@$(BIN)/$(PYTEST) -m "not slow"

test-all: $(STAMP) doctor ## run the tests, the slow ones too
	@$(BIN)/$(PYTEST)

chaos: $(STAMP) ## kill, fill, cut off and double a small day on disk and on S3 at random moments; 40 minutes
	@$(BIN)/python -m benchmarks.chaos $(CHAOS)

lint: $(STAMP) ## ruff and pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(STAMP) ## let ruff format and fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

doctor: $(STAMP) ## check Python, Java, torch, torchrec, fbgemm, GPU, workspace
	@$(BIN)/fuxi doctor --workspace $(WORKSPACE)

reference: $(STAMP) ## write the reference of docs/configuration.md from the code
	@$(BIN)/python -m jobs.commands.describe docs/configuration.md

lock: $(STAMP) ## resolve requirements/cpu.txt, cpu-runtime.txt and cuda.txt anew
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml requirements/cpu.in --extra dev --extra lineage --override requirements/cpu-overrides.txt \
	  --no-emit-package torch --no-emit-package fbgemm-gpu --python-version 3.11 --universal --generate-hashes \
	  --custom-compile-command "make lock" --upgrade --quiet -o requirements/cpu.txt
	$(BIN)/uv pip compile pyproject.toml requirements/cpu.in --override requirements/cpu-overrides.txt \
	  --constraint requirements/cpu.txt --no-emit-package torch --no-emit-package fbgemm-gpu \
	  --python-version 3.11 --universal --generate-hashes \
	  --custom-compile-command "make lock" --quiet -o requirements/cpu-runtime.txt
	$(BIN)/uv pip compile pyproject.toml requirements/cuda.in --extra dev --extra lineage \
	  --python-version 3.11 --universal --generate-hashes \
	  --custom-compile-command "make lock" --upgrade --quiet -o requirements/cuda.txt

clean: ## remove the workspace and caches
	rm -rf $(WORKSPACE) .pytest_cache .ruff_cache .hypothesis
