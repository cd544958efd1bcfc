"""The optimizers of the configuration on a small network, against their closed forms."""

import logging
import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import log as mindspore_log
from mindspore import nn
from mindspore.common import _decorator

from src.config import override_config, vnet_cfg
from src.fast_conv3d.network import to_fast_vnet
from src.training.optimizer import create_optimizer
from src.vnet import create_vnet


def settings(*overrides):
    return override_config(vnet_cfg, ["VolSize=16,16,16", "width=2", *overrides])


def adam_step(config, steps=2):
    """One tiny parameter set through the real optimizer: names, values before and after."""
    network = create_vnet(config)
    rates = np.full(10, 0.1, np.float32)
    optimizer = create_optimizer(network, config, rates)
    before = {p.name: p.asnumpy().copy() for p in optimizer.parameters}
    for _ in range(steps):
        optimizer(tuple(ms.ops.ones_like(p) * 1e-3 for p in optimizer.parameters))
    return before, {p.name: p.asnumpy() for p in optimizer.parameters}


def test_momentum_belongs_to_the_momentum_optimizer():
    """Two steps of a constant gradient g move by lr * g * (1 + (1 + momentum))."""
    before, after = adam_step(settings("optimizer=momentum", "momentum=0.5", "weight_decay=0"))
    for name in before:
        expected = before[name] - 0.1 * 1e-3 * (2 + 0.5)
        np.testing.assert_allclose(after[name], expected, atol=1e-6)


def test_adam_is_the_default_optimizer():
    """Adam moves by the rate whatever the gradient's size; momentum does not act on it."""
    before, after = adam_step(settings("weight_decay=0"))
    for name in before:
        np.testing.assert_allclose(after[name], before[name] - 0.2, atol=2e-3)


@pytest.mark.parametrize("fast", ["on", "off"])
def test_adam_brings_no_warning_of_mindspore(monkeypatch, fast):
    """It warns of a primitive that its own Adam does not use for dense gradients, once."""
    records = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    logger = mindspore_log._get_logger()
    logger.addHandler(handler)
    config = settings(f"fast_conv3d={fast}")
    network = to_fast_vnet(create_vnet(config), config, "CPU")
    try:
        monkeypatch.setattr(_decorator, "DEPRECATE_SET", set())
        create_optimizer(network, config, np.full(10, 0.1, np.float32))
        assert not records
        monkeypatch.setattr(_decorator, "DEPRECATE_SET", set())
        nn.Adam(network.trainable_params())
        assert "FusedSparseAdam" in records[0].getMessage()
    finally:
        logger.removeHandler(handler)


def test_weight_decay_is_l2_on_convolution_weights_alone():
    config = settings("optimizer=momentum", "momentum=0", "weight_decay=0.1")
    before, after = adam_step(config, steps=1)
    for name in before:
        is_convolution = re.search(r"conv\d?\.weight$", name)
        decay = 0.1 * before[name] if is_convolution else 0
        expected = before[name] - 0.1 * (1e-3 + decay)
        np.testing.assert_allclose(after[name], expected, atol=1e-6, err_msg=name)
    assert any(name.endswith("gamma") for name in before)
