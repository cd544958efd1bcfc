"""The operators of native/ops.cpp as MindSpore's `ops.Custom`, with their gradients.

A *unit* is a convolution fused with its norm, activations, residual and concatenation; `UnitSpec`
describes it. Tensors between units are float32 and *blocked*, (batch, ceil(channels / 16), X, Y, Z,
16) with zeros past the last channel, or with few channels *plain*, (batch, channels, X, Y, Z); see
`shape_between_units`.
"""

import ctypes
import inspect
import os
from collections.abc import Callable
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops import constexpr

from .build import BuildError, library_path
from .protocol import (
    LANES,
    OPERATORS,
    PLAIN_CHANNELS,
    VERSION,
    ConvSpec,
    HeadSpec,
    Kind,
    LossSpec,
    UnitSpec,
)


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
        BuildError: it cannot be built or loaded on this machine, or has another protocol.
    """
    path = library_path()
    try:
        native = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(
            f"fast_conv3d: {path} cannot be loaded ({error}); delete {path.parent} and start again"
        ) from None
    found = native.protocol_version() if hasattr(native, "protocol_version") else "none"
    if found != VERSION:
        raise BuildError(
            f"fast_conv3d: {path} has operator protocol {found}, this program {VERSION}; install "
            "it again, or after a change of protocol.py run python -m src.fast_conv3d.protocol"
        )
    native.set_threads(thread_count())
    return str(path)


def spec_tensor(spec: UnitSpec | ConvSpec | HeadSpec | LossSpec) -> ms.Tensor:
    """The fields of a spec as the tensor that the operators read."""
    return ms.Tensor(np.array(spec, np.float32))


def y_shape(spec: UnitSpec, x_shape: list[int]) -> list[int]:
    """The shape of the output of a unit's convolution.

    Args:
        spec: the unit.
        x_shape: of the input.

    Raises:
        ValueError: CONV_DOWN2 of an odd side.
    """
    sides = x_shape[2:5]
    if spec.kind == Kind.CONV_DOWN2:
        if any(side % 2 for side in sides):
            raise ValueError(f"a stride of 2 needs even sides, got {tuple(sides)}")
        sides = [side // 2 for side in sides]
    elif spec.kind == Kind.CONV_UP2:
        sides = [2 * side for side in sides]
    return shape_between_units(x_shape[0], spec.out_channels, sides)


def out_shape(spec: UnitSpec, x_shape: list[int]) -> list[int]:
    """The shape of a unit's output."""
    sides = y_shape(spec, x_shape)[2:5]
    return shape_between_units(x_shape[0], spec.out_channels + spec.skip_channels, sides)


def shape_between_units(batch: int, channels: int, sides: list[int]) -> list[int]:
    """The shape of a tensor between units: plain if it has few channels, else blocked.

    Args:
        batch, channels: of the tensor.
        sides: X, Y, Z. The rows of a plain tensor along Z are whole vectors.
    """
    if channels <= PLAIN_CHANNELS and sides[2] % LANES == 0:
        return [batch, channels, *sides]
    return [batch, -(-channels // LANES), *sides, LANES]


def _zeros_like(*tensors):
    return tuple(ops.zeros_like(tensor) for tensor in tensors)


@constexpr
def _refuse_gradient():
    raise ValueError(
        "the fast CPU V-Net has gradients in training mode only: call set_train() first, "
        "or use the plain network (fast_conv3d=off)"
    )


Shapes = dict[str, list[int]]


def _custom(
    name: str, bprop: Callable | None = None, **shapes: Callable[[Shapes], list[int]]
) -> ops.Custom:
    """The operator `name` of `OPERATORS`.

    Its tensors are float32, except the statistics `mean` and `variance`.

    Args:
        name: of the function in native/ops.cpp.
        bprop: its gradient.
        shapes: for each output a function of the inputs' shapes by name. The gradient "d_NAME" has
            the shape of the input NAME if it is not given.
    """
    inputs, outputs = OPERATORS[name]
    if bprop is not None and tuple(inspect.signature(bprop).parameters) != (
        *inputs,
        "out",
        "d_out",
    ):
        raise TypeError(f"the bprop of {name} must take {inputs}, out and d_out")

    def single(values):
        return values[0] if len(values) == 1 else tuple(values)

    def infer_shapes(*arguments):
        given = dict(zip(inputs, arguments, strict=True))
        return single(
            [
                shapes[output](given) if output in shapes else given[output.removeprefix("d_")]
                for output in outputs
            ]
        )

    def infer_dtypes(x, *_):
        return single([mstype.float64 if n in ("mean", "variance") else x for n in outputs])

    return ops.Custom(f"{library()}:{name}", infer_shapes, infer_dtypes, "aot", bprop)


def unit_inference(spec: UnitSpec) -> ops.Custom:
    """The operator of a unit in evaluation mode, with batch norm's moving statistics.

    Asking for a gradient raises a ValueError when the graph is compiled.
    """

    def bprop(
        x, weight, bias, gamma, beta, moving_mean, moving_variance,
        first_slopes, second_slopes, residual, skip, dropout_mask, spec, out, d_out,
    ):  # fmt: skip
        _refuse_gradient()
        return (
            *(x, weight, bias, gamma, beta, moving_mean, moving_variance),
            *(first_slopes, second_slopes, residual, skip, dropout_mask, spec),
        )

    return _custom("unit_infer", bprop, out=lambda given: out_shape(spec, given["x"]))


def unit_training(spec: UnitSpec) -> ops.Custom:
    """The operator of a unit in training mode; its inputs are those of `unit_inference`.

    Gradients of a volume and of a dropout mask have operators of their own, which the graph
    compiler removes where nobody uses them. In training the output does not depend on the moving
    statistics.
    """
    # It overwrites y, which no other operator reads, see below. MindSpore parses `bprop` once and
    # uses it, with the first unit's operators, for all units: the output shapes of these must
    # therefore depend on the inputs, not on `spec`.
    backward = _custom("unit_backward")
    volume_gradient = _custom("unit_volume_gradient")
    mask_gradient = _custom("unit_mask_gradient")

    def bprop(
        x, weight, bias, gamma, beta, moving_mean, moving_variance,
        first_slopes, second_slopes, residual, skip, dropout_mask, spec, out, d_out,
    ):  # fmt: skip
        # The backward operators do not use the moving statistics: bias is passed in their places.
        inputs = (
            *(x, weight, bias, gamma, beta, bias, bias, first_slopes, second_slopes),
            *(residual, skip, dropout_mask, spec),
        )
        d_x, d_weight, d_bias, d_gamma, d_beta, d_first, d_second, d_residual, d_skip = backward(
            *inputs, out[0], out[1], out[2], out[3], d_out[0]
        )
        if len(x.shape) == 5 and x.shape[1] == 1 and weight.shape[2] == 5:  # a volume
            d_x = volume_gradient(*inputs, out[0], out[2], out[3], d_out[0])
        d_mask = mask_gradient(skip, dropout_mask, spec, d_out[0])
        return (
            *(d_x, d_weight, d_bias, d_gamma, d_beta, *_zeros_like(moving_mean, moving_variance)),
            *(d_first, d_second, d_residual, d_skip, d_mask, ops.zeros_like(spec)),
        )

    def channels(_):
        return [spec.out_channels]

    forward = _custom(
        "unit_forward",
        bprop,
        out=lambda given: out_shape(spec, given["x"]),
        y=lambda given: y_shape(spec, given["x"]),
        mean=channels,
        variance=channels,
        new_moving_mean=channels,
        new_moving_variance=channels,
    )
    # Without this the compiler merges calls with equal inputs, and both gradients overwrite one y.
    forward.add_prim_attr("side_effect_hidden", True)
    return forward


def convolution() -> ops.Custom:
    """The operator of a 5x5x5 convolution of plain tensors, same padding; its spec a `ConvSpec`."""
    backward = _custom("conv_backward", d_bias=lambda given: given["weight"][:1])

    def bprop(x, weight, bias, spec, out, d_out):
        d_x, d_weight, d_bias = backward(x, weight, d_out, spec)
        return d_x, d_weight, d_bias, ops.zeros_like(spec)

    return _custom(
        "conv_forward", bprop, y=lambda given: [given["x"][0], given["weight"][0], *given["x"][2:]]
    )


def head() -> ops.Custom:
    """The operator of the last convolution, with two output channels, and a softmax.

    Its spec is a `HeadSpec`, x is plain or blocked; it returns the foreground's probability or the
    difference of the logits, (batch, X, Y, Z).
    """
    backward = _custom("head_backward", d_bias=lambda given: [2])

    def bprop(x, weight, bias, spec, out, d_out):
        d_x, d_weight, d_bias = backward(x, weight, out, d_out, spec)
        return d_x, d_weight, d_bias, ops.zeros_like(spec)

    return _custom("head_forward", bprop, y=lambda given: [given["x"][0], *given["x"][2:5]])


def channel_scaling() -> ops.Custom:
    """The operator that multiplies channels by factors, for dropout.

    It takes (x, dropout_mask of (batch, channels)) and returns a tensor shaped like x.
    """

    def like_x(given):
        return given["x"]

    scale = _custom("scale_channels", y=like_x)
    mask_gradient = _custom("scale_mask_gradient")

    def bprop(x, dropout_mask, out, d_out):
        return scale(d_out, dropout_mask), mask_gradient(x, dropout_mask, d_out)

    return _custom("scale_channels", bprop, y=like_x)


def loss() -> ops.Custom:
    """The operator of a loss; its spec a `LossSpec`.

    It takes float32 (prediction, mask, spec), prediction and mask (batch, X, Y, Z), and returns the
    loss, a scalar, and what its gradient needs. The mask has no gradient.
    """
    backward = _custom("loss_backward")

    def bprop(prediction, mask, spec, out, d_out):
        d_prediction = backward(prediction, mask, out[1], d_out[0], spec)
        return d_prediction, ops.zeros_like(mask), ops.zeros_like(spec)

    return _custom(
        "loss_forward",
        bprop,
        loss=lambda _: [],
        coefficients=lambda given: [given["prediction"][0], 2],
    )
