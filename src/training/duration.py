"""How long a training will take, estimated from a few steps on synthetic volumes.

    seconds = (epochs * steps per epoch + validations * validation cases) * step + START_S

The step is the median of some real ones, without the first, which compiles the network. Preparing a
sample (augmentation) is measured apart and divided by the threads that do it beside the training,
since the queue of prepared samples hides it in so short a training. A validation case counts as a
step: it needs the forward pass only, but is resampled to the case's own grid and scored there.
"""

import logging
import math
import time
from statistics import median

import mindspore as ms
import numpy as np
from easydict import EasyDict

from ..data_manager import TrainingVolume, worker_count
from ..dataset import TrainingSamples, create_dataset
from ..fast_conv3d.network import to_fast_vnet
from ..lr_schedule import learning_rates
from ..vnet import create_vnet
from .trainer import check_batch_norm, create_cells

log = logging.getLogger(__name__)

MEASURED_STEPS = 8
START_S = 30  # start, reading of the cases, compilation


class _StepTimes(ms.Callback):
    """Records when each step ends."""

    def __init__(self) -> None:
        super().__init__()
        self.ends_s: list[float] = []

    def on_train_step_end(self, run_context: ms.RunContext) -> None:
        self.ends_s.append(time.perf_counter())


def measure_step_s(config: EasyDict, device_target: str) -> float:
    """Measures a training step, in seconds, on a device that is started.

    Args:
        config: of the training.
        device_target: "Ascend", "GPU" or "CPU".

    Raises:
        UsageError: see `check_batch_norm`.
    """
    check_batch_norm(config, device_target)
    network = to_fast_vnet(create_vnet(config), config, device_target)
    steps = MEASURED_STEPS * config.accumulate_steps
    samples = TrainingSamples(
        _synthetic_volumes(config, steps * config.batch_size), config, network.dropout_channels
    )
    rates = learning_rates(config.lr, samples.steps, 0, 1.0)
    cells = create_cells(network, config, device_target, rates)
    times = _StepTimes()
    workers = worker_count(config)
    ms.Model(cells.training_cell).train(
        1, create_dataset(samples, workers=workers), callbacks=[times], dataset_sink_mode=False
    )
    batch_s = median(np.diff(times.ends_s))
    started_s = time.perf_counter()
    for index in range(3):
        samples[index]
    sample_s = (time.perf_counter() - started_s) / 3
    return config.accumulate_steps * (batch_s + config.batch_size * sample_s / workers)


def _synthetic_volumes(config: EasyDict, count: int) -> list[TrainingVolume]:
    """Volumes of noise with a box in them, on the network grid."""
    generator = np.random.default_rng(config.seed)
    mask = np.zeros(config.VolSize, bool)
    mask[tuple(slice(side // 4, 3 * side // 4) for side in config.VolSize)] = True
    few = [generator.random(config.VolSize, np.float32) for _ in range(min(count, 4))]
    return [TrainingVolume(few[index % len(few)], mask, "axial") for index in range(count)]


def training_s(config: EasyDict, step_s: float, cases: int, val_cases: int, done: int = 0) -> float:
    """Returns the estimated time of a training in seconds, see the module's docstring.

    Args:
        config: `epochs`, `batch_size`, `accumulate_steps`, `val_interval`.
        step_s: of `measure_step_s`.
        cases, val_cases: number of training and validation cases.
        done: epochs that are trained already.
    """
    epochs = max(0, config.epochs - done)
    steps = math.ceil(cases / (config.batch_size * config.accumulate_steps))
    validations = math.ceil(epochs / config.val_interval)
    return (epochs * steps + validations * val_cases) * step_s + START_S
