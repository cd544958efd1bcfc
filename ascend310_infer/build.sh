#!/usr/bin/env bash
# Builds ascend310_infer/out/main, and beside it libvnet_cpu.a and vnet_cpu.h, for this machine's CPU.
#   bash ascend310_infer/build.sh [--runtime native|lite] [arguments for cmake]
# --runtime lite, which the variable LITE_HOME implies, also builds out/main_lite, with MindSpore Lite: for
# Ascend devices and as another choice on CPUs. LITE_HOME is the folder of MindSpore Lite: an unpacked official
# package (mindspore-lite-VERSION-linux-ARCH) or wheel (mindspore_lite). If it is not set, on x86-64 Linux, the
# wheel of version 2.0.0 is downloaded once into ascend310_infer/lite, with the pip of PYTHON.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../scripts/common.sh"
HERE=$ROOT/ascend310_infer

fetch_lite() {
  local sha256=199cd0605cc985b88eddb273db9dfe9000a585ba10ca2292b6b36ebfff07b3ec
  local download=$HERE/build/download python wheel
  [[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
    fail 1 "MindSpore Lite is downloaded for x86-64 Linux only, this is $(uname -sm): unpack the \
package for it from mindspore.cn and set LITE_HOME to its folder"
  python=$(find_python)
  trap 'rm -rf -- "$HERE/build/download"' EXIT
  rm -rf -- "$download"
  mkdir -- "$download"
  echo "downloading MindSpore Lite 2.0.0 into $HERE/lite (169 MB, once)"
  # The other wheels of this version contain libraries for Arm, despite their names.
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.7 --implementation cp --platform manylinux1_x86_64 --dest "$download" \
    mindspore-lite==2.0.0 ||
    fail 1 "$python -m pip could not download MindSpore Lite: see its message above, or set \
LITE_HOME to the folder of an unpacked MindSpore Lite"
  wheel=$(echo "$download"/*.whl)
  sha256sum --check --status <<<"$sha256  $wheel" ||
    fail 1 "$wheel is not the MindSpore Lite that was expected, of SHA-256 $sha256: check the \
package index that pip uses"
  # Without the GPU plug-ins, a third of the size, and the Python files.
  "$python" - "$wheel" "$download" <<'EOF' || fail 1 "$wheel cannot be unpacked: see above"
import re, sys, zipfile

wheel, folder = sys.argv[1:]
with zipfile.ZipFile(wheel) as files:
    wanted = re.compile(r"mindspore_lite/(include/|lib/lib(?!tensorrt|transformer))")
    files.extractall(folder, filter(wanted.match, files.namelist()))
EOF
  mv -- "$download/mindspore_lite" "$HERE/lite" # atomic: the folder is complete or absent
}

# The library in LITE_HOME, in an official package or a wheel.
lite_library() {
  local library
  for library in "$LITE_HOME"/{runtime/,}lib/libmindspore{-lite,-extendrt_python}.so; do
    if [[ -f $library && -f ${library%/lib/*}/include/api/model.h ]]; then
      realpath --no-symlinks -- "$library"
      return
    fi
  done
  fail 1 "LITE_HOME '$LITE_HOME' has no include/api/model.h and lib/libmindspore-lite.so or \
lib/libmindspore-extendrt_python.so, nor has its folder runtime: set it to the folder of an \
unpacked MindSpore Lite, or unset it to have one downloaded"
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  print_help
  exit
fi
runtime=${LITE_HOME:+lite}
[[ ${1:-} != --runtime=* ]] || set -- --runtime "${1#*=}" "${@:2}"
if [[ ${1:-} == --runtime ]]; then
  runtime=${2:-}
  [[ $runtime == native || $runtime == lite ]] || fail 2 "--runtime '$runtime' is not native or lite"
  shift 2
fi
programs=("$HERE/out/main")
[[ $runtime != lite ]] || programs+=("$HERE/out/main_lite")

packages=()
type -P cmake >/dev/null || packages+=(cmake)
type -P make >/dev/null || packages+=(make)
has_compiler || packages+=(g++)
((${#packages[@]} == 0)) || system_package "${packages[@]}"

if ! { mkdir -p -- "$HERE/build" && : >>"$HERE/build/lock"; } 2>/dev/null; then
  for program in "${programs[@]}"; do
    [[ -x $program ]] || fail 1 "$HERE cannot be written: let its owner run this once, or take a copy"
  done
  echo "$HERE cannot be written: out/main stays as it is"
  exit
fi
exec 9>"$HERE/build/lock"
flock 9

library=
if [[ $runtime == lite ]]; then
  if [[ -z ${LITE_HOME:-} ]]; then
    LITE_HOME=$HERE/lite
    [[ -d $LITE_HOME ]] || fetch_lite
  fi
  library=$(lite_library)
fi
# The kernels are compiled again where another machine shares this folder.
processor=$(grep -E '^(model name|flags|CPU part|Features)' /proc/cpuinfo | sort -u | sha256sum | cut -c -16)
# CMake refuses the build folder of a repository that has moved.
grep -qsxF "CMAKE_HOME_DIRECTORY:INTERNAL=$HERE" "$HERE/build/CMakeCache.txt" ||
  rm -rf -- "$HERE/build/CMakeCache.txt" "$HERE/build/CMakeFiles"
# Defaults are passed explicitly, since CMake caches the options of an earlier run.
cmake -S "$HERE" -B "$HERE/build" -DLITE_LIBRARY="$library" -DVNET_PROCESSOR="$processor" \
  -DCMAKE_RUNTIME_OUTPUT_DIRECTORY="$HERE/out" -DCMAKE_BUILD_TYPE=Release -DVNET_SANITIZE=OFF "$@"
cmake --build "$HERE/build" --parallel "$(nproc)"
echo "built ${programs[*]}${library:+ with $library}"
