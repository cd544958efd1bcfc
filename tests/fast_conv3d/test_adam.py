"""FusedAdam against Adam's definition and MindSpore's own."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.fast_conv3d.adam import FusedAdam
from tests.networks import in_mode

SHAPES = {"a.weight": (3, 5, 2), "b.weight": (40_000,), "b.bias": (7,), "c.weight": (1,)}
RATES = np.linspace(0.1, 0.02, 5).astype(np.float32)
DECAY = 0.03
STEPS = 4


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def mode(request):
    with in_mode(request.param):
        yield


def drawn(seed):
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def optimizer_of(kind):
    """The parameters, and an optimizer with L2 on the weights."""
    parameters = [ms.Parameter(ms.Tensor(value), name) for name, value in drawn(0).items()]
    weights = [p for p in parameters if p.name.endswith(".weight")]
    others = [p for p in parameters if not p.name.endswith(".weight")]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    return kind(groups, ms.Tensor(RATES))


def after_steps(optimizer):
    for step in range(STEPS):
        gradients = drawn(step + 1)
        optimizer(tuple(ms.Tensor(gradients[p.name]) for p in optimizer.parameters))
    state = {p.name: p.asnumpy().copy() for p in optimizer.get_parameters()}
    return state | {p.name: p.asnumpy().copy() for p in optimizer.parameters}


def test_it_is_adam_with_l2(mode):
    found = after_steps(optimizer_of(FusedAdam))
    for name, value in drawn(0).items():
        value, first, second = value.astype(np.float64), 0.0, 0.0
        for step in range(1, STEPS + 1):
            gradient = drawn(step)[name] + (DECAY * value if name.endswith(".weight") else 0)
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            rate = RATES[step - 1] * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            value = value - rate * first / (np.sqrt(second) + 1e-8)
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(found[f"moment1.{name}"], first, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[f"moment2.{name}"], second, rtol=1e-4, atol=1e-8)


def test_its_state_is_that_of_mindspores(mode):
    found, expected = after_steps(optimizer_of(FusedAdam)), after_steps(optimizer_of(nn.Adam))
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
