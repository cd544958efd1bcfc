#!/usr/bin/env bash
# Trains on several CUDA devices of one host, in the background, started by OpenMPI's mpirun.
#   bash scripts/train_distribute_gpu.sh DEVICE_NUM DEVICE_LIST DATA_PATH TRAIN_SPLIT_FILE_PATH [further arguments for train.py]
# DEVICE_LIST is such as 0,1,2,3. All ranks run in the caller's folder; train_distribute_gpu.log there holds
# what they all print and how the job ends, log_output what each prints by itself.
# WAIT=1, RESUME=1, PYTHON as in train_standalone.sh; DEVICE_TARGET=CPU takes as many processes on the
# CPU, through msrun.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
check_arguments "DEVICE_NUM DEVICE_LIST DATA_PATH TRAIN_SPLIT_FILE_PATH" \
  "further arguments for train.py" "$@"
target=$(device_target GPU)
[[ $target != Ascend ]] || fail 2 "DEVICE_TARGET 'Ascend' needs a rank table: take scripts/train_distribute.sh"
IFS=, read -ra devices <<<"$2"
((${#devices[@]} == $1)) ||
  fail 2 "DEVICE_LIST '$2' names ${#devices[@]} device(s), DEVICE_NUM is $1: they have to agree"
repeated=$(printf '%s\n' "${devices[@]}" | sort | uniq -d)
[[ -z $repeated ]] || fail 2 "DEVICE_LIST '$2' names device ${repeated%%$'\n'*} more than once"
python=$(find_python)
python=$(realpath -s -- "$python")
set_training "$target" "$python" "$1" "${@:3}"
export CUDA_VISIBLE_DEVICES=$2

job=(--ranks "$1")
if [[ $target == CPU ]]; then
  set_msrun "$python" "$1" "$1" 127.0.0.1
  job+=(--merge)
else
  mpirun=$(type -P mpirun) ||
    fail 1 "no mpirun on PATH: install OpenMPI, or take DEVICE_TARGET=GPU bash scripts/train_msrun.sh"
  keep_earlier log_output
  job+=(--rank_logs log_output)
  as_root=(--allow-run-as-root)
  ((EUID == 0)) || as_root=()
  starter=("$mpirun" -n "$1" "${as_root[@]}" --bind-to none --output-filename log_output --merge-stderr-to-stdout
    "$python" "$ROOT/scripts/rank.py")
fi
launch_ranks train_distribute_gpu.log "$python" "${job[@]}" -- "${starter[@]}" -- "${training[@]}"
