#!/usr/bin/env bash
# Compiles the fast CPU convolution ahead of its first use and prints the library's path.
#   bash scripts/build_fast_conv3d.sh
# The variable CXX=/path/to/g++ chooses the compiler, FAST_CONV3D_CACHE=FOLDER the place.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
python=$(find_python)
[[ -z ${FAST_CONV3D_CACHE:-} ]] || FAST_CONV3D_CACHE=$(realpath -m -- "$FAST_CONV3D_CACHE")
cd -- "$ROOT"
exec "$python" -m src.fast_conv3d.build "$@"
