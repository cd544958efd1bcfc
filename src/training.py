"""A training, from the configuration to a run's folder."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np
from easydict import EasyDict
from mindspore import nn

from src import checkpoint
from src.callbacks import EarlyStop, EpochLog, Progress, RunRecorder, Validation
from src.config import CONFIG_NAME, save_config
from src.data_manager import load_training_volumes, read_case, worker_count
from src.dataset import TrainingSamples, create_dataset
from src.device import apply_precision, uses_mixed_precision
from src.errors import DataError, UsageError
from src.evaluation import mean_dice
from src.fast_conv3d.network import accelerated
from src.loss import DiceLoss
from src.lr_schedule import learning_rates
from src.memory import check_training_fits
from src.run_folder import held, new_run_folder
from src.splits import split_cases
from src.vnet import create_vnet


class LossCell(nn.Cell):
    """The network and its loss on one batch."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = DiceLoss()

    def construct(self, image, mask, keep=None):
        return self.loss(self.network(image, keep), mask)


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


def create_training_cell(
    network: nn.Cell, optimizer: nn.Optimizer, config: EasyDict, device_target: str
) -> nn.Cell:
    """One step of training: forward, backward, optimizer; with a loss scale in mixed precision.

    Raises:
        UsageError: mixed precision on a CPU, where MindSpore cannot tell an overflow.
    """
    if not uses_mixed_precision(config, device_target):
        return nn.TrainOneStepCell(LossCell(network), optimizer).set_train()
    if device_target == "CPU":
        raise UsageError("precision=mixed trains on Ascend and GPU only; on CPU take float32")
    apply_precision(network, config, device_target)
    scale = nn.DynamicLossScaleUpdateCell(config.loss_scale, scale_factor=2, scale_window=1000)
    return nn.TrainOneStepWithLossScaleCell(LossCell(network), optimizer, scale).set_train()


def sinks_dataset(config: EasyDict, device_target: str) -> bool:
    """Whether whole epochs go to the device at once: unless turned off; CPU has no sink."""
    return config.dataset_sink != "off" and device_target != "CPU"


def open_run(
    run_folder: Path,
    config: EasyDict,
    network: nn.Cell,
    training_cell: nn.Cell,
    case_ids: list[str],
) -> Progress:
    """Brings a run back to its last checkpoint, and keeps what its configuration is from now on.

    Args:
        run_folder: the run, held by this process.
        config: to go on with.
        network, training_cell: get the run's values.
        case_ids: of the training cases, which must be those the run was started with.

    Returns:
        How far it is; a run that died before its first checkpoint starts again.

    Raises:
        UsageError: all epochs are trained.
        DataError: other cases, or a checkpoint that does not fit.
    """
    progress = Progress(case_ids=case_ids)
    if checkpoint.can_resume(run_folder / "ckpt"):
        progress = Progress(**checkpoint.load_last(run_folder / "ckpt", network, training_cell))
        if progress.case_ids != case_ids:
            odd = sorted(set(progress.case_ids) ^ set(case_ids)) or ["their order"]
            raise DataError(
                f"{run_folder}: was started with other training cases ({odd[0]} differs); "
                "resume with the same split"
            )
        if progress.epoch >= config.epochs:
            raise UsageError(
                f"{run_folder}: all {config.epochs} epochs are trained; for more, --set epochs=N"
            )
        print(f"resuming {run_folder} after epoch {progress.epoch}")
    else:
        print(f"resuming {run_folder} from its beginning: it has no checkpoint yet")
    save_config(config, run_folder / CONFIG_NAME)
    return progress


def train(
    config: EasyDict,
    device_target: str,
    data_path: str | Path,
    train_split: str | Path,
    val_split: str | Path | None = None,
    run_folder: str | Path | None = None,
    callbacks: Sequence[ms.Callback] = (),
) -> Path:
    """Trains a V-Net; all that comes of it lies in the run's folder.

    Args:
        config: see `src.config`.
        device_target: "Ascend", "GPU" or "CPU", started by `src.device.start_device`.
        data_path: folder with `img/` and `gt/`.
        train_split: file with the names of the training cases, or a folder with such files.
        val_split: those of the validation cases; None: no validation, no `best.ckpt`.
        run_folder: a run to go on with; None: a new one.
        callbacks: called after the run's own.

    Returns:
        The run's folder.

    Raises:
        UsageError: a precision that the device has not.
        DataError: a file is at fault, memory is too small, or the loss became NaN.
    """
    cases = split_cases(data_path, train_split, "train", config.fold)
    val_cases = split_cases(data_path, val_split, "val", config.fold) if val_split else []
    shared = {case.case_id for case in cases} & {case.case_id for case in val_cases}
    if shared:
        print(f"note: {len(shared)} validation case(s) are also trained on, {min(shared)} for one")
    ms.set_seed(config.seed)
    network = accelerated(create_vnet(config), config, device_target)
    if device_target == "CPU":
        check_training_fits(config, network)
    for case in val_cases:
        read_case(case)  # a broken file stops the run now, not after the first epochs
    volumes = load_training_volumes(cases, config)
    samples = TrainingSamples(volumes, config, network.dropout_channels)
    rates = learning_rates(
        config.lr, samples.steps * config.epochs, config.warmup_step, config.warmup_ratio
    )
    optimizer = create_optimizer(network, config, rates)
    training_cell = create_training_cell(network, optimizer, config, device_target)

    case_ids = [case.case_id for case in cases]
    is_new = run_folder is None
    run_folder = new_run_folder(config) if is_new else Path(run_folder)
    with held(run_folder):
        progress = (
            Progress(case_ids=case_ids)
            if is_new
            else open_run(run_folder, config, network, training_cell, case_ids)
        )
        run_callbacks = [EpochLog(progress, rates, samples, run_folder)]
        if val_cases:
            score = partial(mean_dice, network, val_cases, config)
            run_callbacks.append(Validation(progress, network, score, run_folder, config))
        run_callbacks.append(RunRecorder(progress, network, training_cell, run_folder, config))
        if val_cases and config.early_stop:
            run_callbacks.append(EarlyStop(progress, config.early_stop))

        print(f"run: {run_folder}")
        print(f"============== Starting Training fold {config.fold} ==============", flush=True)
        ms.Model(training_cell).train(
            config.epochs,
            create_dataset(samples, progress.epoch, workers=worker_count(config)),
            callbacks=[*run_callbacks, *callbacks],
            dataset_sink_mode=sinks_dataset(config, device_target),
            initial_epoch=progress.epoch,
        )
    return run_folder
