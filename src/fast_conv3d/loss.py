"""The losses of `src.loss` for CPU, an operator each."""

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from ..loss import DICE_EPSILON, check_shapes
from . import operators
from .protocol import LossSpec


class FusedLoss(nn.Cell):
    """`DiceLoss` or `DiceCrossEntropyLoss`, much faster; with sums in double.

    Args:
        takes_logits: True: `DiceCrossEntropyLoss` of logits; False: `DiceLoss` of probabilities.

    `construct(prediction, mask)` takes two (batch, X, Y, Z) tensors and returns a float32 scalar.
    The mask has no gradient.

    Raises:
        BuildError: the native library cannot be built here.
    """

    def __init__(self, takes_logits: bool) -> None:
        super().__init__()
        self.takes_logits = takes_logits
        self.spec = operators.spec_tensor(LossSpec(takes_logits, DICE_EPSILON))
        self.compute = operators.loss()

    def construct(self, prediction: Tensor, mask: Tensor) -> Tensor:
        check_shapes(prediction.shape, mask.shape)
        prediction = ops.cast(prediction, mstype.float32)
        return self.compute(prediction, ops.cast(mask, mstype.float32), self.spec)[0]
