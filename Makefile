# Every target sets up what it needs first: the system's part, the virtual environment, the packages.
# The second call finds the stamp of this pyproject.toml and starts at once.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(shell cksum < pyproject.toml | cut -d' ' -f1)

.PHONY: demo test test-slow bench check format clean
.DEFAULT_GOAL := test

demo: $(READY)  ## four hospitals train one model on this machine; arguments go into ARGS
	$(BIN)/swarm demo $(ARGS)

test: check  ## what has to hold for every change
	$(BIN)/python -m pytest

test-slow: $(READY)  ## long simulations and whole runs with real processes
	$(BIN)/python -m pytest -m slow

bench: $(READY)  ## how fast it is here
	$(BIN)/python -m bench.rounds

check: $(READY)  ## style, types, and that the committed contracts are what their sources compile to
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python contracts/compile.py --check

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo .mypy_cache .pytest_cache .ruff_cache

# PyTorch goes first and alone: asked for together with the rest, pip may take a build that
# brings gigabytes of CUDA packages to a machine without a GPU.
$(READY): pyproject.toml .ci/system
	@python=$$(.ci/system) && echo "setting up $(VENV) with $$python" && \
	{ [ -x $(BIN)/python ] || "$$python" -m venv $(VENV); }
	@echo "installing PyTorch, then the rest: a few minutes, once"
	$(BIN)/python -m pip install --quiet "$$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@rm -f $(VENV)/ready-* && touch $@
