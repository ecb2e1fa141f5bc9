#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one and no network: nvcc of CUDA 12.4 or later,
# CMake, and a python3 with its headers and PyTorch for CUDA are there; the rest is taken from
# build/gpu-bundle (`make gpu-bundle` elsewhere) where it isn't. Results and logs: out/gpu, or $OUT.
# Also read: PYTHON, and GPU_ARCHITECTURE, such as 90 (what is there).
set -euo pipefail
bundle=$PWD/build/gpu-bundle build=$PWD/build/gpu out=${OUT:-$PWD/out/gpu}
python=${PYTHON:-python3}
rm -rf "$build/package" && mkdir -p "$out" "$build/package" "$build/site"
failed=()

step() { echo "== $* ($SECONDS s)"; }
# Runs a command and goes on if it fails: what follows may tell more.
try() {
  local name=$1 && shift
  step "$name"
  "$@" 2>&1 | tee "$out/${name// /-}.log" || failed+=("$name")
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader ||
  { echo "no GPU: nvidia-smi finds none"; exit 2; }
"$python" - << 'END' || exit 2
import pathlib, sys, sysconfig
if not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists():
    sys.exit(f"Python.h: not in {sysconfig.get_path('include')}; install this Python's headers")
END
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
PATH=$PATH:$(dirname "$nvcc")

step "packages that this Python lacks"
for package in typer rich pytest hypothesis matplotlib; do
  "$python" -c "import $package" 2> /dev/null && continue
  [ -d "$bundle/wheels" ] || { echo "$package: not installed, and $bundle is missing"; exit 2; }
  # All of them, behind the machine's own: a package that is there stays.
  for wheel in "$bundle"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$build/site"; done
  break
done
echo "import sys; sys.path.append('$build/site')" > "$build/package/sitecustomize.py"
export PYTHONPATH=$build/package

step "building for the GPU that is here"
export CMAKE_PREFIX_PATH=$bundle/usr
libraries=$(echo "$bundle"/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
{
  cmake -S . -B "$build/cmake" -DRMSNORM_CUDA=ON -DRMSNORM_GPU_TESTS=ON \
    -DCMAKE_CUDA_ARCHITECTURES="${GPU_ARCHITECTURE:-native}" \
    -DPython_EXECUTABLE="$(command -v "$python")" &&
    cmake --build "$build/cmake" --parallel &&
    cmake --install "$build/cmake" --prefix "$build/package"
} > "$out/build.log" 2>&1 || { tail -50 "$out/build.log"; exit 1; }
cp -r python/rmsnorm "$build/package"
tests=$build/cmake/src/cuda/rmsnorm_gpu_tests

try "bits of the reference" "$tests" --gtest_brief=1
try "doctor" "$python" -m rmsnorm doctor
workers=() && "$python" -c "import xdist" 2> /dev/null && workers=(-n 8)
try "Python tests" timeout 180 "$python" -m pytest -q --tb=short -p no:cacheprovider "${workers[@]}" \
  tests/test_cuda.py tests/test_pytorch.py tests/test_layouts.py tests/test_autograd.py \
  tests/test_compile.py tests/test_parts.py tests/test_bench_cuda.py
for tool in memcheck racecheck; do
  try "compute-sanitizer $tool" timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 1 \
    "$tests" --gtest_brief=1 --gtest_filter='*Sanitized*'
done
left=$((520 - SECONDS))
try "benchmark" "$python" -m rmsnorm bench --cuda --out "$out" --seconds $((left > 60 ? left : 60))

step "done"
[ ${#failed[@]} -eq 0 ] || { printf 'FAILED: %s\n' "${failed[@]}"; exit 1; }
