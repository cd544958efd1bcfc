"""The optimizer of a training."""

import mindspore as ms
import numpy as np
from easydict import EasyDict
from mindspore import nn

from ..fast_conv3d.adam import FusedAdam
from ..fast_conv3d.network import FastVNet
from ..utils.log import without_mindspore_warning


def create_optimizer(network: nn.Cell, config: EasyDict, rates: np.ndarray) -> nn.Optimizer:
    """Returns Adam or the paper's momentum, with L2 on the weights of the convolutions only."""
    parameters = network.trainable_params()
    decayed = [p for p in parameters if p.name.endswith(".weight")]
    others = [p for p in parameters if not p.name.endswith(".weight")]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    rates = ms.Tensor(rates)
    if config.optimizer == "momentum":
        return nn.Momentum(groups, rates, config.momentum)
    if isinstance(network, FastVNet):
        return FusedAdam(groups, rates)
    # MindSpore warns about an optimizer for sparse gradients; there are none here.
    with without_mindspore_warning("'FusedSparseAdam' is deprecated"):
        return nn.Adam(groups, rates)
