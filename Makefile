# Everything from a fresh Debian 12 with Python 3.11: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
DEMO ?=
SOURCES := $(shell find CMakeLists.txt pyproject.toml include src bindings python bench tests/c_example.c tests/digests.json -type f -not -name '*.pyc')

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-long lint bench clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(BIN)/.requirements ## install what the project needs: apt packages, .venv, PyPI packages

build: $(BIN)/.built ## compile the library and install the Python package into .venv

demo: build ## train a small LLaMA with its own norms and with ours, and check the results
	@$(BIN)/rmsnorm demo $(DEMO)

test: build lint ## run every test: C++ (ctest), Python (pytest), format, lint and types
	@echo "== C++ tests"
	@cd build && ctest --output-on-failure --parallel 2 --progress
	@echo "== Python tests"
	@$(BIN)/pytest -q

test-long: build ## round every float to float16 and bfloat16 on every instruction set; minutes
	@build/rmsnorm_tests --gtest_also_run_disabled_tests --gtest_filter='*DISABLED_*'

lint: $(BIN)/.requirements ## check formats, lint and types
	@echo "== format, lint and types"
	@$(BIN)/pre-commit run --all-files

bench: build ## measure against PyTorch's own ways and a copy of the same bytes
	@$(BIN)/rmsnorm bench
	@OMP_NUM_THREADS=1 build/rmsnorm_bench --benchmark_enable_random_interleaving --benchmark_repetitions=7 \
	  --benchmark_report_aggregates_only --benchmark_min_time=0.05

clean: ## remove what was built; .venv stays
	rm -rf build out $(BIN)/.built

$(BIN)/.packages: apt-packages.txt
	@if dpkg-query -W -f '$${Status}\n' $$(cat $<) 2>&1 | grep -qv '^install ok installed'; then \
	  echo "== apt: installing $$(tr '\n' ' ' < $<)"; \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -q $$(cat $<); \
	fi
	@mkdir -p $(@D) && touch $@

$(BIN)/.requirements: requirements.txt $(BIN)/.packages
	@echo "== Python: installing requirements.txt into .venv (PyTorch is several GB, once)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check -r $<
	@touch $@

$(BIN)/.built: $(SOURCES) $(BIN)/.requirements
	@echo "== building the library and the Python package"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps -q \
	  -C build-dir=build -C cmake.define.RMSNORM_TESTS=ON .
	@touch $@
