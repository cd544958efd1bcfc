#!/usr/bin/env bash
# Evaluates a checkpoint on one Ascend device, in the background; the log is eval.log in the caller's folder.
#   bash scripts/eval.sh DEVICE_ID CKPT_PATH DATA_PATH EVAL_SPLIT_FILE_PATH [further arguments for eval.py]
# WAIT=1, DEVICE_TARGET and PYTHON as in train_standalone.sh.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
evaluate Ascend eval.log "$@"
