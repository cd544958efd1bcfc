"""The memory that a training needs, checked before it starts."""

from functools import partial
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import psutil
from easydict import EasyDict
from mindspore import nn

from ..fast_conv3d.network import FastVNet
from ..utils.errors import DataError
from ..utils.process import CGROUP
from ..vnet import VARIANTS


class _Costs(NamedTuple):
    """What a kind of network takes beside its weights, in bytes.

    The last three are per voxel of the network grid and channel of the first stage.
    """

    process: float  # interpreter, libraries, preparing cases
    per_volume: float  # of each volume of a batch: what the backward pass needs
    once: float  # the same for any batch
    validation: float  # added where there are validation cases


# Fitted to the peak resident memory of whole trainings (train.py, two threads, cases of 128x128 and
# 320x320 pixels), see the tests: 0 to 15 % above it. What further threads take is not in it.
FAST = _Costs(0.81e9, 70, 0, 28)
PLAIN = _Costs(0.9e9, 210, 170, 115)
PLAIN_INSTANCE_NORM = _Costs(0.9e9, 530, 200, 420)
BYTES_PER_PARAMETER = 18  # weight, gradient, Adam's moments
BYTES_PER_AVERAGED_PARAMETER = 4
BYTES_PER_ACCUMULATED_PARAMETER = 30  # the mean gradient, and copies
BYTES_PER_PREPROCESSED_VOXEL = 5  # float32 intensity, bool mask
VALIDATION_BYTES = 1e9  # validation cases kept in memory, at most


def training_bytes(
    config: EasyDict,
    parameter_count: int,
    batch_size: int,
    fast: bool,
    case_count: int = 0,
    validates: bool = True,
) -> float:
    """Returns the estimated peak memory of a training process on a CPU, in bytes.

    Args:
        config: `VolSize`, `width`, `variant`, `ema_decay`, `accumulate_steps`.
        parameter_count: number of the network's weights.
        batch_size: volumes per step.
        fast: whether the network is a `FastVNet`.
        case_count: number of training cases, all of which are kept in memory on the network grid.
        validates: whether there are validation cases.
    """
    has_instance_norm = VARIANTS[config.variant].norm == "instance"
    costs = FAST if fast else PLAIN_INSTANCE_NORM if has_instance_norm else PLAIN
    voxels = float(np.prod(config.VolSize))
    per_feature = costs.per_volume * batch_size + costs.once + costs.validation * validates
    per_parameter = BYTES_PER_PARAMETER
    per_parameter += BYTES_PER_AVERAGED_PARAMETER * (config.ema_decay > 0)
    per_parameter += BYTES_PER_ACCUMULATED_PARAMETER * (config.accumulate_steps > 1)
    return (
        costs.process
        + per_parameter * parameter_count
        + per_feature * config.width * voxels
        + BYTES_PER_PREPROCESSED_VOXEL * case_count * voxels
    )


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


def check_training_fits(
    config: EasyDict, network: nn.Cell, case_count: int, validates: bool = True
) -> float:
    """Checks that a CPU training fits into the available memory.

    Args:
        config: see `training_bytes`; `batch_size`.
        network: the network to train.
        case_count, validates: see `training_bytes`.

    Returns:
        The memory that it leaves available, in bytes.

    Raises:
        DataError: it needs more than is available; the message says what would fit.
    """
    parameters = sum(parameter.size for parameter in network.get_parameters())
    available = available_bytes()
    fast = isinstance(network, FastVNet)
    needed = partial(
        training_bytes, config, parameters, fast=fast, case_count=case_count, validates=validates
    )
    if needed(config.batch_size) <= available:
        return available - needed(config.batch_size)
    fitting = list(takewhile(lambda b: needed(b) <= available, range(1, config.batch_size)))
    remedy = f"batch_size={fitting[-1]} fits" if fitting else "use a smaller VolSize or width"
    raise DataError(
        f"memory: batch_size={config.batch_size} at VolSize={config.VolSize} with {case_count} "
        f"cases takes about {needed(config.batch_size) / 1e9:.1f} GB, {available / 1e9:.1f} GB "
        f"are free; {remedy}"
    )
