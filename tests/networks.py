"""Small networks with known weights, and training steps of known gradients."""

from contextlib import contextmanager

import mindspore as ms
import numpy as np
from mindspore import nn

from src.acceptance.golden import seeded
from src.checkpoint import TrainingCells
from src.training.step import AccumulatingLossScaledStep, LossScaledStep
from src.vnet import VARIANTS, VNet


@contextmanager
def in_mode(mode):
    """Computes the block in ms.GRAPH_MODE or ms.PYNATIVE_MODE."""
    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        yield
    finally:
        ms.set_context(mode=before)


def seed_weights(network):
    """Draws every parameter of a network by its name; returns the network."""
    for parameter in network.get_parameters():
        parameter.set_data(ms.Tensor(seeded.parameter(parameter.name, parameter.shape)))
    return network


def seeded_vnet(variant, width):
    """A V-Net for inference whose weights depend on their names alone."""
    return seed_weights(VNet(VARIANTS[variant], width).set_train(False))


def computed_once(network, volume):
    """A network's output, in PyNative mode: to compile a graph for one call takes longer."""
    with in_mode(ms.PYNATIVE_MODE):
        return network(ms.Tensor(volume)).asnumpy().copy()


def dense_cells(with_average=False):
    """A network of one weight, its training step, and perhaps an average."""
    network, average = nn.Dense(1, 1, has_bias=False), nn.Dense(1, 1, has_bias=False)
    step = nn.TrainOneStepCell(network, nn.Adam(network.trainable_params()))
    return TrainingCells(network, step, average if with_average else None)


def bright(batch):
    """A network that knows the synthetic cases: their gland is brighter than all else."""
    return ms.Tensor((batch.asnumpy()[:, 0] > 0.8).astype(np.float32))


def counting():
    """`bright`, and a list of the batches that it was asked for."""
    asked = []

    def network(batch):
        asked.append(batch)
        return bright(batch)

    return network, asked


class WeightedMean(nn.Cell):
    """The mean of w * x: the gradient of w is the mean of x."""

    def __init__(self):
        super().__init__()
        self.w = ms.Parameter(ms.Tensor([1.0], ms.float32), "w")

    def construct(self, x):
        return (self.w * x).mean()


def scaled_step(batches, scale=256.0, window=3, rate=0.5):
    """A step of SGD on `WeightedMean` with a dynamic loss scale, over several batches if asked."""
    network = WeightedMean()
    optimizer = nn.SGD(network.trainable_params(), rate)
    scale = nn.DynamicLossScaleUpdateCell(scale, scale_factor=2, scale_window=window)
    if batches > 1:
        return AccumulatingLossScaledStep(network, optimizer, scale, batches).set_train()
    return LossScaledStep(network, optimizer, scale).set_train()
