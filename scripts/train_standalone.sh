#!/usr/bin/env bash
# Trains on one Ascend device, in the background; the log is train_standalone.log in the caller's folder.
#   bash scripts/train_standalone.sh DEVICE_ID DATA_PATH TRAIN_SPLIT_FILE_PATH [further arguments for train.py]
# Variables, as in `WAIT=1 bash scripts/...`: WAIT=1 stays in the foreground, RESUME=1 continues the newest
# run, DEVICE_TARGET=CPU chooses another device, PYTHON=... another Python.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
train_standalone Ascend train_standalone.log "$@"
