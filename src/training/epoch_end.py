"""The end of an epoch: `EpochEnd.run` is all that happens, in order."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
import pandas as pd
from easydict import EasyDict
from mindspore import nn

from .. import checkpoint
from ..checkpoint import TrainingCells
from ..checkpoint_file import BEST, PREFIX
from ..data_manager import worker_count
from ..devices.ranks import Ranks
from ..report.figures import plot_progress
from ..run_record import read_history, write_history
from .event_log import EventLog
from .progress import Progress, TimeLeft

log = logging.getLogger(__name__)

WAIT_WARNING_SHARE = 0.05  # of an epoch's time: longer waits for data are reported
SAVE_SHARE = 0.02  # of the training's time: what checkpoints may take with save_interval=0
AVERAGED_AT_ONCE = 1 << 15  # weights: these and their average stay in a core's cache


@dataclass
class EpochSteps:
    """The steps of an epoch, on this rank."""

    epoch: int  # counted from 1
    losses: list[float]  # one per step; with dataset sink the last alone
    skipped: int  # updates left out by the loss scale after an overflow
    elapsed_s: float
    waited_s: float  # for data; with dataset sink the host cannot see it, and it is 0


class EpochEnd:
    """What happens after the last step of an epoch, and after the last epoch.

    Args:
        config: `val_interval`, `epochs`, `save_interval`, `keep_checkpoint_max`, `early_stop`,
            `ema_decay`.
        cells: the network and the other cells to save.
        progress: of the training; updated after each epoch.
        learning_rates: rate of each global step.
        score: returns the mean Dice of the validation cases, given a network in evaluation mode;
            None: no validation.
        run_folder: gets history, curve and checkpoints; None on all ranks but the first.
        ranks: the processes that train together.
        events: gets the rows of the history; None: no events for TensorBoard.

    Raises:
        DataError: the history is damaged, or no events can be written.
    """

    def __init__(
        self,
        config: EasyDict,
        cells: TrainingCells,
        progress: Progress,
        learning_rates: np.ndarray,
        score: Callable[[nn.Cell], float] | None,
        run_folder: Path | None,
        ranks: Ranks = Ranks(),  # noqa: B008, it is frozen
        events: EventLog | None = None,
    ) -> None:
        self.config = config
        self.cells = cells
        self.progress = progress
        self.learning_rates = learning_rates
        self.steps_per_epoch = len(learning_rates) // config.epochs
        self.score = score
        self.run_folder = run_folder
        self.ranks = ranks
        self.time_left = TimeLeft(config.epochs)
        self.logged_left: str | None = None
        self.history: list[dict] = []
        if run_folder is not None and progress.epoch:
            done = read_history(run_folder).query("epoch <= @progress.epoch")
            self.history = done.to_dict("records")
        self.events = events
        if events is not None:
            events.open(self.history)
        self.saved_at_s = time.monotonic()
        self.save_took_s = 0.0  # unknown until the first checkpoint, which is due at once

    def run(self, steps: EpochSteps) -> bool:
        """Ends an epoch; writes history and events before the checkpoint, which a resume needs.

        Args:
            steps: of the epoch, on this rank.

        Returns:
            Whether the training stops early.
        """
        row = self.count(steps)
        self.log_steps(steps)
        average_statistics(self.cells.network, self.ranks)
        if self.cells.average is not None:
            decay = self.config.ema_decay
            update_weight_average(self.cells.average, self.cells.network, steps.epoch, decay)
        if self.score is not None and self.is_due(self.config.val_interval):
            row["val_dice"] = self.validate(self.score)
        is_best = not np.isnan(row["val_dice"]) and self.progress.validations_since_best == 0
        self.log_epoch(row["val_dice"])
        stops = self.score is not None and self.stops_early()
        if self.run_folder is not None:
            self.history.append(row)
            write_history(self.run_folder, self.history)
            if self.events is not None:
                self.events.add(row)
            if (is_due := stops or self.is_save_due()) or is_best:
                self.save(self.run_folder, is_due, is_best)
        return stops

    def finish(self) -> None:
        """Logs the result of the training."""
        if self.run_folder is None:
            return
        best, name = "", self.checkpoint_name()
        if self.progress.best_dice > -1:
            best, name = f", best validation Dice {self.progress.best_dice:.4f}", BEST
        log.info(
            f"trained: epoch {self.progress.epoch} of {self.config.epochs}{best}, "
            f"checkpoint {self.run_folder / 'ckpt' / name}"
        )

    def is_due(self, interval: int) -> bool:
        """Whether this epoch is a multiple of `interval` or the last one."""
        return self.progress.epoch % interval == 0 or self.progress.epoch == self.config.epochs

    def is_save_due(self) -> bool:
        """Whether `save_interval` asks for a checkpoint after this epoch.

        With 0, one is due when the training since the last took long enough for that one's time to
        be within `SAVE_SHARE` of it. After the last epoch one is always due: together with the
        state, as a run that is trained cannot be resumed to write it. Only the rank that writes may
        ask: clocks differ.
        """
        if self.config.save_interval:
            return self.is_due(self.config.save_interval)
        is_last = self.progress.epoch == self.config.epochs
        return is_last or self.save_took_s <= SAVE_SHARE * (time.monotonic() - self.saved_at_s)

    def count(self, steps: EpochSteps) -> dict[str, float]:
        """Updates the progress; returns the epoch's row of the history, without validation."""
        self.progress.epoch = steps.epoch
        self.progress.step = steps.epoch * self.steps_per_epoch
        return {
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "learning_rate": float(self.learning_rates[self.progress.step - 1]),
            "train_loss": self.ranks.mean(float(np.mean(steps.losses))),
            "epoch_time_s": round(steps.elapsed_s, 3),
            "val_dice": float("nan"),
        }

    def log_steps(self, steps: EpochSteps) -> None:
        """Logs the zoo's two lines, skipped updates, and long waits for data."""
        count, elapsed_s = self.steps_per_epoch, steps.elapsed_s
        log.info(f"epoch: {steps.epoch} step: {count}, loss is {np.float32(steps.losses[-1])!s}")
        if steps.skipped:
            log.info(f"epoch: {steps.epoch} steps skipped for overflow: {steps.skipped}")
        log.info(
            f"epoch time: {elapsed_s * 1000:.3f} ms, "
            f"per step time: {elapsed_s * 1000 / count:.3f} ms"
        )
        if steps.waited_s > WAIT_WARNING_SHARE * elapsed_s:
            log.info(
                f"epoch: {steps.epoch} the device waited {steps.waited_s:.1f} s for data, "
                f"{steps.waited_s / elapsed_s:.0%} of the time: raise num_workers "
                f"({worker_count(self.config)} threads now, at most one per core)"
            )

    def validate(self, score: Callable[[nn.Cell], float]) -> float:
        """Validates the weights; returns the mean Dice."""
        progress, network = self.progress, self.cells.scored
        was_training = network.training
        dice = score(network.set_train(False))
        network.set_train(was_training)
        progress.validations_since_best += 1
        if dice > progress.best_dice:
            progress.best_dice = dice
            progress.validations_since_best = 0
        return dice

    def log_epoch(self, dice: float) -> None:
        """Logs the validation, NaN if there was none, and the time left if its words changed."""
        epoch, epochs = self.progress.epoch, self.config.epochs
        left = self.time_left.text(epoch, time.monotonic())
        found = [left] if left else []
        if not np.isnan(dice):
            found.insert(0, f"validation Dice {dice:.4f}, best {self.progress.best_dice:.4f}")
        elif left == self.logged_left:
            return
        self.logged_left = left
        log.info(f"epoch {epoch} of {epochs}" + (f": {', '.join(found)}" if found else ""))

    def checkpoint_name(self) -> str:
        """The name of this epoch's numbered checkpoint."""
        return f"{PREFIX}-{self.progress.epoch}_{self.steps_per_epoch}.ckpt"

    def save(self, run_folder: Path, is_due: bool, is_best: bool = False) -> None:
        """Writes what a resume needs.

        Args:
            run_folder: of the run.
            is_due: whether to write a numbered checkpoint and the curve, too; takes the time.
            is_best: whether the weights become best.ckpt.
        """
        started_s = time.monotonic()
        folder, scored = run_folder / "ckpt", self.cells.scored
        if is_due:
            checkpoint.save_weights(scored, folder / self.checkpoint_name())
            checkpoint.prune(folder, self.config.keep_checkpoint_max)
        checkpoint.save_last(folder, self.cells, asdict(self.progress), scored if is_best else None)
        if is_due:
            plot_progress(pd.DataFrame(self.history), run_folder / "progress.png")
            self.saved_at_s = time.monotonic()
            self.save_took_s = self.saved_at_s - started_s

    def stops_early(self) -> bool:
        """Whether `early_stop` validations brought no better Dice; logs it if so."""
        if not self.progress.has_stalled(self.config.early_stop):
            return False
        log.info(
            f"early stop: {self.config.early_stop} validations without a better Dice than "
            f"{self.progress.best_dice:.4f}"
        )
        return True


def average_statistics(network: nn.Cell, ranks: Ranks) -> None:
    """Averages the moving statistics of batch norm over the ranks.

    Each rank updates its own from its batches. A training step does not use them, validation does.
    """
    ranks.average([p for p in network.get_parameters() if not p.requires_grad])


def update_weight_average(average: nn.Cell, network: nn.Cell, epoch: int, decay: float) -> None:
    """Updates the exponential moving average of the weights, once at the end of each epoch.

    average = d * average + (1 - d) * weights, also for the moving statistics of batch norm. The
    decay d is `min(decay, (epoch - 1) / (epoch + 9))`, so that the first epochs soon lose their
    influence; after the first epoch the average is that epoch's weights.

    Args:
        average: holds the average.
        network: holds the weights.
        epoch: that just ended, counted from 1.
        decay: `ema_decay`.
    """
    decay = min(decay, (epoch - 1) / (epoch + 9))
    on_cpu = ms.get_context("device_target") == "CPU"
    for mean, weight in zip(average.get_parameters(), network.get_parameters(), strict=True):
        values = mean.asnumpy()  # on a CPU the parameter's own memory
        average_in_place(values, weight.asnumpy(), decay)
        if not on_cpu:
            mean.set_data(ms.Tensor(values))


def average_in_place(mean: np.ndarray, values: np.ndarray, decay: float) -> None:
    """Sets `mean` to `decay * mean + (1 - decay) * values`, float32, in one pass over both."""
    mean, values = mean.reshape(-1), values.reshape(-1)
    scaled = np.empty(AVERAGED_AT_ONCE, np.float32)
    for start in range(0, mean.size, AVERAGED_AT_ONCE):
        part = mean[start : start + AVERAGED_AT_ONCE]
        added = scaled[: part.size]
        np.multiply(values[start : start + AVERAGED_AT_ONCE], 1 - decay, out=added)
        part *= decay
        part += added
