#!/usr/bin/env bash
# Evaluates a checkpoint on one CUDA device, in the background; the log is eval_gpu.log in the caller's folder.
#   bash scripts/eval_gpu.sh DEVICE_ID CKPT_PATH DATA_PATH EVAL_SPLIT_FILE_PATH [further arguments for eval.py]
# WAIT=1, DEVICE_TARGET and PYTHON as in train_standalone.sh.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
evaluate GPU eval_gpu.log "$@"
