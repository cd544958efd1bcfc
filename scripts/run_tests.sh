#!/usr/bin/env bash
# Makes the environment .venv, then runs the linters and the tests.
#   bash scripts/run_tests.sh [arguments for pytest]
# PYTHON=/path/to/python3.11 before it picks the Python.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
prepare_environment requirements.txt requirements-onnx.txt requirements-dev.txt
has_compiler || system_package g++
# Without these the test of the C++ code for Arm is skipped.
if can_install && ! type -P aarch64-linux-gnu-g++ qemu-aarch64 >/dev/null; then
  (system_package g++-aarch64-linux-gnu qemu-user) || true
fi
# Without it the test of two hosts, made of network namespaces, is skipped.
if can_install && ! type -P ip >/dev/null; then
  (system_package iproute2) || true
fi
# Without it the test of two GPUs by mpirun, over stand-ins for CUDA, is skipped.
if can_install && ! type -P mpirun >/dev/null; then
  (system_package openmpi-bin) || true
fi
type -P mpirun >/dev/null || echo "no mpirun: the test of two GPUs by OpenMPI is skipped (Debian: apt-get install openmpi-bin)" >&2
# Without these the test that looks at report.html in a browser is skipped.
if can_install && ! type -P chromium chromedriver >/dev/null; then
  (system_package chromium chromium-driver) || true
fi
cd -- "$ROOT"

ruff format --check . || fail 1 "the formatter would change the files above: .venv/bin/ruff format ."
ruff check . || fail 1 "the linter found the faults above"
mypy || fail 1 "the type checker found the faults above"
shellcheck --external-sources scripts/*.sh ascend310_infer/build.sh .ci/run || fail 1 "shellcheck found the faults above"
native=(src/fast_conv3d/native/*.{h,cpp} ascend310_infer/src/*.{h,cc})
clang-format --dry-run --Werror "${native[@]}" ||
  fail 1 "the formatter would change the files above: .venv/bin/clang-format -i ${native[*]}"
# Two processes: most tests wait for MindSpore's graph compiler, which uses one core.
exec python -m pytest --timeout=600 --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
