"""Starts the device and the communication of ranks (HCCL, NCCL); sets the precision."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mindspore as ms
from easydict import EasyDict
from mindspore import device_context, nn
from mindspore.communication import get_group_size, get_rank, init

from ..utils.errors import DataError, UsageError
from ..utils.log import without_log
from ..vnet import InstanceNorm3d
from . import cuda
from .ranks import Ranks

log = logging.getLogger(__name__)

DRY_RUN = "MS_SIMULATION_LEVEL"  # MindSpore's dry run, which needs no device
# Variable of each rank that msrun or mpirun sets -> the one with the number of the process on its
# machine. MindSpore 2.10 cannot start ranks from an HCCL rank table.
LOCAL_RANK_VARIABLES = {
    "MS_ROLE": "DEVICE_ID",
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
}
# What to check when a device is present but does not start.
DRIVER_HINTS = {
    "Ascend": "see npu-smi info: is the driver of CANN's version, and the device free?",
    "GPU": "see nvidia-smi: is the driver new enough for the toolkit, and the card free?",
    "CPU": "report this",
}
VISIBLE_DEVICES = {"Ascend": "ASCEND_RT_VISIBLE_DEVICES", "GPU": "CUDA_VISIBLE_DEVICES"}
DEVICE_FILES = {"Ascend": "davinci[0-9]*", "GPU": "nvidia[0-9]*"}  # in /dev, one of each card
FUSED_MB = 1 << 20  # gradients up to this size share one AllReduce; more than any card holds


def choose_device(target: str) -> str:
    """Returns the device of `--device_target`; call it before `start_device`.

    Args:
        target: "Ascend", "GPU", "CPU", or "auto": the first of these that MindSpore can use here,
            which is logged.
    """
    if target != "auto":
        return target
    chosen = "CPU"
    for name in DEVICE_FILES:
        with suppress(DataError), explain_errors(name, ""):
            if _is_available(name) and _device_count(name) > 0:
                chosen = name
                break
        if _device_files(name):
            log.warning(f"warning: MindSpore cannot use this machine's {name}: {_diagnose(name)}")
    log.info(f"device_target auto: {chosen}")
    return chosen


def _is_available(target: str) -> bool:
    """Whether MindSpore can use a kind of device on this machine."""
    # MindSpore warns of each library that it could not load.
    with without_log(logging.WARNING), explain_errors(f"device {target}", DRIVER_HINTS[target]):
        return getattr(device_context, target.lower()).is_available()


def _device_count(target: str) -> int:
    return getattr(device_context, target.lower()).device_count()


def _device_files(target: str) -> list[Path]:
    """Returns the driver's files in /dev, one for each card."""
    return list(Path("/dev").glob(DEVICE_FILES[target]))


def start_device(target: str, device_id: int = 0) -> None:
    """Starts a device in graph mode; call it before the first operator of a process.

    Args:
        target: "Ascend", "GPU" or "CPU".
        device_id: number of the card, ignored on CPU. In a rank of mpirun or msrun, the number of
            the process on its machine is used instead.

    Raises:
        DataError: the device is missing or does not start.
    """
    for launcher, local_rank in LOCAL_RANK_VARIABLES.items():
        if os.environ.get(launcher, "MS_SCHED") != "MS_SCHED":  # msrun's scheduler uses no card
            device_id = int(os.environ.get(local_rank, device_id))
    if not _is_available(target):
        raise DataError(
            f"device {target} is not available to MindSpore {ms.__version__} on this machine: "
            f"{_diagnose(target)}; or use --device_target CPU (launchers: DEVICE_TARGET=CPU)"
        )
    if target == "CPU":
        # With AVX-512, oneDNN has no gemm convolution for plain layouts and falls back to its
        # reference code, 20 times slower. It reads this at the first operator.
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
        ms.set_device(target)
    else:
        with explain_errors(f"device {target} {device_id}", DRIVER_HINTS[target]):
            count = _device_count(target)
            if not 0 <= device_id < count and not os.environ.get(DRY_RUN):
                variable = VISIBLE_DEVICES[target]
                seen = os.environ.get(variable)
                visible = f" ({variable}={seen})" if seen else ""
                raise DataError(
                    f"device {target} {device_id}: this machine has {count}, from 0{visible}"
                )
            ms.set_device(target, device_id)
            if not any(map(os.environ.get, (*LOCAL_RANK_VARIABLES, DRY_RUN))):
                ms.runtime.synchronize()  # starts the card now, where a fault becomes a DataError
    ms.set_context(mode=ms.GRAPH_MODE)


@contextmanager
def explain_errors(what: str, remedy: str) -> Iterator[None]:
    """Turns an error of MindSpore inside the block into one line with a remedy.

    Args:
        what: what the block starts; the message begins with it.
        remedy: the end of the message.

    Raises:
        DataError: instead of any error but DataError and UsageError.
    """
    try:
        yield
    except (DataError, UsageError):
        raise
    except Exception as error:  # MindSpore and its plug-ins raise exceptions of many types
        raise DataError(f"{what}: {mindspore_reason(error)}; {remedy}") from None


def mindspore_reason(error: Exception) -> str:
    """Returns the line of MindSpore's message that says what happened, without headings."""
    text = str(error).partition("- C++ Call Stack")[0]
    for heading in ("- Cuda error:", "- Ascend Error Message:"):
        if heading in text:
            text = text.partition(heading)[2]
    lines = [line.strip() for line in text.splitlines()]
    texts = [line for line in lines if line and not line.startswith("- ") and set(line) != {"-"}]
    return (texts or [type(error).__name__])[0].rstrip(".")


def _diagnose(target):
    """Returns why MindSpore finds no device of this kind, and what it needs."""
    if target == "GPU":
        return cuda.diagnose()
    if not _device_files(target):
        return "no /dev/davinci*, so no driver (npu-smi info), or a container without its devices"
    if not os.environ.get("ASCEND_TOOLKIT_HOME"):
        return "CANN is not in the environment: source set_env.sh of its installation"
    return "see which library is missing in MindSpore's message, or whether CANN is of its version"


def start_communication(device_num: int) -> Ranks:
    """Joins the ranks that a launcher started; call it after `start_device`.

    From then on gradients are averaged over the ranks: by HCCL on Ascend, NCCL on GPU and msrun's
    own network on CPU.

    Args:
        device_num: the expected number of ranks.

    Raises:
        UsageError: no launcher started this process, or it started another number of ranks.
        DataError: the other ranks cannot be reached.
    """
    if not any(map(os.environ.get, (*LOCAL_RANK_VARIABLES, DRY_RUN))):
        raise UsageError(
            "--run_distribute 1: no launcher started this process; use scripts/train_msrun.sh, "
            "train_distribute.sh or train_distribute_gpu.sh"
        )
    with explain_errors(
        "communication", "are all ranks started, and do they reach the first host?"
    ):
        init()
        ranks = Ranks(get_rank(), get_group_size())
    if ranks.count != device_num:
        raise UsageError(
            f"--device_num {device_num}: the launcher started {ranks.count}; let both agree"
        )
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=ranks.count
    )
    target = ms.get_context("device_target")
    if target != "CPU" and not os.environ.get(DRY_RUN):
        with explain_errors(f"device {target} of rank {ranks.rank}", DRIVER_HINTS[target]):
            ms.runtime.synchronize()
    if target == "GPU":
        # MindSpore 2.10 compiles no GPU graph with more than one AllReduce of gradients
        # ("The pointer[send_actor] is null"): all of them become one.
        fusion = {"allreduce": {"mode": "size", "config": FUSED_MB}}
        ms.set_auto_parallel_context(comm_fusion=fusion)
    return ranks


def uses_mixed_precision(config: EasyDict, target: str) -> bool:
    """Whether convolutions run in float16: by default on Ascend and GPU, not on CPU.

    Raises:
        UsageError: float32 on an Ascend, for which MindSpore documents 3-D convolutions in float16
            only; an Ascend 910 always computes them in float16.
    """
    if config.precision == "float32" and target == "Ascend":
        raise UsageError(
            "precision=float32: MindSpore's 3-D convolutions are float16 on an Ascend; take "
            "--set precision=auto, or a GPU or CPU for float32"
        )
    return config.precision == "mixed" or (config.precision == "auto" and target != "CPU")


def apply_precision(network: nn.Cell, config: EasyDict, target: str) -> None:
    """Casts convolutions to float16 where `uses_mixed_precision`; parameters stay float32."""
    if uses_mixed_precision(config, target):
        ms.amp.auto_mixed_precision(network, "O2")
        for _, cell in network.cells_and_names():
            if isinstance(cell, nn.SyncBatchNorm | InstanceNorm3d):
                cell.to_float(ms.float32)  # O2 leaves only the other batch norms in float32
