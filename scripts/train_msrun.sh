#!/usr/bin/env bash
# Trains on several devices of any kind, on one host or several, started by MindSpore's msrun.
#   bash scripts/train_msrun.sh WORKER_NUM DATA_PATH TRAIN_SPLIT_FILE_PATH [further arguments for train.py]
# WORKER_NUM counts the ranks on all hosts. For several hosts, start it once on each with the variables
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1    NODE_RANK from 0, MASTER_ADDR the address of node 0
# MASTER_PORT (8118) must be free on node 0 and open to the others; on one host any free port is
# used. All ranks run in the caller's folder; train_msrun.log (on node N from 1: train_msrun_nodeN.log)
# holds what the first rank of the host prints and how the job ends, train_msrun_logs/worker_RANK.log what
# each prints. DEVICE_TARGET is Ascend unless set to GPU or CPU.
# WAIT=1, RESUME=1, PYTHON as in train_standalone.sh.
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
check_arguments "WORKER_NUM DATA_PATH TRAIN_SPLIT_FILE_PATH" "further arguments for train.py" "$@"
target=$(device_target Ascend)
nodes=${NODES:-1} node=${NODE_RANK:-} master=${MASTER_ADDR:-} port=${MASTER_PORT:-} log=train_msrun.log
[[ $nodes =~ ^[1-9][0-9]{0,4}$ ]] || fail 2 "NODES '$nodes' is not a number of hosts"
(($1 % nodes == 0)) || fail 2 "WORKER_NUM $1 is not a multiple of NODES=$nodes: every host runs as many ranks"
[[ ${port:-1024} =~ ^[1-9][0-9]{3,4}$ && ${port:-1024} -ge 1024 && ${port:-1024} -lt 65536 ]] ||
  fail 2 "MASTER_PORT '$port' is not a port from 1024 to 65535"
if ((nodes == 1)); then
  [[ ${node:-0} == 0 ]] || fail 2 "NODE_RANK=$node needs NODES, the number of hosts"
  node=0
else
  [[ -n $master ]] || fail 2 "NODES=$nodes needs MASTER_ADDR, the address of the host with NODE_RANK=0"
  [[ $node =~ ^(0|[1-9][0-9]{0,4})$ && $node -lt $nodes ]] ||
    fail 2 "NODE_RANK '$node' is not a number from 0 to $((nodes - 1)), as NODES=$nodes needs"
  port=${port:-8118}
  ((node == 0)) || log=train_msrun_node$node.log
  # The training ends after so many seconds without a heartbeat from another host. With MindSpore's default of
  # 30 s a busy machine took longer than a minute to end.
  export MS_NODE_TIMEOUT=${MS_NODE_TIMEOUT:-20}
fi
if [[ -n $master ]]; then
  address=$(getent ahosts "$master" | awk 'NR == 1 {print $1}') || address=""
  [[ -n $address ]] || fail 2 "MASTER_ADDR '$master' is not a host name or address"
  [[ $nodes == 1 || $address != 127.* && $address != ::1 ]] ||
    fail 2 "MASTER_ADDR '$master' is a loopback address: give the address by which the other hosts reach the one of NODE_RANK=0"
  mine=no
  [[ $address != 127.* && $address != ::1 && " $(hostname -I) " != *" $address "* ]] || mine=yes
  [[ $mine == yes || $node != 0 ]] ||
    fail 2 "MASTER_ADDR '$master' is not this host's: the launcher of NODE_RANK=0 belongs on the host that has this address"
  [[ $mine == no || $node == 0 ]] ||
    fail 2 "MASTER_ADDR '$master' is this host, which makes it NODE_RANK=0 and not $node: start one launcher on each host"
fi
python=$(find_python)
python=$(realpath -s -- "$python")
set_training "$target" "$python" "$@"
set_msrun train_msrun_logs "$python" "$1" $(($1 / nodes)) "${master:-127.0.0.1}" "${port:-0}" "$node"
claim_log "$log" "${logs[@]}"
own="train_msrun_logs/worker_{rank}.log"
launch_ranks "$log" "$python" --ranks $(($1 / nodes)) --hosts "$nodes" --first $((node * $1 / nodes)) --log "$own" -- \
  "${engine[@]}" "$ROOT/scripts/ranks.py" run --log "$own" -- "${training[@]}"
