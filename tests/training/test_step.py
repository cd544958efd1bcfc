"""The loss that a step computes, and its loss scale: overflows and recovery, on a CPU.

That all ranks skip the same steps is in test_ranks.py, that GPUs compile it in test_gpu_standin.py.
"""

import mindspore as ms
import numpy as np
import pytest

from src.fast_conv3d.loss import FusedLoss
from src.fast_conv3d.network import to_fast_vnet
from src.loss import LOSSES
from src.training.optimizer import create_optimizer
from src.training.step import AccumulatingLossScaledStep, LossCell, create_training_cell
from src.utils.errors import UsageError
from src.vnet import VARIANTS, create_vnet
from tests.networks import in_mode, scaled_step, seed_weights


def trajectory(step, values):
    """Weight, overflow and loss scale after a step with each value."""
    found = []
    for value in values:
        _, overflow, _ = step(ms.Tensor(np.full((2, 3), value, np.float32)))
        weight = float(step.network.w.asnumpy()[0])
        found.append((weight, bool(overflow), float(step.scale_sense.asnumpy())))
    return found


def test_an_overflow_skips_the_step_and_halves_the_scale():
    """3e38 overflows only with its scale. Three good steps later the scale doubles."""
    assert trajectory(scaled_step(1), [1, np.inf, -np.inf, np.nan, 3e38, 2, 1, 1, 1]) == [
        (0.5, False, 256),
        (0.5, True, 128),
        (0.5, True, 64),
        (0.5, True, 32),
        (0.5, True, 16),
        (-0.5, False, 16),
        (-1.0, False, 16),
        (-1.5, False, 32),
        (-2.0, False, 32),
    ]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_scale_does_not_change_what_is_trained(scale):
    weights = [weight for weight, *_ in trajectory(scaled_step(1, scale, 1000), [1, 2, 0.5])]
    assert weights == [0.5, -0.5, -0.75]


@pytest.mark.parametrize(("place", "bad"), [(0, np.inf), (1, np.nan)])
def test_one_overflow_skips_all_batches_of_a_step(bad, place):
    values = [1, 3, 1, 3, 2, 2]
    values[2 + place] = bad
    weights, overflows, scales = zip(*trajectory(scaled_step(2), values), strict=True)
    assert weights == (1, 0, 0, 0, 0, -1)  # steps of half the mean of each pair
    assert overflows == (False, False, False, True, False, False)
    assert scales == (256, 256, 256, 128, 128, 128)


@pytest.fixture
def cell(small_config):
    """Function device and settings -> training step."""

    def create(target, *settings):
        config = small_config(*settings)
        network = create_vnet(config)
        optimizer = create_optimizer(network, config, np.full(4, 0.1, np.float32))
        return create_training_cell(network, optimizer, config, target)

    return create


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_configurations(cell, name):
    assert type(cell("CPU", f"loss={name}").network.loss) is LOSSES[name]


@pytest.mark.parametrize("name", LOSSES)
def test_the_fast_network_gets_the_fused_loss(small_config, name):
    config = small_config(f"loss={name}")
    network = to_fast_vnet(create_vnet(config), config, "CPU")
    optimizer = create_optimizer(network, config, np.full(4, 0.1, np.float32))
    loss = create_training_cell(network, optimizer, config, "CPU").network.loss
    assert isinstance(loss, FusedLoss)
    assert loss.takes_logits == LOSSES[name].takes_logits


def test_mixed_precision_brings_a_loss_scale(cell):
    """`precision` and `loss_scale`; that it computes is for a device with float16 convolutions."""
    scaled = cell("GPU", "loss_scale=1024")
    assert isinstance(scaled, ms.nn.TrainOneStepWithLossScaleCell)
    assert float(scaled.scale_sense.asnumpy()) == 1024
    assert isinstance(cell("Ascend"), ms.nn.TrainOneStepWithLossScaleCell)
    assert isinstance(cell("GPU", "accumulate_steps=2"), AccumulatingLossScaledStep)
    for plain in (cell("CPU"), cell("GPU", "precision=float32")):
        assert not isinstance(plain, ms.nn.TrainOneStepWithLossScaleCell)
    with pytest.raises(UsageError, match="Ascend and GPU only"):
        cell("CPU", "precision=mixed")
    with pytest.raises(UsageError, match="precision=float32: MindSpore's 3-D convolutions are fl"):
        cell("Ascend", "precision=float32")


class Saturated(ms.nn.Cell):
    """A network whose logits are its one weight, in training and prediction."""

    def __init__(self, logit):
        super().__init__()
        self.logit = ms.Parameter(ms.Tensor([logit], ms.float32), "logit")

    def logits(self, image, dropout_mask=None):
        return image[:, 0] * 0 + self.logit

    def construct(self, image, dropout_mask=None):
        return ms.ops.sigmoid(self.logits(image, dropout_mask))


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("logit", [-50.0, 50.0])
def test_a_wrong_certain_network_learns_from_its_logits(mode, logit):
    """Dice has no gradient where the probability rounds to 0 or 1; cross-entropy has p - g."""
    with in_mode(mode):
        image = ms.Tensor(np.zeros((1, 1, 2, 2, 2), np.float32))
        mask = ms.Tensor(np.full((1, 2, 2, 2), logit < 0, np.float32))
        gradients = {}
        for name, loss in LOSSES.items():
            network = Saturated(logit)
            weights = ms.ParameterTuple(network.trainable_params())
            gradient = ms.grad(LossCell(network, loss()), None, weights)(image, mask)
            gradients[name] = gradient[0].asnumpy().item()
    assert gradients["dice"] == pytest.approx(0, abs=1e-12)
    assert gradients["dice_ce"] == pytest.approx(np.sign(logit), abs=1e-6)


class Both(ms.nn.Cell):
    """Logits and probability of a network in one graph."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, volume):
        return self.network.logits(volume), self.network(volume)


@pytest.mark.parametrize("fast", ["on", "off"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_probability_is_the_sigmoid_of_the_logits(small_config, variant, fast):
    """Of two volumes, as instance norm takes them one by one in the fast network."""
    config = small_config(f"variant={variant}", "VolSize=32,16,16", f"fast_conv3d={fast}")
    network = to_fast_vnet(seed_weights(create_vnet(config)), config, "CPU").set_train(False)
    volume = np.random.default_rng(3).normal(size=(2, 1, *config.VolSize)).astype(np.float32)
    with in_mode(ms.PYNATIVE_MODE):  # to compile a graph for one call takes longer
        logits, probability = (out.asnumpy() for out in Both(network)(ms.Tensor(volume)))
    assert logits.shape == probability.shape == (2, *config.VolSize)
    assert logits.dtype == np.float32 and logits.std() > 0.01
    np.testing.assert_allclose(
        1 / (1 + np.exp(-logits.astype(np.float64))), probability, rtol=0, atol=1e-6
    )


def test_each_batch_of_an_accumulated_step_moves_the_statistics_once(small_config):
    """The fast network updates batch norm's moving statistics in its forward operator."""

    def trained(*settings, rate):
        config = small_config("variant=zoo", "width=1", "dropout=0", "fast_conv3d=on", *settings)
        ms.set_seed(1)
        network = to_fast_vnet(create_vnet(config), config, "CPU").set_train()
        rates = np.full(4, rate, np.float32)
        optimizer = create_optimizer(network, config, rates)
        step = create_training_cell(network, optimizer, config, "CPU").set_train()
        random = np.random.default_rng(1)
        before = {p.name: p.asnumpy().copy() for p in network.get_parameters()}
        states = []
        for _ in range(2):
            image = random.standard_normal((1, 1, 16, 16, 32)).astype(np.float32)
            step(ms.Tensor(image), ms.Tensor((image[:, 0] > 0).astype(np.float32)))
            states.append({p.name: p.asnumpy().copy() for p in network.get_parameters()})
        return before, *states

    _, *single = trained(rate=0.0)
    before, first, second = trained("accumulate_steps=2", rate=0.1)
    for name, value in second.items():
        if "moving_" in name:
            np.testing.assert_array_equal(first[name], single[0][name], err_msg=name)
            np.testing.assert_array_equal(value, single[1][name], err_msg=name)
        elif name.endswith("weight"):
            np.testing.assert_array_equal(first[name], before[name], err_msg=name)
            assert not np.array_equal(value, before[name]), name
