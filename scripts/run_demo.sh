#!/usr/bin/env bash
# The whole path on synthetic cases, on the CPU: data, split, training, evaluation, report, in some minutes.
#   bash scripts/run_demo.sh [FOLDER]
# Everything is written to FOLDER (default: vnet_demo in the caller's folder). If that folder exists and is
# not empty, FOLDER_2, FOLDER_3, ... is used instead.
#
# Needs Linux and Python 3.10, 3.11 or 3.12; the variable PYTHON=/path/to/python3.11 chooses one.
# The environment takes 4 GB.
# Makes the environment .venv in the repository and installs requirements.txt there with pip (once).
# System packages that are missing are installed with apt-get if you are root on Debian or Ubuntu, with a
# line for each: python3-venv and libgomp1, which are needed, and g++, without which training is slower.
# The variable VNET_NO_SYSTEM_PACKAGES=1 forbids that; missing packages are then named.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

STEPS=5
CASES=40
SETTINGS=(
  --set "VolSize=32,32,16" --set "dstRes=3.5,3.5,4.5" --set width=8 --set batch_size=2
  --set epochs=16 --set val_interval=4 --set save_interval=4 --set keep_checkpoint_max=1
  --set warmup_step=20 --set cache_dir=cache
)

case ${1:-} in
  -h | --help)
    print_help
    exit 0
    ;;
  -*) fail 2 "run_demo.sh has no option '$1'; usage: bash scripts/run_demo.sh [FOLDER]" ;;
esac
(($# < 2)) || fail 2 "run_demo.sh takes one folder, not '$*'; usage: bash scripts/run_demo.sh [FOLDER]"
check_variables

wanted=${1:-vnet_demo}
folder=$wanted
for ((number = 2; ; number++)); do
  [[ -e $folder ]] || mkdir -p -- "$folder" || fail 1 "cannot make the folder $folder"
  # Two demos at once do not share a folder: each locks its own.
  if [[ -d $folder && -z $(ls -A -- "$folder") ]] && exec 8<"$folder" && flock --nonblock 8; then break; fi
  echo "$folder is there already and stays as it is"
  folder=${wanted}_$number
done
folder=$(cd -- "$folder" && pwd)

begin 1 environment "$ROOT/.venv"
prepare_environment requirements.txt
if ! has_compiler && ! { can_install && (system_package g++); }; then
  echo "  no C++ compiler: training takes MindSpore's own convolutions, which are slower" \
    "(sudo apt-get install g++ before another demo)"
fi
SECONDS=0
cd -- "$folder"
export PYTHONUNBUFFERED=1
: "${STOP_SECONDS:=300}" # as in train_standalone

begin 2 "synthetic cases" "$CASES in $folder/data"
logged create_phantom.log python "$ROOT/tools/create_phantom.py" --out_path data --cases "$CASES" --seed 1

begin 3 split "drawn at random, $folder/train.csv and val.csv"
logged create_csv.log python "$ROOT/create_csv.py" --out_path . --random 1 --data_path data

begin 4 training "some minutes, log $folder/train.log"
SHOWN='s/^epoch [0-9]* of .*: validation Dice/      &/p' logged train.log python "$ROOT/train.py" \
  --device_target CPU --data_path data --train_split_file_path train.csv --val_split_file_path val.csv "${SETTINGS[@]}"
runs=(results/infer/vnet.*)

begin 5 evaluation "of the best epoch, log $folder/eval.log"
logged eval.log python "$ROOT/eval.py" --device_target CPU --ckpt_path "${runs[0]}/ckpt/best.ckpt" \
  --data_path data --eval_split_file_path val.csv
mapfile -t cases <val.csv

cat <<END
Done in $((SECONDS / 60)) min $((SECONDS % 60)) s, environment aside. In $folder:
  ${runs[0]}/progress.png   loss, validation Dice and learning rate of the training
  ${runs[0]}/ckpt/best.ckpt   the network
  results/prediction/report.html    metrics and pictures of each validation case
  results/prediction/metrics.csv, metrics.json, *_test.mhd   the numbers and the masks
Mean Dice of ${#cases[@]} validation cases: $(awk '/^avg_dice:/ { printf "%.3f", $2 }' eval.log)
END
