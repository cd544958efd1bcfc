"""The operators of native/ops.cpp as MindSpore's `ops.Custom`, with their gradients.

Tensors between units are *blocked*: (batch, ceil(channels / 16), X, Y, Z, 16), float32, with zeros
past the last channel; see native/vector.h. `UnitSpec` says what a unit consists of.
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
# The numbers of native/ops.cpp's enums.
CONV5, WIDEN, HALVE, DOUBLE = range(4)
NO_ACTIVATION, ELU, PRELU = range(3)
NO_RESIDUAL, INPUT_RESIDUAL, TENSOR_RESIDUAL = range(3)


def thread_count() -> int:
    """OMP_NUM_THREADS if set, else this process's cores, at most MindSpore's runtime threads."""
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if named.isdigit() and int(named) > 0:
        return int(named)
    return min(len(os.sched_getaffinity(0)), ms.get_context("runtime_num_threads"))


@cache
def library() -> str:
    """Path of the native library, built if need be and told how many threads to use.

    Raises:
        BuildError: it cannot be built or loaded here.
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
    """What a unit consists of: y = conv(x) + bias, then second(first(norm(y)) + residual)."""

    kind: int  # CONV5, WIDEN (of a plain one-channel volume), HALVE or DOUBLE
    in_channels: int
    out_channels: int
    first: int = NO_ACTIVATION
    residual: int = NO_RESIDUAL
    second: int = NO_ACTIVATION
    has_bias: bool = False
    has_norm: bool = False
    skip_channels: int = 0  # of a blocked tensor that is joined behind the unit's own channels
    has_keep: bool = False  # whether the skip's channels are multiplied by factors
    epsilon: float = 0.0  # of batch norm
    momentum: float = 0.0  # of its moving statistics

    def tensor(self) -> ms.Tensor:
        """The specification as the operators read it."""
        return ms.Tensor(np.array(self, np.float32))

    def y_shape(self, x_shape: list[int]) -> list[int]:
        """Blocked shape of what the convolution gives, from that of x.

        Raises:
            ValueError: HALVE of an odd side.
        """
        sides = x_shape[2:5]
        if self.kind == HALVE:
            if any(side % 2 for side in sides):
                raise ValueError(f"only even sides can be halved, got {tuple(sides)}")
            sides = [side // 2 for side in sides]
        elif self.kind == DOUBLE:
            sides = [2 * side for side in sides]
        return [x_shape[0], blocks(self.out_channels), *sides, LANES]

    def out_shape(self, x_shape: list[int]) -> list[int]:
        """Blocked shape of the unit's value."""
        shape = self.y_shape(x_shape)
        shape[1] = blocks(self.out_channels + self.skip_channels)
        return shape


def blocks(channels: int) -> int:
    """Blocks of 16 that hold so many channels."""
    return -(-channels // LANES)


def _zeros_like(*tensors):
    return tuple(ops.zeros_like(tensor) for tensor in tensors)


def unit_inference(spec: UnitSpec) -> ops.Custom:
    """A unit in evaluation mode, batch norm by its moving statistics.

    Takes (x, weight, bias, gamma, beta, moving_mean, moving_variance, first_slopes, second_slopes,
    residual, skip, keep, spec tensor); what the unit has not is any tensor.
    """
    return ops.Custom(
        f"{library()}:unit_infer",
        lambda x, *others: spec.out_shape(x),
        lambda x, *others: x,
        "aot",
    )


def unit_training(spec: UnitSpec) -> ops.Custom:
    """A unit in training mode; inputs as for `unit_inference`.

    Returns (value, y, mean, variance, new moving mean, new moving variance).
    """
    channels = [spec.out_channels]

    def outputs(x, *_):
        return (spec.out_shape(x), spec.y_shape(x), *[channels] * 4)

    def dtypes(x, *_):
        return (x, x, mstype.float64, mstype.float64, x, x)

    # (x, .., spec, value, y, mean, variance, d_value) -> gradients of x .. beta, of both slopes,
    # residual and skip. It overwrites y, which is this call's alone, see below. Shapes come from
    # the inputs alone: MindSpore keeps one parsed `bprop` for all units, whose `backward` is that
    # of the unit it met first.
    backward = ops.Custom(
        f"{library()}:unit_backward",
        lambda *shapes: (*shapes[:5], *shapes[7:11]),
        lambda *dtypes: (dtypes[0],) * 9,
        "aot",
    )

    def bprop(
        x, weight, bias, gamma, beta, mean, variance, first, second, residual, skip, keep, numbers,
        out, d_out,
    ):  # fmt: skip
        d_x, d_weight, d_bias, d_gamma, d_beta, d_first, d_second, d_residual, d_skip = backward(
            # The moving statistics have no part in this; the two after beta stand in for them.
            *(x, weight, bias, gamma, beta, bias, bias, first, second, residual, skip, keep),
            *(numbers, out[0], out[1], out[2], out[3], d_out[0]),
        )
        return (
            *(d_x, d_weight, d_bias, d_gamma, d_beta, *_zeros_like(mean, variance)),
            *(d_first, d_second, d_residual, d_skip, *_zeros_like(keep, numbers)),
        )

    forward = ops.Custom(f"{library()}:unit_forward", outputs, dtypes, "aot", bprop)
    # Or the compiler would merge two calls with equal inputs, and their gradients share one y.
    forward.add_prim_attr("side_effect_hidden", True)
    return forward


def convolution(x_is_blocked: bool = False) -> ops.Custom:
    """One convolution with a 5x5x5, 3x3x3 or 1x1x1 kernel, same size.

    Takes (x, weight, bias, spec tensor of (in_channels, out_channels, x_is_blocked, has_bias)) and
    returns a plain tensor. A blocked x is for few output channels.
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
    """The last convolution, with two output channels, and a softmax.

    Takes (x, weight, bias, spec tensor of (foreground channel, has_bias)), x plain, and returns the
    probability of the foreground, (batch, X, Y, Z).
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
    """(blocked x, keep of (batch, channels)) -> x with each channel times its factor."""

    def bprop(x, keep, out, d_out):
        return scale(d_out, keep), ops.zeros_like(keep)

    def make(bprop=None):
        return ops.Custom(
            f"{library()}:scale_channels",
            lambda x, keep: x,
            lambda x, keep: x,
            "aot",
            bprop,
        )

    scale = make()
    return make(bprop)
