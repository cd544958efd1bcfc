#!/usr/bin/env bash
# Writes train.csv and val.csv into OUT_PATH; RANDOM 0 is the fixed split, 1 a random one.
#   bash scripts/create_csv.sh OUT_PATH RANDOM [further arguments for create_csv.py]
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
check_arguments "OUT_PATH RANDOM" "further arguments for create_csv.py" "$@"
python=$(find_python)
exec "$python" "$ROOT/create_csv.py" --out_path "$1" --random "$2" "${@:3}"
