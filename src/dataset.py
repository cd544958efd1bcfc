"""The training dataset: cases shuffled each epoch, sharded over the ranks, in full batches.

A sample has the index `epoch * samples per epoch + position`. Order, augmentation and dropout
depend on the seed and this index only, so that any step of any epoch can be reproduced.
"""

from collections.abc import Iterator

import mindspore.dataset as ds
import numpy as np
from easydict import EasyDict

from .augment import augment_case
from .data_manager import TrainingVolume
from .dropout import draw_dropout_mask
from .images.intensity import z_score

ORDER_STREAM = 0  # random stream of the seed; src.dropout and src.augment have others


def epoch_order(case_count: int, epoch: int, seed: int, global_batch_size: int) -> np.ndarray:
    """Returns the order of the cases in an epoch.

    A permutation of all cases, drawn from (seed, epoch). Its first cases are repeated at the end to
    fill the last batch. No batch holds a case twice unless it is larger than the number of cases.

    Args:
        case_count: number of training cases.
        epoch: counted from 0.
        seed: of the training.
        global_batch_size: samples per step of the optimizer, over all ranks.

    Returns:
        (samples per epoch,) int64 case indices; the length is a multiple of `global_batch_size`.

    Raises:
        ValueError: `case_count` or `global_batch_size` is below 1.
    """
    if case_count < 1 or global_batch_size < 1:
        raise ValueError(
            f"{case_count} cases in batches of {global_batch_size}, expected 1 or more"
        )
    order = np.random.default_rng((seed, ORDER_STREAM, epoch)).permutation(case_count)
    return np.resize(order, -(-case_count // global_batch_size) * global_batch_size)


class TrainingSamples:
    """Sample index -> (image (1, X, Y, Z), mask (X, Y, Z)[, dropout mask (channels,)]), float32.

    Args:
        volumes: of all training cases, from `src.data_manager.load_training_volumes`.
        config: `batch_size`, `accumulate_steps`, `seed`, `dropout`, `dstRes`, `augment_NAME`.
        dropout_channels: number of channels with dropout in the network.
        ranks: number of processes that share each step.

    Raises:
        ValueError: there are no volumes, or their shapes differ.

    Attributes:
        global_batch_size: samples per step of the optimizer, over all ranks.
        steps: steps per epoch.
    """

    def __init__(
        self,
        volumes: list[TrainingVolume],
        config: EasyDict,
        dropout_channels: int,
        ranks: int = 1,
    ) -> None:
        shapes = {np.shape(array) for volume in volumes for array in volume[:2]}
        if len(shapes) != 1 or len(*shapes) != 3:
            raise ValueError(f"volumes of shapes {sorted(shapes)}, expected the same (X, Y, Z)")
        self.volumes = volumes
        self.batch_size = config.batch_size
        self.global_batch_size = config.batch_size * config.accumulate_steps * ranks
        self.ranks = ranks
        self.config = config
        self.dropout_channels = dropout_channels if config.dropout else 0
        self.per_epoch = len(self.order(0))
        self.steps = self.per_epoch // self.global_batch_size

    def order(self, epoch: int) -> np.ndarray:
        """Returns the indices into `volumes` of an epoch, see `epoch_order`."""
        return epoch_order(len(self.volumes), epoch, self.config.seed, self.global_batch_size)

    def batch(self, epoch: int, step: int) -> np.ndarray:
        """Returns the indices into `volumes` of a global batch; epoch and step count from 0."""
        return self.order(epoch)[step * self.global_batch_size :][: self.global_batch_size]

    def __len__(self) -> int:
        return self.per_epoch

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        index = int(index)
        epoch, position = divmod(index, self.per_epoch)
        case = int(self.order(epoch)[position])
        repeat = position // len(self.volumes)
        intensity, mask = augment_case(self.volumes, case, epoch, self.config, repeat)
        sample = (z_score(intensity)[None], mask.astype(np.float32))
        if not self.dropout_channels:
            return sample
        seed, rate = self.config.seed, self.config.dropout
        return *sample, draw_dropout_mask(seed, index, self.dropout_channels, rate)


class EpochSampler(ds.Sampler):
    """Yields the sample indices of one rank; each iteration is an epoch, from `first_epoch` on.

    The batches of an epoch are dealt to the ranks in turn. Consecutive samples are different cases,
    so no rank's batch holds a case twice unless it is larger than the number of cases.

    It does not hold the samples: MindSpore copies a sampler with all that it has.

    Args:
        per_epoch: samples per epoch, of all ranks.
        first_epoch: number of epochs already trained.
        batch_size: samples per batch and rank.
        rank: of this process, below `ranks`.
        ranks: number of processes.
    """

    def __init__(
        self, per_epoch: int, first_epoch: int, batch_size: int, rank: int, ranks: int
    ) -> None:
        super().__init__(per_epoch // ranks)
        self.per_epoch = per_epoch
        self.epoch = first_epoch
        self.batch_size = batch_size
        self.rank = rank
        self.ranks = ranks

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.per_epoch
        self.epoch += 1
        turns = np.arange(start, start + self.per_epoch).reshape(-1, self.ranks, self.batch_size)
        return iter(turns[:, self.rank].ravel().tolist())


def create_dataset(
    samples: TrainingSamples, first_epoch: int = 0, rank: int = 0, workers: int = 1
) -> ds.Dataset:
    """Creates the training dataset of one rank.

    Args:
        samples: of all cases.
        first_epoch: number of epochs already trained.
        rank: of this process, below `samples.ranks`.
        workers: number of threads that prepare samples.

    Returns:
        Columns image (batch, 1, X, Y, Z), mask (batch, X, Y, Z) and, with dropout,
        dropout mask (batch, channels).
    """
    columns = ["image", "mask"] + (["dropout_mask"] if samples.dropout_channels else [])
    dataset = ds.GeneratorDataset(
        samples,
        columns,
        sampler=EpochSampler(len(samples), first_epoch, samples.batch_size, rank, samples.ranks),
        num_parallel_workers=workers,
        python_multiprocessing=False,
    )
    return dataset.batch(samples.batch_size, drop_remainder=True)
