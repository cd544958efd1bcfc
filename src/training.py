"""A training, from the configuration to a run's folder."""

from functools import partial

import mindspore as ms
from mindspore import nn

from src import checkpoint
from src.callbacks import EarlyStop, EpochLog, Progress, RunRecorder, Validation
from src.data_manager import load_training_volumes, read_case, worker_count
from src.dataset import TrainingSamples, create_dataset
from src.device import apply_precision
from src.errors import UsageError
from src.evaluation import mean_dice
from src.loss import DiceLoss
from src.lr_schedule import learning_rates
from src.memory import check_training_fits
from src.run_folder import new_run_folder
from src.splits import split_cases
from src.vnet import create_vnet


class LossCell(nn.Cell):
    """The network and its loss on one batch."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = DiceLoss()

    def construct(self, image, mask, keep=None):
        return self.loss(self.network(image, keep), mask)


def create_optimizer(network, config, rates):
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


def create_training_cell(network, optimizer, config, device_target):
    """One step of training: forward, backward, optimizer; with a loss scale in mixed precision."""
    if not apply_precision(network, config, device_target):
        return nn.TrainOneStepCell(LossCell(network), optimizer).set_train()
    scale = nn.DynamicLossScaleUpdateCell(config.loss_scale, scale_factor=2, scale_window=1000)
    return nn.TrainOneStepWithLossScaleCell(LossCell(network), optimizer, scale).set_train()


def sinks_dataset(config, device_target):
    """Whether whole epochs go to the device at once; CPU has no sink."""
    return config.dataset_sink != "off" and device_target != "CPU"


def restore(run_folder, network, training_cell, epochs):
    """Brings a run back to its last checkpoint.

    Returns:
        Its `Progress`; a run that died before its first checkpoint starts again.

    Raises:
        UsageError: all epochs are trained.
    """
    if not checkpoint.can_resume(run_folder / "ckpt"):
        print(f"resuming {run_folder} from its beginning: it has no checkpoint yet")
        return Progress()
    progress = Progress(**checkpoint.load_last(run_folder / "ckpt", network, training_cell))
    if progress.epoch >= epochs:
        raise UsageError(f"{run_folder}: all {epochs} epochs are trained; for more, --set epochs=N")
    print(f"resuming {run_folder} after epoch {progress.epoch}")
    return progress


def train(config, device, data_path, train_split, val_split=None, run_folder=None, callbacks=()):
    """Trains a V-Net; all that comes of it lies in the run's folder.

    Args:
        config: EasyDict, see `src.config`.
        device: from `src.device.start_device`.
        data_path: folder with `img/` and `gt/`.
        train_split: file with the names of the training cases, or a folder with such files.
        val_split: those of the validation cases; None: no validation, no `best.ckpt`.
        run_folder: a run to go on with; None: a new one.
        callbacks: further MindSpore callbacks.

    Returns:
        The run's folder.

    Raises:
        DataError: a file is at fault, memory is too small, or the loss became NaN.
    """
    cases = split_cases(data_path, train_split, "train", config.fold)
    val_cases = split_cases(data_path, val_split, "val", config.fold) if val_split else []
    ms.set_seed(config.seed)
    network = create_vnet(config)
    if device.target == "CPU":
        check_training_fits(config, network)
    for case in val_cases:
        read_case(case)  # a broken file stops the run now, not after the first epochs
    volumes = load_training_volumes(cases, config)
    samples = TrainingSamples(volumes, config, network.dropout_channels, device.ranks)
    rates = learning_rates(
        config.lr, samples.steps * config.epochs, config.warmup_step, config.warmup_ratio
    )
    optimizer = create_optimizer(network, config, rates)
    training_cell = create_training_cell(network, optimizer, config, device.target)
    if run_folder is None:
        progress, run_folder = Progress(), new_run_folder(config)
    else:
        progress = restore(run_folder, network, training_cell, config.epochs)

    def batch_cases(epoch, step):
        return [cases[index].case_id for index in samples.batch(epoch, step)]

    keepers = [EpochLog(progress, rates, batch_cases, run_folder)]
    if val_cases:
        score = partial(mean_dice, network, val_cases, config)
        keepers.append(Validation(progress, network, score, run_folder, config))
    keepers.append(RunRecorder(progress, network, training_cell, run_folder, config))
    if val_cases and config.early_stop:
        keepers.append(EarlyStop(progress, config.early_stop))

    print(f"run: {run_folder}")
    print(f"============== Starting Training fold {config.fold} ==============", flush=True)
    ms.Model(training_cell).train(
        config.epochs,
        create_dataset(samples, progress.epoch, device.rank, worker_count(config)),
        callbacks=[*keepers, *callbacks],
        dataset_sink_mode=sinks_dataset(config, device.target),
        initial_epoch=progress.epoch,
    )
    return run_folder
