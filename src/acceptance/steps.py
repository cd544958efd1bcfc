"""Are the loss, some training steps and the loss scale right?"""

import mindspore as ms
import numpy as np
from mindspore import nn

from ..loss import DiceLoss
from ..training.step import LossScaledStep, create_training_cell
from .golden import seeded
from .network import seeded_network
from .precisions import PRECISIONS, configuration
from .table import Table


def check_steps(target: str, table: Table) -> dict[str, np.ndarray]:
    """Compares the Dice loss with its closed form; trains for three steps.

    Returns:
        "losses PRECISION" -> the three losses, to be compared with a CPU's.
    """
    with table.record_errors("Dice loss"):
        # p is 1/2 everywhere, a quarter of the voxels are foreground: 1 - (2 / 8) / (1/4 + 1/4).
        mask = np.zeros((2, 64, 64, 128), np.float32)
        mask[:, ::2, ::2] = 1
        probability = ms.Tensor(np.full(mask.shape, 0.5, np.float32))
        loss = float(DiceLoss()(probability, ms.Tensor(mask)).asnumpy())
        table.near("Dice loss of 524,288 voxels", [loss], [0.5], 1e-5)
    found = {}
    for precision in PRECISIONS[target]:
        with table.record_errors(f"three training steps, {precision}"):
            config = configuration(precision, "width=4", "VolSize=48,32,32")
            network = seeded_network(config)
            optimizer = nn.SGD(network.trainable_params(), 0.01)
            step = create_training_cell(network, optimizer, config, target)
            dropout_mask = np.ones((seeded.BATCH, network.dropout_channels), np.float32)
            batch = [ms.Tensor(array) for array in (seeded.volume(), seeded.mask(), dropout_mask)]
            losses = []
            for _ in range(3):
                output = step(*batch)
                losses.append(float((output[0] if isinstance(output, tuple) else output).asnumpy()))
            found[f"losses {precision}"] = np.array(losses)
    return found


def check_loss_scale(table: Table) -> None:
    """Checks overflow and recovery of the loss scale on a weight of known gradient."""
    with table.record_errors("loss scale"):
        network = _Mean()
        optimizer = nn.SGD(network.trainable_params(), 0.5)
        scale = nn.DynamicLossScaleUpdateCell(256.0, scale_factor=2, scale_window=3)
        step, found = LossScaledStep(network, optimizer, scale).set_train(), []
        for value in (1, 3e38, 2, 1, 1):  # the second overflows when it is scaled
            step(ms.Tensor(np.full((2, 3), value, np.float32)))
            found.append((float(network.w.asnumpy()[0]), float(step.scale_sense.asnumpy())))
        expected = [(0.5, 256), (0.5, 128), (-0.5, 128), (-1.0, 128), (-1.5, 256)]
        table.add("weight and loss scale around an overflow", expected, found, found == expected)


class _Mean(nn.Cell):
    """The mean of a weight times the input; its gradient is the mean of the input."""

    def __init__(self):
        super().__init__()
        self.w = ms.Parameter(ms.Tensor([1.0], ms.float32), "w")

    def construct(self, x):
        return (self.w * x).mean()
