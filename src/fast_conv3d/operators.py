"""The operators of native/ops.cpp as MindSpore's `ops.Custom`, with their gradients.

A *unit* is a convolution fused with its norm, activations, residual and concatenation; `UnitSpec`
describes it. Tensors between units are *blocked*: (batch, ceil(channels / 16), X, Y, Z, 16),
float32, with zeros past the last channel; see native/vector.h. A *plain* tensor is (batch,
channels, X, Y, Z).
"""

import ctypes
import os
from functools import cache
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import dtype as mstype
from mindspore import ops

from .build import BuildError, library_path

LANES = 16
# The values of the enums in native/ops.cpp.
CONV5, FEW_INPUT, CONV_DOWN2, CONV_UP2 = range(4)
NO_ACTIVATION, ELU, PRELU = range(3)
NO_RESIDUAL, INPUT_RESIDUAL, TENSOR_RESIDUAL = range(3)


def thread_count() -> int:
    """The number of threads to use.

    OMP_NUM_THREADS if set, else the cores of this process, at most MindSpore's runtime threads.
    """
    setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if setting.isdigit() and int(setting) > 0:
        return int(setting)
    return min(len(os.sched_getaffinity(0)), ms.get_context("runtime_num_threads"))


@cache
def library() -> str:
    """The path of the native library; builds it if needed and sets its number of threads.

    Raises:
        BuildError: it cannot be built or loaded on this machine.
    """
    path = library_path()
    try:
        ctypes.CDLL(str(path)).set_threads(thread_count())
    except OSError as error:
        raise BuildError(
            f"fast_conv3d: {path} cannot be loaded ({error}); delete {path.parent} and start again"
        ) from None
    return str(path)


class UnitSpec(NamedTuple):
    """A unit: y = conv(x) + bias; out = concat(second(first(norm(y)) + residual), skip)."""

    kind: int  # CONV5, FEW_INPUT (of a plain one-channel volume), CONV_DOWN2 or CONV_UP2
    in_channels: int
    out_channels: int
    first: int = NO_ACTIVATION
    residual: int = NO_RESIDUAL
    second: int = NO_ACTIVATION
    has_bias: bool = False
    has_norm: bool = False
    skip_channels: int = 0  # of a blocked tensor that is concatenated to the output; 0: none
    has_dropout_mask: bool = False  # whether the skip's channels are multiplied by factors
    epsilon: float = 0.0  # of batch norm
    momentum: float = 0.0  # weight of the old moving statistics in an update

    def tensor(self) -> ms.Tensor:
        """The fields as the tensor that the operators read."""
        return ms.Tensor(np.array(self, np.float32))

    def y_shape(self, x_shape: list[int]) -> list[int]:
        """The blocked shape of the convolution's output.

        Args:
            x_shape: of the input.

        Raises:
            ValueError: CONV_DOWN2 of an odd side.
        """
        sides = x_shape[2:5]
        if self.kind == CONV_DOWN2:
            if any(side % 2 for side in sides):
                raise ValueError(f"a stride of 2 needs even sides, got {tuple(sides)}")
            sides = [side // 2 for side in sides]
        elif self.kind == CONV_UP2:
            sides = [2 * side for side in sides]
        return [x_shape[0], blocks(self.out_channels), *sides, LANES]

    def out_shape(self, x_shape: list[int]) -> list[int]:
        """The blocked shape of the unit's output."""
        shape = self.y_shape(x_shape)
        shape[1] = blocks(self.out_channels + self.skip_channels)
        return shape


def blocks(channels: int) -> int:
    """The number of blocks of 16 channels."""
    return -(-channels // LANES)


def _zeros_like(*tensors):
    return tuple(ops.zeros_like(tensor) for tensor in tensors)


def unit_inference(spec: UnitSpec) -> ops.Custom:
    """The operator of a unit in evaluation mode, with batch norm's moving statistics.

    It takes (x, weight, bias, gamma, beta, moving_mean, moving_variance, first_slopes,
    second_slopes, residual, skip, dropout_mask, spec tensor) and returns the output. Inputs that
    the unit does not use may be any tensor.
    """
    return ops.Custom(
        f"{library()}:unit_infer",
        lambda x, *others: spec.out_shape(x),
        lambda x, *others: x,
        "aot",
    )


def unit_training(spec: UnitSpec) -> ops.Custom:
    """The operator of a unit in training mode; its inputs are those of `unit_inference`.

    It returns (output, y, mean, variance, new moving mean, new moving variance).
    """
    channels = [spec.out_channels]

    def outputs(x, *_):
        return (spec.out_shape(x), spec.y_shape(x), *[channels] * 4)

    def dtypes(x, *_):
        return (x, x, mstype.float64, mstype.float64, x, x)

    # (x, .., spec, output, y, mean, variance, d_output) -> gradients of x .. beta, of both slopes,
    # residual and skip. It overwrites y, which no other operator reads, see below. MindSpore parses
    # `bprop` once and uses it, with the first unit's `backward`, for all units: the output shapes
    # must therefore depend on the inputs, not on `spec`.
    backward = ops.Custom(
        f"{library()}:unit_backward",
        lambda *shapes: (*shapes[:5], *shapes[7:11]),
        lambda *dtypes: (dtypes[0],) * 9,
        "aot",
    )

    def bprop(
        x, weight, bias, gamma, beta, mean, variance, first, second, residual, skip, mask, numbers,
        out, d_out,
    ):  # fmt: skip
        d_x, d_weight, d_bias, d_gamma, d_beta, d_first, d_second, d_residual, d_skip = backward(
            # The moving statistics are not used here: bias is passed in their places.
            *(x, weight, bias, gamma, beta, bias, bias, first, second, residual, skip, mask),
            *(numbers, out[0], out[1], out[2], out[3], d_out[0]),
        )
        return (
            *(d_x, d_weight, d_bias, d_gamma, d_beta, *_zeros_like(mean, variance)),
            *(d_first, d_second, d_residual, d_skip, *_zeros_like(mask, numbers)),
        )

    forward = ops.Custom(f"{library()}:unit_forward", outputs, dtypes, "aot", bprop)
    # Without this the compiler merges calls with equal inputs, and both gradients overwrite one y.
    forward.add_prim_attr("side_effect_hidden", True)
    return forward


def convolution() -> ops.Custom:
    """The operator of a convolution with a 5x5x5, 3x3x3 or 1x1x1 kernel, same padding.

    It takes (x, weight, bias, spec tensor of (in_channels, out_channels, x_is_blocked, has_bias))
    and returns a plain tensor. x may be blocked where there are few output channels.
    """
    backward = ops.Custom(
        f"{library()}:conv_backward",
        lambda x, weight, d_y, spec: (x, weight, [weight[0]]),
        lambda x, *others: (x, x, x),
        "aot",
    )

    def bprop(x, weight, bias, spec, out, d_out):
        d_x, d_weight, d_bias = backward(x, weight, d_out, spec)
        return d_x, d_weight, d_bias, ops.zeros_like(spec)

    return ops.Custom(
        f"{library()}:conv_forward",
        lambda x, weight, bias, spec: [x[0], weight[0], *x[2:5]],
        lambda x, *others: x,
        "aot",
        bprop,
    )


def head_probability() -> ops.Custom:
    """The operator of the last convolution, with two output channels, and a softmax.

    It takes (x, weight, bias, spec tensor of (foreground channel, has_bias)), x plain, and returns
    the foreground's probability, (batch, X, Y, Z).
    """
    backward = ops.Custom(
        f"{library()}:head_backward",
        lambda x, weight, probability, d_probability, spec: (x, weight, [2]),
        lambda x, *others: (x, x, x),
        "aot",
    )

    def bprop(x, weight, bias, spec, out, d_out):
        d_x, d_weight, d_bias = backward(x, weight, out, d_out, spec)
        return d_x, d_weight, d_bias, ops.zeros_like(spec)

    return ops.Custom(
        f"{library()}:head_forward",
        lambda x, weight, bias, spec: [x[0], *x[2:]],
        lambda x, *others: x,
        "aot",
        bprop,
    )


def channel_scaling() -> ops.Custom:
    """The operator that multiplies channels by factors, for dropout.

    It takes (blocked x, dropout_mask of (batch, channels)) and returns a tensor shaped like x.
    """

    def bprop(x, dropout_mask, out, d_out):
        return scale(d_out, dropout_mask), ops.zeros_like(dropout_mask)

    def make(bprop=None):
        return ops.Custom(
            f"{library()}:scale_channels",
            lambda x, dropout_mask: x,
            lambda x, dropout_mask: x,
            "aot",
            bprop,
        )

    scale = make()
    return make(bprop)
