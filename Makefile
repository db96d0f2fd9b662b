# Everything a developer or a user runs. `make help` lists it.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.stamp

.DEFAULT_GOAL := help
.PHONY: help setup clouds test test-fast lint fmt types imports protos verify-protos chaos chaos-long sim sim-many sim-compiled mutants crash-images fuzz bench bench-peers bench-micro bench-profile bench-compare bench-storage bench-restart bench-idle bench-million bench-depth bench-start bench-trip bench-growth bench-clouds bit-flips ci

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: $(STAMP) ## make .venv with everything pinned

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (once) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q antfarm services clouds
	@touch $@

clouds: $(STAMP) ## run the Clouds pipeline on a farm on this machine (no internet needed)
	@# Exit code 1 says that some days have no picture to be had, which is a result here: the report names them.
	@$(BIN)/python -m clouds --source standin --start 2021-01-01 --end 2021-03-31 --out clouds-out || [ $$? -eq 1 ]

test: $(STAMP) ## run all tests
	@$(BIN)/python -m pytest -n 2

test-fast: $(STAMP) ## run the tests that take under a quarter of a second
	@$(BIN)/python -m pytest -m "not slow"

lint: $(STAMP) ## check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

fmt: $(STAMP) ## format the code
	@$(BIN)/ruff check --fix -q .
	@$(BIN)/ruff format .

types: $(STAMP) ## check types
	@$(BIN)/mypy

imports: $(STAMP) ## check who may import whom
	@$(BIN)/lint-imports

protos: $(STAMP) ## generate antfarm/v1 from protos/
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --grpc_python_out=. --mypy_out=. \
		--mypy_grpc_out=only_async:. protos/antfarm/v1/*.proto

verify-protos: $(STAMP) ## fail when antfarm/v1 is not what protos/ generates, or buf finds fault
	@$(BIN)/python tests/wire/verify_protos.py
	@if command -v npm >/dev/null; then npm install --no-package-lock --silent --no-audit --no-fund && npx buf lint && npx buf format -d --exit-code; \
		else echo "buf lint left out: no npm on this machine"; fi

chaos: $(STAMP) ## kill, stop and cut off real programs under load; some 2 to 5 minutes
	@$(BIN)/python tests/process/chaos.py

chaos-long: $(STAMP) ## the same with full counts (a thousand kills of each kind ...), as long as it takes
	@$(BIN)/python tests/process/chaos.py --long

SEED ?= 1
SEEDS ?= 2000
FIRST ?= 1

sim: $(STAMP) ## run one simulated farm and print what happens: make sim SEED=7
	@$(BIN)/python -m tests.simulation $(SEED)

sim-many: $(STAMP) ## run many on all cores: make sim-many SEEDS=100000 FIRST=1
	@$(BIN)/python -m tests.simulation --many $(SEEDS) --first $(FIRST)

sim-compiled: $(STAMP) ## the same seeds in less time, translated to C first: make sim-compiled SEEDS=100000 FIRST=1
	@$(BIN)/python -m tests.simulation.compiled --many $(SEEDS) --first $(FIRST)

mutants: $(STAMP) ## plant deliberate bugs and count the seeds until the simulation finds each; some 5 minutes
	@$(BIN)/python -m tests.simulation.mutants

bench: $(STAMP) ## measure throughput and round trip on this machine
	@$(BIN)/python -m bench

bench-peers: $(STAMP) ## measure the farm and its peers on the same work, in turn (three quarters of an hour)
	@$(BIN)/python -m bench.peers --million --save

bench-micro: $(STAMP) ## measure what single parts cost a task
	@test -d build/micro || $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target build/micro pytest-benchmark==5.3.1 py-cpuinfo==9.0.0
	@PYTHONPATH=build/micro $(BIN)/python -m pytest bench/micro -q -n 0 --benchmark-disable-gc --benchmark-columns=median --benchmark-quiet

bench-profile: $(STAMP) ## flame graphs of the programs under load, in build/profile
	@test -x build/profile/bin/py-spy || $(BIN)/python -m pip install -q --disable-pip-version-check --target build/profile py-spy==0.4.3
	@$(BIN)/python -m bench.profile

bench-compare: $(STAMP) ## compare the last two runs of bench-peers
	@$(BIN)/python -m bench.peers.compare

bench-storage: $(STAMP) ## measure Storage beside a bare stream and cp
	@$(BIN)/python -m bench.storage --dir .

fuzz: $(STAMP) ## hostile input by seed at every target; N=inputs of each, SEED=another start
	@$(BIN)/python tests/fuzz/fuzz.py --inputs $(or $(N),100000) --seed $(or $(SEED),1)

bench-restart: $(STAMP) ## measure restarts with a million tasks queued
	@$(BIN)/python -m bench.restart

bench-million: $(STAMP) ## measure a million tasks as they go: rate, memory, what heartbeats wait
	@$(BIN)/python -m bench.million

bench-idle: $(STAMP) ## measure what idle workers cost, beside raw streams (some 8 minutes)
	@$(BIN)/python -m bench.idle

bench-depth: $(STAMP) ## measure one, two and three levels of orchestrators
	@$(BIN)/python -m bench.depth

bench-trip: $(STAMP) ## measure the round trip of one task: its CPU by program and thread
	@$(BIN)/python -m bench.trip

bench-start: $(STAMP) ## measure from starting a farm to its first result
	@$(BIN)/python -m bench.start

bench-growth: $(STAMP) ## measure throughput and latency as the work grows, for docs/growth.svg (20 minutes at most)
	@$(BIN)/python -m bench.growth --save

bench-clouds: $(STAMP) ## measure Clouds over a year of pictures beside a bare loop
	@$(BIN)/python -m bench.clouds

crash-images: $(STAMP) ## open ten thousand images of a journal as crashes leave them
	@ANTFARM_CRASH_IMAGES=10000 $(BIN)/python -m pytest -q --timeout 900 tests/conformance/test_crash_images.py

bit-flips: $(STAMP) ## flip a thousand single bits in journals and blobs, one at a time
	@ANTFARM_BIT_FLIPS=1000 $(BIN)/python -m pytest -q -s tests/conformance/test_bit_flips.py

ci: lint types imports verify-protos test ## all that is checked before a change lands
