#!/usr/bin/env bash
# Checks the whole project: formatters, linters, type checker and tests, 10 to 25 minutes on two cores.
#   bash scripts/run_tests.sh [arguments for pytest]
#   bash scripts/run_tests.sh tests/test_metrics.py -k dice     part of the tests
#
# Needs Linux and Python 3.10, 3.11 or 3.12; the variable PYTHON=/path/to/python3.11 chooses one.
# The environment takes 4 GB, the tests up to 1.5 GB in /tmp; TMPDIR=/path/to/folder chooses another place.
# Makes the environment .venv in the repository and installs requirements*.txt there with pip (once).
# System packages that are missing are installed with apt-get if you are root on Debian or Ubuntu, with a
# line for each: python3-venv, libgomp1 and g++, which are needed, and for tests that are skipped without
# them g++-aarch64-linux-gnu, qemu-user, iproute2, openmpi-bin, chromium, chromium-driver and dicom3tools.
# The variable VNET_NO_SYSTEM_PACKAGES=1 forbids that; missing packages are then named.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  print_help
  exit 0
fi
prepare_environment requirements.txt requirements-{dicom,onnx,tensorboard,dev}.txt
has_compiler || system_package g++
optional_package "aarch64-linux-gnu-g++ qemu-aarch64" "the test of the C++ code for Arm" \
  g++-aarch64-linux-gnu qemu-user
optional_package ip "the test of two hosts, made of network namespaces," iproute2
optional_package mpirun "the test of two GPUs by OpenMPI" openmpi-bin
optional_package "chromium chromedriver" "the test of report.html in a browser" chromium chromium-driver
optional_package dciodvfy "the check of DICOM segmentations by another program" dicom3tools
need_space "${TMPDIR:-/tmp}" 1500 "a run of the tests (TMPDIR names another folder)"
cd -- "$ROOT"

ruff format --check . || fail 1 "the formatter would change the files above: .venv/bin/ruff format ."
ruff check . || fail 1 "the linter found the faults above"
mypy || fail 1 "the type checker found the faults above"
shellcheck --external-sources scripts/*.sh ascend310_infer/build.sh .ci/run || fail 1 "shellcheck found the faults above"
native=({src/fast_conv3d/native,benchmarks,tests/fast_conv3d}/*.cpp src/fast_conv3d/native/*.h ascend310_infer/src/*.{h,cc})
clang-format --dry-run --Werror "${native[@]}" ||
  fail 1 "the formatter would change the files above: .venv/bin/clang-format -i ${native[*]}"
# Two processes: most tests wait for MindSpore's graph compiler, which uses one core.
exec python -m pytest --timeout=600 --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
