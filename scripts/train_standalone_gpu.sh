#!/usr/bin/env bash
# Trains on one CUDA device, in the background; the log is train_standalone_gpu.log in the caller's folder.
#   bash scripts/train_standalone_gpu.sh DEVICE_ID DATA_PATH TRAIN_SPLIT_FILE_PATH [further arguments for train.py]
# WAIT=1, RESUME=1, DEVICE_TARGET and PYTHON as in train_standalone.sh.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
train_standalone GPU train_standalone_gpu.log "$@"
