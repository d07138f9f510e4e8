# Two commands do everything: `make demo` and `make test`. Both install what they need into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DATA   ?=
SEEDS  ?= 10000
FIRST  ?= 0
WORKERS ?= 3

.PHONY: help install demo test lint types simulate gossip locks chaos histories bench clean

help:
	@echo "make demo   a three-node cluster, agents at work, a node killed and back, a summary"
	@echo "make test   lint, types and the whole test suite"
	@echo "make simulate SEEDS=10000 FIRST=0   the cluster's core on virtual time, with every fault; a seed is a run"
	@echo "make gossip NODES=1000 SEEDS=3   how fast so many nodes know of a death, on virtual time, and what that costs"
	@echo "make locks SEED=7 NODES=3   fifty contenders for one lock, killed and paused, as is the lock service"
	@echo "make chaos SEED=7 SECONDS=150 FAULTS=kill,stop NODES=3   real processes under real faults; all of it may be left out"
	@echo "make histories COUNT=200 OPERATIONS=1000 SEED=7 LEVEL=strong FOLDER=build/histories   recorded under faults, and checked"
	@echo "make histories BROKEN=reads   without a rule of strong operations, until the checker has noticed; which: tests/histories/run.py --help"
	@echo "make bench  the benchmarks, beside JetStream KV in the same run"
	@echo "make clean  remove the environment and everything built"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("crdt_spine needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@echo "installing into $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/python examples/demo.py $(if $(DATA),--data "$(DATA)")

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

simulate: $(STAMP)
	$(BIN)/python tests/simulation/run.py --seeds $(SEEDS) --first $(FIRST)

locks: $(STAMP)
	$(BIN)/python tests/locks/run.py $(if $(SEED),--seed $(SEED)) $(if $(NODES),--nodes $(NODES))

gossip: $(STAMP)
	$(BIN)/python tests/gossip/run.py --nodes $(or $(NODES),1000) --seeds $(if $(filter file,$(origin SEEDS)),3,$(SEEDS))

chaos: $(STAMP)
	$(BIN)/python tests/chaos/run.py $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(FAULTS),--faults $(FAULTS)) $(if $(NODES),--nodes $(NODES))

histories: $(STAMP)
	$(BIN)/python tests/histories/run.py $(if $(COUNT),--count $(COUNT)) $(if $(OPERATIONS),--operations $(OPERATIONS)) \
		$(if $(SEED),--seed $(SEED)) $(if $(LEVEL),--level $(LEVEL)) $(if $(FAULTS),--faults $(FAULTS)) \
		$(if $(FOLDER),--folder "$(FOLDER)") $(if $(BROKEN),--without $(BROKEN))

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
