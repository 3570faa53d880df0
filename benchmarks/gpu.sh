#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds, proves, times. `benchmarks/gpu.sh --help` says how.
#
# The time on such a machine is short, so the steps come in the order of their value, each in a process of its own with a limit
# of its own, and each writes as it goes: cut off at any second, what was measured is in the results folder.
set -uo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
usage: benchmarks/gpu.sh --out DIR [--limit SECONDS] [--only STEP,...] [--python PYTHON]
       benchmarks/gpu.sh --rehearse [--out DIR] [--limit SECONDS] [--only STEP,...] [--python PYTHON]

Builds vtkernels for the GPU that is there, without a network, with the packages of PYTHON (default: $PYTHON, else python3);
runs every step below, and leaves in DIR
  summary.txt   a line per step as soon as it ends
  log.txt       the whole output of all steps, as it comes
  machine.json  device, versions, what a copy and a matrix product reach, how many clusters of blocks fit at a time
  cuda.xml      the tests of the native kernels (JUnit)
  ops.csv scaling.csv model.csv   a row per measured case, written as it is measured
  ncu.csv       the profiler's counters
`python -m benchmarks gpu-report DIR` makes the committed tables and plots of them.

steps, in this order, with their limits in seconds:
TEXT
  for name in "${STEPS[@]}"; do printf '  %-9s %4s  %s\n' "$name" "${LIMIT[$name]}" "${WHAT[$name]}"; done
  cat <<'TEXT'

  --limit S      for all steps together (default: 480). What has no time left is named in summary.txt and not begun.
  --only A,B     these steps alone, for a second look. Without `build` in the list the library must have been built before.
  --rehearse     the whole script on a machine without a GPU, in a fresh copy of the checkout and without a network where the
                 system allows that: the build, every command and every limit are real, the device is the CPU, and the CUDA
                 tests are collected but not run. For the test-suite.

exit code: 0 if every step passed, 1 if one failed or had no time, 2 for arguments that do not work.

examples:
  benchmarks/gpu.sh --out results
  benchmarks/gpu.sh --out results --only ops,ncu
  benchmarks/gpu.sh --rehearse --limit 300
TEXT
}

# ------------------------------------------------------------------------------------------------ steps and arguments

STEPS=(machine build triton tests prune sanitize memory ops ncu scaling model hazards)
declare -A LIMIT=([machine]=25 [build]=75 [triton]=90 [tests]=110 [memory]=25 [prune]=110 [ops]=100 [sanitize]=75 [ncu]=45
  [hazards]=40 [scaling]=30 [model]=50)
declare -A WHAT=([machine]="versions; what a copy and a matrix product reach"
  [build]="the library for this GPU; nothing else runs where its CUDA kernels do not load"
  [triton]="the Triton kernels against the reference; this and the next three side by side"
  [tests]="the native kernels against the reference; streams, graphs, devices"
  [memory]="that all memory comes from torch's allocator: alone, for it reads what the device has free"
  [prune]="vt.prune on small models: the same tokens as on the CPU"
  [ops]="the ops that decide, against targets, floors and the published loops"
  [sanitize]="compute-sanitizer's memcheck on the native kernels"
  [ncu]="the profiler's counters of one launch of each"
  [hazards]="synccheck, racecheck and initcheck: information, which does not decide"
  [scaling]="scope_select against N and B"
  [model]="LLaVA-1.5-7B shapes: a request with and without pruning")

out="" limit=480 only="" rehearse="" python="${PYTHON:-python3}"
refuse() {
  printf 'benchmarks/gpu.sh: %s (see --help)\n' "$1" >&2
  exit 2
}
while (($#)); do
  case $1 in
    --help | -h) usage; exit 0 ;;
    --rehearse) rehearse=1; shift; continue ;;
    --out | --limit | --only | --python) (($# > 1)) || refuse "$1 needs a value" ;;
    *) refuse "unknown argument '$1'" ;;
  esac
  case $1 in
    --out) out=$2 ;;
    --limit) limit=$2 ;;
    --only) only=$2 ;;
    --python) python=$2 ;;
  esac
  shift 2
done
[[ $limit =~ ^[1-9][0-9]*$ ]] || refuse "--limit must be a whole number of seconds, got '$limit'"
[[ -n $out || -n $rehearse ]] || refuse "--out must name the folder of the results"
wanted=" ${STEPS[*]} "
if [[ -n $only ]]; then
  wanted=" ${only//,/ } "
  for name in $wanted; do [[ -n ${LIMIT[$name]:-} ]] || refuse "--only: no step is called '$name'; there are: ${STEPS[*]}"; done
fi
found=$(command -v "$python") || refuse "no such Python: '$python'"
[[ $found == /* ]] || found=$PWD/$found
python=$found

# ------------------------------------------------------------------------------------------------ a rehearsal: elsewhere, offline

# The untracked files too: a rehearsal is for what is about to be committed.
if [[ -n $rehearse && -z ${VTKERNELS_REHEARSING:-} ]]; then
  scratch=$(mktemp -d) && trap 'rm -rf "$scratch"' EXIT
  out=${out:-$scratch/results}
  mkdir -p "$scratch/checkout" "$out" && out=$(cd "$out" && pwd) || exit 1
  git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [[ -e $file ]] && printf '%s\0' "$file"
  done | tar -c --null -T - | tar -x -C "$scratch/checkout" || exit 1
  offline=()
  if unshare -rn true 2>/dev/null; then offline=(unshare -rn); else echo "rehearsal: the network cannot be taken away here"; fi
  VTKERNELS_REHEARSING=1 VTKERNELS_COMMIT=$(git rev-parse --short HEAD) "${offline[@]}" bash "$scratch/checkout/benchmarks/gpu.sh" --rehearse --out "$out" --limit "$limit" \
    ${only:+--only "$only"} --python "$python"
  exit
fi

# ------------------------------------------------------------------------------------------------ results

mkdir -p "$out" && out=$(cd "$out" && pwd) || refuse "--out: cannot make the folder '$out'"
begin=$SECONDS work=$(mktemp -d)
summary=$out/summary.txt log=$out/log.txt
trap 'rm -rf "$work"' EXIT

say() { printf '%s\n' "$*" | tee -a "$summary"; }

# Runs step_NAME with what time is left, and tells its end with the last line it wrote. In the log every line names its step.
step() {
  local name=$1 from=$SECONDS left=$((limit - (SECONDS - begin))) allowed=$((LIMIT[$1] * slack)) signal=TERM code
  [[ $wanted == *" $name "* ]] || return 0
  if ((left < 5)); then
    tell "$name" "no time left" 0 ""
    return 1
  fi
  ((allowed > left)) && allowed=$left
  [[ $name == tests || $name == memory || $name == prune ]] && signal=INT # pytest then still writes what it has
  printf '======== %s: %s (at most %s s)\n' "$name" "${WHAT[$name]}" "$allowed" >>"$log"
  {
    timeout -s "$signal" -k 5 "$allowed" env --default-signal=INT bash -c "set -uo pipefail; step_$name" </dev/null 2>&1
    echo $? >"$work/$name.code"
  } | sed -u "s/^/[$name] /" >>"$log"
  code=$(<"$work/$name.code")
  local last
  last=$(grep "^\[$name\] " "$log" | cut -d' ' -f 2- | grep -v '^[[:space:]]*$' | tail -n 1 | sed 's/\x1b\[[0-9;]*m//g; s/^=* *//; s/ *=*$//')
  case $code in
    0) tell "$name" passed $((SECONDS - from)) "$last" ;;
    124 | 137) tell "$name" "CUT OFF" $((SECONDS - from)) "$last" ;;
    *) tell "$name" "FAILED ($code)" $((SECONDS - from)) "$last" ;;
  esac
  return "$code"
}

# Several side by side.
beside() {
  local name
  for name in "$@"; do step "$name" & done
  wait
}

tell() { # name, end, seconds, last line
  [[ $2 == passed || $1 == hazards ]] || touch "$work/failed.$1"
  say "$(printf '%-9s %-12s %4s s  %s' "$1" "$2" "$3" "${4:0:160}")"
}

# ------------------------------------------------------------------------------------------------ what each step runs

export PATH="${python%/*}:$PATH" PYTHONUNBUFFERED=1 PYTHONPATH=$PWD VTKERNELS_REQUIRE_NATIVE=1 TRITON_INTERPRET=0 COLUMNS=160 PYTHONDONTWRITEBYTECODE=1
export VTKERNELS_COMMIT=${VTKERNELS_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}
export python out work device=cuda dtype=float16 cores rehearse
cores=$(nproc)
((cores > 12)) && cores=12
slack=1
[[ -n $rehearse ]] && device=cpu dtype=float32 slack=4 # a rehearsal has few cores

step_machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit,pstate --format=csv || [[ -n $rehearse ]] || return 1
  "$python" -m benchmarks.machine --device "$device" --out "$out/machine.json"
}

# Into a prefix of its own: nothing of the environment changes. The libraries land in the checkout, which is on the path.
step_build() {
  local arch
  arch=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' 2>/dev/null) || arch=9.0
  [[ $arch == 9.0 ]] && arch=9.0a
  echo "building for $arch"
  TORCH_CUDA_ARCH_LIST=$arch VTKERNELS_BUILD_CUDA=1 "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation \
    --ignore-installed --disable-pip-version-check --root-user-action=ignore --prefix "$work/prefix" --editable . || return 1
  "$python" -m vtkernels info || return 1
  [[ -n $rehearse ]] || "$python" tests/cuda_small.py --loads || return 1
  "$python" -m benchmarks.machine --planner --out "$out/machine.json"
  echo "the native CUDA kernels are built"
}

step_triton() {
  if [[ -n $rehearse ]]; then # the calls of one op, compiled for a GPU that is not there
    "$python" tests/specializations.py compact_ --compile
  else
    "$python" tests/gpu_triton.py --jobs "$cores" --limit 80 --logs "$work/triton"
  fi
}

collected() { # a rehearsal has nothing to run: pytest's code for that is 5
  local code=$?
  [[ -n $rehearse && $code == 5 ]] && return 0
  return $code
}

step_tests() { # the judges run on the CPU, several at a time
  OMP_NUM_THREADS=1 "$python" -m pytest -q -p no:cacheprovider -n "$cores" --junitxml "$out/cuda.xml" tests/test_cuda_gpu.py -k "not allocator"
  collected
}

step_memory() {
  "$python" -m pytest -q -p no:cacheprovider tests/test_cuda_gpu.py -k allocator
  collected
}

step_prune() {
  OMP_NUM_THREADS=1 "$python" -m pytest -q -p no:cacheprovider -n "$((cores < 6 ? cores : 6))" tests/test_prune_gpu.py
  collected
}

step_ops() {
  "$python" -m benchmarks ops --headline --device "$device" --dtype "$dtype" --seconds 0.2 --out "$out/ops.csv" \
    ${rehearse:+--op topk_select --op attention_topk}
}

step_scaling() {
  "$python" -m benchmarks scaling --device "$device" --dtype "$dtype" --op scope_select --axis N --axis B --no-memory \
    --seconds 0.1 --longest 10 --out "$out/scaling.csv" ${rehearse:+--quick}
}

step_model() {
  "$python" -m benchmarks model --device "$device" --headline --out "$out/model.csv" ${rehearse:+--quick}
}

# The sanitizer slows every kernel it watches down; torch's own are not our concern.
watched() {
  local tool=$1
  shift
  echo "compute-sanitizer, $tool"
  if [[ -n $rehearse ]]; then "$python" tests/cuda_small.py --list && return; fi
  local program
  program=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$program" --tool "$tool" --error-exitcode 1 --print-limit 20 --kernel-name kns=vtkernels "$@" \
    "$python" tests/cuda_small.py
}

step_sanitize() { watched memcheck; }

# None of these tools knows barriers that count bytes across blocks (`st.async`, the copy engine).
step_hazards() {
  local code=0
  watched synccheck --num-cuda-barriers 65536 || code=1
  watched racecheck || code=1
  watched initcheck || code=1
  return $code
}

step_ncu() {
  local program=("$python" tests/cuda_small.py --headline)
  if [[ -n $rehearse ]]; then "$python" tests/cuda_small.py --list && return; fi
  ncu --clock-control none --profile-from-start off --kernel-name-base demangled --kernel-name regex:vtkernels \
    --section SpeedOfLight --section LaunchStats --section Occupancy --section WarpStateStats --section MemoryWorkloadAnalysis \
    --csv --log-file "$out/ncu.csv" "${program[@]}"
}

export -f step_machine step_build step_triton step_tests step_memory step_prune step_ops step_scaling step_model step_sanitize \
  step_hazards step_ncu watched collected

# ------------------------------------------------------------------------------------------------ the run

say "vtkernels ${VTKERNELS_COMMIT:-unknown}, $("$python" --version 2>&1), limit $limit s${rehearse:+, a rehearsal}"
step machine
if ! step build; then
  say "stopped: without the CUDA kernels there is nothing to prove or to time here"
  exit 1
fi

# Compiling and judging keep the processor busy more than the GPU; nothing is timed yet.
beside triton tests prune sanitize
for name in memory ops ncu scaling model hazards; do step "$name"; done

failures=$(find "$work" -name 'failed.*' | wc -l)
say "$( ((failures)) && echo "$failures not passed" || echo "all passed"), $((SECONDS - begin)) s"
exit $((failures > 0))
