#!/usr/bin/env bash
# Trains on the Ascend devices of one host that a rank table names, in the background, started by msrun.
#   bash scripts/train_distribute.sh RANK_TABLE_FILE DEVICE_NUM DATA_PATH TRAIN_SPLIT_FILE_PATH [further arguments for train.py]
# Rank N runs in train_parallelN of the caller's folder and logs to train_parallelN/train_distribute.log; the
# run is in train_parallel0/results. train_distribute.log holds what rank 0 prints and how the job ends.
# scripts/create_hccl.py writes rank tables; only the devices are read from it, as ASCEND_RT_VISIBLE_DEVICES,
# since MindSpore 2.10 cannot start ranks from a table. WAIT=1, RESUME=1, PYTHON as in train_standalone.sh;
# DEVICE_TARGET=CPU takes as many processes on the CPU.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
check_arguments "RANK_TABLE_FILE DEVICE_NUM DATA_PATH TRAIN_SPLIT_FILE_PATH" \
  "further arguments for train.py" "$@"
target=$(device_target Ascend)
[[ $target != GPU ]] || fail 2 "DEVICE_TARGET 'GPU' has no rank table: take scripts/train_distribute_gpu.sh"
python=$(find_python)
python=$(realpath -s -- "$python")
table=$(realpath -- "$1")
devices=$(cd -- "$ROOT" && "$python" -m src.devices.rank_table "$table" "$2") || exit
set_training "$target" "$python" "${@:2}"

for ((rank = 0; rank < $2; rank++)); do
  mkdir -p -- "train_parallel$rank" 2>/dev/null ||
    fail 1 "cannot make the folder $PWD/train_parallel$rank: start from a folder where you may write"
done
set_msrun train_distribute_logs "$python" "$2" "$2" 127.0.0.1 0
for ((rank = 0; rank < $2; rank++)); do logs+=("train_parallel$rank/train_distribute.log"); done
claim_log train_distribute.log "${logs[@]}"
[[ $target == CPU ]] || export ASCEND_RT_VISIBLE_DEVICES=${devices% *}
log="train_parallel{rank}/train_distribute.log"
launch_ranks train_distribute.log "$python" --ranks "$2" --log "$log" -- "${engine[@]}" "$ROOT/scripts/ranks.py" run \
  --log "$log" --folder "train_parallel{rank}" --device_ids "${devices#* }" -- "${training[@]}"
