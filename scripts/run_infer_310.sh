#!/usr/bin/env bash
# Segments the cases of a split with the C++ program of ascend310_infer/, and evaluates the masks.
#   bash scripts/run_infer_310.sh MINDIR_PATH DATA_PATH SPLIT_FILE_PATH [DEVICE_ID [further arguments for pre- and postprocess.py]]
# Variables: DEVICE_TARGET=CPU uses the CPU instead of an Ascend device, and RUNTIME=lite on it MindSpore Lite
# instead of this project's kernels; LITE_HOME=FOLDER is the folder of MindSpore Lite (see
# ascend310_infer/build.sh), PYTHON=... a Python. All files are written to the caller's folder. MINDIR_PATH may
# be any model of an ensemble: all of them are run, and the mean of their probabilities is evaluated.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

show() { # for `logged`: the lines of a log that match run_step's PATTERN, numbered
  local line number=0
  while IFS= read -r line; do
    if [[ $line =~ $pattern ]]; then echo "  $((number += 1)) of $count: $line"; fi
  done
}

# run_step NAME LOG COUNT PATTERN COMMAND...: the output goes to the log; lines that match, one for each of COUNT
# cases or volumes, are shown at once.
run_step() {
  local count=$3 pattern=$4
  step=$1
  echo "$step: log $PWD/$2"
  logged "$2" "${@:5}"
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
mkdir -p result_Files 2>/dev/null || fail 1 "cannot make the folder $PWD/result_Files: start from a folder where you may write"
exec 8<result_Files
flock --nonblock 8 || fail 1 "another call works in $PWD: wait for it, or start from another folder"
cases=(--mindir_path "${models[0]}" --data_path "$2" --split_file_path "$3" "${@:5}")

export PYTHONUNBUFFERED=1
none='^$.' # matches no line
# written NUMBER LOG: of the log's line "results/bin_data: 4 volume(s) of [64, 64, 32] voxels, of 2 case(s)".
written() { sed -n "s/.*: \\([0-9]*\\) volume(s) of .*, of \\([0-9]*\\) case(s)$/\\$1/p" "$2"; }

# infer FOLDER VOLUMES SUFFIX: runs each model on the volumes of a folder; the suffix is that of the logs.
infer() {
  local index time
  for index in "${!models[@]}"; do
    run_step inference "${logs[index]}$3.log" "$2" ' ms, ' "$ROOT/ascend310_infer/out/main" \
      --mindir_path "${models[index]}" --dataset_path "$1" --output_path "${outputs[index]}" \
      --device_type "$target" --runtime "$runtime" --device_id "$device_id"
    if [[ -z $3 ]] && time=$(tail -n 1 -- "$average" 2>/dev/null); then times+=("$time"); fi
  done
}

run_step preprocess preprocess.log 0 "$none" "$python" "$ROOT/preprocess.py" "${cases[@]}"
count=$(written 2 preprocess.log)
run_step build build.log 0 "$none" env PYTHON="$python" bash "$ROOT/ascend310_infer/build.sh" --runtime "$runtime"
outputs=(result_Files) logs=(infer) times=() average=time_Result/test_perform_static.txt
if ((${#models[@]} > 1)); then
  names=("${models[@]##*/}") && names=("${names[@]%.*}")
  outputs=("${names[@]/#/result_Files/}") logs=("${names[@]/#/infer_}")
fi
infer results/bin_data "$(written 1 preprocess.log)" ""
# With the key recentre, glands far from the grid's centre are segmented again, on a moved grid.
for turn in 1 2; do
  grep -q '^recentre: ' preprocess.log || break
  run_step recentre "recentre_$turn.log" 0 "$none" "$python" "$ROOT/preprocess.py" --result_path "${outputs[@]}" "${cases[@]}"
  volumes=$(written 1 "recentre_$turn.log")
  [[ -n $volumes ]] || break
  cp -- "$average" "$average.all" 2>/dev/null || true # that of all cases stays
  infer results/bin_data_recentred "$volumes" "_recentred$turn"
  mv -- "$average.all" "$average" 2>/dev/null || true
done
run_step postprocess acc.log "$count" '^save predicted label' "$python" "$ROOT/postprocess.py" \
  --result_path "${outputs[@]}" "${cases[@]}"
{ # only a summary: the results are written even if this fails
  ((${#times[@]})) && printf '%s\n' "${times[@]}"
  grep '^avg_' acc.log
  report=$(realpath -m -- "$(sed -n 's/^predictions and metrics, shown in //p' acc.log)") &&
    printf '%s\n' "report: $report" "masks: ${report%/*}/CASE_test.mhd"
} 2>/dev/null || true
