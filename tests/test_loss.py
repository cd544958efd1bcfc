from functools import cache

import mindspore as ms
import numpy as np
import pytest

from src.loss import DiceCrossEntropyLoss, DiceLoss
from tests.networks import in_mode

EPSILON = 1e-5


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"], autouse=True)
def mode(request):
    with in_mode(request.param):
        yield


@cache
def differentiated(loss, mode):
    """Function prediction, mask -> value and gradient; in graph mode compiled once for a shape.

    Args:
        loss: its class.
        mode: in which it will be called.
    """
    return ms.value_and_grad(loss(EPSILON) if loss is DiceLoss else loss())


def loss_and_gradient(prediction, mask, loss=DiceLoss):
    compute = differentiated(loss, ms.get_context("mode"))
    value, gradient = compute(ms.Tensor(prediction), ms.Tensor(mask))
    assert value.dtype == ms.float32
    assert value.shape == ()
    return float(value), gradient.asnumpy().copy()


def oracle(probability, mask):
    """Loss and its gradient in closed form, volume by volume in float64."""
    losses, gradients = [], []
    for p, g in zip(probability.astype(np.float64), mask.astype(np.float64), strict=True):
        top = 2 * np.sum(p * g) + EPSILON
        bottom = np.sum(p**2) + np.sum(g**2) + EPSILON
        losses.append(1 - top / bottom)
        gradients.append((2 * p * top / bottom - 2 * g) / bottom / len(probability))
    return np.mean(losses), np.stack(gradients)


def random_case(seed, shape, share, dtype=np.float32):
    random = np.random.default_rng(seed)
    mask = (random.random(shape) < share).astype(np.float32)
    return random.random(shape).astype(dtype), mask


@pytest.mark.parametrize(
    ("shape", "share"),
    [((1, 4, 5, 6), 0.5), ((2, 16, 8, 4), 0.1), ((5, 3, 7, 2), 0.9), ((3, 16, 16, 16), 0.001)],
)
def test_value_and_gradient(shape, share):
    probability, mask = random_case(1, shape, share)
    loss, gradient = loss_and_gradient(probability, mask)
    expected_loss, expected_gradient = oracle(probability, mask)
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    np.testing.assert_allclose(
        gradient, expected_gradient, rtol=1e-4, atol=1e-6 * np.abs(expected_gradient).max()
    )


def test_mean_over_volumes_not_one_dice_of_the_batch():
    mask = np.zeros((2, 4, 4, 4), np.float32)
    mask[0] = 1  # found as a whole
    mask[1, 0, 0, 0] = 1  # one voxel, missed
    probability = np.stack([np.ones_like(mask[0]), np.zeros_like(mask[0])])
    loss, _ = loss_and_gradient(probability, mask)
    assert loss == pytest.approx(0.5, abs=1e-4)


def test_float16_network_with_more_voxels_than_float16_can_count():
    shape = (1, 128, 128, 64)  # all foreground: every sum is far above 65,504
    probability = np.full(shape, 0.9, np.float16)
    mask = np.ones(shape, np.float32)
    loss, gradient = loss_and_gradient(probability, mask)
    expected_loss, expected_gradient = oracle(probability, mask)
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert gradient.dtype == np.float16  # what the network takes back, here below its smallest step
    assert np.abs(gradient - expected_gradient).max() < 2**-24


@pytest.mark.parametrize("mask_dtype", [np.float16, np.uint8, np.bool_])
def test_mask_of_another_type(mask_dtype):
    probability, mask = random_case(3, (2, 4, 4, 4), 0.4)
    expected, _ = oracle(probability, mask)
    loss = DiceLoss(EPSILON)(ms.Tensor(probability), ms.Tensor(mask.astype(mask_dtype)))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("probability", "mask", "expected"),
    [
        pytest.param(0.3, 0, 1, id="empty mask"),
        pytest.param(0, 1, 1, id="empty prediction"),
        pytest.param(0, 0, 0, id="both empty"),
        pytest.param(1, 1, 0, id="perfect"),
    ],
)
def test_extremes(probability, mask, expected):
    shape = (2, 8, 8, 8)
    volumes = [np.full(shape, value, np.float32) for value in (probability, mask)]
    loss, gradient = loss_and_gradient(*volumes)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient, oracle(*volumes)[1], rtol=1e-4, atol=1e-9)


def test_a_nearly_empty_prediction_on_an_empty_mask_keeps_a_finite_gradient():
    probability = np.full((1, 8, 8, 8), 1e-6, np.float32)
    loss, gradient = loss_and_gradient(probability, np.zeros_like(probability))
    assert 0 <= loss < 1e-3
    assert np.isfinite(gradient).all()
    assert (gradient > 0).all()  # towards an emptier prediction


def cross_entropy_oracle(logits, mask):
    """Loss and gradient of Dice plus cross-entropy in closed form, of the logits, in float64."""
    z, g = logits.astype(np.float64), mask.astype(np.float64)
    p = 1 / (1 + np.exp(-z))
    dice, dice_gradient = oracle(p, mask)
    cross_entropy = np.logaddexp(0, z) - g * z
    gradient = dice_gradient * p * (1 - p) + (p - g) / mask.size
    return dice + cross_entropy.mean(), gradient


def cross_entropy_and_gradient(logits, mask):
    return loss_and_gradient(logits, mask, DiceCrossEntropyLoss)


@pytest.mark.parametrize("share", [0.5, 0.02, 0])
@pytest.mark.parametrize("scale", [1, 5, 30])
def test_dice_cross_entropy_of_logits(share, scale):
    noise, mask = random_case(4, (2, 16, 8, 4), share)
    logits = (2 * noise - 1) * np.float32(scale)
    value, gradient = cross_entropy_and_gradient(logits, mask)
    expected_value, expected = cross_entropy_oracle(logits, mask)
    assert value == pytest.approx(expected_value, rel=2e-6)
    np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=1e-9)


def test_dice_cross_entropy_is_that_of_the_probabilities():
    """-log(p) of the foreground and -log(1 - p) of the background, where float32 can hold them."""
    probability, mask = random_case(5, (2, 8, 8, 8), 0.3)
    p = probability.astype(np.float64) * 0.98 + 0.01
    likelihood = np.where(mask > 0, p, 1 - p)
    value, _ = cross_entropy_and_gradient(np.log(p / (1 - p)).astype(np.float32), mask)
    assert value == pytest.approx(oracle(p, mask)[0] - np.log(likelihood).mean(), rel=1e-6)


@pytest.mark.parametrize("logit", [-90, -50, -20, 0, 20, 50, 90])
@pytest.mark.parametrize("foreground", [0, 1])
def test_certain_voxels_keep_their_gradient(logit, foreground):
    """p - g, over the number of voxels; at these logits float32 holds p as 0 or 1."""
    logits = np.full((1, 4, 4, 4), logit, np.float32)
    mask = np.full_like(logits, foreground)
    value, gradient = cross_entropy_and_gradient(logits, mask)
    expected_value, expected = cross_entropy_oracle(logits, mask)
    assert value == pytest.approx(expected_value, abs=1e-6, rel=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=2e-9)
    if abs(logit) >= 50 and (logit > 0) != foreground:
        np.testing.assert_allclose(gradient * mask.size, np.sign(logit), rtol=1e-6)


def test_float16_logits_have_their_loss_in_float32():
    """Cross-entropy of 131,072 voxels with logits of +-40: float16 would overflow in the sum."""
    noise, mask = random_case(6, (1, 64, 64, 32), 0.3)
    logits = np.where(noise > 0.5, 40, -40).astype(np.float16)
    value, gradient = cross_entropy_and_gradient(logits, mask)
    assert value == pytest.approx(cross_entropy_oracle(logits, mask)[0], rel=1e-6)
    assert gradient.dtype == np.float16
