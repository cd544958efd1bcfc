#!/usr/bin/env bash
# From nothing to a model: downloads PROMISE12, checks it, trains with --preset accurate on the model zoo's 40
# cases, evaluates on its other ten, and packs the network for others.
#   bash scripts/run_promise12.sh [OUT] [--source PATH] [--data_licence TEXT] [--licence TEXT] [further arguments for train.py]
# Everything is written to OUT (default: vnet_promise12 in the caller's folder). After an interruption the
# same command goes on where it was: in the download, too, and after the last checkpoint of the training.
#   --source PATH        a folder or zip of the challenge's data instead of the download
#   --data_licence TEXT  licence of the data, for the model card; Zenodo's is in OUT/data/download/LICENSE.TXT
#   --licence TEXT       licence under which you share the weights, for the model card
# Further arguments are such as --preset compact or --set epochs=100. Variables: DEVICE_TARGET=CPU chooses a
# device (default: the best one here), PYTHON=... a Python with MindSpore. Without PYTHON and without an active
# environment .venv is made in the repository, as run_demo.sh does.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

STEPS=6
CASES=40 VAL_CASES=10 # of the model zoo's split
RECORD="PROMISE12 (Litjens et al. 2014), https://zenodo.org/records/8026660"
MARK=.run_promise12
advice=". Once that is mended, the same command goes on here" # after a step that failed

usage="usage: bash scripts/run_promise12.sh [OUT] [--source PATH] [--data_licence TEXT] [--licence TEXT] [further arguments for train.py]"
out=vnet_promise12 source="" about=() training=() device_id=0
case ${1:-} in
  -h | --help)
    print_help
    exit 0
    ;;
  "" | -*) ;;
  *) out=$1 && shift ;;
esac
while (($#)); do
  [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case $1 in
    --source | --data_licence | --licence)
      (($# > 1)) || fail 2 "$1 needs a value ($usage)"
      if [[ $1 == --source ]]; then source=$(realpath -m -- "$2"); else about+=("$1" "$2"); fi
      shift 2
      ;;
    --config) # from the caller's folder, too
      (($# > 1)) || fail 2 "$1 needs a value ($usage)"
      training+=("$1" "$(realpath -m -- "$2")") && shift 2
      ;;
    --device_id)
      (($# > 1)) || fail 2 "$1 needs a value ($usage)"
      device_id=$2 && shift 2
      ;;
    --labels | --channel)
      fail 2 "$1: PROMISE12 has images of one channel and masks of 0 and 1; bring other data into this form with prepare_data.py, then use train.py"
      ;;
    *) training+=("$1") && shift ;;
  esac
done
[[ -z $source || -e $source ]] || fail 2 "--source '$source': no such file or folder ($usage)"
check_variables
target=auto
[[ -z ${DEVICE_TARGET:-} ]] || target=$(device_target CPU)

if [[ -e $out && ! -e $out/$MARK && -n $(ls -A -- "$out" 2>/dev/null || echo file) ]]; then
  fail 1 "$out holds other files, which stay as they are: choose another folder"
fi
mkdir -p -- "$out" || fail 1 "cannot make the folder $out"
out=$(cd -- "$out" && pwd)
exec 8>"$out/$MARK" || fail 1 "cannot write to $out"
flock --nonblock 8 || fail 1 "another call works in $out: wait for it, or stop it"
if [[ -n $source && -e $out/.prepared && $(<"$out/.prepared") != "--source $source" ]]; then
  fail 1 "the data in $out/data are of '$(<"$out/.prepared")', not of --source $source: choose another folder"
fi

if [[ -n ${PYTHON:-}${VIRTUAL_ENV:-} || ${CONDA_DEFAULT_ENV:-base} != base ]]; then
  python=$(find_python)
  python=$(realpath --no-symlinks -- "$(type -P -- "$python")")
  begin 1 environment "$python"
else
  begin 1 environment "$ROOT/.venv"
  prepare_environment requirements.txt
  has_compiler || ! can_install || system_package g++
  python=$ROOT/.venv/bin/python
fi
SECONDS=0
cd -- "$out"
export PYTHONUNBUFFERED=1
: "${STOP_SECONDS:=300}" # as in train_standalone
training=(--device_id "$device_id" --preset accurate --set dirResult=runs --set task=promise12 "${training[@]}" --continue)
step="the estimate of the training time"
logged time.log "$python" "$ROOT/tools/training_time.py" --device_target "$target" \
  --cases $CASES --val_cases $VAL_CASES "${training[@]}"
echo "      training: $(tail -n 1 time.log)"
[[ -n $source || -e .prepared ]] || echo "      before it: a download of 324 MB and two test sets"

if [[ -e .prepared ]]; then
  begin 2 data "is in $out/data, only checked"
  logged prepare_data.log "$python" "$ROOT/prepare_data.py" --check data
else
  begin 2 data "to $out/data, log prepare_data.log"
  if [[ -n $source ]]; then from=(--source "$source"); else from=(--download); fi
  SHOWN='s/^ *[0-9]* cases, no problems/      &/p; s/next attempt in/&/p' \
    logged prepare_data.log "$python" "$ROOT/prepare_data.py" "${from[@]}" --out_path data
  echo "${from[*]}" >.prepared
fi

begin 3 split "the model zoo's, $out/split"
logged create_csv.log "$python" "$ROOT/create_csv.py" --out_path split --data_path data/TrainData

begin 4 training "log $out/train.log; Ctrl-C stops it, the same command goes on"
SHOWN='s/^\(resuming\|run: \|nothing is left\|epoch [0-9]* of .*: validation Dice\|trained: \)/      &/p' \
  logged train.log "$python" "$ROOT/train.py" --device_target "$target" --data_path data/TrainData \
  --train_split_file_path split/train.csv --val_split_file_path split/val.csv "${training[@]}"
run=$(sed -n 's/^run: //p' train.log)

begin 5 evaluation "of the best epoch, log $out/eval.log"
logged eval.log "$python" "$ROOT/eval.py" --device_target "$target" --dev_id "$device_id" --ckpt_path "$run" \
  --data_path data/TrainData --eval_split_file_path split/val.csv --set dirPredictionImage=evaluation

begin 6 release "$out/model and model.zip"
[[ $(cat .prepared) != --download ]] || about+=(--data "$RECORD")
logged release.log "$python" "$ROOT/tools/release.py" --ckpt_file "$run" --out_path model --zip \
  --metrics evaluation/metrics.json "${about[@]}"

cat <<END
Done in $((SECONDS / 3600)) h $((SECONDS % 3600 / 60)) min, environment aside. In $out:
  model/   the network with its card, README.md; model.zip is the same in one file
  evaluation/report.html   metrics and pictures of each validation case
  $run   the training
Mean Dice of the validation cases, on which the epoch was chosen: $(awk '/^avg_dice:/ { printf "%.3f", $2 }' eval.log)
$(printf "%q " python "$ROOT/predict.py" --ckpt_path "$out/model") --input scan.nii.gz --output_path masks
END
