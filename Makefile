# keystow: every target makes .venv where needed, installs what it needs, builds, runs, and says
# what it does. Needs: Rust (cargo), Python >= 3.11 with venv. `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# The first interpreter that is new enough; PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
	done)

export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(VIRTUAL_ENV)/bin:$(HOME)/.cargo/bin:$(PATH)
unexport CONDA_PREFIX
unexport PYTHONHOME
unexport PYTHONPATH

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet install
CRATES := -p keystow-core

# Seconds a suite may run after its build; a suite past its cap has a hang or a bug.
RUST_CAP_S := 300
LOOM_CAP_S := 300
# Histories over the simulated disk: fresh seeds for so long, after all saved ones.
SIM_SECONDS := 60
SIM_CAP_S := 120
SECONDS_OF_TORTURE = $(if $(filter environment command,$(origin SECONDS)),$(SECONDS),600)
PYTHON_CAP_S := 900
# Kills of the crash campaign; its cap goes with them: each takes two to four seconds.
CYCLES ?= 50
CRASH_CAP_S = $(shell echo $$(($(CYCLES) > 50 ? 5 * $(CYCLES) : 240)))
DEMO_CAP_S := 300
BENCH_CAP_S := 2700

# $(call capped,name,seconds,command): runs the command under its cap and prints its time.
define capped
	@start=$$SECONDS; rc=0; timeout --foreground $(2) $(3) || rc=$$?; \
	spent=$$((SECONDS - start)); \
	if [ $$rc -eq 124 ]; then echo "== $(1): stopped at its cap of $(2) s"; exit 124; fi; \
	if [ $$rc -ne 0 ]; then echo "== $(1): FAILED after $$spent s"; exit $$rc; fi; \
	echo "== $(1): passed in $$spent s (cap $(2) s)"
endef

.PHONY: help demo test test-rust test-loom test-sim test-python test-crash torture soak lint fmt bench
.PHONY: wheel develop tools
.PHONY: need-cargo

help: ## list the targets
	@echo "keystow: targets"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'

demo: develop ## a real chat trace through both tiers, the owner killed half way, every byte checked
	@echo "== demo: keystow demo"
	@timeout --foreground $(DEMO_CAP_S) .venv/bin/keystow demo $(DEMO_ARGS)

test: test-rust test-loom test-sim test-python test-crash ## all tests
	@echo "== test: all suites passed"

test-rust: need-cargo ## unit tests of the core, and its documentation examples
	@if cargo nextest --version >/dev/null 2>&1; then runner=nextest; else runner=test; fi; \
	echo "== test-rust: building the core's tests (cargo $$runner)"; \
	if [ $$runner = nextest ]; then cargo nextest run --locked $(CRATES) --no-run; \
	else cargo test --locked $(CRATES) --lib --tests --no-run; fi
	$(call capped,test-rust,$(RUST_CAP_S),$$(cargo nextest --version >/dev/null 2>&1 \
		&& echo cargo nextest run --locked $(CRATES) --no-tests=pass \
		|| echo cargo test --locked $(CRATES) --lib --tests))
	@echo "== test-rust: documentation examples"
	$(call capped,test-rust doc,$(RUST_CAP_S),cargo test --locked $(CRATES) --doc)

test-loom: export RUSTFLAGS = --cfg loom
test-loom: export CARGO_TARGET_DIR = target/loom
test-loom: need-cargo ## every interleaving of the loom models
	@echo "== test-loom: building the models into $$CARGO_TARGET_DIR"
	@cargo test --release --locked $(CRATES) --lib loom -- --list | grep ': test$$' \
		|| { echo "== test-loom: no model found, so nothing would be checked" >&2; exit 1; }
	$(call capped,test-loom,$(LOOM_CAP_S),cargo test --release --locked $(CRATES) --lib loom)

test-sim: need-cargo ## histories over the simulated disk: a minute of fresh seeds, and all saved ones
	@echo "== test-sim: building the core's tests (release)"
	@cargo test --release --locked $(CRATES) --lib --no-run
	$(call capped,test-sim,$(SIM_CAP_S),env KEYSTOW_SIM_SECONDS=$(SIM_SECONDS) \
		cargo test --release --locked $(CRATES) --lib histories_ -- --nocapture)

torture: need-cargo ## fresh histories for as long as asked: make torture SECONDS=3600
	@echo "== torture: $(SECONDS_OF_TORTURE) s"
	@env KEYSTOW_SIM_SECONDS=$(SECONDS_OF_TORTURE) cargo test --release --locked $(CRATES) --lib \
		histories_fresh -- --nocapture

soak: .venv/.dev develop ## everything at once on real files, watched for growth: make soak SECONDS=600
	@echo "== soak: $(SECONDS_OF_TORTURE) s"
	@$(PY) tests/soak.py --seconds $(SECONDS_OF_TORTURE) $(SOAK_ARGS)

test-python: .venv/.dev develop ## pytest over the built package
	@echo "== test-python: pytest tests/"
	$(call capped,test-python,$(PYTHON_CAP_S),$(PY) -m pytest $(PYTEST_ARGS))

test-crash: .venv/.dev develop ## kill -9 on real files, half with damage; CYCLES=500 for more
	@echo "== test-crash: $(CYCLES) cycles"
	$(call capped,test-crash,$(CRASH_CAP_S),env PYTHONPATH=tests $(PY) -m crash.campaign \
		--cycles $(CYCLES) $(CRASH_ARGS))

lint: .venv/.dev develop ## formatting, clippy, ruff, mypy, stubtest: warnings are errors
	@echo "== lint: cargo fmt"
	@cargo fmt --all --check
	@echo "== lint: clippy"
	@cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	@echo "== lint: ruff"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@echo "== lint: mypy"
	@$(PY) -m mypy
	@echo "== lint: stubtest"
	@$(PY) -m mypy.stubtest keystow

fmt: .venv/.dev need-cargo ## format Rust and Python in place
	@cargo fmt --all
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix-only .

bench: .venv/.dev develop ## measure against the machine's own limits; see benches/README.md
	@echo "== bench: benches/run.py"
	$(call capped,bench,$(BENCH_CAP_S),$(PY) benches/run.py $(BENCH_ARGS))

# Paths of this machine are mapped to names, in a target folder of its own: other flags would
# rebuild everything at each switch. \x1f separates flags, so that a path may hold a space.
wheel: .venv/.build need-cargo ## target/wheels/keystow-*.whl: manylinux_2_28, abi3, no builder's paths
	@echo "== wheel: building for manylinux_2_28 with zig"
	@rm -f target/wheels/keystow-*
	@CARGO_TARGET_DIR="$(CURDIR)/target/wheel" CARGO_ENCODED_RUSTFLAGS="$$(printf '%s\x1f%s\x1f%s' \
		"--remap-path-prefix=$(CURDIR)=keystow" \
		"--remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}/registry/src=registry" \
		"--remap-path-prefix=$$(rustc --print sysroot)=rust")" \
		$(PY) -m maturin build --release --locked --zig --compatibility manylinux_2_28 \
		--out "$(CURDIR)/target/wheels"
	@$(PY) .ci/check_wheel.py target/wheels

develop: .venv/.build need-cargo
	@echo "== develop: building keystow into .venv (release)"
	@$(PY) -m maturin develop --release --locked

tools: .venv/.dev ## only the virtual environment with every tool

.venv/.build: requirements/build.txt | .venv/bin/python
	@echo "== .venv: installing build tools ($<)"
	@$(PIP) -r $<
	@touch $@

.venv/.dev: requirements/dev.txt .venv/.build
	@echo "== .venv: installing test and lint tools ($<; torch is large, this takes a while)"
	@$(PIP) -r $<
	@touch $@

.venv/bin/python:
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "keystow needs Python >= 3.11 on the path, or make PYTHON=/path/to/python" >&2; \
		exit 1; }
	@echo "== .venv: creating it with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "python -m venv failed: install the venv package of your system" >&2; exit 1; }

need-cargo:
	@command -v cargo >/dev/null || { \
		echo "keystow needs Rust >= 1.88: https://rustup.rs" >&2; exit 1; }
