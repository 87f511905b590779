# Thin calls; `setup/setup` says what it installs before it does.
PYTHON := .venv/bin/python
NUMALAB := .venv/bin/numalab
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: quickstart test test-full lint bench setup clean

quickstart: setup
	@echo "== 1/4  Debian's own kernel on an emulated 4-node machine: where do the page tables of GUPS live?"
	@$(NUMALAB) snapshot --kernel stock -- gups --size 64M --updates 1M --cpus 0 --huge never
	@echo "== 2/4  The patched kernel (minutes the first time, then from the cache)"
	@$(NUMALAB) kernel build
	@echo "== 3/4  GUPS and BTree: first touch, page tables on a remote node, interleave, lazy and eager replicas"
	@$(NUMALAB) run mitosis/quickstart --out results/quickstart --retry-failed
	@echo "== 4/4  Report"
	@$(NUMALAB) report results/quickstart --out report.html

# The kernel first, with its progress shown; the tests would build it too. Two processes: a machine keeps one core busy.
test: setup
	@$(NUMALAB) kernel build
	@$(PYTHON) -m pytest -m "not slow" --require-boots --durations=10 -n 2 --dist loadfile --no-loadscope-reorder

# Many hours in emulation; it can be interrupted, and goes on where it was.
test-full: setup
	@status=0; $(PYTHON) -m pytest --require-boots --durations=20 || status=$$?; \
	$(NUMALAB) selftest matrix --no-run --table docs/selftests.md || status=$$?; exit $$status

lint: setup
	@ruff check .
	@ruff format --check .
	@mypy
	@shellcheck setup/setup setup/try-fresh .ci/run linux-patches/checkpatch numalab/machine/start-qemu
	@linux-patches/checkpatch

bench: setup
	@$(PYTHON) -m tests.bench --output bench.json

setup:
	@setup/setup

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
