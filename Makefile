# Every target sets up what it needs. `make` alone says what there is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Many tests wait for servers and for leases: two processes side by side, a file of tests in one of them. `make test PROCESSES=0`: one after another.
PROCESSES ?= 2
# They start some thousand processes: what those import is compiled once, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check bench services docs servers clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-9s %s\n", $$1, $$2}'

demo: $(READY)  ## many agents, a crash and a time machine, in a temporary folder
	@$(BIN)/perdure demo

test: $(READY) servers  ## all tests, with Postgres, Redis and Kafka really up
	$(BIN)/python -m perdure.services build
	$(BIN)/pytest -q -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

check: $(READY)  ## linters, types, import rules, and the wheel by way of the source distribution
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	rm -rf dist && $(BIN)/python -m build --outdir dist .
	$(BIN)/python .ci/compare_wheel.py

bench: $(READY) servers  ## all figures, beside peers and limits, in ten minutes; docs/performance.md anew
	$(BIN)/python -m benchmarks all --quick --out benchmarks/results; found=$$?; $(BIN)/python -m benchmarks.page && exit $$found

services: $(READY) servers  ## Postgres, Redis and Kafka for development; prints their URLs
	@$(BIN)/perdure services up

docs: $(READY)  ## docs/commands.md, from the commands themselves
	$(BIN)/python docs/generate.py

servers:
	@.ci/machine servers

clean:  ## remove what was built, and the virtual environment
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# `pip install --group` needs pip 25.1; an older one is replaced first.
$(READY): pyproject.toml
	@PYTHON=$(PYTHON) .ci/machine python
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' --group dev
	@touch $@
