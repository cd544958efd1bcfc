"""The operators of native/ as MindSpore's `ops.Custom`, with their gradients."""

import ctypes
import os
from collections.abc import Callable
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

from ..utils.process import core_count
from .build import BuildError, library_path
from .protocol import OPERATORS, VERSION, ConvSpec, LossSpec, NetworkSpec

MOST_THREADS = 1024  # what a system starts at once


def thread_count() -> int:
    """The number of threads to use.

    OMP_NUM_THREADS if set, at most `MOST_THREADS`; else the cores of this process, at most
    MindSpore's runtime threads.
    """
    setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if setting.isdigit() and int(setting) > 0:
        return min(int(setting), MOST_THREADS)
    return min(core_count(), ms.get_context("runtime_num_threads"))


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


def spec_tensor(spec: ConvSpec | LossSpec | NetworkSpec) -> Tensor:
    """The fields of a spec as the tensor that the operators read."""
    return Tensor(_numbers(spec))


def _numbers(spec: tuple) -> np.ndarray:
    fields = [_numbers(field) if isinstance(field, tuple) else field for field in spec]
    return np.hstack(fields).astype(np.float32)


@constexpr
def _refuse_gradient():
    raise ValueError(
        "the fast CPU V-Net has gradients in training mode only: call set_train() first, "
        "or use the plain network (fast_conv3d=off)"
    )


def custom(name: str, shapes: Callable, bprop: Callable | None = None) -> ops.Custom:
    """The operator `name` of `OPERATORS`; its tensors are float32.

    Args:
        name: of the function in native/.
        shapes: function of the inputs' shapes -> the shape of its only output, a list; or those of
            all outputs, a tuple.
        bprop: its gradient.
    """

    def dtypes(*inputs):
        outputs = shapes(*([1] * 5 for _ in inputs))
        tensor = inputs[0]  # not mstype.float32: an output without axes would be a Python number
        return (tensor,) * len(outputs) if isinstance(outputs, tuple) else tensor

    return ops.Custom(f"{library()}:{name}", shapes, dtypes, "aot", bprop)


def convolution() -> ops.Custom:
    """The operator of a 5x5x5 convolution of plain tensors, same padding; its spec a `ConvSpec`."""
    backward = custom("conv_backward", lambda x, weight, *_: (x, weight, weight[:1]))

    def bprop(x, weight, bias, spec, out, d_out):
        d_x, d_weight, d_bias = backward(x, weight, d_out, spec)
        return d_x, d_weight, d_bias, ops.zeros_like(spec)

    return custom("conv_forward", lambda x, weight, *_: [x[0], weight[0], *x[2:]], bprop)


def loss() -> ops.Custom:
    """The operator of a loss; its spec a `LossSpec`.

    It takes float32 (prediction, mask, spec), prediction and mask (batch, X, Y, Z), and returns the
    loss, a scalar, and what its gradient needs. The mask has no gradient.
    """
    backward = custom("loss_backward", lambda prediction, *_: prediction)

    def bprop(prediction, mask, spec, out, d_out):
        d_prediction = backward(prediction, mask, out[1], d_out[0], spec)
        return d_prediction, ops.zeros_like(mask), ops.zeros_like(spec)

    return custom("loss_forward", lambda prediction, *_: ([], [prediction[0], 2]), bprop)


class NetworkOperator(nn.Cell):
    """A whole network in one operator, and in training all gradients of its parameters in another.

    `construct(volume, dropout_mask, weights, statistics)` takes float32 tensors: (batch, 1, X, Y,
    Z); (batch, columns), or one of another rank where nothing is dropped; the trainable parameters
    and the moving statistics of all layers, in their order. It returns a tuple that begins with the
    foreground's probability, or its logit, (batch, X, Y, Z). Training changes the moving statistics
    in place.

    Args:
        spec: of the network.

    Raises:
        BuildError: the native library cannot be built here.
        TypeError: it cannot compute this network.
        ValueError: a gradient is asked for in evaluation mode.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(auto_prefix=False)
        native = ctypes.CDLL(library())
        native.network_fault.restype = ctypes.c_char_p
        native.network_tape_floats.restype = ctypes.c_int64
        numbers = _numbers(spec).ctypes.data_as(ctypes.c_void_p)
        if fault := native.network_fault(numbers):
            raise TypeError(f"the fast CPU V-Net cannot compute {fault.decode()} of this network")

        def output(volume):
            return [volume[0], *volume[2:]]

        def output_and_tape(volume, *_):
            return output(volume), [native.network_tape_floats(numbers, volume[0], *volume[2:])]

        self.spec = spec_tensor(spec)
        self.infer = custom("network_infer", lambda volume, *_: (output(volume),))
        self.forward = custom("network_forward", output_and_tape)
        # Without this the compiler merges equal calls, and both backward passes use up one tape.
        self.forward.add_prim_attr("side_effect_hidden", True)
        fixed = len(OPERATORS["network_backward"].inputs) - 1
        self.backward = custom("network_backward", lambda *shapes: tuple(map(list, shapes[fixed:])))
        self.input_gradients = custom(
            "network_input_gradients", lambda volume, dropout_mask, *_: (volume, dropout_mask)
        )

    def construct(
        self,
        volume: Tensor,
        dropout_mask: Tensor,
        weights: tuple[Tensor, ...],
        statistics: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        operator = self.forward if self.training else self.infer
        return operator(volume, dropout_mask, self.spec, *weights, *statistics)

    def bprop(self, volume, dropout_mask, weights, statistics, out, d_out):
        """The graph compiler removes the gradients that nobody uses."""
        if not self.training:
            _refuse_gradient()
        inputs = (volume, dropout_mask, self.spec)
        d_weights = self.backward(*inputs, out[1], out[0], d_out[0], *weights)
        d_volume, d_mask = self.input_gradients(*inputs, d_out[0], *weights)
        return d_volume, d_mask, d_weights, tuple(ops.zeros_like(one) for one in statistics)
