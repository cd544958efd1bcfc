"""FusedLoss against the losses' definitions in float64."""

import mindspore as ms
import numpy as np
import pytest

from src.fast_conv3d.loss import FusedLoss
from src.loss import DICE_EPSILON, LOSSES
from tests.networks import in_mode

BOTH = pytest.mark.parametrize("takes_logits", [True, False], ids=["dice_ce", "dice"])


@pytest.fixture(autouse=True)
def pynative():
    """Without the time to compile graphs, unless a test takes `mode`."""
    with in_mode(ms.PYNATIVE_MODE):
        yield


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def mode(request):
    with in_mode(request.param):
        yield


def loss_of_volumes(prediction, mask, takes_logits):
    """The loss of each volume, (batch,); its mean is the loss."""
    axes = (1, 2, 3)
    p = np.exp(-np.logaddexp(0, -prediction)) if takes_logits else prediction
    overlap = 2 * (p * mask).sum(axes) + DICE_EPSILON
    losses = 1 - overlap / ((p**2).sum(axes) + (mask**2).sum(axes) + DICE_EPSILON)
    if takes_logits:
        losses += (np.logaddexp(0, prediction) - prediction * mask).mean(axes)
    return losses


def finite_differences(prediction, mask, takes_logits, voxels, step=1e-5):
    """The gradient of the mean loss at some voxels, (batch, voxels)."""
    gradient = np.empty((len(prediction), len(voxels)))
    for column, voxel in enumerate(voxels):
        losses = []
        for sign in (1, -1):
            moved = prediction.copy()
            moved[(slice(None), *voxel)] += sign * step
            losses.append(loss_of_volumes(moved, mask, takes_logits))
        gradient[:, column] = (losses[0] - losses[1]) / (2 * step) / len(prediction)
    return gradient


def drawn(shape, takes_logits, share=0.3, scale=4.0):
    random = np.random.default_rng(sum(shape))
    prediction = random.normal(0, scale, shape) if takes_logits else random.random(shape)
    return prediction.astype(np.float32), (random.random(shape) < share).astype(np.float32)


def value_and_gradient(prediction, mask, takes_logits):
    compute = ms.value_and_grad(FusedLoss(takes_logits))
    value, gradient = compute(ms.Tensor(prediction), ms.Tensor(mask))
    assert value.dtype == gradient.dtype == ms.float32
    assert value.shape == ()
    return float(value), gradient.asnumpy()


def assert_right(prediction, mask, takes_logits):
    value, gradient = value_and_gradient(prediction, mask, takes_logits)
    exact = prediction.astype(np.float64), mask.astype(np.float64), takes_logits
    assert value == pytest.approx(loss_of_volumes(*exact).mean(), rel=2e-7, abs=1e-9)
    voxels = np.random.default_rng(0).permutation(list(np.ndindex(mask.shape[1:])))[:100]
    expected = finite_differences(*exact, voxels)
    atol = 1e-9 + 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(gradient[(slice(None), *voxels.T)], expected, rtol=2e-6, atol=atol)


@BOTH
@pytest.mark.parametrize("shape", [(1, 4, 4, 16), (2, 3, 5, 7), (3, 1, 1, 1), (2, 16, 16, 12)])
def test_value_and_gradient(shape, takes_logits):
    assert_right(*drawn(shape, takes_logits), takes_logits)


@BOTH
def test_both_modes(mode, takes_logits):
    assert_right(*drawn((2, 4, 4, 4), takes_logits), takes_logits)


@BOTH
@pytest.mark.parametrize("share", [0, 1])
def test_one_empty_and_one_full_mask(takes_logits, share):
    prediction, mask = drawn((2, 4, 4, 4), takes_logits)
    mask[0] = share
    assert_right(prediction, mask, takes_logits)


@pytest.mark.parametrize(
    ("probability", "mask", "expected"), [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
)
def test_dice_of_empty_and_full_volumes(probability, mask, expected):
    volumes = [np.full((2, 4, 4, 4), value, np.float32) for value in (probability, mask)]
    value, gradient = value_and_gradient(*volumes, takes_logits=False)
    assert value == pytest.approx(expected, abs=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("logit", [0, 1, -1, 17, -17, 40, -40, 88, -88, 1e4, -1e4])
@pytest.mark.parametrize("foreground", [0, 1])
def test_certain_voxels_keep_their_gradient(logit, foreground):
    """Where float32 holds p as 0 or 1, p - g is exact still."""
    logits = np.full((1, 2, 4, 16), logit, np.float32)
    mask = np.full_like(logits, foreground)
    value, gradient = value_and_gradient(logits, mask, takes_logits=True)
    odds = np.exp(-abs(float(logit)))
    likely, unlikely = 1 / (1 + odds), odds / (1 + odds)
    p, rest = (likely, unlikely) if logit > 0 else (unlikely, likely)
    size = mask.size
    top, bottom = 2 * size * p * foreground, size * (p**2 + foreground)
    top, bottom = top + DICE_EPSILON, bottom + DICE_EPSILON
    dice_gradient = 2 * (p * top / bottom - foreground) / bottom
    expected = dice_gradient * p * rest + (-rest if foreground else p) / size
    cross_entropy = np.logaddexp(0, -logit if foreground else logit)
    assert value == pytest.approx(1 - top / bottom + cross_entropy, rel=2e-7, abs=2e-9)
    np.testing.assert_allclose(gradient, expected, rtol=2e-6, atol=1e-36)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@BOTH
def test_what_is_not_finite_shows(takes_logits, value):
    prediction, mask = drawn((1, 4, 4, 16), takes_logits)
    prediction[0, 2, 3, 5] = value
    assert not np.isfinite(value_and_gradient(prediction, mask, takes_logits)[0])


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE], ids=["graph"], indirect=True)
def test_a_million_voxels_are_summed_in_double(mode):
    prediction, mask = drawn((1, 128, 128, 64), True, share=0.01)
    value, _ = value_and_gradient(prediction, mask, takes_logits=True)
    exact = loss_of_volumes(prediction.astype(np.float64), mask.astype(np.float64), True).mean()
    assert value == pytest.approx(exact, rel=1e-7)
    assert value_and_gradient(prediction, mask, takes_logits=True)[0] == value


@BOTH
def test_it_is_the_loss_that_the_plain_network_gets(takes_logits):
    (plain,) = (kind() for kind in LOSSES.values() if kind.takes_logits == takes_logits)
    prediction, mask = drawn((2, 16, 16, 16), takes_logits)
    expected, d_expected = ms.value_and_grad(plain)(ms.Tensor(prediction), ms.Tensor(mask))
    value, gradient = value_and_gradient(prediction, mask, takes_logits)
    assert value == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradient, d_expected.asnumpy(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float16])
def test_mask_of_another_type(dtype):
    prediction, mask = drawn((1, 4, 4, 4), True)
    value = FusedLoss(True)(ms.Tensor(prediction), ms.Tensor(mask.astype(dtype)))
    assert float(value) == value_and_gradient(prediction, mask, takes_logits=True)[0]


@pytest.mark.parametrize(
    ("shape", "mask_shape"),
    [((2, 4, 4, 4), (1, 4, 4, 4)), ((1, 4, 4, 4), (1, 4, 4, 8)), ((1, 1, 4, 4, 4),) * 2],
)
def test_other_shapes_are_refused(shape, mask_shape):
    volumes = [ms.Tensor(np.zeros(shape, np.float32)) for shape in (shape, mask_shape)]
    with pytest.raises(ValueError, match=r"expected the same shape.*\(batch, X, Y, Z\)"):
        FusedLoss(True)(*volumes)
