"""A training, from the configuration to a run's folder."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np
from easydict import EasyDict
from mindspore import nn

from .. import checkpoint
from ..config import CONFIG_NAME, save_config
from ..data_manager import Case, TrainingVolume, load_training_volumes, read_case, worker_count
from ..dataset import TrainingSamples, create_dataset
from ..devices.device import apply_precision, reason_of
from ..devices.ranks import Ranks
from ..evaluation import mean_dice
from ..fast_conv3d.network import to_fast_vnet
from ..lr_schedule import learning_rates
from ..promise12.splits import split_cases
from ..utils.errors import DataError, UsageError
from ..vnet import VARIANTS, create_vnet
from .callbacks import (
    AverageStatistics,
    EarlyStop,
    EpochLog,
    Progress,
    RunRecorder,
    Validation,
    WeightAverage,
    stops_early,
)
from .memory import check_training_fits
from .run_folder import held, new_run_folder
from .step import create_training_cell

log = logging.getLogger(__name__)


def create_optimizer(network: nn.Cell, config: EasyDict, rates: np.ndarray) -> nn.Optimizer:
    """Adam, or the paper's momentum, with L2 on the convolutions' weights alone."""
    parameters = network.trainable_params()
    decayed = [p for p in parameters if p.name.endswith(".weight")]
    others = [p for p in parameters if not p.name.endswith(".weight")]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    rates = ms.Tensor(rates)
    if config.optimizer == "momentum":
        return nn.Momentum(groups, rates, config.momentum)
    return nn.Adam(groups, rates)


def averaging_network(config: EasyDict, device_target: str) -> nn.Cell:
    """A network for the moving average of another's weights; it only predicts."""
    network = create_vnet(config)
    apply_precision(network, config, device_target)
    return to_fast_vnet(network, config, device_target).set_train(False)


def sinks_dataset(config: EasyDict, device_target: str) -> bool:
    """Whether whole epochs go to the device at once: unless turned off; CPU has no sink."""
    return config.dataset_sink != "off" and device_target != "CPU"


def resumed(
    run_folder: Path,
    config: EasyDict,
    network: nn.Cell,
    training_cell: nn.Cell,
    average: nn.Cell | None,
    fresh: Progress,
    validates: bool,
) -> Progress:
    """Brings a run back to its last checkpoint, and keeps what its configuration is from now on.

    Args:
        run_folder: the run, held by this process.
        config: to go on with.
        network, training_cell, average: get the run's values.
        fresh: where a run that died before its first checkpoint starts again; its cases and devices
            must be those that the run was started with.
        validates: whether there are validation cases, without which nothing stops early.

    Returns:
        How far it is.

    Raises:
        UsageError: all epochs are trained, or the run was stopped early.
        DataError: other cases, another number of devices, or a checkpoint that does not fit.
    """
    progress = fresh
    if checkpoint.can_resume(run_folder / "ckpt"):
        numbers = checkpoint.load_last(run_folder / "ckpt", network, training_cell, average)
        progress = Progress(**numbers)
        if progress.case_ids != fresh.case_ids:
            odd = sorted(set(progress.case_ids) ^ set(fresh.case_ids)) or ["their order"]
            raise DataError(
                f"{run_folder}: was started with other training cases ({odd[0]} differs); "
                "resume with the same split"
            )
        if progress.device_num != fresh.device_num:
            raise DataError(
                f"{run_folder}: was started on {progress.device_num} device(s), not "
                f"{fresh.device_num}; resume on as many"
            )
        if progress.epoch >= config.epochs:
            raise UsageError(
                f"{run_folder}: all {config.epochs} epochs are trained; for more, --set epochs=N"
            )
        if validates and stops_early(progress, config.early_stop):
            raise UsageError(
                f"{run_folder}: ended by early stop after epoch {progress.epoch}, "
                f"{progress.validations_since_best} validations without a better Dice than "
                f"{progress.best_dice:.4f}; to go on, --set early_stop=N above that, or 0"
            )
        log.info(f"resuming {run_folder} after epoch {progress.epoch}")
    else:
        log.info(f"resuming {run_folder} from its beginning: it has no checkpoint yet")
    save_config(config, run_folder / CONFIG_NAME)
    return progress


def training_plane(config: EasyDict, cases: list[Case], volumes: list[TrainingVolume]) -> str:
    """The plane in which the training's stacks were acquired; cases of another are named.

    Args:
        config: `plane`.
        cases, volumes: of the training, in one order.

    Returns:
        `plane`, or where it is "auto" that of most cases, axial if none has one.
    """
    planes = Counter(volume.plane for volume in volumes if volume.plane)
    plane = config.plane
    if plane == "auto":
        plane = max(planes, key=planes.get, default="axial")
    for case, volume in zip(cases, volumes, strict=True):
        if volume.plane not in ("", plane):
            log.info(f"note: {case.image_path}: {volume.plane} stack, the training's are {plane}")
    return plane


@contextmanager
def opened_run(
    run_folder: str | Path | None,
    config: EasyDict,
    network: nn.Cell,
    training_cell: nn.Cell,
    average: nn.Cell | None,
    fresh: Progress,
    val_ids: list[str],
    ranks: Ranks,
) -> Iterator[tuple[Path | None, Progress]]:
    """The run's folder, held while it is trained, and how far it is; the first rank sees to both.

    Weights, optimizer and progress are the first rank's on every rank from then on, so that only
    its machine needs the run's files.

    Args:
        run_folder: of a run to go on with; None: a new one.
        config, network, training_cell, average, fresh: see `resumed`.
        val_ids: validation cases, which must be the same on every rank.
        ranks: of this training.

    Yields:
        The folder, None on all ranks but the first, and the progress.

    Raises:
        DataError: the ranks were given different cases; see also `resumed`.
    """
    if ranks.is_first:
        is_new = run_folder is None
        run_folder = new_run_folder(config) if is_new else Path(run_folder)
    with held(run_folder) if ranks.is_first else nullcontext():
        progress = fresh
        if ranks.is_first and not is_new:
            progress = resumed(
                run_folder, config, network, training_cell, average, fresh, bool(val_ids)
            )
        firsts = ranks.text_from_first(json.dumps([progress.numbers(), val_ids]))
        numbers, first_val_ids = json.loads(firsts)
        progress = Progress(**numbers)
        if (progress.case_ids, first_val_ids) != (fresh.case_ids, val_ids):
            raise DataError(
                f"rank {ranks.rank} was given other cases than rank 0; give every host the same "
                "splits and data"
            )
        ranks.copy_from_first(training_cell.get_parameters())
        if average is not None:
            ranks.copy_from_first(average.get_parameters())
        yield run_folder if ranks.is_first else None, progress


@contextmanager
def lost_ranks_told(ranks: Ranks) -> Iterator[None]:
    """One line in the place of MindSpore's pages, where an exchange with other ranks failed.

    Raises:
        DataError: so it was.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.count == 1 or "AllReduce" not in str(error):
            raise
        raise DataError(
            f"rank {ranks.rank}: {reason_of(error)}; another rank is gone, see the other logs, or "
            "the network to it is cut"
        ) from None


def train(
    config: EasyDict,
    device_target: str,
    data_path: str | Path,
    train_split: str | Path,
    val_split: str | Path | None = None,
    run_folder: str | Path | None = None,
    callbacks: Sequence[ms.Callback] = (),
    ranks: Ranks = Ranks(),  # noqa: B008, it is frozen
) -> Path | None:
    """Trains a V-Net; all that comes of it lies in the run's folder.

    Args:
        config: see `src.config`.
        device_target: "Ascend", "GPU" or "CPU", started by `src.devices.device.start_device`.
        data_path: folder with `img/` and `gt/`.
        train_split: file with the names of the training cases, or a folder with such files.
        val_split: those of the validation cases; None: no validation, no `best.ckpt`.
        run_folder: a run to go on with; None: a new one.
        callbacks: called after the run's own.
        ranks: of `start_communication`, where several devices train together. Each
            takes its part of every step and of the validation cases; the first writes the run.

    Returns:
        The run's folder, None on all ranks but the first.

    Raises:
        UsageError: a precision or a batch norm that the device has not.
        DataError: a file is at fault, memory is too small, or the loss became NaN.
    """
    if config.sync_batch_norm and device_target != "Ascend":
        raise UsageError(
            f"sync_batch_norm=True: MindSpore has it on Ascend, not on {device_target}"
        )
    if config.sync_batch_norm and VARIANTS[config.variant]["norm"] != "batch":
        raise UsageError(f"sync_batch_norm=True: variant={config.variant} has no batch norm")
    cases = split_cases(data_path, train_split, "train", config.fold)
    val_cases = split_cases(data_path, val_split, "val", config.fold) if val_split else []
    shared = {case.case_id for case in cases} & {case.case_id for case in val_cases}
    if shared:
        log.info(
            f"note: {len(shared)} validation case(s) are also trained on, {min(shared)} for one"
        )
    ms.set_seed(config.seed)
    network = create_vnet(config, sync_batch_norm=config.sync_batch_norm and ranks.count > 1)
    network = to_fast_vnet(network, config, device_target)
    if device_target == "CPU":
        check_training_fits(config, network, len(cases))
    for case in ranks.share(val_cases):
        read_case(case, config)  # a broken file stops the run now, not after the first epochs
    volumes = load_training_volumes(cases, config)
    config.plane = training_plane(config, cases, volumes)
    samples = TrainingSamples(volumes, config, network.dropout_channels, ranks.count)
    rates = learning_rates(
        config.lr, samples.steps * config.epochs, config.warmup_step, config.warmup_ratio
    )
    optimizer = create_optimizer(network, config, rates)
    training_cell = create_training_cell(network, optimizer, config, device_target)
    average = averaging_network(config, device_target) if config.ema_decay else None

    fresh = Progress(case_ids=[case.case_id for case in cases], device_num=ranks.count)
    val_ids = [case.case_id for case in val_cases]
    with opened_run(run_folder, config, network, training_cell, average, fresh, val_ids, ranks) as (
        run_folder,
        progress,
    ):
        run_callbacks = [EpochLog(progress, rates, samples, run_folder, ranks)]
        run_callbacks.append(AverageStatistics(network, ranks))
        if average is not None:
            run_callbacks.append(WeightAverage(progress, network, average, config.ema_decay))
        if val_cases:
            scored = network if average is None else average
            score = partial(mean_dice, scored, val_cases, config, ranks)
            run_callbacks.append(Validation(progress, scored, score, run_folder, config))
        if ranks.is_first:
            run_callbacks.append(
                RunRecorder(progress, network, training_cell, average, run_folder, config)
            )
        if val_cases and config.early_stop:
            run_callbacks.append(EarlyStop(progress, config.early_stop))

        log.info(f"run: {run_folder}" if ranks.is_first else f"run: rank {ranks.rank} of one")
        log.info(f"============== Starting Training fold {config.fold} ==============")
        with lost_ranks_told(ranks):
            ms.Model(training_cell).train(
                config.epochs,
                create_dataset(samples, progress.epoch, ranks.rank, worker_count(config)),
                callbacks=[*run_callbacks, *callbacks],
                dataset_sink_mode=sinks_dataset(config, device_target),
                initial_epoch=progress.epoch,
            )
    return run_folder
