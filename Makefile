# `make` alone lists the targets. Each of them makes what it needs, `.venv` first.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Every target is a name, but for the stamp.
.PHONY: $(shell awk -F: '/^[a-z0-9-]+:/ {print $$1}' $(firstword $(MAKEFILE_LIST)))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml scripts/setup hatch_build.py ztunnel/tls/accelerator.c
	@scripts/setup "$(PYTHON)" "$(VENV)"

demo: setup ## run a small mesh on this machine and show a request through it (TOUR=1 breaks something; KEEP=1 leaves it running)
	@$(BIN)/ztunnel demo $(if $(TOUR),--tour) $(if $(KEEP),--keep)

check: setup ## the quick one: lint, types, unit and property tests of up to ten seconds; two minutes at most on two cores
	@$(BIN)/python -m tests.everything lint types quick

test: setup ## everything: lint, types, unit, property, e2e and interop tests; what is missing for it, and a summary
	@$(BIN)/python -m tests.everything $(if $(COVERAGE),--coverage) lint docs types unit e2e interop-built $(if $(BARE),bare)

deps: ## show which programs of the distribution are missing and how to install them; as root, install them
	@scripts/deps

lint: setup protos-check ## ruff, formatting, the layers, and code that nobody uses
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@$(BIN)/python scripts/bounds --check
	@$(BIN)/python scripts/signs
	@$(BIN)/python scripts/reference.py --check
	@$(BIN)/python scripts/unused
	@$(BIN)/pytest -q -p no:randomly tests/test_suites.py tests/test_imports.py

types: setup ## mypy, strict
	$(BIN)/mypy

export PATHS ?= tests
# With COVERAGE=1 tests note which lines and branches they take: each process in a file of its own, below .coverage.
RUN = $(BIN)/$(if $(COVERAGE),coverage run,python) -m
UNIT := pytest -q -n 4 --dist worksteal $(PATHS) $(addprefix --ignore=tests/,e2e interop bench cluster bare)

unit: setup ## unit and property tests
	$(RUN) $(UNIT)

quick: setup ## the same without those that take over ten seconds
	$(RUN) $(UNIT) -m "not slow"

export E2E ?= tests/e2e

e2e: setup ## real ztunnel processes in network namespaces (as root; skipped with a message otherwise)
	$(RUN) pytest -q -p no:randomly -n 2 --dist loadfile $(E2E)

coverage: setup ## unit, property and e2e tests with the branches counted that they take; fails below the floor (as root)
	@$(BIN)/python -m tests.everything --coverage unit e2e

coverage-begin:
	@mkdir -p .coverage && rm -f .coverage/data*

coverage-report: setup
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

bare: setup ## both commands of the README on a bare Debian made by debootstrap (as root; minutes)
	$(BIN)/pytest -q -p no:randomly tests/bare

interop-built: setup
	$(BIN)/pytest -q -p no:randomly tests/interop

interop: setup ## our xDS client against istiod's own discovery server (needs Go; the first build takes minutes)
	BUILD_ISTIOD=1 $(BIN)/pytest -q -p no:randomly tests/interop

cluster: setup ## a two-node Kubernetes with istiod, istio-cni and our ztunnel on this machine (as root; the first time half an hour)
	@$(BIN)/python -m tests.cluster up

cluster-down: setup ## end what make cluster began, and check that nothing is left of it
	@$(BIN)/python -m tests.cluster down

cluster-test: setup ## what users do, in that cluster, with a table as report (TESTS=... for some of it)
	@$(BIN)/python -m tests.cluster test $(TESTS)

fuzz: setup ## MINUTES=5: each parser of foreign bytes, guided by coverage; TARGETS="xds yaml" for some of them
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),5) $(TARGETS)

chaos: setup ## SEED=n DURATION=300: faults of all kinds under traffic, alone and in pairs, with invariants checked (as root)
	$(BIN)/python -m tests.chaos --seed $(or $(SEED),1) --seconds $(or $(DURATION),300)

soak: setup ## MINUTES=10: traffic of all kinds and churn, with memory and descriptors held to be flat (as root)
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10) --write $(or $(WRITE),dist/soak)

census: setup ## CONNECTIONS=100000: connections with mixed endings, after which the process holds what it held before (as root)
	$(BIN)/python -m tests.soak.mixed_endings --connections $(or $(CONNECTIONS),100000)

audit: setup ## ADVISORIES=path: the locked libraries against a copy of known vulnerabilities, offline; says when it was skipped
	@$(BIN)/python scripts/audit.py $(if $(ADVISORIES),--advisories $(ADVISORIES))

deep: setup ## all property tests with 10,000 examples each instead of 100 (an hour or more)
	$(BIN)/pytest -q -n auto --maxprocesses=4 --hypothesis-profile=deep --ignore=tests/e2e --ignore=tests/interop --ignore=tests/bench --ignore=tests/cluster

bench: setup ## direct, ours, a real Envoy in ztunnel's place: all figures of docs/performance.md (as root; BENCH="--rows ...")
	$(BIN)/python -m tests.bench $(BENCH)

bench-steps: setup ## what a round trip, a new connection and 16 KiB cost, step by step: docs/hot-path.md (as root, a minute)
	@unshare -n sh -c 'ip link set lo up && exec $(BIN)/python -m tests.bench.steps $(BENCH)'

bench-compare: setup ## this checkout's ztunnel beside another revision's, in one run (BASE=revision, BENCH=...)
	@scripts/bench-compare $(BIN)/python "$(or $(BASE),HEAD)" $(BENCH)

bench-scale: setup ## a mesh of 1,000 to 300,000 workloads: memory, CPU, connections during pushes (as root, minutes)
	$(BIN)/python -m tests.bench.bench_scale

bounds: setup ## write the table of bounds in docs/architecture.md from ztunnel/bounds.py
	@$(BIN)/python scripts/bounds

protos: setup ## regenerate ztunnel/pb/ from protos/
	scripts/protos "$(BIN)" ztunnel/pb

protos-check: setup
	@scripts/protos "$(BIN)" --check ztunnel/pb

reference: setup ## write docs/reference/ out of the code
	@$(BIN)/python scripts/reference.py

docs: setup ## build the documentation site in site/; warnings and dead links are errors
	@$(BIN)/python scripts/reference.py --check
	@NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build -q --strict
	@$(BIN)/python scripts/check_links.py site

docs-serve: setup ## the site on http://127.0.0.1:8000, rebuilt when a page changes
	@$(BIN)/mkdocs serve

dist: setup ## a release in dist/: wheel, sdist, chart, image, bill of materials, checksums; built twice and compared
	@$(BIN)/python scripts/dist.py $(DIST)

changelog: setup ## gather changes/ into CHANGELOG.md (VERSION=1.2.3)
	$(BIN)/towncrier build --yes --version "$(VERSION)"

format: setup ## let ruff lay out the code
	$(BIN)/ruff check --fix-only -q . ; $(BIN)/ruff format .

tools: setup ## build what some tests run: helm, h2spec (need Go; two or three minutes once), kubernetes-validate
	@scripts/tools helm h2spec kubernetes-validate

loki: setup ## build Loki and a collector, with which the log queries of docs/observability.md are asked (needs Go; minutes once)
	@scripts/tools loki collector

LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header -q

lock: setup ## resolve the locks anew from pyproject.toml: of development, of the image, of its build
	$(BIN)/$(LOCK) --upgrade --group dev pyproject.toml -o requirements.lock
	$(BIN)/$(LOCK) -c requirements.lock pyproject.toml -o requirements-runtime.lock
	$(BIN)/$(LOCK) -c requirements.lock --group release -o requirements-release.lock
	printf 'hatchling\nhatch-vcs\n' | $(BIN)/$(LOCK) -c requirements.lock - -o requirements-build.lock

clean: ## remove what the other targets made
	rm -rf $(VENV) .cache .coverage site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
