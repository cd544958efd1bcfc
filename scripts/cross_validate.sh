#!/usr/bin/env bash
# Trains and evaluates a network for each of K folds of all cases, in the background; the log is
# cross_validate.log in the caller's folder.
#   bash scripts/cross_validate.sh DATA_PATH K [further arguments for tools/cross_validate.py]
# The same command again goes on where it was. The device is the best one here unless DEVICE_TARGET names it;
# WAIT=1 and PYTHON as in train_standalone.sh.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
check_arguments "DATA_PATH K" "further arguments for cross_validate.py" "$@"
target=auto
[[ -z ${DEVICE_TARGET:-} ]] || target=$(device_target CPU)
python=$(find_python)
: "${STOP_SECONDS:=300}" # as in train_standalone
open_log cross_validate.log
launch cross_validate.log cross_validate.py "$python" "$ROOT/tools/cross_validate.py" --device_target "$target" \
  --data_path "$1" --folds "$2" "${@:3}"
