#!/usr/bin/env bash
# Segments the cases of a split with the C++ program of ascend310_infer/, and evaluates the masks.
#   bash scripts/run_infer_310.sh MINDIR_PATH DATA_PATH SPLIT_FILE_PATH [DEVICE_ID [further arguments for pre- and postprocess.py]]
# Variables: DEVICE_TARGET=CPU uses the CPU instead of an Ascend device, and RUNTIME=lite on it MindSpore Lite
# instead of this project's kernels; LITE_HOME=FOLDER is the folder of MindSpore Lite (see
# ascend310_infer/build.sh), PYTHON=... a Python. All files are written to the caller's folder. MINDIR_PATH may
# be any model of an ensemble: all of them are run, and the mean of their probabilities is evaluated.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# show PATTERN COUNT: copies the lines of standard input that match, numbered.
show() {
  local line number=0
  while IFS= read -r line; do
    if [[ $line =~ $1 ]]; then echo "  $((number += 1)) of $2: $line"; fi
  done
}

# step NAME LOG COUNT PATTERN COMMAND...: the output goes to the log, whose end is shown where the command fails.
# Lines that match, one for each of COUNT cases or volumes, are shown at once.
step() {
  local name=$1 log=$PWD/$2 count=$3 pattern=$4 code=0
  shift 4
  open_log "$log"
  echo "$name: log $log"
  set +e
  "$@" 2>&1 3>&- | tee /dev/fd/3 2>/dev/null | show "$pattern" "$count"
  code=${PIPESTATUS[0]}
  set -e
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
export PYTHONUNBUFFERED=1
none='^$.' # matches no line
# written NUMBER LOG: of the log's line "results/bin_data: 4 volume(s) of [64, 64, 32] voxels, of 2 case(s)".
written() { sed -n "s/.*: \\([0-9]*\\) volume(s) of .*, of \\([0-9]*\\) case(s)$/\\$1/p" "$2"; }

# infer FOLDER VOLUMES SUFFIX: runs each model on the volumes of a folder; the suffix is that of the logs.
infer() {
  local index time
  for index in "${!models[@]}"; do
    step inference "${logs[index]}$3.log" "$2" ' ms, ' "$ROOT/ascend310_infer/out/main" \
      --mindir_path "${models[index]}" --dataset_path "$1" --output_path "${outputs[index]}" \
      --device_type "$target" --runtime "$runtime" --device_id "$device_id"
    if [[ -z $3 ]] && time=$(tail -n 1 -- "$average" 2>/dev/null); then times+=("$time"); fi
  done
}

step preprocess preprocess.log 0 "$none" "$python" "$ROOT/preprocess.py" "${cases[@]}"
count=$(written 2 preprocess.log)
step build build.log 0 "$none" env PYTHON="$python" bash "$ROOT/ascend310_infer/build.sh" --runtime "$runtime"
outputs=(result_Files) logs=(infer) times=() average=time_Result/test_perform_static.txt
if ((${#models[@]} > 1)); then
  names=("${models[@]##*/}") && names=("${names[@]%.*}")
  outputs=("${names[@]/#/result_Files/}") logs=("${names[@]/#/infer_}")
  mkdir -p result_Files
fi
infer results/bin_data "$(written 1 preprocess.log)" ""
# With the key recentre, glands far from the grid's centre are segmented again, on a moved grid.
for turn in 1 2; do
  grep -q '^recentre: ' preprocess.log || break
  step recentre "recentre_$turn.log" 0 "$none" "$python" "$ROOT/preprocess.py" --result_path "${outputs[@]}" "${cases[@]}"
  volumes=$(written 1 "recentre_$turn.log")
  [[ -n $volumes ]] || break
  cp -- "$average" "$average.all" 2>/dev/null || true # that of all cases stays
  infer results/bin_data_recentred "$volumes" "_recentred$turn"
  mv -- "$average.all" "$average" 2>/dev/null || true
done
step postprocess acc.log "$count" '^save predicted label' "$python" "$ROOT/postprocess.py" \
  --result_path "${outputs[@]}" "${cases[@]}"
{ # only a summary: the results are written even if this fails
  ((${#times[@]})) && printf '%s\n' "${times[@]}"
  grep '^avg_' acc.log
  report=$(realpath -m -- "$(sed -n 's/^predictions and metrics, shown in //p' acc.log)") &&
    printf '%s\n' "report: $report" "masks: ${report%/*}/CASE_test.mhd"
} 2>/dev/null || true
