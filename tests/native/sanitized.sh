#!/usr/bin/env bash
# Run the tests of the native kernels with a build of them that stops at the first wrong access or undefined result.
set -euo pipefail
cd "$(dirname "$0")/../.."
export POOLEXPORT_KERNELS="$PWD/$1/libpoolexport_kernels.so"
# Python is not built with the sanitizers, so their libraries have to come before all others.
preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=1 PYTHONPATH=tests
LD_PRELOAD=$preload "$PYTHON" -m pytest -q -n0 tests/native -k "not fuzz"
LD_PRELOAD=$preload "$PYTHON" -m pytest -q -n0 tests/ops tests/conformance -k "test_operators or native_follows_torch or survives_extremes"
LD_PRELOAD=$preload "$PYTHON" -m native.fuzz ${FUZZ:---calls 100000}
