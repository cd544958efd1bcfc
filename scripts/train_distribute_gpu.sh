#!/usr/bin/env bash
# Trains on several CUDA devices of one host, in the background, started by OpenMPI's mpirun (4 or 5).
#   bash scripts/train_distribute_gpu.sh DEVICE_NUM DEVICE_LIST DATA_PATH TRAIN_SPLIT_FILE_PATH [further arguments for train.py]
# DEVICE_LIST is such as 0,1,2,3, as nvidia-smi numbers them. All ranks run in the caller's folder;
# train_distribute_gpu.log there holds what they all print and how the job ends, log_output what each prints.
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
for device in "${devices[@]}"; do
  [[ $target == CPU || -z ${CUDA_VISIBLE_DEVICES:-} || ,$CUDA_VISIBLE_DEVICES, == *,$device,* ]] ||
    fail 2 "DEVICE_LIST '$2' names device $device, CUDA_VISIBLE_DEVICES is '$CUDA_VISIBLE_DEVICES' already: name devices of it, or unset it"
done
python=$(find_python)
python=$(realpath -s -- "$python")
set_training "$target" "$python" "$1" "${@:3}"
export CUDA_VISIBLE_DEVICES=$2

logs=()
log="log_output/1/rank.{rank}/stdout" # as OpenMPI 4 has it; 5 has no option for it any more
if [[ $target == CPU ]]; then
  set_msrun train_distribute_gpu_logs "$python" "$1" "$1" 127.0.0.1 0
else
  mpirun=$(type -P mpirun) ||
    fail 1 "no mpirun on PATH: install OpenMPI, or take DEVICE_TARGET=GPU bash scripts/train_msrun.sh"
  as_root=(--allow-run-as-root)
  ((EUID == 0)) || as_root=()
  engine=("$mpirun" -n "$1" "${as_root[@]}" --bind-to none --map-by :OVERSUBSCRIBE "$python")
fi
claim_log train_distribute_gpu.log log_output "${logs[@]}"
launch_ranks train_distribute_gpu.log "$python" --ranks "$1" --log "$log" --follow_all -- \
  "${engine[@]}" "$ROOT/scripts/ranks.py" run --log "$log" -- "${training[@]}"
