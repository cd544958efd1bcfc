import mindspore as ms
import numpy as np
import pytest

from src.loss import DiceCrossEntropyLoss, DiceLoss

EPSILON = 1e-5


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"], autouse=True)
def mode(request):
    before = ms.get_context("mode")
    ms.set_context(mode=request.param)
    yield
    ms.set_context(mode=before)


def loss_and_gradient(probability, mask):
    value, gradient = ms.value_and_grad(DiceLoss(EPSILON))(ms.Tensor(probability), ms.Tensor(mask))
    assert value.dtype == ms.float32
    assert value.shape == ()
    return float(value), gradient.asnumpy()


def oracle(probability, mask, epsilon=EPSILON):
    """Loss and its gradient in closed form, volume by volume in float64."""
    losses, gradients = [], []
    for p, g in zip(probability.astype(np.float64), mask.astype(np.float64), strict=True):
        top = 2 * np.sum(p * g) + epsilon
        bottom = np.sum(p**2) + np.sum(g**2) + epsilon
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


def test_epsilon_does_not_show_where_there_is_foreground():
    probability, mask = random_case(2, (2, 16, 16, 16), 0.2)
    loss, _ = loss_and_gradient(probability, mask)
    assert loss == pytest.approx(oracle(probability, mask, epsilon=0)[0], abs=1e-6)


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


def test_perfect_prediction_of_a_random_mask():
    _, mask = random_case(4, (3, 8, 8, 8), 0.3)
    assert loss_and_gradient(mask, mask)[0] == pytest.approx(0, abs=1e-6)


def test_a_nearly_empty_prediction_on_an_empty_mask_keeps_a_finite_gradient():
    probability = np.full((1, 8, 8, 8), 1e-6, np.float32)
    loss, gradient = loss_and_gradient(probability, np.zeros_like(probability))
    assert 0 <= loss < 1e-3
    assert np.isfinite(gradient).all()
    assert (gradient > 0).all()  # towards an emptier prediction


@pytest.mark.parametrize("share", [0.5, 0.02, 0])
def test_dice_cross_entropy_adds_the_mean_log_likelihood(share):
    probability, mask = random_case(4, (2, 16, 8, 4), share)
    value, gradient = ms.value_and_grad(DiceCrossEntropyLoss())(
        ms.Tensor(probability), ms.Tensor(mask)
    )
    dice, dice_gradient = oracle(probability, mask)
    p = probability.astype(np.float64)
    likelihood = np.where(mask > 0, p, 1 - p)
    assert float(value) == pytest.approx(dice - np.log(likelihood).mean(), rel=1e-5)
    expected = dice_gradient + (1 - 2 * mask) / likelihood / mask.size
    np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=2e-4, atol=1e-7)


def test_cross_entropy_of_certain_voxels_is_finite():
    probability = np.array([0, 1, 0, 1], np.float32).reshape(1, 1, 2, 2)
    mask = np.array([0, 1, 1, 0], np.float32).reshape(1, 1, 2, 2)
    value, gradient = ms.value_and_grad(DiceCrossEntropyLoss())(
        ms.Tensor(probability), ms.Tensor(mask)
    )
    assert float(value) == pytest.approx(0.5 - np.log(1e-7) / 2, rel=0.02)
    wrong = gradient.asnumpy()[0, 0, 1]
    assert np.isfinite(wrong).all() and wrong[0] < -1e5 and wrong[1] > 1e5
