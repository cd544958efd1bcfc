"""The memory that a training needs, checked before it starts."""

from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import psutil
from easydict import EasyDict
from mindspore import nn

from ..fast_conv3d.network import FastVNet
from ..utils.errors import DataError

# Fitted to the measured peak memory of CPU training steps of full-width V-Nets with two threads:
# 64x64x32 with batches of 1 and 2, with the fast convolution also 128x128x64, batches of 1 and 4.
# Each further thread takes some tens of megabytes. Since then the fast convolution has come to need
# up to a fifth less, which leaves a margin.
PROCESS_BYTES = 0.7e9  # interpreter and libraries
BYTES_PER_PARAMETER = 22  # weight, gradient, Adam's moments, a copy
BYTES_PER_AVERAGED_PARAMETER = 4
# Activations kept for the backward pass, per voxel of the input and channel of the first stage.
FAST_BYTES_PER_VOXEL_AND_CHANNEL = 85
BYTES_PER_VOXEL_AND_CHANNEL = 360
BYTES_PER_PREPROCESSED_VOXEL = 5  # float32 intensity, bool mask
VALIDATION_BYTES = 1e9  # validation cases kept in memory, at most
CGROUP = Path("/sys/fs/cgroup")


def training_bytes(
    config: EasyDict, parameter_count: int, batch_size: int, fast: bool, case_count: int = 0
) -> float:
    """Returns the estimated peak memory of a training process on a CPU, in bytes.

    Args:
        config: `VolSize`, `width`, `ema_decay`.
        parameter_count: number of the network's weights.
        batch_size: volumes per step.
        fast: whether the network is a `FastVNet`.
        case_count: number of training cases, all of which are kept in memory on the network grid.
    """
    voxels = float(np.prod(config.VolSize))
    per_voxel = FAST_BYTES_PER_VOXEL_AND_CHANNEL if fast else BYTES_PER_VOXEL_AND_CHANNEL
    features = voxels * config.width * per_voxel
    cases = voxels * BYTES_PER_PREPROCESSED_VOXEL * case_count
    per_parameter = BYTES_PER_PARAMETER + BYTES_PER_AVERAGED_PARAMETER * (config.ema_decay > 0)
    return PROCESS_BYTES + per_parameter * parameter_count + features * batch_size + cases


def available_bytes() -> int:
    """Returns the memory still available to this process, within a container's limit, in bytes."""
    available = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").open())
    except (OSError, ValueError):
        return available
    # The page cache counts as used, but can be reclaimed.
    return min(available, limit - used + int(statistics.get("inactive_file", 0)))


def check_training_fits(config: EasyDict, network: nn.Cell, case_count: int) -> float:
    """Checks that a CPU training fits into the available memory.

    Args:
        config: see `training_bytes`; `batch_size`.
        network: the network to train.
        case_count: number of training cases.

    Returns:
        The memory that it leaves available, in bytes.

    Raises:
        DataError: it needs more than is available; the message says what would fit.
    """
    parameters = sum(parameter.size for parameter in network.get_parameters())
    available = available_bytes()
    fast = isinstance(network, FastVNet)
    needed = partial(training_bytes, config, parameters, fast=fast, case_count=case_count)
    if needed(config.batch_size) <= available:
        return available - needed(config.batch_size)
    fitting = list(takewhile(lambda b: needed(b) <= available, range(1, config.batch_size)))
    remedy = f"batch_size={fitting[-1]} fits" if fitting else "use a smaller VolSize or width"
    raise DataError(
        f"memory: batch_size={config.batch_size} at VolSize={config.VolSize} with {case_count} "
        f"cases takes about {needed(config.batch_size) / 1e9:.1f} GB, {available / 1e9:.1f} GB "
        f"are free; {remedy}"
    )
