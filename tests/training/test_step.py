"""The loss scale: overflows and recovery, alone and over several batches, on a CPU.

That all ranks skip the same steps is in test_ranks.py, that GPUs compile it in test_gpu_standin.py.
"""

import mindspore as ms
import numpy as np
import pytest

from tests.networks import scaled_step


def trajectory(step, values):
    """Weight, overflow and loss scale after a step with each value."""
    found = []
    for value in values:
        _, overflow, _ = step(ms.Tensor(np.full((2, 3), value, np.float32)))
        weight = float(step.network.w.asnumpy()[0])
        found.append((weight, bool(overflow), float(step.scale_sense.asnumpy())))
    return found


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 3e38])
def test_an_overflow_skips_the_step_and_halves_the_scale(bad):
    """3e38 overflows only with its scale. Three good steps later the scale doubles."""
    assert trajectory(scaled_step(1), [1, bad, 2, 1, 1, 1]) == [
        (0.5, False, 256),
        (0.5, True, 128),
        (-0.5, False, 128),
        (-1.0, False, 128),
        (-1.5, False, 256),
        (-2.0, False, 256),
    ]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_scale_does_not_change_what_is_trained(scale):
    weights = [weight for weight, *_ in trajectory(scaled_step(1, scale, 1000), [1, 2, 0.5])]
    assert weights == [0.5, -0.5, -0.75]


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 1])
def test_one_overflow_skips_all_batches_of_a_step(bad, place):
    values = [1, 3, 1, 3, 2, 2]
    values[2 + place] = bad
    weights, overflows, scales = zip(*trajectory(scaled_step(2), values), strict=True)
    assert weights == (1, 0, 0, 0, 0, -1)  # steps of half the mean of each pair
    assert overflows == (False, False, False, True, False, False)
    assert scales == (256, 256, 256, 128, 128, 128)
