#!/usr/bin/env bash
# Makes the environment .venv, then runs the linters and the tests.
#   bash scripts/run_tests.sh [arguments for pytest]
# PYTHON=/path/to/python3.11 before it picks the Python.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
prepare_environment requirements.txt requirements-dev.txt
cd -- "$ROOT"

ruff format --check . || fail 1 "the formatter would change the files above: .venv/bin/ruff format ."
ruff check . || fail 1 "the linter found the faults above"
shellcheck --external-sources scripts/*.sh .ci/run || fail 1 "shellcheck found the faults above"
exec python -m pytest --timeout=600 "$@"
