"""The fast CPU convolution as a replacement for `nn.Conv3d`."""

from mindspore import Tensor, nn
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from . import operators
from .protocol import ConvSpec


@constexpr
def check_input(dtype: mstype.Type, shape: tuple[int, ...], channels: int) -> None:
    """Checks dtype and shape, which the operators rely on; runs when the graph is compiled."""
    if dtype != mstype.float32:
        raise TypeError(f"the fast CPU convolution takes float32 tensors, got {dtype}")
    if len(shape) != 5 or shape[1] != channels or min(shape) < 1:
        raise ValueError(
            f"the fast CPU convolution takes (batch, {channels}, X, Y, Z) tensors, "
            f"got {tuple(shape)}"
        )


class Conv3d(nn.Cell):
    """A 5x5x5 convolution on CPU, stride 1, same padding, float32.

    Equivalent to `nn.Conv3d(in_channels, out_channels, 5, pad_mode="pad", padding=2)`, with the
    same parameters (`weight`, (out_channels, in_channels, 5, 5, 5), and `bias`) and initial values,
    for any batch size, channel counts and volume size. `construct(x)` maps (batch, in_channels, X,
    Y, Z) to (batch, out_channels, X, Y, Z). Rounding errors are relative to the largest value that
    a tile of 4x4x4 outputs depends on; an inf or NaN spoils the whole tiles that it reaches.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        has_bias: whether there is a bias.

    Raises:
        BuildError: the native library cannot be built here.
        TypeError: the input is not float32.
        ValueError: its shape is not (batch, in_channels, X, Y, Z), or it is empty.
    """

    def __init__(self, in_channels: int, out_channels: int, has_bias: bool = False) -> None:
        super().__init__()
        reference = nn.Conv3d(
            in_channels, out_channels, 5, pad_mode="pad", padding=2, has_bias=has_bias
        )
        self.in_channels = in_channels
        self.weight = reference.weight
        self.bias = reference.bias if has_bias else None
        self.unused = Tensor([0.0], mstype.float32)
        self.spec = operators.spec_tensor(ConvSpec(in_channels, out_channels, has_bias))
        self.convolve = operators.convolution()

    def construct(self, x: Tensor) -> Tensor:
        check_input(x.dtype, x.shape, self.in_channels)
        bias = self.unused if self.bias is None else self.bias
        return self.convolve(x, self.weight, bias, self.spec)
