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
# Tools that look at locks need none of ours.
SUPPLY := $(VENV)/supply/.installed
PAGE := services/gateway/ui
VITE := $(PAGE)/node_modules/.bin/vite
DISTS := libs/protocol libs/telemetry libs/transport libs/text libs/grammar libs/routing libs/relay libs/backends \
         libs/launcher libs/testing services/engine services/proxy services/gateway
RUNTIME_DISTS := $(filter-out libs/testing,$(DISTS))
EDITABLES = $(addprefix -e ,$(1))
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-native native test-systemd lint format typecheck proto proto-baseline fuzz fuzz-frames chaos processes soak bench bench-gpu lock audit sbom page \
        page-check dashboards images test-compose clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | awk -F'\t' '{printf "  make %-15s %s\n", $$1, $$2}'

# Third parties first, each file checked against the hashes of the lock; then our own, which need nothing more.
# PyTorch is the one exception: every platform has its own build of it (scripts/lock_requirements.py says more).
$(VENV)/.runtime: requirements/lock-runtime.txt requirements/constraints-cpu.txt $(addsuffix /pyproject.toml,$(RUNTIME_DISTS))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --require-hashes -r $<
	$(PIP) -c requirements/constraints-cpu.txt torch
	$(PIP) --no-deps --no-build-isolation $(call EDITABLES,$(RUNTIME_DISTS))
	touch $@

$(VENV)/.dev: requirements/lock-dev.txt $(VENV)/.runtime libs/testing/pyproject.toml
	$(PIP) --no-deps --require-hashes -r $<
	$(PIP) --no-deps --no-build-isolation -e libs/testing
	touch $@

$(LITELLM): requirements/lock-litellm.txt | $(VENV)/.runtime
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(BIN)/python -m pip --python $(@D)/bin/python --disable-pip-version-check install --quiet --no-deps \
		--require-hashes --no-compile -r $<
	touch $@

$(SUPPLY): requirements/lock-supply.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r $<
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

# A copy of the packages, so that sources are never hidden behind what was compiled from them some time ago.
NATIVE := build/native

native: $(VENV)/.dev ## compile what requests run through in the proxy; then PYTHONPATH=build/native rhizome-proxy …
	$(BIN)/python scripts/compile_proxy.py --into $(NATIVE)

test-native: native ## run the tests of the proxy on compiled modules
	RHIZOME_NATIVE=1 PYTHONPATH=$(abspath $(NATIVE)) $(BIN)/python -m pytest $(PYTEST_ARGS) \
		$(addprefix tests/transport/test_,block_hashes.py packed_ids.py split_request.py wire.py) \
		tests/relay tests/routing tests/backends tests/proxy

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

fuzz-frames: $(VENV)/.dev ## throw frames and bytes at every listener for RHIZOME_FUZZ_SECONDS (600)
	RHIZOME_FUZZ_SECONDS=$${RHIZOME_FUZZ_SECONDS:-600} $(BIN)/python -m pytest -s tests/fuzz/frames

test-systemd: $(VENV)/.dev ## install the units on a systemd of its own and start, kill and stop them; as root
	RHIZOME_SYSTEMD=machine $(BIN)/python -m pytest tests/deploy/test_systemd_machine.py

chaos: $(VENV)/.dev ## kill, freeze, cut, fill and corrupt everything while requests flow; a table at the end
	RHIZOME_CHAOS=full $(BIN)/python -m pytest -s tests/chaos

processes: $(VENV)/.dev ## crash, freeze and flood real processes in every way, and look at what is left of them
	RHIZOME_PROCESSES=full $(BIN)/python -m pytest tests/engine/front tests/integration/test_exit_codes.py \
		tests/integration/test_start_order.py

soak: $(VENV)/.dev ## serve 20,000 short requests and fail where pages, memory or step time moved
	$(BIN)/python benchmarks/soak.py

images: ## build the images; IMAGES="gateway proxy engine-cpu engine-cuda" for some, BASE_IMAGE=… for another base
	deploy/images/build.sh $(IMAGES)

test-compose: $(VENV)/.dev ## build the images, bring deploy/compose up on a Docker daemon, and break it
	RHIZOME_COMPOSE=1 $(BIN)/python -m pytest -s tests/deploy/test_compose.py tests/deploy/test_compose_watched.py

# benchmarks/proxy.py takes half an hour and runs routing.py itself: it is for the asking, as gpu.py is below.
bench: $(VENV)/.dev ## print the figures of every script in benchmarks/ but proxy.py and gpu.py
	for script in $(filter-out benchmarks/proxy.py benchmarks/gpu.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

# The python3 that has a PyTorch for CUDA, which need not be the one of .venv; nothing is installed.
bench-gpu: ## check every GPU kernel, then measure, in 8 minutes; writes benchmarks/results. ARGS="--sections decode" for a part
	$(PYTHON) benchmarks/gpu.py $(ARGS)

proto: $(VENV)/.dev ## regenerate libs/protocol from proto/
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python scripts/generate_protocol.py

proto-baseline: $(BUF) ## accept the contracts as they are: from now on `make lint` refuses changes that break them
	cd proto && ../$(BUF) build -o baseline.binpb

lock: $(VENV)/.dev $(SUPPLY) ## write requirements/lock-*.txt anew from what the distributions ask for
	PATH=$(abspath $(VENV)/supply/bin):$$PATH $(BIN)/python scripts/lock_requirements.py

audit: $(SUPPLY) ## ask the advisory database about everything that is locked; needs network (SECURITY.md)
	for lock in requirements/lock-*.txt; do \
		$(VENV)/supply/bin/pip-audit --strict --progress-spinner off --disable-pip --require-hashes -r $$lock $(AUDIT_ARGS) \
			|| exit 1; done

sbom: $(VENV)/.dev ## write what each service is made of as CycloneDX JSON to build/sbom
	$(BIN)/python scripts/sbom.py rhizome-gateway rhizome-proxy rhizome-engine --folder build/sbom

page: $(VITE) ## build the gateway's page from services/gateway/ui
	cd $(PAGE) && npm run --silent build

page-check: $(VITE) ## check that the page in the gateway is what its source gives, byte for byte
	built=$$(mktemp -d) && (cd $(PAGE) && PAGE_OUT=$$built npm run --silent build) \
		&& diff -r $$built services/gateway/rhizome_gateway/page/bundle; status=$$?; rm -rf $$built; exit $$status

dashboards: $(VENV)/.dev ## write Grafana's dashboards from deploy/grafana/source
	$(BIN)/python deploy/grafana/generate.py

clean: ## remove what the targets created
	rm -rf $(VENV) node_modules $(PAGE)/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis .run
