# make demo   a photograph and a prompt through a LLaVA model with every method
# make test   the test-suite
# Each builds its own .venv first. Slower checks and the benchmarks have targets of their own, below.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml constraints.txt
TORCH := $(shell grep ^torch== constraints.txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-kernels test-lmms-eval test-original test-transformers test-cuda-torch lint tidy gpu bench guard build clean

demo: build
	$(BIN)/python -m vtkernels demo

# Two workers with two threads each on two cores: a thread that waits must not spin. Tables are as wide for every worker.
PYTEST = COLUMNS=160 OMP_WAIT_POLICY=passive VTKERNELS_REQUIRE_NATIVE=1 $(BIN)/python -m pytest -n 2

test: build
	$(PYTEST)

# Style, types (mypy --strict) and who may import whom (contracts in pyproject.toml).
lint: build
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy && $(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests/emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# clang-tidy on the C++ of the CPU library, and on the CUDA kernels as the emulator compiles them.
tidy: build
	site="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; PATH="$(CURDIR)/$(BIN):$$PATH" \
	  cmake -G Ninja -S . -B build/tidy -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DVTKERNELS_BUILD_CUDA=0 \
	  -DVTKERNELS_TORCH_INCLUDE="$$site/torch/include" -DVTKERNELS_TORCH_LIB="$$site/torch/lib" \
	  -Dpybind11_DIR="$$($(BIN)/pybind11-config --cmakedir)" -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python"
	$(BIN)/run-clang-tidy.py -quiet -clang-tidy-binary $(BIN)/clang-tidy -p build/tidy -extra-arg=-Wno-unknown-warning-option
	$(BIN)/clang-tidy --quiet tests/emulator/ops.cpp -- -std=c++17 -Icsrc/include -Itests/emulator \
	  $$($(BIN)/pybind11-config --includes | sed 's/-I/-isystem /g')

bench: build
	$(BIN)/python -m benchmarks ops
	$(BIN)/python -m benchmarks scaling
	$(BIN)/python -m benchmarks model
	$(BIN)/python -m benchmarks quality
	$(BIN)/python -m benchmarks pages

# Ratios against committed floors, in a minute; says so and passes where the machine is too noisy.
guard: build
	$(BIN)/python -m benchmarks guard

build: .venv/.built

# torch comes first and alone: the build takes its headers from there and never fetches another one.
.venv/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) "setuptools>=77" cmake ninja pybind11
	touch $@

.venv/.built: .venv/.installed $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable ".[dev]"
	touch $@

# Triton's interpreter and the emulated GPUs on every test of an op, and the slow tests of the kernels.
test-kernels: build
	VTKERNELS_TEST_KERNELS=1 $(PYTEST) -k "triton or sm_90 or sm_80 or cuda"

# The library with CUDA kernels (nvcc needed) under a torch with CUDA: loads without a GPU and passes the CPU tests.
test-cuda-torch: build .venv-cuda/.installed
	VTKERNELS_REQUIRE_NATIVE=1 PYTHONPATH=. .venv-cuda/bin/python -m pytest \
	  tests/test_cuda_build.py tests/test_native.py tests/test_invariance.py tests/test_errors.py tests/test_contract.py \
	  -k "not sm_90 and not sm_80 and not triton and not reference"

# Its torch is newer than the one that the library was built with.
.venv-cuda/.installed:
	$(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.14.1" pytest hypothesis numpy
	touch $@

# On a machine with an NVIDIA GPU: everything that needs one, in one command.
gpu: build
	PYTHON=$(BIN)/python benchmarks/gpu.sh

# The oldest transformers that vt.prune supports; `make test` runs the newest known, which constraints.txt names.
test-transformers: build .venv-transformers/.installed
	OMP_WAIT_POLICY=passive .venv-transformers/bin/python -m pytest -n 2 tests/test_prune_*.py tests/test_docs.py

.venv-transformers/.installed: constraints.txt
	$(PYTHON) -m venv .venv-transformers
	.venv-transformers/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) pytest pytest-xdist "transformers==4.57.6" peft accelerate pillow
	touch $@

# The original LLaVA code base without its pins, torch 2.0.1 among them.
test-original: build .venv-original/.installed
	.venv-original/bin/python -m pytest tests/test_prune_original.py

.venv-original/.installed: constraints.txt
	$(PYTHON) -m venv .venv-original
	.venv-original/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) pytest "transformers==4.37.2" pillow
	.venv-original/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "llava-torch==1.2.2.post1"
	touch $@

# The plugin under the real lmms-eval, without the packages that other models and tasks of it need. The library is that of
# `build`; the editable install adds the entry point.
test-lmms-eval: build .venv-lmms-eval/.installed
	.venv-lmms-eval/bin/python -m pytest tests/test_lmms_eval.py

.venv-lmms-eval/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-lmms-eval
	.venv-lmms-eval/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch pytest \
	  "setuptools>=77" transformers accelerate datasets decord evaluate loguru pillow pydantic pytablewriter \
	  python-dotenv sacrebleu tenacity
	.venv-lmms-eval/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "lmms-eval==0.7.3"
	VTKERNELS_BUILD_NATIVE=0 .venv-lmms-eval/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv .venv-lmms-eval .venv-original .venv-transformers .venv-cuda build dist vtkernels/_native vtkernels/_host*.so *.egg-info
