#!/usr/bin/env bash
# Checks that everything works on a device of this machine, in minutes, with nothing but this checkout.
#   bash scripts/check_device.sh TARGET [DEVICE_NUM]
# TARGET is Ascend, GPU or CPU; DEVICE_NUM above 1 also checks that several devices train together. Prints a
# table and writes it to check_device_TARGET.json in the caller's folder, for a bug report; the last line sums
# it up. The variable PYTHON=... chooses another Python.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
check_arguments TARGET DEVICE_NUM "$@"
[[ $1 =~ ^(Ascend|GPU|CPU)$ ]] || fail 2 "TARGET '$1' is not Ascend, GPU or CPU"
[[ ${2:-1} =~ ^[1-9][0-9]{0,4}$ ]] || fail 2 "DEVICE_NUM '$2' is not a number from 1"
python=$(find_python)
python=$(realpath -s -- "$python")
# Not by -m, which would prefer modules in the caller's folder; so would the empty entry of -c.
exec "$python" -c 'import sys; sys.path[:] = [sys.argv.pop(1), *filter(None, sys.path)]
from src.commands import main; sys.exit(main())' "$ROOT" check "$@"
