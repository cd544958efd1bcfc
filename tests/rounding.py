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


def perturb(network, error=LAYER_ERROR, seed=4):
    """Moves all parameters of a cell by a relative `error` at random; returns the cell.

    A sum over products with the weights moves by as much, of its standard deviation.
    """
    random = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        value = parameter.asnumpy() * (1 + error * random.standard_normal(parameter.shape))
        parameter.set_data(Tensor(value.astype(parameter.asnumpy().dtype)))
    return network
