# Every task of this repository. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# 0 leaves out what needs root, and says so; only for machines where you are not root.
PRIVILEGED ?= 1
CARGO ?= cargo

.PHONY: help
help: ## List the tasks
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what the tests and the demo need (as root, on Debian: by apt-get and pip)
	@tests/setup.sh all

.PHONY: build
build: ## Build meshdiff and the lab into target/debug/
	@$(CARGO) build --workspace --bins --locked

.PHONY: lint
lint: ## Formatting and clippy, warnings are errors
	@tests/run.sh lint

.PHONY: test
test: ## Everything: lint, unit, property and snapshot tests, probes, lab, end to end (root; PRIVILEGED=0 leaves that part out)
	@PRIVILEGED=$(PRIVILEGED) tests/run.sh all

.PHONY: bpf
bpf: ## Rebuild the BPF object from its source (clang 14 gives the committed bytes)
	@tests/setup.sh bpf
	@probes/bpf/build.sh

.PHONY: demo
demo: ## A mesh on this machine with a delay hidden in it; meshdiff says where (without root, or FIXTURE=1: from a recorded capture)
	@tests/demo.sh

.PHONY: bench
bench: build ## What recording costs, and how fast the parts are (root)
	@if [ -x tests/bench.sh ]; then tests/bench.sh; else echo "there are no benchmarks yet (tests/bench.sh)" >&2; exit 1; fi

.PHONY: fixtures
fixtures: ## Record the capture in tests/fixtures/ anew (root)
	@tests/fixtures/record.sh

.PHONY: picture
picture: ## Make the README's picture of the report anew, from the recorded capture
	@reports/docs/picture.sh
