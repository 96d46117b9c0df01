# `make` lists the targets. Everything runs in the environment that `make env` makes in $(VENV).
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
WORKERS ?= 2
export VENV VLLM_VENV
BIN := $(VENV)/bin
PY := $(BIN)/python
CHECKED := visd data_tools eval scripts

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help env env-vllm demo test test-vllm test-fast test-gpu lint format docs compare clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: ## Make the environment, or do nothing if it is up to date (PYTHON=python3.12 picks the interpreter)
	@bash scripts/setup/make_env.sh

env-vllm: env ## Make the environment of the tests of vLLM and lmms-eval, or do nothing if it is up to date (Linux only)
	@bash scripts/setup/make_vllm_env.sh

demo: env ## Make a small world of videos, warm a tiny model up, train it, evaluate it, write a report
	@$(PY) scripts/demo.py

test: env lint test-vllm ## Lint, type check and run every test that needs no GPU
	@$(PY) -m pytest -m "not gpu" -n $(WORKERS) --dist loadfile

test-vllm: env-vllm ## Run the tests of vLLM itself, on the CPU, and of lmms-eval
	@[ ! -x $(VLLM_VENV)/bin/python ] || $(VLLM_VENV)/bin/python -m pytest -m "not gpu" -n $(WORKERS) --dist loadfile tests/engines tests/bridges/test_lmms_eval.py

test-fast: env ## Run the tests that take seconds
	@$(PY) -m pytest -m "not gpu and not slow and not dist" -n $(WORKERS) --dist loadfile

test-gpu: env ## Run the tests that need a CUDA device
	@$(PY) -m pytest -m gpu

lint: env ## Check style, formatting and types
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/ruff format --no-cache --check .
	@$(BIN)/mypy $(CHECKED)

format: env ## Repair style and formatting where that can be done by a machine
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: env ## Write the generated pages of docs/ anew
	@$(PY) scripts/make_docs.py

compare: env ## Compare the methods on the small world and write docs/results.md
	@$(PY) scripts/compare.py

clean: ## Remove outputs and caches; the environment stays
	rm -rf outputs multirun wandb build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
