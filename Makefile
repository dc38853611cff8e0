.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal --generate-hashes \
	--python-version 3.11 --no-emit-index-url --no-annotate --custom-compile-command "make lock"
ALL ?=
ONCE ?=
REST ?=
SOAK_SECONDS ?= 1200
BENCH ?=
PORT ?= 8000

.PHONY: help
help: ## Show this help
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  \033[36m%-11s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; give it as PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "error: Python cannot make environments here. Run once: sudo apt-get install -y python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

# everything is pinned by version and digest; requirements/ is rewritten by `make lock`
.venv/demo.stamp: requirements/demo.txt pyproject.toml | $(BIN)/python
	@echo "installing (about a minute)"
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/demo.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

.venv/dev.stamp: requirements/dev.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@ .venv/demo.stamp

.PHONY: demo
demo: .venv/$(if $(ALL),dev,demo).stamp ## A server with real models on 127.0.0.1:8000 and a tour (ALL=1: one for every task; ONCE=1: only the tour)
	@$(BIN)/wherry serve --demo --data .demo --port $(PORT) $(if $(ALL),--all) $(if $(ONCE),--once)

.PHONY: setup
setup: .venv/dev.stamp ## Install everything a developer needs

.PHONY: format
format: setup ## Rewrite the code in the house style
	$(BIN)/ruff format src tests scripts bench
	$(BIN)/ruff check --fix-only src tests scripts bench

.PHONY: lint
lint: setup ## Style, bugs, security
	$(BIN)/ruff format --check src tests scripts bench
	$(BIN)/ruff check src tests scripts bench

.PHONY: types
types: setup ## Static types, strict
	$(BIN)/pyright

.PHONY: imports
imports: setup ## Who may import whom
	$(BIN)/lint-imports

.PHONY: test
test: setup ## Tests of minutes: real models, real processes, no torch
	$(BIN)/python -m pytest -m "not slow and not campaign"

.PHONY: test-all
test-all: setup ## Every test this machine can run, fault campaigns by samples (REST=1: but those of `test`)
	$(BIN)/python -m pytest -m "$(if $(REST),slow and,) not campaign"

.PHONY: test-campaign
test-campaign: setup ## Faults at every single byte, call and statement: minutes
	$(BIN)/python -m pytest -m campaign

.PHONY: bench
bench: setup ## Measure beside the peers, half an hour (BENCH="small-json …": some scenarios)
	$(BIN)/python -m bench $(BENCH)

.PHONY: bench-quick
bench-quick: setup ## The same in 5 minutes: two peers, few rounds
	$(BIN)/python -m bench --quick $(BENCH)

.PHONY: test-soak
test-soak: setup ## Load with random kills and disconnects, 20 minutes (SOAK_SECONDS=1200)
	SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -s tests/faults/test_soak.py

.PHONY: lock
lock: setup ## Choose the newest allowed versions of all packages, with their digests
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --extra demo --extra dev --output-file requirements/dev.txt
	$(COMPILE) --extra demo --constraint requirements/dev.txt --output-file requirements/demo.txt

.PHONY: docs
docs: setup ## Rebuild the generated pages of docs/
	$(BIN)/python scripts/build_docs.py

.PHONY: check
check: lint types imports ## What must pass before a commit, beside the tests
	$(BIN)/python scripts/build_docs.py --check
