"""The network of 2-D operators against the one of 3-D operators, with the same weights."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.export.lowered_vnet import LoweredVNet
from src.vnet import VARIANTS
from tests.networks import computed_once, seeded_vnet
from tests.rounding import assert_same_sums


def cells_of(network):
    return [cell for _, cell in network.cells_and_names()]


@pytest.mark.parametrize(
    ("variant", "width", "shape"),
    [
        # Sides that cannot be confused, slices that must not mix.
        *((variant, 2, (2, 1, 16, 32, 48)) for variant in VARIANTS),
        # channels == X == Y == Z at the first level
        pytest.param("zoo", 16, (1, 1, 16, 16, 16), marks=pytest.mark.full),
    ],
)
def test_it_computes_what_the_network_computes(variant, width, shape):
    network = seeded_vnet(variant, width)
    volume = np.random.default_rng(width).normal(size=shape).astype(np.float32)
    expected = computed_once(network, volume)
    lowered = LoweredVNet(network, shape).set_train(False)
    if variant == "instance":  # one of them compiled to a graph
        found = lowered(ms.Tensor(volume)).asnumpy().copy()
    else:
        found = computed_once(lowered, volume)
    assert_same_sums(found, expected, seeded_vnet(variant, width), volume)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_layer_of_it_is_three_dimensional(variant):
    network = seeded_vnet(variant, 2)
    solid = nn.Conv3d | nn.Conv3dTranspose | nn.BatchNorm3d
    convolutions = sum(isinstance(c, nn.Conv3d | nn.Conv3dTranspose) for c in cells_of(network))
    cells = cells_of(LoweredVNet(network, (1, 1, 16, 16, 16)))
    assert not any(isinstance(cell, solid) for cell in cells)
    assert sum(isinstance(c, nn.Conv2d | nn.Conv2dTranspose) for c in cells) == convolutions
