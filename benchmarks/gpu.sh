#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and nvcc: builds, tests, checks memory, races and barriers, and measures. One command:
#   benchmarks/gpu.sh
# Results: benchmarks/results/<device>.csv, <device>_scaling.csv and <device>.txt (versions, plans, the end of every step).
# PYTHON names an environment with the dependencies (default: the one that `make build` makes). A step that fails does not stop
# the later ones.
set -uo pipefail
cd "$(dirname "$0")/.."

if [[ -z "${PYTHON:-}" ]]; then
  VTKERNELS_BUILD_CUDA=1 make build || exit 1
  PYTHON=.venv/bin/python
fi
device=$("$PYTHON" - <<'PY'
import re, sys, torch
if not torch.cuda.is_available():
    sys.exit("this torch finds no GPU (for CUDA: pip install torch from an index with CUDA builds)")
print(re.sub(r"\W+", "_", torch.cuda.get_device_name()).strip("_").lower())
PY
) || exit 1
report=benchmarks/results/$device.txt
mkdir -p benchmarks/results
: >"$report"
failed=()

step() { # title, command
  local title=$1
  shift
  printf '\n== %s\n   %s\n' "$title" "$*" | tee -a "$report"
  local output
  output=$(mktemp)
  if "$@" 2>&1 | tee "$output" | tail -n 25 | tee -a "$report"; then echo "   passed" | tee -a "$report"; else
    failed+=("$title")
    echo "   FAILED" | tee -a "$report"
  fi
  rm -f "$output"
}

export VTKERNELS_REQUIRE_NATIVE=1
step "machine" nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit,persistence_mode --format=csv
step "versions" "$PYTHON" -m vtkernels info
step "plans" "$PYTHON" -m vtkernels info --plan 576 1024 64
step "build" "$PYTHON" -m pytest -q tests/test_cuda_build.py tests/test_cuda_plans.py
step "tests" "$PYTHON" -m pytest -q tests/test_cuda_gpu.py tests/test_triton.py
sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer 2>/dev/null)
for tool in memcheck racecheck synccheck initcheck; do
  if [[ -n "$sanitizer" ]]; then
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" "$sanitizer" --tool "$tool" --error-exitcode 1 "$PYTHON" tests/cuda_small.py
  else
    failed+=("$tool (compute-sanitizer is not installed)")
  fi
done
step "ops, float16" "$PYTHON" -m benchmarks ops --device cuda --dtype float16 --all-shapes --seconds 1 \
  --out "benchmarks/results/$device.csv"
step "scaling" "$PYTHON" -m benchmarks scaling --device cuda --out "benchmarks/results/${device}_scaling.csv"
step "model" "$PYTHON" -m benchmarks model --device cuda --out "benchmarks/results/${device}_model.csv" # the longest comes last

if ((${#failed[@]})); then
  printf '\nfailed: %s\n' "${failed[@]}" | tee -a "$report"
  exit 1
fi
echo "all passed; see $report"
