"""How far rounding may lead, for tests that compare two arithmetics.

Another processor, library or number of threads sums in another order, fuses other products and has
another exp: a layer's values move in their last digits. What becomes of that depends on what is
computed from them, so a bound for it is measured in the test, with weights moved at random by as
much as a layer may err, or follows from the number format. None comes from what one machine shows.
"""

import numpy as np
from mindspore import Tensor

FLOAT32 = np.finfo(np.float32).eps
# Root mean square error, of the values' standard deviation, that test_fast_conv3d_conv3d.py allows
# a layer of the fast convolution.
LAYER_ERROR = 5e-5
# What that makes of the gradient of a parameter, relative to it, in a V-Net: this order.
GRADIENT_ERROR = 1e-3


def perturb(network, error=LAYER_ERROR, seed=4):
    """Moves all parameters of a cell by a relative `error` at random; returns the cell.

    A sum over products with the weights moves by as much, of its standard deviation.
    """
    random = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        value = parameter.asnumpy() * (1 + error * random.standard_normal(parameter.shape))
        parameter.set_data(Tensor(value.astype(parameter.asnumpy().dtype)))
    return network


def assert_same_sums(found, expected, network, volume, error=None):
    """What another library makes of a volume, against a network, which is perturbed here.

    A float32 sum of n random terms, one after the other, errs by sqrt(n / 6) half units of its
    standard deviation, as a random walk's roundings add up; any other order errs less. A library
    whose convolutions transform, as ours, is allowed our layers' `error`.
    """
    terms = max(np.prod(p.shape[1:]) for p in network.get_parameters() if len(p.shape) == 5)
    perturb(network, error or FLOAT32 / 2 * np.sqrt(terms / 6))
    spread = np.abs(network(Tensor(volume)).asnumpy() - expected).max()
    apart = np.abs(found - expected).max()
    assert found.shape == expected.shape and found.dtype == np.float32
    assert expected.std() > 0.01, "a flat answer would hide a fault"
    assert apart < spread < 1e-2


def assert_trained_alike(found, expected, start, steps):
    """Of an optimizer that is linear in the gradient: Adam divides it by its size, noise too.

    Args:
        found, expected, start: name -> weights after the steps, and before; those of `start` count.
        steps: how many; each also rounds the weights themselves.
    """

    def norm(of):
        return np.sqrt(sum(np.square(of(name), dtype=np.float64).sum() for name in start))

    moved = norm(lambda name: expected[name] - start[name])
    allowed = GRADIENT_ERROR * moved + steps * FLOAT32 * norm(lambda name: expected[name])
    assert norm(lambda name: found[name] - expected[name]) < allowed < 0.1 * moved
