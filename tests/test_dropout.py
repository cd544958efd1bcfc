"""Dropout masks: the share dropped, and that they follow from seed and sample."""

import numpy as np
import pytest

from src.dropout import draw_dropout_mask


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_the_share_and_keeps_the_mean(rate):
    keep = draw_dropout_mask(1, 0, 20000, rate)
    assert keep.dtype == np.float32
    assert set(np.unique(keep)) == {np.float32(0), np.float32(1 / (1 - rate))}
    deviation = np.sqrt(rate * (1 - rate) / 20000)
    assert abs((keep == 0).mean() - rate) < 4 * deviation
    assert abs(keep.mean() - 1) < 4 * deviation / (1 - rate)


def test_dropout_follows_from_seed_and_sample():
    draws = {
        (seed, index): draw_dropout_mask(seed, index, 64, 0.5)
        for seed in (1, 2)
        for index in range(50)
    }
    assert len({draw.tobytes() for draw in draws.values()}) == 100
    for (seed, index), draw in draws.items():
        np.testing.assert_array_equal(draw, draw_dropout_mask(seed, index, 64, 0.5))
    overlap = np.mean([np.mean(draws[1, i] == draws[1, i + 1]) for i in range(49)])
    assert abs(overlap - 0.5) < 0.05  # neighbours are no more alike than chance


def test_order_and_dropout_do_not_share_their_random_numbers():
    uniform = np.random.default_rng((1, 0, 0)).random(64)
    assert not np.array_equal(draw_dropout_mask(1, 0, 64, 0.5) == 0, uniform < 0.5)
