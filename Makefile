# Rhizome: `make help` lists what there is.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUF := node_modules/.bin/buf
# Without npm the tests that need buf or the npm package of OpenAI are skipped, and say so.
BUF_IF_NPM := $(if $(shell command -v npm),$(BUF))
# LiteLLM is one of the clients that are tested; its own requirements do not fit beside ours.
LITELLM := $(VENV)/litellm/.installed
PAGE := services/gateway/ui
VITE := $(PAGE)/node_modules/.bin/vite
DISTS := libs/protocol libs/telemetry libs/transport libs/text libs/grammar libs/routing libs/relay libs/backends \
         libs/launcher libs/testing services/engine services/proxy services/gateway
RUNTIME_DISTS := $(filter-out libs/testing,$(DISTS))
EDITABLES = $(addprefix -e ,$(1))
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c requirements/constraints-cpu.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format typecheck proto proto-baseline fuzz chaos soak bench page page-check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | awk -F'\t' '{printf "  make %-15s %s\n", $$1, $$2}'

$(VENV)/.runtime: requirements/constraints-cpu.txt $(addsuffix /pyproject.toml,$(RUNTIME_DISTS))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation $(call EDITABLES,$(RUNTIME_DISTS)) openai
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt libs/testing/pyproject.toml
	$(PIP) --no-build-isolation $(call EDITABLES,$(DISTS)) -r requirements/dev.txt
	touch $@

$(LITELLM): requirements/litellm.txt | $(VENV)/.runtime
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(BIN)/python -m pip --python $(@D)/bin/python --disable-pip-version-check install --quiet --no-deps \
		--no-compile -r $<
	touch $@

# package.json pins exact versions and its packages have no dependencies, so a lock file would add nothing.
$(BUF): package.json
	npm install --no-package-lock --no-audit --no-fund --loglevel=error
	touch $@

# Exact versions, also of what these packages need ("overrides"), stand in for a lock file.
$(VITE): $(PAGE)/package.json
	cd $(PAGE) && npm install --no-package-lock --no-audit --no-fund --loglevel=error
	touch $@

setup: $(VENV)/.dev ## create .venv with everything that development needs

demo: $(VENV)/.runtime ## start two engines, a proxy and a gateway on the bundled model, ask a question, stay up
	$(BIN)/rhizome demo

test: $(VENV)/.dev $(LITELLM) $(BUF_IF_NPM) ## run all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev $(BUF) ## check style, formatting and contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd proto && ../$(BUF) lint && ../$(BUF) format --diff --exit-code && ../$(BUF) breaking --against baseline.binpb

format: $(VENV)/.dev $(BUF) ## format code and contracts
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	cd proto && ../$(BUF) format -w

typecheck: $(VENV)/.dev ## check types (mypy --strict)
	$(BIN)/mypy

fuzz: $(VENV)/.dev ## send the whole fuzz corpus, and measure what others notice of it
	RHIZOME_FUZZ=full $(BIN)/python -m pytest -s tests/fuzz

chaos: $(VENV)/.dev ## kill, freeze and cut everything behind the proxy under 100 streams a second
	RHIZOME_CHAOS=full $(BIN)/python -m pytest -s tests/chaos -k long

soak: $(VENV)/.dev ## serve 20,000 short requests and fail where pages, memory or step time moved
	$(BIN)/python benchmarks/soak.py

# benchmarks/proxy.py takes half an hour and runs routing.py itself: it is for the asking.
bench: $(VENV)/.dev ## print the figures of every script in benchmarks/ but proxy.py
	for script in $(filter-out benchmarks/proxy.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

proto: $(VENV)/.dev ## regenerate libs/protocol from proto/
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python scripts/generate_protocol.py

proto-baseline: $(BUF) ## accept the contracts as they are: from now on `make lint` refuses changes that break them
	cd proto && ../$(BUF) build -o baseline.binpb

page: $(VITE) ## build the gateway's page from services/gateway/ui
	cd $(PAGE) && npm run --silent build

page-check: $(VITE) ## check that the page in the gateway is what its source gives, byte for byte
	built=$$(mktemp -d) && (cd $(PAGE) && PAGE_OUT=$$built npm run --silent build) \
		&& diff -r $$built services/gateway/rhizome_gateway/page/bundle; status=$$?; rm -rf $$built; exit $$status

clean: ## remove what the targets created
	rm -rf $(VENV) node_modules $(PAGE)/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis .run
