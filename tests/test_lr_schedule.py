"""The schedule against the formula written out step by step."""

import math

import numpy as np
import pytest

from src.lr_schedule import learning_rates


def expected_rate(step, lr, total, warmup, ratio):
    """Two points of a line, then cos^2 of a quarter turn."""
    if step < warmup:
        first = ratio * lr
        return first + (lr - first) * step / warmup
    return lr * math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2


@pytest.mark.parametrize(
    "lr, total, warmup_step, ratio, warmup",
    [
        (0.001, 5000, 120, 0.3, 120),
        (0.0005, 240, 120, 0.3, 120),
        (0.001, 121, 120, 0.3, 60),  # at most half of the steps warm up
        (0.001, 120, 120, 0.3, 60),
        (0.001, 119, 120, 0.3, 59),
        (0.01, 4, 120, 0.0, 2),
        (0.01, 1, 120, 0.3, 0),
        (0.01, 1, 0, 0.3, 0),
        (0.01, 1, 1, 0.3, 0),
        (0.01, 7, 0, 0.3, 0),
        (0.01, 9, 1, 1.0, 1),
    ],
)
def test_every_step_equals_the_closed_form(lr, total, warmup_step, ratio, warmup):
    rates = learning_rates(lr, total, warmup_step, ratio)
    expected = [expected_rate(step, lr, total, warmup, ratio) for step in range(total)]
    assert rates.shape == (total,) and rates.dtype == np.float32
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-12)
