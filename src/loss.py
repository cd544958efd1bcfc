"""The losses: Dice, of the V-Net paper, and Dice plus cross-entropy."""

from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.ops import constexpr


@constexpr
def check_shapes(probability, mask):
    """Refuses what would be broadcast, silently; runs when the graph is compiled."""
    if len(probability) != 4 or probability != mask:
        raise ValueError(
            f"a loss of shapes {tuple(probability)} and {tuple(mask)}, expected the same for "
            "probability and mask, (batch, X, Y, Z)"
        )


class DiceLoss(nn.Cell):
    """1 - Dice with squared denominators (Milletari et al. 2016, section 3), mean over the batch.

    Dice of one volume is 2 sum(p g) / (sum(p^2) + sum(g^2)), of the probability p and the mask g.
    Everything is summed in float32: float16 overflows at 65,504 voxels.

    Args:
        epsilon: added above and below, so that an empty mask with an empty prediction has Dice 1,
            not NaN. One voxel of foreground counts a hundred thousand times more.

    `construct(probability, mask)` takes two (batch, X, Y, Z) tensors and returns a float32 scalar.
    """

    def __init__(self, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon

    def construct(self, probability, mask):
        check_shapes(probability.shape, mask.shape)
        p = ops.cast(probability, mstype.float32)
        g = ops.cast(mask, mstype.float32)
        # Not one flat axis: over a million voxels MindSpore's CPU sum would be off by up to 1e-3.
        voxels = (1, 2, 3)
        overlap = 2 * (p * g).sum(axis=voxels) + self.epsilon
        size = (p * p).sum(axis=voxels) + (g * g).sum(axis=voxels) + self.epsilon
        return (1 - overlap / size).mean()


class DiceCrossEntropyLoss(nn.Cell):
    """`DiceLoss` plus the mean binary cross-entropy of all voxels, as nnU-Net trains.

    `construct` is that of `DiceLoss`. `margin` is added to each probability, or float32 would make
    a logarithm infinite; a voxel of less than that has a smaller gradient than from its logit.
    """

    def __init__(self, margin: float = 1e-7) -> None:
        super().__init__()
        self.dice_loss = DiceLoss()
        self.margin = margin

    def construct(self, probability, mask):
        check_shapes(probability.shape, mask.shape)
        p = ops.cast(probability, mstype.float32)
        g = ops.cast(mask, mstype.float32)
        # Axis by axis, for the reason that DiceLoss gives.
        likelihood = g * ops.log(p + self.margin) + (1 - g) * ops.log(1 - p + self.margin)
        return self.dice_loss(probability, mask) - likelihood.mean(axis=(1, 2, 3)).mean()


LOSSES = {"dice": DiceLoss, "dice_ce": DiceCrossEntropyLoss}
