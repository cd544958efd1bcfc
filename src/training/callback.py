"""The MindSpore callback of a training: follows the steps, then ends each epoch."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from tqdm import tqdm

from .. import checkpoint
from ..dataset import TrainingSamples
from ..utils.errors import DataError
from ..utils.stopping import handle_signals, stop_if_asked
from .epoch_end import EpochEnd, EpochSteps

log = logging.getLogger(__name__)


class TrainingCallback(ms.Callback):
    """Measures the steps of each epoch and calls `EpochEnd`; stops at a NaN.

    Args:
        epoch_end: run after each epoch.
        samples: of the training, to name the cases of a batch.
    """

    def __init__(self, epoch_end: EpochEnd, samples: TrainingSamples) -> None:
        super().__init__()
        self.epoch_end = epoch_end
        self.samples = samples
        self.bar = tqdm(disable=True)  # of the whole training, from its begin on

    def on_train_begin(self, run_context: ms.RunContext) -> None:
        log.info("compiling the network: the first step takes longer than the others")
        batches, progress = run_context.original_args().batch_num, self.epoch_end.progress
        self.bar = tqdm(
            total=batches * self.epoch_end.config.epochs,
            initial=batches * progress.epoch,
            unit="step",
            leave=False,
            disable=None,  # only on a terminal
        )

    def on_train_epoch_begin(self, run_context: ms.RunContext) -> None:
        arguments = run_context.original_args()
        self.started_s = self.step_ended_s = time.perf_counter()
        self.losses: list[float] = []
        self.skipped = 0
        self.waited_s = 0.0
        epochs = self.epoch_end.config.epochs
        self.bar.set_description(f"epoch {arguments.cur_epoch_num} of {epochs}")

    def on_train_step_begin(self, run_context: ms.RunContext) -> None:
        if not run_context.original_args().get("dataset_sink_mode"):
            self.waited_s += time.perf_counter() - self.step_ended_s

    def on_train_step_end(self, run_context: ms.RunContext) -> None:
        handle_signals()  # MindSpore replaces the handlers in each step
        arguments = run_context.original_args()
        loss, overflow = loss_and_overflow(arguments.net_outputs)
        self.losses.append(loss)
        self.skipped += overflow
        # With dataset sink this is called once an epoch, after its last step.
        self.bar.update(arguments.batch_num if arguments.get("dataset_sink_mode") else 1)
        if not math.isfinite(loss):
            self.raise_not_finite(arguments, f"loss is {loss}")
        stop_if_asked()
        self.step_ended_s = time.perf_counter()

    def on_train_epoch_end(self, run_context: ms.RunContext) -> None:
        arguments = run_context.original_args()
        if not is_finite(arguments.train_network):
            self.raise_not_finite(arguments, "weights became NaN or infinite")
        elapsed_s = time.perf_counter() - self.started_s
        steps = EpochSteps(
            arguments.cur_epoch_num, self.losses, self.skipped, elapsed_s, self.waited_s
        )
        if self.epoch_end.run(steps):
            run_context.request_stop()
        elif steps.epoch < self.epoch_end.config.epochs:  # else nothing is left to stop
            stop_if_asked()

    def on_train_end(self, run_context: ms.RunContext) -> None:
        self.epoch_end.finish()

    def __exit__(self, *error: object) -> None:
        """Removes the bar, however the training ends."""
        self.bar.close()

    def raise_not_finite(self, arguments: Any, finding: str) -> None:
        """Raises a DataError that names the step, its cases and the last good checkpoint."""
        epoch = arguments.cur_epoch_num
        if arguments.get("dataset_sink_mode"):
            where = f"in epoch {epoch}"
        else:
            batch_index = (arguments.cur_step_num - 1) % arguments.batch_num
            step = batch_index * self.samples.steps // arguments.batch_num
            case_ids = self.epoch_end.progress.case_ids
            batches = range(max(0, step - 1), step + 1)  # weights are looked at once an epoch
            indices = (index for one in batches for index in self.samples.batch(epoch - 1, one))
            names = ", ".join(dict.fromkeys(case_ids[index] for index in indices))
            both = " and the one before" if step else ""
            where = f"at epoch {epoch} step {step + 1}; in this step{both}: {names}"
        good = last_good_checkpoint(self.epoch_end.run_folder)
        raise DataError(f"{finding} {where}; {good}; look at these cases, or lower lr")


def last_good_checkpoint(run_folder: Path | None) -> str:
    """Returns the part of a message that names the last checkpoint of a run."""
    if run_folder is None:
        return "the last good checkpoint is rank 0's"
    path = run_folder / "ckpt" / checkpoint.LAST
    return f"the last good checkpoint is {path}" if path.exists() else "no checkpoint yet"


def loss_and_overflow(outputs: ms.Tensor | tuple[ms.Tensor, ...]) -> tuple[float, bool]:
    """Returns the loss of a step, and whether the loss scale skipped its update."""
    if isinstance(outputs, tuple | list):
        return float(outputs[0].asnumpy()), bool(outputs[1].asnumpy())
    return float(outputs.asnumpy()), False


def is_finite(cell: nn.Cell) -> bool:
    """Whether no parameter of a cell is NaN or infinite."""
    return all(np.isfinite(parameter.asnumpy()).all() for parameter in cell.get_parameters())
