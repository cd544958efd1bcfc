"""Writes zoo.npz, what the model zoo's own V-Net computes from seeded weights; needs MindSpore.

The zoo's file is research/cv/vnet/src/vnet.py of https://github.com/mindspore-ai/models:

    python tests/golden/make_zoo.py models/research/cv/vnet/src/vnet.py
"""

import importlib.util
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import golden_file  # noqa: E402

from src.acceptance.golden import GOLDEN, seeded  # noqa: E402


class Keep(nn.Cell):
    """Stands for ops.Dropout3D, which returns a pair; multiplies by given factors."""

    def __init__(self, stage, place, channels):
        super().__init__()
        self.dropout_mask = ms.Tensor(
            golden_file.dropout_mask(stage, place, channels)[:, :, None, None, None]
        )

    def construct(self, x):
        return x * self.dropout_mask, None


def zoo_module(path):
    spec = importlib.util.spec_from_file_location("zoo_vnet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seeded_net(module):
    """The zoo's network without dropout, every parameter drawn from the seed and its name."""
    net = module.VNet(dropout=False)
    for parameter in net.get_parameters():
        parameter.set_data(ms.Tensor(seeded.parameter(parameter.name, parameter.shape)))
    return net


def dice_loss(p, g, epsilon=1e-5):
    p, g = p.reshape(p.shape[0], -1), g.reshape(g.shape[0], -1)
    return (1 - (2 * (p * g).sum(1) + epsilon) / ((p * p).sum(1) + (g * g).sum(1) + epsilon)).mean()


def dropout_probability(net, volume):
    """The evaluated probability with the channels dropped that `golden_file.dropout_mask` says."""
    for stage in ("down_tr128", "down_tr256", "up_tr256", "up_tr128"):
        cell = getattr(net, stage)
        cell.dropout = True
        if stage.startswith("down"):
            cell.dropout_op = Keep(stage, "down", cell.down_conv.out_channels)
        else:
            cell.dropout_op1 = Keep(stage, "up", cell.up_conv.in_channels)
            cell.dropout_op2 = Keep(stage, "skip", cell.up_conv.out_channels)
    return net(volume)


def main(vnet_py):
    ms.set_device("CPU")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    module = zoo_module(vnet_py)
    volume, mask = ms.Tensor(seeded.volume()), ms.Tensor(seeded.mask())
    probabilities = {}
    net = seeded_net(module).set_train(False)
    shapes = {parameter.name: parameter.shape for parameter in net.get_parameters()}
    probabilities["eval"] = net(volume).asnumpy()
    probabilities["dropout"] = dropout_probability(net, volume).asnumpy()

    net = seeded_net(module).set_train(True)

    def forward(volume, mask):
        probability = net(volume)
        return dice_loss(probability, mask), probability

    trainable = net.trainable_params()
    (loss, probability), gradients = ms.value_and_grad(forward, None, trainable, has_aux=True)(
        volume, mask
    )
    probabilities["train"] = probability.asnumpy()
    golden_file.write(
        GOLDEN / "zoo.npz",
        {
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "mindspore": ms.__version__,
        },
        shapes,
        probabilities,
        float(loss),
        {p.name: gradient.asnumpy() for p, gradient in zip(trainable, gradients, strict=True)},
        {p.name: p.asnumpy() for p in net.get_parameters() if ".moving_" in p.name},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
