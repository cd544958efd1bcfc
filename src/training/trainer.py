"""Training: `train` runs it from start to end; `src.training.epoch_end` ends each epoch."""

import logging
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np
from easydict import EasyDict
from mindspore import nn

from .. import __version__
from ..checkpoint import TrainingCells
from ..config import FIXED_BY_RUN
from ..data_manager import Case, TrainingVolume, load_training_volumes, worker_count
from ..dataset import TrainingSamples, create_dataset
from ..devices.device import mindspore_reason
from ..devices.ranks import Ranks
from ..evaluation import set_up_prediction
from ..fast_conv3d.network import to_fast_vnet
from ..lr_schedule import learning_rates
from ..predictor import processing_versions
from ..promise12.splits import split_cases
from ..run_record import processor, record_session
from ..utils.command_line import LAUNCHED, own_command
from ..utils.errors import DataError, UsageError
from ..utils.status import write_status
from ..utils.stopping import between_steps
from ..vnet import SIDE_MULTIPLE, VARIANTS, create_vnet
from .callback import TrainingCallback, last_good_checkpoint
from .epoch_end import EpochEnd
from .event_log import OVERLAYS, EventLog, check_tensorboard
from .memory import VALIDATION_BYTES, check_training_fits
from .optimizer import create_optimizer
from .progress import Progress
from .run_folder import open_run
from .step import create_training_cell
from .validation import ValidationSet

log = logging.getLogger(__name__)


def create_cells(
    network: nn.Cell, config: EasyDict, device_target: str, rates: np.ndarray
) -> TrainingCells:
    """Returns the network with its training step and, with `ema_decay`, its weight average."""
    optimizer = create_optimizer(network, config, rates)
    training_cell = create_training_cell(network, optimizer, config, device_target)
    average = None
    if config.ema_decay:
        average = set_up_prediction(create_vnet(config), config, device_target)
    return TrainingCells(network, training_cell, average)


def uses_dataset_sink(config: EasyDict, device_target: str) -> bool:
    """Whether whole epochs are sent to the device at once; a CPU has no dataset sink."""
    return config.dataset_sink != "off" and device_target != "CPU"


def training_plane(config: EasyDict, cases: list[Case], volumes: list[TrainingVolume]) -> str:
    """Returns the plane in which the training stacks were acquired; logs cases of another plane.

    Args:
        config: `plane`.
        cases: training cases.
        volumes: of `cases`, in the same order.

    Returns:
        `plane`, or for "auto" the plane of most cases, axial if none has one.
    """
    planes = Counter(volume.plane for volume in volumes if volume.plane)
    plane = config.plane
    if plane == "auto":
        plane = max(planes, key=lambda name: planes[name], default="axial")
    for case, volume in zip(cases, volumes, strict=True):
        if volume.plane not in ("", plane):
            log.info(f"note: {case.image_path}: {volume.plane} stack, training is on {plane} ones")
    return plane


@contextmanager
def report_lost_ranks(ranks: Ranks) -> Iterator[None]:
    """Turns MindSpore's error about a failed exchange with other ranks into one line.

    Raises:
        DataError: an exchange failed.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.count == 1 or "AllReduce" not in str(error):
            raise
        raise DataError(
            f"rank {ranks.rank}: {mindspore_reason(error)}; another rank ended, see the other "
            "logs, or the network to it failed"
        ) from None


def resume_hint(run_folder: Path | None) -> str:
    """Returns what the log says about a run that a signal stopped."""
    good = last_good_checkpoint(run_folder)
    return good if run_folder is None else f"{good}; continue with {resume_command(run_folder)}"


def resume_command(run_folder: Path) -> str:
    """Returns the command that continues a run, for a shell; without one, the argument of `train`.

    A launcher's ranks may work in other folders than it: the run's path is then absolute.
    """
    words = shlex.split(own_command())
    if not words:
        return f"resume={str(run_folder)!r}"
    if "--continue" in words:
        return shlex.join(words)
    folder = run_folder.absolute() if LAUNCHED in os.environ else run_folder
    return shlex.join([*_without_resume(words), "--resume", str(folder)])


def _without_resume(words: list[str]) -> list[str]:
    """Leaves out `--resume`, `--resume RUN` and `--resume=RUN`."""
    before = ["", *words[:-1]]
    return [
        word
        for word, previous in zip(words, before, strict=True)
        if word.partition("=")[0] != "--resume" and (previous != "--resume" or word.startswith("-"))
    ]


def check_batch_norm(config: EasyDict, device_target: str, device_count: int = 1) -> None:
    """Raises a UsageError if batch norm cannot be trained so.

    From a single value per channel it learns a variance of 0 or NaN, with which nothing can be
    predicted.

    Args:
        config: `variant`, `VolSize`, `batch_size`, `sync_batch_norm`.
        device_target: "Ascend", "GPU" or "CPU".
        device_count: devices that train together.
    """
    if config.sync_batch_norm and device_target != "Ascend":
        raise UsageError(
            f"sync_batch_norm=True: MindSpore has it on Ascend, not on {device_target}"
        )
    if config.sync_batch_norm and VARIANTS[config.variant].norm != "batch":
        raise UsageError(f"sync_batch_norm=True: variant={config.variant} has no batch norm")
    normed_together = config.batch_size * (device_count if config.sync_batch_norm else 1)
    has_one_voxel = max(config.VolSize) == SIDE_MULTIPLE  # at the lowest level
    if VARIANTS[config.variant].norm == "batch" and has_one_voxel and normed_together == 1:
        raise UsageError(
            f"VolSize={config.VolSize} with batch_size={config.batch_size}: the lowest level has "
            f"one voxel, of which the batch norm of variant={config.variant} cannot learn a "
            f"variance; use a side of at least {2 * SIDE_MULTIPLE}, or batch_size=2"
        )


def training_and_validation_cases(
    config: EasyDict, data_path: str | Path, train_split: str | Path, val_split: str | Path | None
) -> tuple[list[Case], list[Case]]:
    """Returns the training and validation cases; logs a note if some are both."""
    cases = split_cases(data_path, train_split, "train", config.fold)
    val_cases = split_cases(data_path, val_split, "val", config.fold) if val_split else []
    shared = {case.case_id for case in cases} & {case.case_id for case in val_cases}
    if shared:
        log.info(
            f"note: {len(shared)} validation case(s) are also training cases, such as {min(shared)}"
        )
    return cases, val_cases


class Setup(NamedTuple):
    """What a training needs, before the progress of a run is known."""

    samples: TrainingSamples
    validation: ValidationSet
    cells: TrainingCells
    rates: np.ndarray  # the learning rate of each step
    initial_progress: Progress


def prepare(
    config: EasyDict,
    device_target: str,
    cases: list[Case],
    val_cases: list[Case],
    ranks: Ranks,
) -> Setup:
    """Reads the cases, and creates the network with its optimizer; arguments as `train`.

    Sets the seed, and `config.plane` to the plane of the training stacks.

    Raises:
        DataError: an image or mask is wrong, or memory is too small.
    """
    ms.set_seed(config.seed)
    network = create_vnet(config, sync_batch_norm=config.sync_batch_norm and ranks.count > 1)
    network = to_fast_vnet(network, config, device_target)
    budget_bytes = VALIDATION_BYTES
    if device_target == "CPU":
        free_bytes = check_training_fits(config, network, len(cases), bool(val_cases))
        budget_bytes = min(budget_bytes, free_bytes)
    drawn = OVERLAYS if config.tensorboard and ranks.is_first else 0
    validation = ValidationSet(val_cases, config, budget_bytes, ranks, drawn)
    volumes = load_training_volumes(cases, config)
    config.plane = training_plane(config, cases, volumes)
    samples = TrainingSamples(volumes, config, network.dropout_channels, ranks.count)
    rates = learning_rates(
        config.lr, samples.steps * config.epochs, config.warmup_step, config.warmup_ratio
    )
    cells = create_cells(network, config, device_target, rates)

    case_ids = [case.case_id for case in cases]
    digests = dict(zip(case_ids, (volume.digest for volume in volumes), strict=True))
    initial_progress = Progress(
        case_ids=case_ids,
        device_num=ranks.count,
        val_case_ids=[case.case_id for case in val_cases],
        fixed={key: config[key] for key in FIXED_BY_RUN},
        digests={**validation.digests, **digests},
        processing=processing_versions(),
    )
    return Setup(samples, validation, cells, rates, initial_progress)


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
    """Trains a V-Net and writes the run's folder.

    Args:
        config: see `src.config`.
        device_target: "Ascend", "GPU" or "CPU", started by `src.devices.device.start_device`.
        data_path: folder with `img/` and `gt/`.
        train_split: file with the names of the training cases, or a folder with such files.
        val_split: the same for the validation cases; None: no validation, no `best.ckpt`.
        run_folder: a run to resume; None: a new one.
        callbacks: called after the training's own.
        ranks: from `start_communication`, if several devices train together. Each takes its share
            of every step and of the validation cases; the first writes the run.

    Returns:
        The run's folder, None on all ranks but the first.

    Raises:
        UsageError: the device does not support the precision or the batch norm, that would have a
            single value per channel, or tensorboardX is missing.
        DataError: a file is wrong, memory is too small, or the loss became NaN.
    """
    device = f"CPU, {processor()}" if device_target == "CPU" else device_target
    log.info(
        f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}: vnet_mindspore {__version__}, "
        f"MindSpore {ms.__version__}, {device}"
    )
    check_batch_norm(config, device_target, ranks.count)
    check_tensorboard(config)
    cases, val_cases = training_and_validation_cases(config, data_path, train_split, val_split)
    if config.early_stop and not val_cases:
        log.info(f"note: early_stop={config.early_stop} has no effect without validation cases")
    samples, validation, cells, rates, initial_progress = prepare(
        config, device_target, cases, val_cases, ranks
    )
    with open_run(run_folder, config, cells, initial_progress, ranks) as (folder, progress):
        if folder is not None:
            record_session(folder, cases, val_cases, device_target, ranks.count, progress.epoch)
        score = validation.mean_dice if val_cases else None
        events = EventLog(folder, validation) if config.tensorboard and folder else None
        epoch_end = EpochEnd(config, cells, progress, rates, score, folder, ranks, events)
        log.info(f"run: {folder}" if ranks.is_first else f"run: rank {ranks.rank} of {ranks.count}")
        if events is not None:
            log.info(f"TensorBoard: tensorboard --logdir {shlex.quote(str(events.folder))}")
        write_status("running", run_folder=str(folder.absolute()) if folder else None)
        log.info(f"============== Starting Training fold {config.fold} ==============")
        with report_lost_ranks(ranks), between_steps(partial(resume_hint, folder)):
            ms.Model(cells.training_cell).train(
                config.epochs,
                create_dataset(samples, progress.epoch, ranks.rank, worker_count(config)),
                callbacks=[TrainingCallback(epoch_end, samples), *callbacks],
                dataset_sink_mode=uses_dataset_sink(config, device_target),
                initial_epoch=progress.epoch,
            )
    return folder
