# make demo    set up, build, and watch a DeepSeek-architecture checkpoint solve word problems
# make test    set up, build a wheel, and run every test against it
# make test-editable   the same against this checkout
# make accuracy   exact match of the shipped checkpoint: weights, caches, page sizes, kernels, batch sizes
# make properties   the equivalences on many newly drawn examples (EXAMPLES=1000 of each)
# make verify-all   every configuration (architecture, phase, weights, cache, RoPE, kernels, library) lowered and proven
# make lint    ruff, mypy, clang-format
# make wheel   build/wheel/*.whl
# make test-rocm     gfx942 and gfx950 code objects, executed by the tests' emulator (needs clang-22, no GPU)
# make isa-report    docs/isa.md: registers, occupancy, bytes, cycles and predicted bounds of the ROCm kernels (needs clang-22)
# make bench-cpu     ops and whole steps beside what this machine's memory and cores can do (about ten minutes)
# make sanitize      the CPU kernels under the address, undefined-behaviour and thread sanitizers (a few minutes)
# make test-matrix   the suite on every supported Python that is installed (opt-in)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NATIVE := CMakeLists.txt $(wildcard cmake/*.cmake) $(shell find csrc -name '*.cc' -o -name '*.h')
JOBS ?= 2
export CMAKE_BUILD_PARALLEL_LEVEL = $(JOBS)

.PHONY: demo test test-editable test-wheel test-rocm isa-report sanitize bench-cpu test-matrix properties accuracy verify-all lint format wheel clean install

install: $(VENV)/.built

# A folder without pip is a venv that failed half-way: it is made anew.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "mla_jax needs Python 3.11, 3.12 or 3.13; point PYTHON= at one"; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || \
	  { echo "no C++ compiler found: install one first (Debian: apt-get install g++)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python cannot make virtual environments: install its venv module first (Debian: apt-get install python3-venv)"; exit 1; }
	@test -e "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
	  { echo "Python's C headers are missing: install them first (Debian: apt-get install python3-dev)"; exit 1; }
	@rm -rf $(VENV)
	@echo "setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.dependencies: $(BIN)/pip pyproject.toml constraints.txt tools/requirements.py
	@$(BIN)/python tools/requirements.py > $(VENV)/requirements.txt
	@$(PIP) install -r $(VENV)/requirements.txt $$($(BIN)/python tools/requirements.py --constraints)
	@touch $@

$(VENV)/.built: $(VENV)/.dependencies $(NATIVE)
	@echo "building the native library"
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

demo: $(VENV)/.built
	@$(BIN)/python examples/demo.py

# Half of the suite's time is compilation: what one run compiled serves the next.
test-editable test-wheel: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/build/compiled
test-editable test-wheel: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
test-editable test-wheel: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1

test: test-wheel

test-editable: $(VENV)/.built
	@$(BIN)/python -m pytest -n $(JOBS) tests

wheel: $(VENV)/.built
	@rm -rf build/wheel
	@$(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/wheel .

# The repository is a flat layout: only a run from another folder, with the wheel's files and none of the
# checkout's, shows that the wheel holds everything.
test-wheel: wheel
	@rm -rf build/wheel-venv && $(BIN)/python -m venv --without-pip build/wheel-venv
	@$(BIN)/python tools/share_dependencies.py build/wheel-venv
	@$(PIP) --python build/wheel-venv/bin/python install --no-deps --no-index build/wheel/*.whl
	@mkdir -p build/elsewhere && cd build/elsewhere && MLA_JAX_EXPECT_INSTALLED=1 \
	  ../wheel-venv/bin/python -m pytest -n $(JOBS) -c ../../pyproject.toml --rootdir ../.. -p no:cacheprovider ../../tests

# Emulated: nothing here needs or touches AMD hardware. tools/install_rocm_toolchain.sh brings the compiler.
test-rocm: $(VENV)/.built
	@$(BIN)/python -m pytest -n $(JOBS) tests/rocm

isa-report: $(VENV)/.built
	@$(BIN)/python tools/isa_report.py

# JAX takes no part: tests/csrc drives the kernels, and their hand-out of tasks, over threads of its own.
SANITIZERS := $(addprefix sanitize-,address undefined thread)
.PHONY: $(SANITIZERS)
sanitize: $(SANITIZERS)

# On the stacks that GCC 13's address sanitizer makes by default, vectors of 64 bytes lie at other addresses than its
# own stores want, which then end the run; GCC 12 makes none unless asked to.
ASAN_OPTIONS ?= detect_stack_use_after_return=0

$(SANITIZERS): sanitize-%: $(VENV)/.dependencies
	@$(BIN)/cmake -S tests/csrc -B build/sanitize/$* -G Ninja --log-level=WARNING -DMLA_SANITIZER=$* \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	@$(BIN)/ninja -C build/sanitize/$* -j $(JOBS) --quiet
	@echo "sanitizer: $*" && ASAN_OPTIONS=$(ASAN_OPTIONS) build/sanitize/$*/kernels

test-matrix:
	@$(PYTHON) tools/test_matrix.py

properties: EXAMPLES = 1000
properties: $(VENV)/.built
	@MLA_JAX_PROPERTY_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/mla_jax/properties

accuracy: $(VENV)/.built
	@$(BIN)/python benchmarks/accuracy.py

bench-cpu: $(VENV)/.built
	@JAX_PLATFORMS=cpu $(BIN)/python benchmarks/cpu/run.py

verify-all: $(VENV)/.built
	@JAX_PLATFORMS=cpu $(BIN)/python tools/verify_all.py --jobs $(JOBS)

lint: $(VENV)/.built
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@find csrc tests -name '*.cc' -o -name '*.c' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.built
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	@find csrc tests -name '*.cc' -o -name '*.c' -o -name '*.h' | xargs $(BIN)/clang-format -i

clean:
	@rm -rf build $(VENV)
