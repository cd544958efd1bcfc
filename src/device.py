"""The start of a device and of communication between devices; precision."""

import os

import mindspore as ms
from easydict import EasyDict
from mindspore import device_context, nn
from mindspore.communication import get_group_size, get_rank, init

from src.errors import DataError, UsageError
from src.ranks import Ranks
from src.vnet import InstanceNorm3d

# What a launcher leaves in the environment of a rank: msrun, mpirun, an HCCL rank table.
RANK_VARIABLES = ("MS_ROLE", "OMPI_COMM_WORLD_RANK", "RANK_TABLE_FILE")
# Of those that number the processes of a machine, the variable with that number.
LOCAL_RANK_VARIABLES = {
    "MS_ROLE": "DEVICE_ID",
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
}

FUSED_MB = 1 << 20  # gradients of so many MB travel in one AllReduce: more than any card holds


def start_device(target: str, device_id: int = 0) -> None:
    """Makes a device ready, in graph mode; only before the first operator of a process.

    Args:
        target: "Ascend", "GPU" or "CPU".
        device_id: number of the card; CPU has only one. mpirun and msrun number the processes of a
            machine, and their number comes first.

    Raises:
        DataError: the device is not there.
    """
    for launcher, local_rank in LOCAL_RANK_VARIABLES.items():
        if os.environ.get(launcher, "MS_SCHED") != "MS_SCHED":  # msrun's scheduler takes no card
            device_id = int(os.environ.get(local_rank, device_id))
    backend = getattr(device_context, target.lower())
    if not backend.is_available():
        raise DataError(
            f"device {target} is not available to MindSpore {ms.__version__} on this machine; "
            "check its driver, or use --device_target CPU (launchers: DEVICE_TARGET=CPU)"
        )
    if target == "CPU":
        # With AVX-512, oneDNN has no gemm convolution for plain layouts and falls back to its
        # reference code, 20 times slower. It reads this at the first operator.
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
        ms.set_device(target)
    else:
        try:
            count = backend.device_count()
            if not 0 <= device_id < count:
                raise DataError(f"device {target} {device_id}: this machine has {count}, from 0")
            ms.set_device(target, device_id)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"device {target} {device_id}: {str(error).splitlines()[0]}") from None
    ms.set_context(mode=ms.GRAPH_MODE)


def start_communication(device_num: int) -> Ranks:
    """Joins the processes that a launcher started, after `start_device`.

    From now on gradients are averaged over the ranks: by HCCL on Ascend, NCCL on GPU, and through
    msrun's own network on a CPU.

    Args:
        device_num: how many there should be.

    Raises:
        UsageError: no launcher started this process, or another number of them.
        DataError: the others cannot be reached.
    """
    if not any(os.environ.get(name) for name in RANK_VARIABLES):
        raise UsageError(
            "--run_distribute 1: no launcher started this process; use scripts/train_msrun.sh, "
            "train_distribute.sh or train_distribute_gpu.sh"
        )
    try:
        init()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"communication: {reason}; are all ranks started, and do they reach the first host?"
        ) from None
    ranks = Ranks(get_rank(), get_group_size())
    if ranks.count != device_num:
        raise UsageError(
            f"--device_num {device_num}: the launcher started {ranks.count}; let both agree"
        )
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=ranks.count
    )
    if ms.get_context("device_target") == "GPU":
        # MindSpore 2.10 compiles no GPU graph with more than one AllReduce of gradients
        # ("The pointer[send_actor] is null"): all of them become one.
        fusion = {"allreduce": {"mode": "size", "config": FUSED_MB}}
        ms.set_auto_parallel_context(comm_fusion=fusion)
    return ranks


def uses_mixed_precision(config: EasyDict, target: str) -> bool:
    """Whether convolutions run in float16: on Ascend and GPU, unless `precision` says otherwise."""
    return config.precision == "mixed" or (config.precision == "auto" and target != "CPU")


def apply_precision(network: nn.Cell, config: EasyDict, target: str) -> None:
    """Lets convolutions compute in float16 where they should; parameters stay float32."""
    if uses_mixed_precision(config, target):
        ms.amp.auto_mixed_precision(network, "O2")
        for _, cell in network.cells_and_names():
            if isinstance(cell, nn.SyncBatchNorm | InstanceNorm3d):
                cell.to_float(ms.float32)  # MindSpore spares only the other batch norms
