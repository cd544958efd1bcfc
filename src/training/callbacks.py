"""What happens around the steps of a training: log, validation, history, checkpoints, early stop.

They act in this order at the end of an epoch (see `src.training.trainer`) and share one `Progress`.
"""

import logging
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import mindspore as ms
import numpy as np
import pandas as pd
from easydict import EasyDict
from mindspore import nn
from tqdm import tqdm

from .. import checkpoint
from ..data_manager import worker_count
from ..dataset import TrainingSamples
from ..devices.ranks import Ranks
from ..report.figures import plot_progress
from ..utils.errors import DataError
from ..utils.files import write_files

log = logging.getLogger(__name__)

WORTH_SAYING = 0.05  # share of an epoch that the device waited for data
HISTORY_COLUMNS = ("epoch", "step", "learning_rate", "train_loss", "epoch_time_s", "val_dice")


@dataclass
class Progress:
    """How far a training is, on which cases, and the history row of the epoch that just ended."""

    epoch: int = 0
    step: int = 0  # global steps done
    best_dice: float = -1.0
    validations_since_best: int = 0
    case_ids: list[str] = field(default_factory=list)  # of the training cases, in the split's order
    device_num: int = 1  # how many train together
    row: dict[str, float] = field(default_factory=dict)

    def numbers(self) -> dict[str, int | float | list[str]]:
        """What a resume needs."""
        return {key: value for key, value in asdict(self).items() if key != "row"}


def _loss_and_overflow(outputs):
    """Loss of a step, and whether mixed precision skipped its update for an overflow."""
    if isinstance(outputs, tuple | list):
        return float(outputs[0].asnumpy()), bool(outputs[1].asnumpy())
    return float(outputs.asnumpy()), False


def all_finite(cell: nn.Cell) -> bool:
    """Whether no parameter of a cell is NaN or infinite."""
    return all(np.isfinite(parameter.asnumpy()).all() for parameter in cell.get_parameters())


def _end_cleanly_on_signals():
    """Takes back Ctrl-C and TERM: MindSpore's own handlers, set with the first step, end the
    process without unwinding, and TERM even with exit code 0."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class EpochLog(ms.Callback):
    """Prints the zoo's two lines an epoch, fills the history row, and stops at a NaN.

    Args:
        progress: shared; `epoch`, `step` and `row` are set here.
        learning_rates: rate of each global step.
        samples: tells which cases a batch held.
        run_folder: its last checkpoint is named when a NaN stops the run; None on a rank without.
        ranks: the history's loss is the mean over them.
    """

    def __init__(
        self,
        progress: Progress,
        learning_rates: np.ndarray,
        samples: TrainingSamples,
        run_folder: str | Path | None,
        ranks: Ranks = Ranks(),  # noqa: B008, it is frozen
    ) -> None:
        super().__init__()
        self.ranks = ranks
        self.progress = progress
        self.learning_rates = learning_rates
        self.samples = samples
        self.run_folder = run_folder

    def on_train_begin(self, run_context: ms.RunContext) -> None:
        log.info("compiling the network: the first step takes longer than the others")

    def on_train_epoch_begin(self, run_context: ms.RunContext) -> None:
        parameters = run_context.original_args()
        self.started = time.perf_counter()
        self.losses = []
        self.skipped = 0
        self.waited_s = 0.0
        self.step_ended = self.started
        self.bar = tqdm(
            total=parameters.batch_num,
            desc=f"epoch {parameters.cur_epoch_num}",
            leave=False,
            disable=None,  # only on a terminal
        )

    def on_train_step_begin(self, run_context: ms.RunContext) -> None:
        self.waited_s += time.perf_counter() - self.step_ended

    def on_train_step_end(self, run_context: ms.RunContext) -> None:
        _end_cleanly_on_signals()
        parameters = run_context.original_args()
        loss, overflow = _loss_and_overflow(parameters.net_outputs)
        self.losses.append(loss)
        self.skipped += overflow
        # With dataset sink this is called once an epoch, with its last step.
        self.bar.update(parameters.batch_num if parameters.get("dataset_sink_mode") else 1)
        if not math.isfinite(loss):
            self._stop(parameters, f"loss is {loss}")
        self.step_ended = time.perf_counter()

    def on_train_epoch_end(self, run_context: ms.RunContext) -> None:
        parameters = run_context.original_args()
        if not all_finite(parameters.train_network):
            self._stop(parameters, "weights became NaN or infinite")
        self.bar.close()
        steps = self.samples.steps
        elapsed_s = time.perf_counter() - self.started
        self.progress.epoch = parameters.cur_epoch_num
        self.progress.step = parameters.cur_epoch_num * steps
        self.progress.row = {
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "learning_rate": float(self.learning_rates[self.progress.step - 1]),
            "train_loss": self.ranks.mean(float(np.mean(self.losses))),
            "epoch_time_s": round(elapsed_s, 3),
            "val_dice": float("nan"),
        }
        log.info(
            f"epoch: {self.progress.epoch} step: {steps}, loss is {np.float32(self.losses[-1])!s}"
        )
        if self.skipped:
            log.info(f"epoch: {self.progress.epoch} steps skipped for overflow: {self.skipped}")
        log.info(
            f"epoch time: {elapsed_s * 1000:.3f} ms, "
            f"per step time: {elapsed_s * 1000 / steps:.3f} ms"
        )
        if self.waited_s > WORTH_SAYING * elapsed_s and not parameters.get("dataset_sink_mode"):
            log.info(
                f"epoch: {self.progress.epoch} the device waited {self.waited_s:.1f} s for data, "
                f"{self.waited_s / elapsed_s:.0%} of the time: raise num_workers "
                f"({worker_count(self.samples.config)} threads now, at most one per core)"
            )

    def _stop(self, parameters, finding):
        self.bar.close()
        epoch = parameters.cur_epoch_num
        if parameters.get("dataset_sink_mode"):
            where = f"in epoch {epoch}"
        else:
            batch_index = (parameters.cur_step_num - 1) % parameters.batch_num
            step = batch_index * self.samples.steps // parameters.batch_num
            batch = self.samples.batch(epoch - 1, step)
            names = ", ".join(self.progress.case_ids[index] for index in batch)
            where = f"at epoch {epoch} step {step + 1}, in the batch of {names}"
        good = "the last good checkpoint is rank 0's"
        if self.run_folder is not None:
            kept = Path(self.run_folder, "ckpt", checkpoint.LAST)
            good = f"the last good checkpoint is {kept}" if kept.exists() else "no checkpoint yet"
        raise DataError(f"{finding} {where}; {good}; look at these cases, or lower lr")


class AverageStatistics(ms.Callback):
    """Averages batch norm's moving statistics over the ranks, before validation and saving.

    Each rank gathers its own from its batches, and a training step uses none of them.
    """

    def __init__(self, network: nn.Cell, ranks: Ranks) -> None:
        super().__init__()
        self.statistics = [p for p in network.get_parameters() if not p.requires_grad]
        self.ranks = ranks

    def on_train_epoch_end(self, run_context: ms.RunContext) -> None:
        self.ranks.average(self.statistics)


class WeightAverage(ms.Callback):
    """The exponential moving average of a network's parameters, a step an epoch.

    Moving statistics of batch norm are averaged like the weights. The decay rises to its full
    value, `min(decay, (epoch - 1) / (epoch + 9))`, so that the first epochs are soon forgotten.

    Args:
        progress: shared.
        network: the one in training.
        average: another of the same kind, which gets the average.
        decay: share of the earlier average that stays.
    """

    def __init__(
        self, progress: Progress, network: nn.Cell, average: nn.Cell, decay: float
    ) -> None:
        super().__init__()
        self.progress = progress
        self.pairs = list(zip(average.get_parameters(), network.get_parameters(), strict=True))
        self.decay = decay

    def on_train_epoch_end(self, run_context: ms.RunContext) -> None:
        epoch = self.progress.epoch
        decay = min(self.decay, (epoch - 1) / (epoch + 9))
        for mean, value in self.pairs:
            mean.set_data(ms.Tensor(decay * mean.asnumpy() + (1 - decay) * value.asnumpy()))


class Validation(ms.Callback):
    """Mean Dice of the validation cases, every `val_interval` epochs and after the last.

    Args:
        progress: shared; `best_dice`, `validations_since_best` and `row["val_dice"]` are set here.
        network: whose weights are scored.
        mean_dice: returns it, called while the network is in evaluation mode.
        run_folder: `ckpt/best.ckpt` there gets the best weights; None on a rank that saves none.
        config: `val_interval`, `epochs`.
    """

    def __init__(
        self,
        progress: Progress,
        network: nn.Cell,
        mean_dice: Callable[[], float],
        run_folder: str | Path | None,
        config: EasyDict,
    ) -> None:
        super().__init__()
        self.progress = progress
        self.network = network
        self.mean_dice = mean_dice
        self.run_folder = run_folder
        self.config = config

    def on_train_epoch_end(self, run_context: ms.RunContext) -> None:
        progress = self.progress
        if progress.epoch % self.config.val_interval and progress.epoch != self.config.epochs:
            return
        training = self.network.training
        self.network.set_train(False)
        dice = self.mean_dice()
        self.network.set_train(training)
        progress.row["val_dice"] = dice
        progress.validations_since_best += 1
        if dice > progress.best_dice:
            if self.run_folder is not None:
                best_path = Path(self.run_folder, "ckpt", checkpoint.BEST)
                checkpoint.save_weights(self.network, best_path)
            progress.best_dice = dice
            progress.validations_since_best = 0
        log.info(
            f"epoch: {progress.epoch} validation dice: {dice:.4f}, best: {progress.best_dice:.4f}"
        )


class RunRecorder(ms.Callback):
    """Keeps history, progress picture and checkpoints; the checkpoint comes last and counts.

    Args:
        progress: shared.
        network, training_cell: what is saved.
        average: of the weights, which numbered checkpoints then hold; None: there is none.
        run_folder: see `src.training.run_folder`.
        config: `save_interval`, `keep_checkpoint_max`.
    """

    def __init__(
        self,
        progress: Progress,
        network: nn.Cell,
        training_cell: nn.Cell,
        average: nn.Cell | None,
        run_folder: str | Path,
        config: EasyDict,
    ) -> None:
        super().__init__()
        self.progress = progress
        self.network = network
        self.training_cell = training_cell
        self.average = average
        self.scored = network if average is None else average
        self.run_folder = Path(run_folder)
        self.config = config
        self.history = read_history(self.run_folder, progress.epoch)

    def on_train_epoch_end(self, run_context: ms.RunContext) -> None:
        self.history.append(self.progress.row)
        write_history(self.run_folder, self.history)
        if self.progress.epoch % self.config.save_interval == 0:
            self._save()

    def on_train_end(self, run_context: ms.RunContext) -> None:
        if self.progress.epoch % self.config.save_interval:
            self._save()

    def _save(self):
        folder = self.run_folder / "ckpt"
        steps = self.progress.step // self.progress.epoch
        name = f"{checkpoint.PREFIX}-{self.progress.epoch}_{steps}.ckpt"
        checkpoint.save_weights(self.scored, folder / name)
        checkpoint.prune(folder, self.config.keep_checkpoint_max)
        numbers = self.progress.numbers()
        checkpoint.save_last(folder, self.network, self.training_cell, numbers, self.average)
        plot_progress(pd.DataFrame(self.history), self.run_folder / "progress.png")


def stops_early(progress: Progress, patience: int) -> bool:
    """Whether a training has gone `patience` validations without a better Dice; 0: never."""
    return 0 < patience <= progress.validations_since_best


class EarlyStop(ms.Callback):
    """Ends the training after `patience` validations without a better Dice."""

    def __init__(self, progress: Progress, patience: int) -> None:
        super().__init__()
        self.progress = progress
        self.patience = patience

    def on_train_epoch_end(self, run_context: ms.RunContext) -> None:
        if stops_early(self.progress, self.patience):
            log.info(
                f"early stop: {self.patience} validations without a better Dice than "
                f"{self.progress.best_dice:.4f}"
            )
            run_context.request_stop()


def read_history(run_folder: str | Path, epochs: int) -> list[dict[str, float]]:
    """The rows of the first `epochs` epochs; a resumed run goes on from there."""
    path = Path(run_folder, "history.csv")
    if not epochs or not path.is_file():
        return []
    history = pd.read_csv(path)
    return history[history["epoch"] <= epochs].to_dict("records")


def write_history(run_folder: str | Path, rows: list[dict[str, float]]) -> None:
    """Writes history.csv of a run."""
    table = pd.DataFrame(rows, columns=HISTORY_COLUMNS)
    write_files({Path(run_folder, "history.csv"): table.to_csv(index=False).encode()})
