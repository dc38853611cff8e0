.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
ONCE ?=
PORT ?= 8000

.PHONY: help
help: ## Show this help
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  \033[36m%-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; give it as PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "error: Python cannot make environments here. Run once: sudo apt-get install -y python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/demo.stamp: pyproject.toml | $(BIN)/python
	@echo "installing (about a minute)"
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

.venv/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	@touch $@ .venv/demo.stamp

.PHONY: demo
demo: .venv/demo.stamp ## A server with real models on 127.0.0.1:8000 and a tour (ONCE=1: only the tour)
	@$(BIN)/wherry serve --demo --data .demo --port $(PORT) $(if $(ONCE),--once)

.PHONY: setup
setup: .venv/dev.stamp ## Install everything a developer needs

.PHONY: format
format: setup ## Rewrite the code in the house style
	$(BIN)/ruff format src tests scripts
	$(BIN)/ruff check --fix-only src tests scripts

.PHONY: lint
lint: setup ## Style, bugs, security
	$(BIN)/ruff format --check src tests scripts
	$(BIN)/ruff check src tests scripts

.PHONY: types
types: setup ## Static types, strict
	$(BIN)/pyright

.PHONY: imports
imports: setup ## Who may import whom
	$(BIN)/lint-imports

.PHONY: test
test: setup ## Tests of minutes: real models, real processes, no torch
	$(BIN)/python -m pytest -m "not slow"

.PHONY: test-all
test-all: setup ## Every test this machine can run
	$(BIN)/python -m pytest

.PHONY: docs
docs: setup ## Rebuild the generated pages of docs/
	$(BIN)/python scripts/build_docs.py

.PHONY: check
check: lint types imports ## What must pass before a commit, beside the tests
	$(BIN)/python scripts/build_docs.py --check
