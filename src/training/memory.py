"""Whether a training fits into this machine's memory, said before it starts."""

from functools import partial
from pathlib import Path

import numpy as np
import psutil
from easydict import EasyDict
from mindspore import nn

from ..fast_conv3d.network import FastVNet
from ..utils.errors import DataError

# From peak memory of CPU training steps of full-width V-Nets, at 64x64x32 with batches 1 and 2, and
# with the fast convolution at 128x128x64 with batches 1 and 4: what a process has anyway; weights,
# gradients, Adam's moments, a copy; features kept for the backward, fast and stock. Two threads;
# each more takes some tens of megabytes.
PROCESS_BYTES = 0.7e9
BYTES_PER_PARAMETER = 22
BYTES_PER_AVERAGED_PARAMETER = 4
FAST_BYTES_PER_VOXEL_AND_CHANNEL = 85
BYTES_PER_VOXEL_AND_CHANNEL = 360
BYTES_PER_PREPROCESSED_VOXEL = 5  # float32 intensity, bool mask
CGROUP = Path("/sys/fs/cgroup")


def training_bytes(
    config: EasyDict, parameter_count: int, batch_size: int, fast: bool, case_count: int = 0
) -> float:
    """Estimated peak memory of one process's training step on a CPU.

    Args:
        config: `VolSize`, `width`, `ema_decay`.
        parameter_count: numbers in the network's weights.
        batch_size: volumes per step.
        fast: whether the network is a `FastVNet`.
        case_count: training cases, which are all kept on the network grid.
    """
    voxels = float(np.prod(config.VolSize))
    per_voxel = FAST_BYTES_PER_VOXEL_AND_CHANNEL if fast else BYTES_PER_VOXEL_AND_CHANNEL
    features = voxels * config.width * per_voxel
    cases = voxels * BYTES_PER_PREPROCESSED_VOXEL * case_count
    per_parameter = BYTES_PER_PARAMETER + BYTES_PER_AVERAGED_PARAMETER * (config.ema_decay > 0)
    return PROCESS_BYTES + per_parameter * parameter_count + features * batch_size + cases


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or less in a container."""
    available = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").open())
    except (OSError, ValueError):
        return available
    # Cached files count as used, but give way.
    return min(available, limit - used + int(statistics.get("inactive_file", 0)))


def check_training_fits(config: EasyDict, network: nn.Cell, case_count: int) -> None:
    """Raises a DataError that says what would fit, where a CPU training surely does not.

    Args:
        config: see `training_bytes`; `batch_size`.
        network: to train.
        case_count: training cases.
    """
    parameters = sum(parameter.size for parameter in network.get_parameters())
    available = available_bytes()
    fast = isinstance(network, FastVNet)
    needed = partial(training_bytes, config, parameters, fast=fast, case_count=case_count)
    if needed(config.batch_size) <= available:
        return
    fitting = [b for b in range(1, config.batch_size) if needed(b) <= available]
    remedy = f"batch_size={fitting[-1]} fits" if fitting else "use a smaller VolSize or width"
    raise DataError(
        f"memory: batch_size={config.batch_size} at VolSize={config.VolSize} with {case_count} "
        f"cases takes about {needed(config.batch_size) / 1e9:.1f} GB, {available / 1e9:.1f} GB "
        f"are free; {remedy}"
    )
