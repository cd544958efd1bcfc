"""Adam for CPU, a single operator for all parameters."""

import mindspore as ms
import numpy as np
from mindspore import dtype as mstype
from mindspore import nn, ops

from .operators import library


class FusedAdam(nn.Adam):
    """`nn.Adam` with its default settings, and its state under the same names, but much faster.

    The operator updates parameters and moments in place. It needs all gradients, so that every
    other reader of a parameter has run before. Weight decay is L2, as in `nn.Adam`.

    Args:
        groups: of parameters, each with its `weight_decay`.
        rates: learning rate of each step.

    Raises:
        BuildError: the native library cannot be built here.
    """

    beta1_power: ms.Tensor
    beta2_power: ms.Tensor

    def __init__(self, groups: list[dict], rates: ms.Tensor) -> None:
        super().__init__(groups, rates)
        given = self.weight_decay  # a number for each parameter, or for all
        decays = given if isinstance(given, tuple) else (given,) * len(self._parameters)
        settings = [self.beta1, self.beta2, self.eps, *decays]
        self.settings = ms.Tensor(np.array([float(value) for value in settings], np.float32))
        self.update = ops.Custom(
            f"{library()}:adam_step", lambda *_: [1], lambda *_: mstype.float32, "aot"
        )

    def construct(self, gradients: tuple[ms.Tensor, ...]) -> ms.Tensor:
        rate = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        beta1_power = self.beta1_power * self.beta1
        self.beta1_power = beta1_power
        beta2_power = self.beta2_power * self.beta2
        self.beta2_power = beta2_power
        numbers = ops.stack((rate, beta1_power, beta2_power))
        state = (*self._parameters, *self.moment1, *self.moment2, *gradients)
        return self.update(numbers, self.settings, *state)
