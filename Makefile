# Everything from a fresh Debian 12 with Python 3.11: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
DEMO ?=
FUZZ_SECONDS ?= 0
GPU_PYTHON ?= 3.12
PRESET = $(@:test-%=%)
TORCH ?= $(NEWEST_TORCH)
NEWEST_TORCH := $(shell sed -n 's/^torch==//p' requirements.txt)
# The tests of what touches PyTorch. Those of models need transformers 5, and so PyTorch 2.4; they,
# and what needs no PyTorch, run in `make test` alone. Compiled code of PyTorch 2.4's, once loaded,
# leaves flush-to-zero on: those who look for that go first.
TORCH_TESTS := $(patsubst %,tests/test_%.py,accuracy autograd bits calls cli devices doctor errors \
  layouts machines parts patch_plain transforms compile pytorch)
SOURCES := $(shell find CMakeLists.txt pyproject.toml include src bindings python bench \
  tests/c_example.c tests/digests.json tests/emulated.cmake tests/executor tests/sanitizers.cc \
  -type f -not -name '*.pyc')

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-long lint bench bench-kernels clean
.PHONY: test-cpp test-x86 test-aarch64 test-clang test-asan test-ubsan test-tsan test-coverage
.PHONY: test-torch test-torch-all
.PHONY: gpu-bundle gpu-check test-cuda-code test-fuzz test-python fuzz steps mutants migrate-table
.DELETE_ON_ERROR:

define test-preset
@echo "== C++ tests: $(PRESET)"
@cmake --preset $(PRESET) --no-warn-unused-cli > /dev/null
@cmake --build build/$(PRESET) -- --quiet
@ctest --preset $(PRESET)
endef

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(BIN)/.requirements ## install what the project needs: apt packages, .venv, PyPI packages

build: $(BIN)/.built ## compile the library and install the Python package into .venv

demo: build ## train a small LLaMA with its own norms and with ours, and check the results
	@$(BIN)/rmsnorm demo $(DEMO)

test: lint test-cpp test-cuda-code test-x86 test-aarch64 test-clang test-asan test-ubsan test-tsan
test: test-coverage test-fuzz test-python ## run every test, the format, lint and type checks

test-cpp: build ## the C++ tests with GCC, on every instruction set of this machine
	@echo "== C++ tests"
	@ctest --test-dir build --output-on-failure --parallel 2 --progress --label-exclude emulated

test-x86: build ## the same on x86 CPUs without AVX-512 and without fma, emulated
	@echo "== C++ tests: emulated x86 CPUs"
	@ctest --test-dir build --output-on-failure --parallel 2 --progress --label-regex emulated

test-cuda-code: build ## what nvcc made of the kernels for GPUs: registers, spills, roundings
	@echo "== the code for GPUs"
	@$(BIN)/python tools/cuda_code.py

test-clang: ## the same with clang, like what follows without the tests of giant sizes
test-asan: ## the same with AddressSanitizer: memory errors, leaks
test-ubsan: ## the same with UndefinedBehaviorSanitizer
test-tsan: ## the same with ThreadSanitizer: data races
test-aarch64: build/aarch64-root/.complete ## the same on AArch64, emulated: NEON, three SVE

test-clang test-asan test-ubsan test-tsan test-aarch64: $(BIN)/.packages
	$(test-preset)

test-coverage: $(BIN)/.requirements ## the same, counting the lines of src/ that run: 95 %
	$(test-preset)
	@$(BIN)/gcovr build/coverage

test-fuzz: FUZZ := -seed=1 -max_total_time=60
test-fuzz: ## fuzz the C API for a minute
fuzz: FUZZ := -max_total_time=$(FUZZ_SECONDS) corpus
fuzz: ## fuzz the C API until stopped, or for FUZZ_SECONDS; build/fuzz/corpus grows
test-fuzz fuzz: $(BIN)/.packages
	@echo "== fuzzing the C API"
	@cmake --preset fuzz > /dev/null
	@cmake --build build/fuzz --target rmsnorm_fuzz -- --quiet
	@mkdir -p build/fuzz/corpus
	@cd build/fuzz && ./rmsnorm_fuzz -verbosity=0 -print_funcs=0 -print_final_stats=1 \
	  -use_cmp=0 -len_control=0 -max_len=128 $(FUZZ)

test-python: build ## the tests of the Python package
	@echo "== Python tests"
	@$(BIN)/pytest -q

test-torch: $(BIN)/.requirements ## build and test with a PyTorch of its own: TORCH=2.1.0
	@$(BIN)/python tools/torch_versions.py $(TORCH) -- $(TORCH_TESTS)

test-torch-all: TORCH := 2.1.0 2.3.1 2.4.0 2.8.0 $(NEWEST_TORCH)
test-torch-all: test-torch ## the same with the oldest, three between and the newest; 30 GB, minutes

test-long: build ## round every float to float16 and bfloat16 on every instruction set; minutes
	@build/rmsnorm_tests --gtest_also_run_disabled_tests --gtest_filter='*DISABLED_*'

lint: $(BIN)/.requirements ## check formats, lint and types
	@echo "== format, lint and types"
	@$(BIN)/pre-commit run --all-files

bench: bench-kernels ## measure against all peers and a copy: tables, out/bench.json, out/bench.png
	@echo "== the calls from Python"
	@$(BIN)/rmsnorm bench --kernels out/kernels.json

bench-kernels: build $(BIN)/.bench-requirements ## the C++ kernels alone, beside oneDNN; minutes
	@echo "== the C++ kernels"
	@cmake -S . -B build -DRMSNORM_ONEDNN=$(CURDIR)/.venv > /dev/null
	@cmake --build build --target rmsnorm_bench -- --quiet
	@mkdir -p out
	@build/rmsnorm_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=7 \
	  --benchmark_min_time=0.02 --benchmark_out=out/kernels.json > out/kernels.log
	@$(BIN)/python -m rmsnorm.bench.kernels out/kernels.json

steps: build ## what each idea in the kernels gives: measure them without it, one at a time; minutes
	@$(BIN)/python tools/steps.py

mutants: $(BIN)/.requirements ## break the source on purpose: which test notices? (an hour)
	@$(BIN)/python tools/mutants.py

migrate-table: build ## patch every architecture of transformers, built tiny: docs/architectures.md; minutes
	@$(BIN)/python tools/migrate_table.py

gpu-bundle: $(BIN)/.requirements ## what gpu-check needs on a machine without a network; GPU_PYTHON there
	@tools/gpu_bundle.sh build/gpu-bundle $(GPU_PYTHON)

gpu-check: ## on a machine with a GPU: build, tests, sanitizer, benchmark
	@tools/gpu_check.sh

clean: ## remove what was built; .venv stays
	rm -rf build out $(BIN)/.built

build/aarch64-root/.complete: tools/aarch64_root.sh $(BIN)/.packages
	@echo "== AArch64: downloading its libraries into build/aarch64-root"
	@$< $(@D)

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

$(BIN)/.bench-requirements: bench/requirements.txt $(BIN)/.requirements
	@echo "== Python: installing bench/requirements.txt into .venv"
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c requirements.txt -r $<
	@touch $@

$(BIN)/.built: $(SOURCES) $(BIN)/.requirements
	@echo "== building the library and the Python package"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps -q \
	  -C build-dir=build -C cmake.define.RMSNORM_TESTS=ON \
	  -C cmake.define.CMAKE_CUDA_COMPILER=$$(echo $(CURDIR)/$(BIN)/../lib/python3*/site-packages/nvidia/cu*/bin/nvcc) .
	@touch $@
