"""Order, shards and dropout of the samples, as the real MindSpore dataset yields them."""

from collections import Counter

import numpy as np
import pytest

from src.data_manager import TrainingVolume
from src.dataset import TrainingSamples, create_dataset, epoch_order
from src.images.intensity import z_score


def numbered_volumes(count):
    """Volumes whose brightest voxel is that of their number, which alone is in the mask."""
    masks = [np.arange(24).reshape(2, 3, 4) == number for number in range(count)]
    return [
        TrainingVolume(np.where(mask, 1, 0.5).astype(np.float32), mask, "axial") for mask in masks
    ]


def numbers_of(images):
    """Case numbers of a batch (batch, 1, X, Y, Z)."""
    return images.reshape(len(images), -1).argmax(axis=1).tolist()


def samples_of(small_config, count=5, ranks=1, channels=0, *overrides):
    return TrainingSamples(numbered_volumes(count), small_config(*overrides), channels, ranks)


def epochs_of(samples, first_epoch, count, rank=0, workers=1):
    """Case numbers of each batch of each epoch."""
    dataset = create_dataset(samples, first_epoch, rank, workers)
    iterator = dataset.create_tuple_iterator(num_epochs=count, output_numpy=True)
    return [[numbers_of(batch[0]) for batch in iterator] for _ in range(count)]


@pytest.mark.parametrize(
    "count, batch, ranks", [(5, 2, 1), (6, 2, 1), (7, 3, 2), (1, 1, 1), (9, 4, 1)]
)
def test_each_epoch_takes_every_case_once_up_to_padding(small_config, count, batch, ranks):
    samples = samples_of(small_config, count, ranks, 0, f"batch_size={batch}")
    assert samples.steps == -(-count // (batch * ranks))
    for rank in range(ranks):
        dataset = create_dataset(samples, rank=rank)
        assert dataset.get_dataset_size() == samples.steps
    epochs = [epochs_of(samples, 0, 3, rank) for rank in range(ranks)]
    for epoch in range(3):
        batches = [numbers for rank in epochs for numbers in rank[epoch]]
        assert all(len(numbers) == batch for numbers in batches)
        seen = Counter(number for numbers in batches for number in numbers)
        padding = samples.steps * batch * ranks - count
        assert set(seen) == set(range(count))
        assert sorted(seen.values()) == [1] * (count - padding) + [2] * padding


@pytest.mark.parametrize("count, batch", [(5, 4), (9, 8), (7, 3), (8, 8), (4, 4)])
def test_no_batch_holds_a_case_twice_where_avoidable(count, batch):
    for epoch in range(20):
        for numbers in epoch_order(count, epoch, 1, batch).reshape(-1, batch):
            assert len(set(numbers)) == batch


def test_a_batch_larger_than_the_cases_repeats_them_evenly():
    order = epoch_order(3, 0, 1, 8)
    assert sorted(Counter(order.tolist()).values()) == [2, 3, 3]


def test_order_follows_from_seed_and_epoch():
    orders = {
        (seed, epoch): tuple(epoch_order(12, epoch, seed, 4))
        for seed in (1, 2)
        for epoch in range(6)
    }
    assert len(set(orders.values())) == len(orders)
    again = {key: tuple(epoch_order(12, key[1], key[0], 4)) for key in reversed(orders)}
    assert again == orders
    first = Counter(order[0] for order in (epoch_order(4, epoch, 1, 4) for epoch in range(400)))
    assert all(70 < first[case] < 130 for case in range(4))  # 100 each, 8.7 standard deviation


def test_the_seed_of_the_configuration_rules_the_order(small_config):
    first, second = (samples_of(small_config, 12, 1, 0, f"seed={seed}") for seed in (1, 2))
    assert epochs_of(first, 0, 2) != epochs_of(second, 0, 2)
    assert epochs_of(first, 0, 2) == epochs_of(samples_of(small_config, 12), 0, 2)


def test_batch_names_the_cases_of_a_global_batch(small_config):
    samples = samples_of(small_config, 7, 2)
    ranks = [epochs_of(samples, 0, 2, rank) for rank in range(2)]
    for epoch in range(2):
        for step in range(samples.steps):
            together = [number for rank in ranks for number in rank[epoch][step]]
            assert sorted(samples.batch(epoch, step).tolist()) == sorted(together)


@pytest.mark.parametrize("ranks, workers", [(1, 1), (1, 2), (2, 1)])
def test_a_later_start_goes_on_as_if_never_stopped(small_config, ranks, workers):
    samples = samples_of(small_config, 5, ranks)
    for rank in range(ranks):
        whole = epochs_of(samples, 0, 5, rank, workers)
        for first_epoch in (1, 3):
            rest = epochs_of(samples, first_epoch, 5 - first_epoch, rank, workers)
            assert rest == whole[first_epoch:]
        assert len({str(epoch) for epoch in whole}) == 5


@pytest.mark.parametrize(
    ("count", "batch", "ranks"), [(2, 2, 2), (3, 2, 2), (3, 3, 4), (5, 2, 8), (7, 4, 2)]
)
def test_no_batch_of_a_rank_holds_a_case_twice(small_config, count, batch, ranks):
    """However many ranks there are, as long as there are as many cases as a batch takes."""
    samples = samples_of(small_config, count, ranks, 0, f"batch_size={batch}")
    for rank in range(ranks):
        for epoch in epochs_of(samples, 0, 3, rank):
            assert all(len(set(numbers)) == batch for numbers in epoch)


def test_accumulated_batches_are_part_of_one_step(small_config):
    samples = samples_of(small_config, 10, 2, 0, "batch_size=2", "accumulate_steps=3")
    assert samples.global_batch_size == 12
    assert samples.steps == 1
    assert create_dataset(samples).get_dataset_size() == 3


def test_ranks_are_disjoint_and_together_one_process_with_their_batch(small_config):
    """Four ranks with batch 2 see in each step what one process with batch 8 sees."""
    alone = epochs_of(samples_of(small_config, 16, 1, 0, "batch_size=8"), 0, 2)
    shared = samples_of(small_config, 16, 4)
    ranks = [epochs_of(shared, 0, 2, rank) for rank in range(4)]
    for epoch in range(2):
        for step in range(shared.steps):
            parts = [set(rank[epoch][step]) for rank in ranks]
            assert sum(map(len, parts)) == len(set.union(*parts)) == 8
            assert set.union(*parts) == set(alone[epoch][step])


def test_columns_shapes_and_values(small_config):
    samples = samples_of(small_config, 5, 1, 6)
    dataset = create_dataset(samples)
    assert dataset.get_col_names() == ["image", "mask", "dropout_mask"]
    for image, mask, keep in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
        assert (image.shape, mask.shape, keep.shape) == ((2, 1, 2, 3, 4), (2, 2, 3, 4), (2, 6))
        assert {image.dtype, mask.dtype, keep.dtype} == {np.dtype(np.float32)}
        for number, volume, truth in zip(numbers_of(image), image[:, 0], mask, strict=True):
            expected = numbered_volumes(5)[number]
            np.testing.assert_array_equal(volume, z_score(expected.intensity))
            np.testing.assert_array_equal(truth, expected.mask)


def test_a_case_that_fills_up_a_batch_is_augmented_anew(small_config):
    samples = samples_of(small_config, 3, 1, 0, "batch_size=4", "augment_noise=1")
    first, *_, again = (samples[index] for index in range(4))
    assert (first[1] == again[1]).all(), "the same case"
    assert (first[0] != again[0]).any()


# Dropout ----------------------------------------------------------------------------------------


def keeps(samples, first_epoch, count):
    iterator = create_dataset(samples, first_epoch).create_tuple_iterator(
        num_epochs=count, output_numpy=True
    )
    return [np.concatenate([batch[2] for batch in iterator]) for _ in range(count)]


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_samples_carry_the_dropout_of_the_configuration(small_config, rate):
    samples = samples_of(small_config, 5, 1, 1000, f"dropout={rate}")
    whole = keeps(samples, 0, 3)
    rows = np.concatenate(whole)
    assert abs((rows == 0).mean() - rate) < 0.02
    assert rows.max() == np.float32(1 / (1 - rate))
    assert len({row.tobytes() for row in rows}) == 18  # six samples an epoch, none like another
    np.testing.assert_array_equal(keeps(samples, 1, 2), whole[1:])
    other_seed = samples_of(small_config, 5, 1, 1000, f"dropout={rate}", "seed=2")
    assert (keeps(other_seed, 0, 1)[0] != whole[0]).any()


@pytest.mark.parametrize("channels, rate", [(6, 0), (0, 0.5)])
def test_no_keep_column_without_dropout(small_config, channels, rate):
    samples = samples_of(small_config, 5, 1, channels, f"dropout={rate}")
    dataset = create_dataset(samples)
    assert dataset.get_col_names() == ["image", "mask"]
    batch = next(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))
    assert len(batch) == 2
