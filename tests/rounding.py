"""Bounds for rounding differences, for tests that compare two implementations of one computation.

Another processor, library or number of threads sums in another order, fuses other products and has
another exp, so a layer's values differ in their last digits. How much this changes a result depends
on the computation. A bound is therefore measured in the test, with weights perturbed at random by
as much as a layer may err, or follows from the number format; none is fitted to one machine.
"""

import numpy as np
from mindspore import Tensor

from tests.networks import computed_once

FLOAT32 = np.finfo(np.float32).eps
# Root mean square error that fast_conv3d/test_conv3d.py allows a layer of the fast convolution, in
# standard deviations of its values.
LAYER_ERROR = 5e-5
# Order of the relative error that this causes in the gradient of a parameter of a V-Net.
GRADIENT_ERROR = 1e-3


def perturb(network, error=LAYER_ERROR, seed=4):
    """Changes all parameters of a cell at random by a relative `error`; returns the cell.

    A sum over products with the weights changes by this share of its standard deviation.
    """
    random = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        value = parameter.asnumpy() * (1 + error * random.standard_normal(parameter.shape))
        parameter.set_data(Tensor(value.astype(parameter.asnumpy().dtype)))
    return network


def assert_same_sums(found, expected, network, volume, error=None):
    """Compares another library's output for a volume with a network's own.

    The allowed difference is that of the network after `perturb`, which changes its weights for
    good.

    A float32 sum of n random terms, one after the other, errs by sqrt(n / 6) half units in the last
    place of its standard deviation, since the roundings add up as in a random walk; any other order
    errs less. A library whose convolutions transform, as ours, may have our layers' `error`.
    """
    terms = max(np.prod(p.shape[1:]) for p in network.get_parameters() if len(p.shape) == 5)
    perturb(network, error or FLOAT32 / 2 * np.sqrt(terms / 6))
    spread = np.abs(computed_once(network, volume) - expected).max()
    apart = np.abs(found - expected).max()
    assert found.shape == expected.shape and found.dtype == np.float32
    assert expected.std() > 0.01, "a flat output would hide a fault"
    assert apart < spread < 1e-2


def assert_trained_alike(found, expected, start, steps):
    """Compares the weights of two trainings with an optimizer that is linear in the gradient.

    Not for Adam, which divides the gradient by its size and so enlarges noise.

    Args:
        found, expected: name -> weights after the steps.
        start: name -> weights before them; only these names are compared.
        steps: number of steps; each also rounds the weights themselves.
    """

    def norm(of):
        return np.sqrt(sum(np.square(of(name), dtype=np.float64).sum() for name in start))

    moved = norm(lambda name: expected[name] - start[name])
    allowed = GRADIENT_ERROR * moved + steps * FLOAT32 * norm(lambda name: expected[name])
    assert norm(lambda name: found[name] - expected[name]) < allowed < 0.1 * moved
