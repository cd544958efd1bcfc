"""The V-Net of this project's variant `instance` in PyTorch, any width; MONAI's has neither.

Layers have the names of `src/vnet.py`, so that weights need no table: only a norm's gamma and beta
are called weight and bias.
"""

import torch
from torch import Tensor, nn

ENCODER_DEPTHS = (1, 2, 3, 2)  # 5x5x5 convolutions of the stages down, from the top
DECODER_DEPTHS = (2, 2, 1, 1)  # of the stages up, deepest first
DOWN_NAMES = ("down_tr32", "down_tr64", "down_tr128", "down_tr256")
UP_NAMES = ("up_tr256", "up_tr128", "up_tr64", "up_tr32")
DROPPING = ("down_tr128", "down_tr256", "up_tr256", "up_tr128")
FOREGROUND = 1  # channel of the logits


def norm(channels: int) -> nn.Module:
    """Instance norm with scale and shift."""
    return nn.InstanceNorm3d(channels, eps=1e-5, affine=True)


def elu() -> nn.Module:
    """ELU; in place, as in MONAI's network."""
    return nn.ELU(inplace=True)


class ConvUnit(nn.Module):
    """A 5x5x5 convolution, norm and ELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 5, padding=2, bias=False)
        self.bn = norm(channels)
        self.relu = elu()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


def units(depth: int, channels: int) -> nn.Module:
    """The convolutions of a residual block; a single one has no index in its name."""
    made = [ConvUnit(channels) for _ in range(depth)]
    return made[0] if depth == 1 else nn.Sequential(*made)


class InputStage(nn.Module):
    """A convolution from 1 to `width` channels; the volume is added to each of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, width, 5, padding=2, bias=False)
        self.bn = norm(width)
        self.relu = elu()

    def forward(self, volume: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(volume)) + volume)


class DownStage(nn.Module):
    """Halves the sides, doubles the channels, applies a residual block."""

    def __init__(self, in_channels: int, depth: int, dropout: float) -> None:
        super().__init__()
        channels = 2 * in_channels
        self.down_conv = nn.Conv3d(in_channels, channels, 2, stride=2, bias=False)
        self.bn = norm(channels)
        self.relu1, self.relu2 = elu(), elu()
        self.drop = nn.Dropout3d(dropout) if dropout else nn.Identity()
        self.ops = units(depth, channels)

    def forward(self, x: Tensor) -> Tensor:
        down = self.relu1(self.bn(self.down_conv(x)))
        return self.relu2(self.ops(self.drop(down)) + down)


class UpStage(nn.Module):
    """Doubles the sides, concatenates the skip connection, applies a residual block."""

    def __init__(self, in_channels: int, channels: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(in_channels, channels // 2, 2, stride=2, bias=False)
        self.bn = norm(channels // 2)
        self.relu1, self.relu2 = elu(), elu()
        self.drop = nn.Dropout3d(dropout) if dropout else nn.Identity()
        self.ops = units(depth, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = self.relu1(self.bn(self.up_conv(self.drop(x))))
        joined = torch.cat((up, self.drop(skip)), 1)
        return self.relu2(self.ops(joined) + joined)


class Head(nn.Module):
    """The 1x1x1 convolution to two logits."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv2 = nn.Conv3d(in_channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(x)


class InstanceVNet(nn.Module):
    """V-Net with instance norm; takes (batch, 1, X, Y, Z), returns logits (batch, 2, X, Y, Z).

    Args:
        width: channels of the first stage.
        dropout: share of the channels that training drops at the places of the variant.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        channels = [width << level for level in range(5)]
        self.in_tr = InputStage(width)
        for level, name in enumerate(DOWN_NAMES):
            drop = dropout if name in DROPPING else 0.0
            self.add_module(name, DownStage(channels[level], ENCODER_DEPTHS[level], drop))
        # The deepest stage up returns as many channels as it takes, see src/vnet.py.
        shapes = zip(UP_NAMES, (channels[4], *channels[:1:-1]), channels[:0:-1], strict=True)
        for (name, from_below, made), depth in zip(shapes, DECODER_DEPTHS, strict=True):
            drop = dropout if name in DROPPING else 0.0
            self.add_module(name, UpStage(from_below, made, depth, drop))
        self.out_tr = Head(2 * width)

    def forward(self, volume: Tensor) -> Tensor:
        x, skips = self.in_tr(volume), []
        for name in DOWN_NAMES:
            skips.append(x)
            x = self.get_submodule(name)(x)
        for name in UP_NAMES:
            x = self.get_submodule(name)(x, skips.pop())
        return self.out_tr(x)
