# Thin calls; `setup/setup` says what it installs before it does.
PYTHON := .venv/bin/python
NUMALAB := .venv/bin/numalab
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: quickstart test test-full lint bench setup clean

quickstart: setup
	@$(PYTHON) -m numalab.quickstart

test: setup
	@$(PYTHON) -m pytest -m "not slow" --durations=10

test-full: setup
	@$(PYTHON) -m pytest

lint: setup
	@ruff check .
	@ruff format --check .
	@mypy
	@shellcheck setup/setup .ci/run linux-patches/checkpatch
	@linux-patches/checkpatch

bench: setup
	@$(PYTHON) -m tests.bench --output bench.json

setup:
	@setup/setup

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
