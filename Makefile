# `make demo` and `make test` each work alone on a machine that has Python >= 3.10 (with venv) and make.

PYTHON ?= python3
PIP_FLAGS ?=
DEMO_CURSOR ?= cli/complete.py:245:28
IMAGES ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt

.PHONY: demo test lint fmt model vsix test-bridge e2e clean

demo: .make/install model
	$(BIN)/codemem index .
	$(BIN)/codemem complete $(DEMO_CURSOR) --explain --recall

# A process for each of up to 4 cores, computing with one thread: tiny models have nothing to share out.
test: .make/dev model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: .make/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: .make/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

model: .make/install
	$(BIN)/codemem models pull

# The VS Code extension needs Node >= 20 and npm.
vsix: .make/bridge
	npm --prefix vscode-bridge run --silent package

test-bridge: .make/bridge
	npm --prefix vscode-bridge run --silent check
	npm --prefix vscode-bridge test

# Real editors and the real daemon.
e2e: .make/install model vsix
	CODEMEM_E2E_IMAGES=$(abspath $(IMAGES)) tests/e2e/run

clean:
	rm -rf .venv .make vscode-bridge/node_modules vscode-bridge/dist vscode-bridge/codemem.vsix tests/e2e/node_modules

# Stamps: a second run installs nothing again unless the requirements changed.
.make/venv:
	$(PYTHON) -m venv .venv
	@mkdir -p .make && touch $@

.make/install: .make/venv pyproject.toml constraints.txt
	@echo "Installing codemem into .venv (PyTorch is large: this takes minutes the first time)"
	$(PIP) -e .
	@touch $@

.make/dev: .make/install
	$(PIP) -e '.[dev]'
	@touch $@

.make/bridge: vscode-bridge/package.json vscode-bridge/package-lock.json
	npm --prefix vscode-bridge ci --no-audit --no-fund
	@mkdir -p .make && touch $@
