"""The losses: Dice, of the V-Net paper, and Dice plus cross-entropy.

`takes_logits` says what a loss takes from the network: logits, or probabilities of the foreground.
"""

from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.ops import constexpr

DICE_EPSILON = 1e-5


@constexpr
def check_shapes(prediction: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Raises a ValueError for shapes that would be broadcast; runs when the graph is compiled."""
    if len(prediction) != 4 or prediction != mask:
        raise ValueError(
            f"loss of a prediction {tuple(prediction)} and a mask {tuple(mask)}: expected the same "
            "shape for both, (batch, X, Y, Z)"
        )


class DiceLoss(nn.Cell):
    """1 - Dice with squared denominators (Milletari et al. 2016, section 3), mean over the batch.

    The Dice of one volume is 2 sum(p g) / (sum(p^2) + sum(g^2)) for the probability p and the mask
    g. The sums are float32, because float16 overflows at 65,504 voxels.

    Args:
        epsilon: added to numerator and denominator, so that an empty prediction of an empty mask
            has Dice 1, not NaN. A single foreground voxel weighs a hundred thousand times more.

    `construct(probability, mask)` takes two (batch, X, Y, Z) tensors and returns a float32 scalar.
    """

    takes_logits = False

    def __init__(self, epsilon: float = DICE_EPSILON) -> None:
        super().__init__()
        self.epsilon = epsilon

    def construct(self, probability, mask):
        check_shapes(probability.shape, mask.shape)
        p = ops.cast(probability, mstype.float32)
        g = ops.cast(mask, mstype.float32)
        # Not one flat axis: MindSpore's CPU sum of a million voxels would be off by up to 1e-3.
        voxels = (1, 2, 3)
        overlap = 2 * (p * g).sum(axis=voxels) + self.epsilon
        size = (p * p).sum(axis=voxels) + (g * g).sum(axis=voxels) + self.epsilon
        return (1 - overlap / size).mean()


class DiceCrossEntropyLoss(nn.Cell):
    """`DiceLoss` plus the mean binary cross-entropy of all voxels, as in nnU-Net.

    The cross-entropy is computed from the logits: its gradient is p - g for every logit, also
    where the probability p rounds to 0 or 1.

    `construct(logits, mask)` takes two (batch, X, Y, Z) tensors, the first with the logit of the
    foreground, and returns a float32 scalar.
    """

    takes_logits = True

    def __init__(self) -> None:
        super().__init__()
        self.dice_loss = DiceLoss()

    def construct(self, logits, mask):
        check_shapes(logits.shape, mask.shape)
        z = ops.cast(logits, mstype.float32)
        g = ops.cast(mask, mstype.float32)
        cross_entropy = ops.binary_cross_entropy_with_logits(z, g, reduction="none")
        # Axis by axis, for the reason that DiceLoss gives.
        return self.dice_loss(ops.sigmoid(z), g) + cross_entropy.mean(axis=(1, 2, 3)).mean()


LOSSES = {"dice": DiceLoss, "dice_ce": DiceCrossEntropyLoss}
