"""The start of a device and, for several, of their communication."""

import os
from dataclasses import dataclass

import mindspore as ms
from mindspore import hal
from mindspore.communication import get_group_size, get_rank, init

from src.errors import DataError


@dataclass(frozen=True)
class Device:
    """What a process computes on, and its place among the others."""

    target: str
    rank: int = 0
    ranks: int = 1

    @property
    def writes(self):
        """Only one rank writes checkpoints, history and pictures."""
        return self.rank == 0


def start_device(target, device_id=0, distributed=False):
    """Makes a device ready, in graph mode.

    Args:
        target: "Ascend", "GPU" or "CPU".
        device_id: number of the card; CPU has only 0.
        distributed: join the other ranks (HCCL, NCCL, or MindSpore's CPU collectives under msrun).

    Raises:
        DataError: the device is not there.
    """
    if not hal.is_available(target):
        raise DataError(
            f"device {target} is not available to MindSpore {ms.__version__} on this machine; "
            "check its driver, or use --device_target CPU (launchers: DEVICE_TARGET=CPU)"
        )
    if target == "CPU":
        # With AVX-512, oneDNN has no gemm convolution for plain layouts and falls back to its
        # reference code, 20 times slower. It reads this at the first operator.
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        if target == "CPU" or distributed and "RANK_TABLE_FILE" not in os.environ:
            ms.set_device(target)  # msrun and mpirun give each rank its card
        else:
            ms.set_device(target, device_id)
        if not distributed:
            return Device(target)
        init()
    except (RuntimeError, ValueError) as error:
        raise DataError(f"device {target} {device_id}: {str(error).splitlines()[0]}") from None
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL,
        gradients_mean=True,
        device_num=get_group_size(),
    )
    return Device(target, get_rank(), get_group_size())


def apply_precision(network, config, target):
    """Lets the network compute in float16 where the device is made for it.

    Batch norm stays in float32, and so do the parameters; `precision` 'auto' means mixed on Ascend
    and GPU, float32 on CPU.

    Returns:
        Whether precision is mixed.
    """
    mixed = config.precision == "mixed" or (config.precision == "auto" and target != "CPU")
    if mixed:
        ms.amp.auto_mixed_precision(network, "O2")
    return mixed
