#!/usr/bin/env bash
# Segments the cases of a split with the C++ program of ascend310_infer/, and evaluates the masks.
#   bash scripts/run_infer_310.sh MINDIR_PATH DATA_PATH SPLIT_FILE_PATH [DEVICE_ID [further arguments for pre- and postprocess.py]]
# Variables: DEVICE_TARGET=CPU uses the CPU instead of an Ascend device, and RUNTIME=lite on it MindSpore Lite
# instead of this project's kernels; LITE_HOME=FOLDER is the folder of MindSpore Lite (see
# ascend310_infer/build.sh), PYTHON=... a Python. All files are written to the caller's folder. MINDIR_PATH may
# be any model of an ensemble: all of them are run, and the mean of their probabilities is evaluated.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# step NAME LOG COMMAND...: the output goes to the log, whose end is shown where the command fails.
step() {
  local name=$1 log=$PWD/$2 code=0
  shift 2
  open_log "$log"
  echo "$name: log $log"
  "$@" >&3 2>&1 3>&- || code=$?
  exec 3>&-
  ((code == 0)) && return
  tail -n 20 -- "$log" >&2
  fail "$code" "$name ended with exit code $code, its whole output is in $log"
}

check_arguments "MINDIR_PATH DATA_PATH SPLIT_FILE_PATH" \
  "DEVICE_ID [further arguments for preprocess.py and postprocess.py]" "$@"
target=$(device_target Ascend)
[[ $target != GPU ]] || fail 2 "DEVICE_TARGET 'GPU' is not Ascend or CPU: the C++ program knows no other"
default=native
[[ $target == CPU ]] || default=lite
runtime=${RUNTIME:-$default}
[[ $runtime == native || $runtime == lite ]] || fail 2 "RUNTIME '$runtime' is not native or lite"
[[ $runtime == lite || $target == CPU ]] || fail 2 "RUNTIME 'native' is for DEVICE_TARGET=CPU, not Ascend: leave it out"
device_id=${4:-0}
[[ $device_id =~ ^[0-9]+$ ]] || fail 2 "DEVICE_ID '$device_id' is not a number (it comes fourth)"
python=$(find_python)
python=$(realpath --no-symlinks -- "$python") # absolute, without resolving the environment's link
mindir=$(realpath -- "$1")
# The export writes NAME.vnet and, for MindSpore Lite, NAME_lite.mindir beside NAME.mindir.
found=$(cd -- "$ROOT" && "$python" -m src.export.description "$mindir" --runtime "$runtime")
mapfile -t models <<<"$found" # of an ensemble each
for model in "${models[@]}"; do echo "model: $model"; done
cases=(--mindir_path "${models[0]}" --data_path "$2" --split_file_path "$3" "${@:5}")

trap '' PIPE
step preprocess preprocess.log "$python" "$ROOT/preprocess.py" "${cases[@]}"
step build build.log env PYTHON="$python" bash "$ROOT/ascend310_infer/build.sh" --runtime "$runtime"
outputs=() times=()
for model in "${models[@]}"; do
  name=${model##*/} name=${name%.*} outputs+=(result_Files) log=infer.log
  ((${#models[@]} == 1)) || { outputs[-1]=result_Files/$name log=infer_$name.log && mkdir -p result_Files; }
  step inference "$log" "$ROOT/ascend310_infer/out/main" --mindir_path "$model" \
    --dataset_path results/bin_data --output_path "${outputs[-1]}" \
    --device_type "$target" --runtime "$runtime" --device_id "$device_id"
  time=$(tail -n 1 -- time_Result/test_perform_static.txt 2>/dev/null) && times+=("$time")
done
step postprocess acc.log "$python" "$ROOT/postprocess.py" --result_path "${outputs[@]}" "${cases[@]}"
{ # only a summary: the results are written even if this fails
  ((${#times[@]})) && printf '%s\n' "${times[@]}"
  grep -E '^(avg_|predictions, )' acc.log
} 2>/dev/null || true
