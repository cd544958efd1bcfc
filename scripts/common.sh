#!/usr/bin/env bash
# What the scripts of this folder share; they source it.
set -euo pipefail
set +o posix # of `sh SCRIPT` where sh is bash: a log that exists would end the script without a word
unset CDPATH
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# Opens closed standard streams on /dev/null: an echo would fail, and the next file to be opened would get
# the number of such a stream.
[[ -e /dev/fd/0 ]] || exec </dev/null
[[ -e /dev/fd/1 ]] || exec >/dev/null
[[ -e /dev/fd/2 ]] || exec 2>/dev/null

# The reader of the output may end early (head): echo must not end the script then.
echo() { builtin echo "$@" 2>/dev/null || true; }

fail() { # fail EXIT_CODE MESSAGE
  printf 'error: %s\n' "$2" >&2
  exit "$1"
}

[[ ${VNET_NO_SYSTEM_PACKAGES:-0} =~ ^[01]$ ]] ||
  fail 2 "VNET_NO_SYSTEM_PACKAGES '$VNET_NO_SYSTEM_PACKAGES' is neither 0 nor 1"

# Prints the comment at the head of the running script: what it does, needs and installs.
print_help() { awk 'NR == 1 { next } !/^#/ || /^# shellcheck/ { exit } { print substr($0, 3) }' "$0"; }

# ------------------------------------------------------------------- scripts of several steps

begin() { # begin NUMBER TITLE DETAIL: announces one of STEPS steps
  step="step $1 of $STEPS, $2,"
  echo "[$1/$STEPS] $2: $3"
}

# step_failed EXIT_CODE LOG: ends the script with the end of the step's log.
step_failed() {
  tail -n 20 -- "$2" >&2
  fail "$1" "$step failed; its whole output is in $2${advice:-}"
}

show() { sed -un "${SHOWN:-}"; } # copies what the terminal shows of a log: SHOWN, a sed script, picks its lines

# Runs a command with its output in a new log of the current folder. It runs in the background, so that a
# signal to this script alone ends it, too.
logged() { # logged LOG COMMAND...
  local log=$PWD/$1 code=0
  child=""
  trap 'stop INT 130' INT
  trap 'stop TERM 143' TERM
  trap 'stop TERM 129' HUP
  open_log "$1" >/dev/null
  set -m
  "${@:2}" </dev/null >&3 2>&1 3>&- &
  child=$!
  set +m
  exec 3>&-
  tail -n +1 -f -s 0.2 --pid="$child" -- "$log" 2>/dev/null | show &
  { wait "$child" || code=$?; } 2>/dev/null # without bash's message about a process that a signal ended
  wait || true                              # for the last lines
  ((code == 0)) || step_failed "$code" "$log"
}

# ---------------------------------------------------------------------------- launchers

# check_arguments "NAME ..." OPTIONAL "$@": checks each argument by its name, DEVICE_ID for example.
check_arguments() {
  local names usage="usage: bash scripts/${0##*/} $1 [$2]"
  read -ra names <<<"$1"
  shift 2
  remember_command "$@"
  if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    echo "$usage"
    print_help
    exit 0
  fi
  if (($# < ${#names[@]})); then
    echo "$usage" >&2
    exit 2
  fi
  check_variables
  local name
  for name in "${names[@]}"; do
    case $name in
      DEVICE_ID) [[ $1 =~ ^[0-9]+$ ]] || fail 2 "DEVICE_ID '$1' is not a number ($usage)" ;;
      DEVICE_NUM | WORKER_NUM)
        [[ $1 =~ ^[1-9][0-9]{0,4}$ ]] || fail 2 "$name '$1' is not a number from 1 ($usage)"
        ;;
      DEVICE_LIST)
        [[ ,$1 =~ ^(,(0|[1-9][0-9]*))+$ ]] ||
          fail 2 "DEVICE_LIST '$1' is not a list of device numbers such as 0,1,2 ($usage)"
        ;;
      K) [[ $1 =~ ^[1-9][0-9]{0,4}$ && $1 != 1 ]] || fail 2 "K '$1' is not a number of folds from 2 ($usage)" ;;
      RANDOM) [[ $1 == [01] ]] || fail 2 "RANDOM '$1' is neither 0 nor 1 ($usage)" ;;
      DATA_PATH) [[ -d $1 && -r $1 ]] || fail 2 "$name '$1' is not a readable folder ($usage)" ;;
      MINDIR_PATH | RANK_TABLE_FILE) [[ -f $1 && -r $1 ]] || fail 2 "$name '$1' is not a readable file ($usage)" ;;
      CKPT_PATH | *SPLIT_FILE_PATH) # or the folder of a run or release, its address, or the folds' folder
        [[ -r $1 || $name=$1 =~ ^CKPT_PATH=https?:// ]] || fail 2 "$name '$1' is not a readable file or folder ($usage)"
        ;;
    esac
    shift
  done
}

# quote WORD...: prints the words for a shell, each after a space.
quote() {
  local word
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then printf ' %s' "$word"; else printf ' %s' "${word@Q}"; fi
  done
}

# remember_command "$@": sets VNET_COMMAND to the command that started the running script, for a shell, without
# RESUME=1: --resume names the run.
remember_command() {
  local name value
  VNET_COMMAND=""
  for name in WAIT DEVICE_TARGET PYTHON NODES NODE_RANK MASTER_ADDR MASTER_PORT; do
    value=$(quote "${!name:-}")
    [[ -z ${!name:-} ]] || VNET_COMMAND+="$name=${value# } "
  done
  VNET_COMMAND+="bash$(quote "$0" "$@")"
}

# PYTHON if set, then the active environment, then the repository's .venv, then python3.
find_python() {
  local candidate conda=""
  [[ ${CONDA_DEFAULT_ENV:-base} == base ]] || conda=${CONDA_PREFIX:-}
  for candidate in "${PYTHON:-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" \
    "${conda:+$conda/bin/python}" "$ROOT/.venv/bin/python" python3; do
    if [[ -n $candidate ]] && type -P -- "$candidate"; then return; fi
    [[ -z ${PYTHON:-} ]] || fail 2 "PYTHON '$PYTHON' cannot be run: set it to a Python with MindSpore"
  done
  fail 2 "no python3 found: run 'bash scripts/run_tests.sh' or set PYTHON"
}

check_variables() { # what the environment asks of a launcher
  local name
  for name in WAIT RESUME; do
    [[ ${!name:-0} =~ ^[01]$ ]] || fail 2 "$name '${!name}' is neither 0 nor 1"
  done
  for name in START_SECONDS STOP_SECONDS; do
    [[ ${!name:-0} =~ ^(0|[1-9][0-9]*)$ ]] || fail 2 "$name '${!name}' is not a number of seconds"
  done
}

device_target() { # device_target DEFAULT: the environment's DEVICE_TARGET comes first
  local target=${DEVICE_TARGET:-$1}
  [[ $target =~ ^(Ascend|GPU|CPU)$ ]] || fail 2 "DEVICE_TARGET '$target' is not Ascend, GPU or CPU"
  echo "$target"
}

# rename_earlier LOG: renames an earlier log to LOG.1, LOG.2, ... (the first free number). A run that
# still writes to it continues to do so under the new name.
rename_earlier() {
  local number=1
  [[ -e $1 ]] || return 0
  while [[ -e $1.$number ]]; do ((number += 1)); done
  mv -n -- "$1" "$1.$number" || fail 1 "cannot rename the earlier log $1: check the permissions of its folder"
  echo "the earlier log is now $1.$number"
}

open_log() { # open_log LOG: opens a new log in the current folder as descriptor 3
  local log=$PWD/$1
  trap '' PIPE # nobody needs to read what this script prints
  until { set -o noclobber; exec 3>"$log"; } 2>/dev/null; do
    [[ -f $log ]] || fail 1 "cannot write the log $log: start from a folder where you may write"
    rename_earlier "$log"
  done
  set +o noclobber
}

# Ends the started process and its children: sends SIGNAL, again at each further signal, and KILL after
# STOP_SECONDS.
stop() { # stop SIGNAL EXIT_CODE
  trap '' INT TERM HUP
  child=${child:-${!:-}}
  [[ -n $child ]] || exit "$2"
  # shellcheck disable=SC2064
  trap "kill -s $1 -- -$child 2>/dev/null || true" INT TERM HUP
  local deadline=$((SECONDS + ${STOP_SECONDS:-10}))
  kill -s "$1" -- "-$child" 2>/dev/null || true
  while kill -0 "$child" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.1 || true; done
  kill -s KILL -- "-$child" 2>/dev/null || true
  deadline=$((SECONDS + 2)) # for the last lines of the log, unless nobody reads them
  while [[ -n ${follower:-} ]] && kill -0 "$follower" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.1 || true; done
  echo "stopped process $child"
  exit "$2"
}

# tell_folder NAME: prints the folder that the status file names, and the command that continues a training.
tell_folder() {
  local folder
  folder=$(LC_ALL=C sed -nE 's/.*"(run_folder|results)": "((\\.|[^"\\])*)".*/\2/p' "$VNET_STATUS_FILE" 2>/dev/null) || true
  folder=$(printf %b "${folder//'\"'/'"'}") # of JSON's escapes
  if [[ -d $folder ]]; then echo "  folder: $folder"; fi
  case $1 in
    train.py)
      if [[ " $VNET_COMMAND " == *" --continue "* ]]; then
        echo "  resume: $VNET_COMMAND"
      elif [[ -d $folder ]]; then
        echo "  resume: $VNET_COMMAND --resume$(quote "$folder")"
      fi
      ;;
    cross_validate.py) echo "  resume: $VNET_COMMAND" ;;
  esac
}

# launch LOG NAME PYTHON ARGUMENT...: starts Python in the caller's folder, detached from the terminal. The log is
# that of open_log.
# Waits until its work has begun, which it writes to VNET_STATUS_FILE (see src/utils/status.py), but at
# most START_SECONDS. With WAIT=1 shows its output and waits for its end.
launch() {
  local log=$PWD/$1 entry=$2 python=$3 code=0
  export PYTHONUNBUFFERED=1
  shift 3
  trap 'stop INT 130' INT
  trap 'stop TERM 143' TERM
  if [[ ${WAIT:-0} != 1 ]]; then
    VNET_STATUS_FILE=$(mktemp -d)/status.json || fail 1 "cannot make a temporary folder: set TMPDIR to one where you may write"
    trap 'rm -rf -- "${VNET_STATUS_FILE%/*}"' EXIT
    export VNET_STATUS_FILE
  fi
  # Job control gives the process its own group, which the terminal's Ctrl-C does not reach.
  set -m
  nohup "$python" "$@" </dev/null >&3 2>&1 3>&- &
  child=$!
  set +m
  exec 3>&-
  echo "$entry started with $python: process $child, log $log"
  echo "  follow: tail -f$(quote "$log")"
  echo "  stop:   kill $child"

  local foreground=${WAIT:-0} deadline=$((SECONDS + ${START_SECONDS:-20}))
  if [[ $foreground == 1 ]]; then
    trap 'stop TERM 129' HUP
    tail -n +1 -f -s 0.2 --pid="$child" -- "$log" 2>/dev/null &
    follower=$!
  fi
  { # hides bash's message about a process that a signal ended
    while [[ $foreground != 1 ]] && kill -0 "$child"; do
      if ((SECONDS >= deadline)) || grep -qs '"state": "running"' "$VNET_STATUS_FILE"; then
        tell_folder "$entry"
        exit 0
      fi
      sleep 0.1
    done
    wait "$child" || code=$?
  } 2>/dev/null
  if [[ $foreground == 1 ]]; then
    wait "$follower" || true # for the last lines of the log
  elif ((code == 0)); then
    echo "$entry has finished: $(tail -n 1 -- "$log")"
  else
    echo "error: $entry ended with exit code $code; the end of $log:" >&2
    tail -n "${shown_lines:-20}" -- "$log" >&2
  fi
  exit "$code"
}

train_standalone() { # train_standalone DEFAULT_DEVICE_TARGET LOG "$@"
  local default=$1 log=$2 target python resume=()
  : "${STOP_SECONDS:=300}" # it stops by itself, but not before a checkpoint is complete
  shift 2
  check_arguments "DEVICE_ID DATA_PATH TRAIN_SPLIT_FILE_PATH" "further arguments for train.py" "$@"
  target=$(device_target "$default")
  python=$(find_python)
  [[ ${RESUME:-0} != 1 ]] || resume=(--resume)
  open_log "$log"
  export DEVICE_ID=$1 DEVICE_NUM=1 RANK_ID=0 VNET_COMMAND
  launch "$log" train.py "$python" "$ROOT/train.py" --device_target "$target" --device_id "$1" \
    --data_path "$2" --train_split_file_path "$3" "${resume[@]}" "${@:4}"
}

evaluate() { # evaluate DEFAULT_DEVICE_TARGET LOG "$@"
  local default=$1 log=$2 target python
  shift 2
  check_arguments "DEVICE_ID CKPT_PATH DATA_PATH EVAL_SPLIT_FILE_PATH" "further arguments for eval.py" "$@"
  target=$(device_target "$default")
  python=$(find_python)
  open_log "$log"
  export DEVICE_ID=$1 DEVICE_NUM=1 RANK_ID=0
  launch "$log" eval.py "$python" "$ROOT/eval.py" --device_target "$target" --dev_id "$1" \
    --ckpt_path "$2" --data_path "$3" --eval_split_file_path "$4" "${@:5}"
}

# --------------------------------------------------------------------- launchers, many ranks

# set_training TARGET PYTHON RANKS DATA_PATH TRAIN_SPLIT_FILE_PATH FURTHER...: sets `training` to the command
# of every rank, with absolute paths, since ranks run in other folders; and the variables of all ranks.
set_training() {
  local word option=""
  training=("$2" "$ROOT/train.py" --device_target "$1" --run_distribute 1 --device_num "$3"
    --data_path "$(realpath -- "$4")" --train_split_file_path "$(realpath -- "$5")")
  [[ ${RESUME:-0} != 1 ]] || training+=(--resume)
  for word in "${@:6}"; do
    case $option=$word in
      --val_split_file_path=[!/]* | --config=[!/]* | --resume=[!/-]*) word=$(realpath -m -- "$word") ;;
      *--set=cache_dir=auto | *--set=cache_dir=off) ;;
      *--set=cache_dir=[!/]*) word=${word%cache_dir=*}cache_dir=$(realpath -m -- "${word#*cache_dir=}") ;;
      *=--val_split_file_path=[!/]* | *=--config=[!/]* | *=--resume=[!/]*) word=${word%%=*}=$(realpath -m -- "${word#*=}") ;;
    esac
    training+=("$word")
    option=$word
  done
  # Variables that another launcher has left would change the numbers of the ranks.
  unset RANK_ID RANK_TABLE_FILE MINDSPORE_HCCL_CONFIG_PATH "${!MS_ROLE@}" "${!OMPI_COMM_WORLD_@}"
  export DEVICE_NUM=$3 RANK_SIZE=$3 VNET_COMMAND
}

is_taken() { (exec 9<>"/dev/tcp/$1/$2") 2>/dev/null; } # is_taken ADDRESS PORT: whether a process listens

# set_msrun FOLDER PYTHON RANKS LOCAL_RANKS MASTER_ADDR MASTER_PORT [NODE_RANK]: sets `engine` to the command that
# starts this host's ranks; the command of a rank follows it. MASTER_PORT 0: any free port. `logs` are msrun's, in
# FOLDER.
set_msrun() {
  local folder=$1 node=${7:-0} port=$6 msrun rank
  shift
  msrun=${1%/*}/msrun
  [[ -x $msrun ]] || msrun=$(type -P msrun) ||
    fail 1 "no msrun beside $1 and none on PATH: it comes with MindSpore, install that for this Python"
  while ((port == 0)) || { (($5 == 0)) && is_taken "$4" "$port"; }; do port=$((20000 + RANDOM % 10000)); done
  ((node > 0)) || ! is_taken "$4" "$port" ||
    fail 1 "port $port of $4 is taken, perhaps by another training: choose another MASTER_PORT"
  mkdir -p -- "$folder" 2>/dev/null || fail 1 "cannot make the folder $PWD/$folder: start from a folder where you may write"
  logs=()
  ((node > 0)) || logs=("$folder/scheduler.log")
  for ((rank = node * $3; rank < (node + 1) * $3; rank++)); do logs+=("$folder/worker_$rank.log"); done
  export PATH=${1%/*}:$PATH # for the python3 that msrun starts
  # shellcheck disable=SC2034  # for the launchers
  engine=("$msrun" --worker_num "$2" --local_worker_num "$3" --master_addr "$4" --master_port "$port"
    ${6:+--node_rank "$6"} --log_dir "$folder" --join True --tail_worker_log "$2" # there is no rank of this number
    python3)
}

# claim_log LOG OTHER_LOG...: open_log, but fails if the ranks of an earlier launch still run, which lock LOG. Else
# the other logs, which the ranks will write, are renamed.
claim_log() {
  local code=0
  exec 8<.
  flock --wait 10 8 || true # until the log is locked, since two launchers may start at once
  [[ ! -f $1 ]] || flock --nonblock --conflict-exit-code 75 -- "$1" true 2>/dev/null || code=$?
  ((code != 75)) ||
    fail 1 "a training that was started here still runs, see $PWD/$1: stop it, or start from another folder"
  open_log "$1"
  flock --nonblock 3 || true # locked as long as the process has the log open
  exec 8<&-
  local other
  for other in "${@:2}"; do rename_earlier "$other"; done
}

# launch_ranks LOG PYTHON ARGUMENT...: runs scripts/ranks.py with these arguments.
launch_ranks() {
  local shown_lines=30
  # MindSpore's warnings, such as one for each attempt to connect, would hide the last lines of the ranks.
  export GLOG_v=${GLOG_v:-3} START_SECONDS=${START_SECONDS:-60}
  launch "$1" train.py "$2" "$ROOT/scripts/ranks.py" start "${@:3}"
}

# -------------------------------------------------------------------------- environment

# Whether this script may install system packages: as root on Debian or Ubuntu, unless the caller says no.
can_install() {
  [[ ${VNET_NO_SYSTEM_PACKAGES:-0} != 1 ]] && ((EUID == 0)) && command -v apt-get >/dev/null
}

system_package() { # system_package DEBIAN_PACKAGE...
  if ! can_install; then
    fail 1 "a system package is missing, install it first: sudo apt-get install $* (or its like)"
  fi
  echo "installing the system package $* with apt-get (VNET_NO_SYSTEM_PACKAGES=1 forbids it)" >&2
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$@"; } >&2 ||
    fail 1 "apt-get could not install $*"
}

# optional_package PROGRAMS WHAT_NEEDS_THEM DEBIAN_PACKAGE...: installs them, or prints what is skipped.
optional_package() {
  local programs
  read -ra programs <<<"$1"
  if type -P "${programs[@]}" >/dev/null; then return; fi
  if can_install && (system_package "${@:3}"); then return; fi
  echo "no $1: $2 is skipped (Debian, Ubuntu: sudo apt-get install ${*:3})" >&2
}

# Where df knows no number, as on some file systems, the work is tried.
need_space() { # need_space FOLDER MEGABYTES PURPOSE
  local free
  [[ -d $1 ]] || fail 1 "$1: no such folder, $3 needs one"
  free=$(df --output=avail --block-size=1M -- "$1" 2>/dev/null | awk 'END { print $1 }') || free=""
  if [[ $free =~ ^[0-9]+$ ]] && ((free < $2)); then
    fail 1 "$1 has $free MB left, $3 takes up to $2 MB: make room and start again"
  fi
}

# Whether src/fast_conv3d/build.py finds a compiler; one that CXX names is not checked.
has_compiler() {
  local candidate
  for candidate in g++ c++ clang++; do
    if [[ -n ${CXX:-} ]] || "$candidate" --version >/dev/null 2>&1; then return; fi
  done
  return 1
}

# The first Python that MindSpore has a wheel for and that really runs (a pyenv shim may not).
supported_python() {
  local candidate candidates=(python3.11 python3.10 python3.12 python3)
  local version_check='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c "$version_check" 2>/dev/null; then
      type -P -- "$candidate"
      return
    fi
  done
  fail 1 "no Python 3.10, 3.11 or 3.12 among ${candidates[*]} (MindSpore has no wheel for others): \
install one (Debian, Ubuntu: python3 and python3-venv) or name one, PYTHON=/path/to/python3 bash $0"
}

# prepare_environment REQUIREMENTS_FILE...: installs these packages in .venv and activates it.
# .venv/vnet-packages marks the folder as made by this script and lists the hashes of the installed files.
# It is empty while pip runs, so that an interrupted installation is repeated.
prepare_environment() {
  local venv=$ROOT/.venv python version file lines=() missing=() requirements=()
  local installed=$venv/vnet-packages
  python=$(supported_python)
  version=$("$python" -c 'import sys; print(*sys.version_info[:3], sys.base_prefix)')
  exec 9>"$venv.lock"
  flock --nonblock 9 || { echo "waiting for another script that prepares $venv" && flock 9; }
  if [[ -e $venv && ! -e $installed ]]; then
    fail 1 "$venv was not made by this script and stays as it is: move it away and start again"
  fi

  for file in "$@"; do
    lines+=("$file $(sha256sum <"$ROOT/$file") $version $venv")
    requirements+=(--requirement "$ROOT/$file")
    grep -qsxF -- "${lines[-1]}" "$installed" || missing+=("$file")
  done
  if ((${#missing[@]})); then
    # The first file has the packages of the project itself: when it changes, .venv is made anew.
    if [[ ${missing[0]} == "$1" ]]; then
      create_venv "$python" "$venv"
      need_space "$ROOT" 4000 "the environment .venv"
    fi
    : >"$installed"
    echo "installing ${missing[*]} into $venv (once, some minutes)"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet "${requirements[@]}" ||
      fail 1 "pip could not install ${missing[*]}: see its message above, then start again"
    printf '%s\n' "${lines[@]}" >"$installed"
  fi
  exec 9>&-

  # MindSpore needs this library, but its wheel does not contain it.
  "$venv/bin/python" -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null ||
    system_package libgomp1
  export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
  unset PYTHON
}

create_venv() { # create_venv PYTHON FOLDER
  local attempt
  for attempt in 1 2; do
    rm -rf -- "$2"
    mkdir -- "$2"
    : >"$2/vnet-packages"
    if "$1" -m venv "$2" >/dev/null; then return; fi
    # On Debian Python's venv module needs a separate package.
    ((attempt == 2)) ||
      system_package "$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  done
  fail 1 "$1 -m venv $2 fails: see its message above"
}
