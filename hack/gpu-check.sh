#!/usr/bin/env bash
# Builds, tests and measures native/ on a machine with an NVIDIA GPU, without network and without Node: CMake, Ninja, a
# CUDA toolkit (CUDA_HOME or /usr/local/cuda) and a Python with torch are enough.
#
#   hack/gpu-check.sh [OPTION...] [PART...]
#
#   build       native/ against the torch of that Python; skipped with --build
#   tests       ctest -L gpu
#   sanitizer   compute-sanitizer on a short step: memory errors, then races
#   pfc         the Partial FC step, beside plain PyTorch
#   train       backbone and whole step
#   example     facetrain on examples/lfw-small: stopped and resumed as uninterrupted; needs --node
#
#   --out DIR        for logs and results; a temporary folder
#   --build DIR      a build of native/ that is there already, with pfc_bench and train_bench
#   --python PYTHON  python3
#   --reference DIR  insightface's recognition/arcface_torch: its figures beside ours
#   --node NODE      a Node of the version that package.json pins, with node_modules and the addon in native/build
#   --quick          fewer sizes
#
# Each part has its own time limit; together these are 6 minutes, for 16 cores. The tables come last. The exit code is 0
# if all parts passed, 1 if one failed, 2 for wrong arguments, 3 if there is no GPU (after the build).
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0"; }

python=python3 reference='' node='' build='' out='' quick='' parts=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --quick) quick=1 ;;
    --out | --build | --python | --reference | --node)
      [ $# -gt 1 ] || { echo "$1: its value is missing" >&2 && exit 2; }
      case $1 in
        --out) out=$2 ;;
        --build) build=$2 ;;
        --python) python=$2 ;;
        --reference) reference=$2 ;;
        --node) node=$2 ;;
      esac
      shift
      ;;
    build | tests | sanitizer | pfc | train | example) parts+=("$1") ;;
    *) { echo "$1: no such option or part" && usage; } >&2 && exit 2 ;;
  esac
  shift
done
[ ${#parts[@]} -gt 0 ] || parts=(build tests sanitizer pfc train ${node:+example})
out=${out:-$(mktemp -d)}
mkdir -p "$out"
results=$out/results.jsonl
: >"$results"
given_build=$build
build=${build:-$out/build}

failed=()
# part NAME SECONDS COMMAND...: runs it with its time limit, its output in $out/NAME.log.
part() {
  local name=$1 seconds=$2 start=$SECONDS code
  shift 2
  timeout --kill-after=5 "$seconds" "$@" >"$out/$name.log" 2>&1
  code=$?
  if [ $code -eq 0 ]; then
    echo "$name: passed in $((SECONDS - start)) s"
    return 0
  fi
  failed+=("$name")
  if [ $code -eq 124 ]; then echo "$name: FAILED: longer than $seconds s"; else echo "$name: FAILED: code $code"; fi
  tail -n 25 "$out/$name.log" | sed 's/^/    /'
  return 1
}
wants() { [[ " ${parts[*]} " == *" $1 "* ]]; }

site=$("$python" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' 2>/dev/null)
if [ -z "$site" ]; then
  echo "$python has no torch" >&2
  exit 2
fi
# Libraries that the wheel's libtorch opens by its own search path, which a program has not. They replace the caller's
# path, where others of the same names may lie; that is kept only where the driver's library is found by it alone.
libraries=''
for folder in "$site"/torch/lib "$site"/nvidia/*/lib; do
  libraries=${libraries:+$libraries:}$folder
done
if ! ldconfig -p | grep -q libcuda.so.1; then libraries=$libraries:${LD_LIBRARY_PATH:-}; fi
LD_LIBRARY_PATH=$libraries
export LD_LIBRARY_PATH OMP_WAIT_POLICY=passive
echo "libraries: $LD_LIBRARY_PATH" >"$out/environment.txt"

if wants build && [ -z "$given_build" ]; then
  part configure 30 cmake -S "$root/native" -B "$build" -G Ninja -DLIBTORCH_ROOT="$site" -DFACETRAIN_CUDA=ON &&
    part build 130 cmake --build "$build" --target gpu_tests pfc_bench train_bench
fi

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "There is no GPU that torch can use: nothing was tested or measured." >&2
  exit 3
fi
"$python" -c '
import torch
p = torch.cuda.get_device_properties(0)
print(f"{p.name}, {p.total_memory >> 20} MiB, sm_{p.major}{p.minor}")
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
' | tee "$out/card.txt"

# A build that was made elsewhere has the paths of that machine in ctest's list, or no list at all.
gpu_tests() {
  local built test code=0
  if [ -e "$build/CTestTestfile.cmake" ]; then
    built=$(sed -n 's/^CMAKE_CACHEFILE_DIR:INTERNAL=//p' "$build/CMakeCache.txt")
    mkdir -p "$out/ctest"
    sed "s|$built/|$(cd "$build" && pwd)/|g" "$build/CTestTestfile.cmake" >"$out/ctest/CTestTestfile.cmake"
    ctest --test-dir "$out/ctest" --label-regex gpu --output-on-failure --timeout 45 --parallel 3
    return
  fi
  for test in "$build"/*_test; do
    echo "$test"
    timeout 45 "$test" || { echo "FAILED: $test, code $?" && code=1; }
  done
  return $code
}
if wants tests; then
  export -f gpu_tests
  export build out
  part tests 50 bash -c gpu_tests || ldd "$build/device_test" >>"$out/environment.txt" 2>&1
fi

# budget SECONDS: what follows shares this time. left SECONDS: the smaller of this number and what is left of it.
budget() { deadline=$((SECONDS + $1)); }
left() {
  local rest=$((deadline - SECONDS))
  echo $((rest < $1 ? (rest > 0 ? rest : 1) : $1))
}

# A step of our kernels is short, and each tool slows it a hundred times. It can do nothing without the driver's help.
sanitize() {
  local tool=$1
  timeout --kill-after=5 "$(left 15)" compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all \
    "$build/pfc_bench" --device cuda --classes 3001 --batch 33 --dim 64 --sample-rate 0.3 --steps 2 --warmup 0 \
    --precision "$2" >"$out/sanitizer-$tool-$2.log" 2>&1
}
sanitizer() {
  budget 40
  local tool precision code ok=0
  for tool in memcheck racecheck; do
    for precision in bf16 fp32; do
      sanitize "$tool" "$precision"
      code=$?
      if grep -qi 'device not supported' "$out/sanitizer-$tool-$precision.log"; then
        echo "sanitizer: SKIPPED: the driver does not support it on this device"
        return 0
      fi
      if [ $code -ne 0 ]; then
        echo "sanitizer: FAILED: $tool, $precision, code $code"
        tail -n 15 "$out/sanitizer-$tool-$precision.log" | sed 's/^/    /'
        ok=1
      fi
    done
  done
  return $ok
}
if wants sanitizer; then
  if ! command -v compute-sanitizer >/dev/null; then
    echo "sanitizer: SKIPPED: there is no compute-sanitizer"
  elif sanitizer; then
    echo "sanitizer: done"
  else
    failed+=(sanitizer)
  fi
fi

# One line of results.jsonl for each call. A size that does not fit is a result, too, and stops nothing.
measure() {
  local seconds=$1
  shift
  timeout --kill-after=5 "$(left "$seconds")" "$@" --device cuda --json </dev/null >>"$results" \
    2>>"$out/benchmarks.log" || echo "$(basename "$1") ${*:2}: code $?; see $out/benchmarks.log"
}

theirs() {
  [ -z "$reference" ] || timeout --kill-after=5 "$(left 40)" "$python" "$root/bench/insightface.py" "$reference" "$@" \
    >>"$results" 2>>"$out/benchmarks.log" || echo "insightface, $1: code $?; see $out/benchmarks.log"
}

if wants pfc; then
  budget 80
  while read -r classes batch rate precision rows beside; do
    [ -z "$quick" ] || [ "$classes" -le 1000000 ] || continue
    measure 25 "$build/pfc_bench" --classes "$classes" --batch "$batch" --sample-rate "$rate" --precision "$precision" \
      --rows-precision "$rows" --steps 23 --reference-script "$root/bench/pfc/reference.py" \
      --reference "$([ "$beside" = yes ] && echo "$python" || echo none)"
  done <<'SIZES'
1000000 1024 0.1 bf16 fp32 yes
1000000 1024 0.1 bf16 bf16 no
10000000 1024 0.1 bf16 fp32 no
10000000 1024 0.1 bf16 bf16 no
100000 512 1 bf16 fp32 yes
1000000 1024 1 bf16 fp32 yes
1000000 1024 1 bf16 bf16 no
4000000 1024 0.1 bf16 fp32 no
1000000 1024 0.1 fp32 fp32 yes
1000000 1024 0.1 tf32 fp32 no
100000 512 1 fp32 fp32 yes
1000000 1024 1 tf32 fp32 no
SIZES
  while read -r optimizer tier; do
    measure 15 "$build/pfc_bench" --classes 1000000 --batch 1024 --sample-rate 0.1 --precision bf16 \
      --rows-precision bf16 --optimizer "$optimizer" --tier "$tier" --steps 23 --reference none
  done <<'KINDS'
adagrad device
adamw device
sgd host
adagrad host
KINDS
  theirs pfc 100000,512,1,fp16 1000000,1024,0.1,fp32 1000000,1024,0.1,fp16 1000000,1024,1,fp16
fi

if wants train; then
  budget 50
  graphs=$root/bench/train/graphs
  measure 40 "$build/train_bench" --graph "$graphs/iresnet50.graph" --batch 128,256 --precision bf16,fp16,tf32
  measure 20 "$build/train_bench" --graph "$graphs/mobilefacenet.graph" --batch 256 --precision bf16,fp16
  measure 30 "$build/train_bench" --graph "$graphs/iresnet50.graph" --mode step --batch 128,256 --precision bf16 \
    --steps 20 --loader-threads 8
  theirs train r50,128,fp16 r50,256,fp16 mbf,256,fp16
fi

# A training that is stopped and resumed must give the same model, bit for bit, as one that is not.
example() {
  local job=$out/example.yaml code
  sed -e '/^  quantize:/,$d' -e "s|file://data|file://$root/examples/lfw-small/data|" \
    -e 's/^    replicas: .*/    replicas: 1\n    device: CUDA/' "$root/examples/lfw-small/job.yaml" >"$job"
  train() { "$node" "$root/cli/src/main.ts" run -f "$job" --out "$out/$1"; }
  train whole || return
  timeout --signal=INT --kill-after=20 8 "$node" "$root/cli/src/main.ts" run -f "$job" --out "$out/resumed"
  code=$?
  [ $code -eq 124 ] || { echo "the training that was to be stopped has ended before: code $code" && return 1; }
  train resumed && cmp "$out/whole/model/backbone.onnx" "$out/resumed/model/backbone.onnx"
}
if wants example; then
  if [ -z "$node" ]; then
    echo "example: SKIPPED: no --node"
  else
    export -f example
    export root out node
    part example 90 bash -c example
  fi
fi

echo "Logs and results: $out"
[ ${#failed[@]} -eq 0 ] || echo "FAILED: ${failed[*]}"
"$python" "$root/bench/gpu-tables.py" "$results"
[ ${#failed[@]} -eq 0 ]
