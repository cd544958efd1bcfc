"""Adam for CPU, a single operator for all parameters."""

import mindspore as ms
import numpy as np
from mindspore import dtype as mstype
from mindspore import nn, ops

from .operators import custom
from .protocol import AdamSettings

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class FusedAdam(nn.Optimizer):
    """Adam as `nn.Adam` with its default settings, but much faster.

    Its state has the names of `nn.Adam`'s, so that checkpoints of one continue with the other. The
    operator updates parameters and moments in place. It takes all gradients as inputs and
    therefore runs after everything that reads a parameter. Weight decay is L2.

    Args:
        groups: of parameters, each with its `weight_decay`.
        rates: learning rate of each step.

    Raises:
        BuildError: the native library cannot be built here.
    """

    def __init__(self, groups: list[dict], rates: ms.Tensor) -> None:
        super().__init__(rates, groups)
        self.beta1_power = ms.Parameter(ms.Tensor(1, mstype.float32), "beta1_power")
        self.beta2_power = ms.Parameter(ms.Tensor(1, mstype.float32), "beta2_power")
        self.moment1 = self.parameters.clone("moment1", init="zeros")
        self.moment2 = self.parameters.clone("moment2", init="zeros")
        decays = (float(decay) for decay in self.weight_decay)  # a number for each parameter
        settings = np.array([*AdamSettings(BETA1, BETA2, EPSILON), *decays], np.float32)
        self.settings = ms.Tensor(settings)
        self.update = custom("adam_step", lambda *_: [1])

    def construct(self, gradients: tuple[ms.Tensor, ...]) -> ms.Tensor:
        rate = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        beta1_power = self.beta1_power * BETA1
        self.beta1_power = beta1_power
        beta2_power = self.beta2_power * BETA2
        self.beta2_power = beta2_power
        numbers = ops.stack((rate, beta1_power, beta2_power))  # as `AdamNumbers`
        state = (*self.parameters, *self.moment1, *self.moment2, *gradients)
        return self.update(numbers, self.settings, *state)
