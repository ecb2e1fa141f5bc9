#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one and no network: nvcc of CUDA 12.4 or later,
# CMake, and a python3 with PyTorch for CUDA are there; the rest is taken from build/gpu-bundle
# (`make gpu-bundle` elsewhere) where it isn't. Results: out/gpu.
set -euo pipefail
bundle=$PWD/build/gpu-bundle build=$PWD/build/gpu out=${OUT:-$PWD/out/gpu}
python=${PYTHON:-python3}
mkdir -p "$out" "$build"
step() { echo "== $* ($((SECONDS)) s)"; }

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader ||
  { echo "no GPU: nvidia-smi finds none"; exit 2; }

step "packages that this Python lacks"
site=$build/site
mkdir -p "$site"
for package in typer rich pytest hypothesis matplotlib; do
  "$python" -c "import $package" 2> /dev/null && continue
  [ -d "$bundle/wheels" ] || { echo "$package: not installed, and $bundle is missing"; exit 2; }
  # All of them, behind the machine's own: a package that is there stays.
  "$python" -m pip install -q --no-index --no-deps --target "$site" "$bundle"/wheels/*.whl
  break
done
mkdir -p "$build/package"
echo "import sys; sys.path.append('$site')" > "$build/package/sitecustomize.py"
export PYTHONPATH=$build/package

step "building for the GPU that is here"
export CMAKE_PREFIX_PATH=$bundle/usr LD_LIBRARY_PATH=$bundle/usr/lib/x86_64-linux-gnu:${LD_LIBRARY_PATH:-}
cmake -S . -B "$build/cmake" -DRMSNORM_CUDA=ON -DRMSNORM_GPU_TESTS=ON \
  -DCMAKE_CUDA_ARCHITECTURES="${GPU_ARCHITECTURE:-native}" \
  -DPython_EXECUTABLE="$(command -v "$python")" > "$build/cmake.log"
cmake --build "$build/cmake" --parallel > "$build/build.log" || { tail -50 "$build/build.log"; exit 1; }
cmake --install "$build/cmake" --prefix "$build/package" > /dev/null
cp -r python/rmsnorm "$build/package"

step "C++ tests: the bits of the reference"
"$build/cmake/src/cuda/rmsnorm_gpu_tests" --gtest_brief=1

step "doctor: the digests"
"$python" -m rmsnorm doctor

step "Python tests"
"$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py tests/test_pytorch.py \
  tests/test_layouts.py tests/test_autograd.py

small='*InPlace*:*NoRows*:*EachGradientAlone*:*Float64*'
for tool in memcheck racecheck; do
  step "compute-sanitizer: $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 1 \
    "$build/cmake/src/cuda/rmsnorm_gpu_tests" --gtest_brief=1 --gtest_filter="$small"
done

step "benchmark"
"$python" -m rmsnorm bench --cuda --out "$out"
step "done"
