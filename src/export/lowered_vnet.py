"""A V-Net with 2-D operators only, for runtimes without 3-D convolution.

MindSpore Lite on a CPU and the Ascend inference chips do not support it. The stages are those of
`src.vnet`; only their layers are replaced. A volume with C channels is a matrix
(batch * X, C * Y * Z) with one row per slice: adding matrices adds the volumes, and concatenating
them along axis 1 concatenates the channels. Convolutions and PReLUs reshape it to images
(batch * X, C, Y, Z) and back, because MindSpore Lite 2.0 confuses the layouts of 4-D tensors where
the graph branches, without an error if C == Y == Z.

A 3-D convolution becomes a 2-D convolution whose input channels are those of neighbouring slices.
Batch norm is folded into the preceding convolution; instance norm is computed from row sums.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ..vnet import InstanceNorm3d, VNet

Grid = tuple[int, int, int, int]  # batch, X, Y, Z


class OnImages(nn.Cell):
    """Applies a 2-D layer to a matrix: reshapes it to images, and the result to a matrix.

    Args:
        layer: from images to images.
        channels: of the input images.
        grid: of the input images: (batch, X, Y, Z).
        matrix_rows: number of rows of the result.
    """

    def __init__(self, layer: nn.Cell, channels: int, grid: Grid, matrix_rows: int) -> None:
        super().__init__()
        batch, slices, height, width = grid
        self.layer = layer
        self.images = (batch * slices, channels, height, width)
        self.matrix = (matrix_rows, -1)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return ops.reshape(self.layer(ops.reshape(x, self.images)), self.matrix)


class Neighbours(nn.Cell):
    """Concatenates each slice with its neighbours, `count` in all; zeros outside the volume.

    Args:
        count: number of slices to concatenate, odd.
        channels: of a slice.
        grid: of the volume.
    """

    def __init__(self, count: int, channels: int, grid: Grid) -> None:
        super().__init__()
        batch, slices, height, width = grid
        row = channels * height * width
        self.volume = (batch, slices * row)
        self.matrix = (batch * slices, row)
        self.starts = tuple((0, offset * row) for offset in range(count))
        self.padding = ms.Tensor(np.zeros((batch, count // 2 * row), np.float32))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        volume = ops.concat((self.padding, ops.reshape(x, self.volume), self.padding), axis=1)
        shifted: tuple[ms.Tensor, ...] = ()
        for start in self.starts:
            shifted = (*shifted, ops.reshape(ops.slice(volume, start, self.volume), self.matrix))
        return ops.concat(shifted, axis=1)


class LoweredInstanceNorm(nn.Cell):
    """`src.vnet.InstanceNorm3d` for a matrix."""

    def __init__(self, norm: nn.Cell, grid: Grid) -> None:
        super().__init__()
        batch, slices, height, width = grid
        channels = norm.gamma.shape[0]
        self.gamma = ms.Parameter(norm.gamma.value().reshape((1, channels)), name="gamma")
        self.beta = ms.Parameter(norm.beta.value().reshape((1, channels)), name="beta")
        self.eps = norm.eps
        self.planes = (batch * slices * channels, height * width)
        self.slices = (batch, slices, channels)
        self.column = (batch * channels, 1)
        self.repeats = ((1, height * width), (1, slices))
        self.volume = (batch, channels * height * width)
        self.matrix = (batch * slices, channels * height * width)
        self.beta_copies = (batch, 1)

    def mean(self, x: ms.Tensor) -> ms.Tensor:
        """The mean of each channel of a matrix, (batch, channels)."""
        planes = ops.mean(ops.reshape(x, self.planes), 1)
        return ops.mean(ops.reshape(planes, self.slices), 1)

    def broadcast(self, values: ms.Tensor) -> ms.Tensor:
        """The matrix with a value for each channel, (batch, channels), at all voxels."""
        voxels = ops.tile(ops.reshape(values, self.column), self.repeats[0])
        return ops.reshape(ops.tile(ops.reshape(voxels, self.volume), self.repeats[1]), self.matrix)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        centred = x - self.broadcast(self.mean(x))
        scale = self.gamma / ops.sqrt(self.mean(centred * centred) + self.eps)
        beta = ops.tile(self.beta, self.beta_copies)
        return centred * self.broadcast(scale) + self.broadcast(beta)


class LoweredInput(nn.Cell):
    """`src.vnet.InputStage` for a matrix: the volume is added to each channel."""

    def __init__(self, stage: nn.Cell, channels: int) -> None:
        super().__init__()
        self.conv = stage.conv
        self.bn = stage.bn
        self.relu = stage.relu
        self.copies = (1, channels)

    def construct(self, volume: ms.Tensor) -> ms.Tensor:
        return self.relu(self.bn(self.conv(volume)) + ops.tile(volume, self.copies))


class LoweredVNet(nn.Cell):
    """A V-Net with 2-D operators for a fixed input shape.

    `construct(volume)` is that of `VNet` in evaluation mode.

    Args:
        network: provides the weights. Its stages are modified: do not use it afterwards.
        shape: (batch, 1, X, Y, Z) of the input, the sides multiples of 16.
    """

    def __init__(self, network: VNet, shape: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        batch, _, *sides = shape
        grids = [(batch, *(side >> level for side in sides)) for level in range(5)]
        first, head = network.in_tr, network.out_tr
        width = first.conv.out_channels
        _lower(first, grids[0])
        _lower(head, grids[0], foreground=head.foreground)
        for level, stage in enumerate(network.down_stages, 1):
            _lower(stage, grids[level])
        for level, stage in enumerate(reversed(network.up_stages)):
            _lower(stage, grids[level])
        self.in_tr = LoweredInput(first, width)
        self.down_stages = nn.CellList(list(network.down_stages))
        self.up_stages = nn.CellList(list(network.up_stages))
        self.out_tr = nn.SequentialCell(head.conv1, head.bn, head.relu, head.conv2, nn.Sigmoid())
        self.matrix = (batch * sides[0], sides[1] * sides[2])
        self.volume = (batch, *sides)

    def construct(self, volume: ms.Tensor) -> ms.Tensor:
        x = self.in_tr(ops.reshape(volume, self.matrix))
        skips: tuple[ms.Tensor, ...] = ()
        for stage in self.down_stages:
            skips = (x, *skips)
            x = stage(x)
        for stage, skip in zip(self.up_stages, skips):  # noqa: B905, as in src/vnet.py
            x = stage(x, skip)
        return ops.reshape(self.out_tr(x), self.volume)


def _lower(stage, grid, foreground=None):
    """Replaces the layers of a stage.

    Args:
        stage: of a `VNet`.
        grid: of the stage's output.
        foreground: the head's foreground channel. Its two logits become one channel, their
            difference, whose sigmoid is the foreground's probability.
    """
    children = stage.name_cells()
    for name, cell in children.items():
        if isinstance(cell, nn.Conv3d | nn.Conv3dTranspose):
            is_last = name == "conv2"  # the head's last convolution, without norm
            weight, bias = _fold_batch_norm(cell, None if is_last else children.get("bn"))
            if is_last:
                weight = weight[foreground, None] - weight[1 - foreground]
                bias = bias[foreground, None] - bias[1 - foreground]
            setattr(stage, name, _lower_conv(cell, weight, bias, grid))
        elif isinstance(cell, nn.BatchNorm3d):
            setattr(stage, name, nn.Identity())
        elif isinstance(cell, InstanceNorm3d):
            setattr(stage, name, LoweredInstanceNorm(cell, grid))
        elif isinstance(cell, nn.PReLU):
            setattr(stage, name, OnImages(cell, cell.w.shape[0], grid, grid[0] * grid[1]))
        else:
            _lower(cell, grid)


def _fold_batch_norm(conv, norm):
    """Weight and bias (NumPy) of a convolution followed by a batch norm in evaluation mode."""
    weight, axis = conv.weight.asnumpy(), int(isinstance(conv, nn.Conv3dTranspose))
    bias = conv.bias.asnumpy() if conv.has_bias else np.zeros(weight.shape[axis], np.float32)
    if not isinstance(norm, nn.BatchNorm3d):
        return weight, bias
    norm = norm.bn2d
    scale = norm.gamma.asnumpy() / np.sqrt(norm.moving_variance.asnumpy() + norm.eps)
    bias = norm.beta.asnumpy() + (bias - norm.moving_mean.asnumpy()) * scale
    return weight * np.expand_dims(scale, tuple({0, 1, 2, 3, 4} - {axis})), bias


def _lower_conv(conv, weight, bias, grid):
    """The 2-D equivalent of a 3-D convolution; `grid` is that of its stage's output."""
    batch, slices, height, width = grid
    # (a, b, kX, kY, kZ) -> (a, kX * b, kY, kZ): the kernel's extent along X becomes channels.
    a, b, depth, side, _ = weight.shape
    weight = np.moveaxis(weight, 2, 1).reshape(a, depth * b, side, side)
    if isinstance(conv, nn.Conv3dTranspose):
        conv2d = nn.Conv2dTranspose(a, depth * b, 2, stride=2, pad_mode="valid", has_bias=True)
        bias = np.tile(bias, depth)
        channels, grid = a, (batch, slices // 2, height // 2, width // 2)
    elif conv.stride[-1] == 2:
        conv2d = nn.Conv2d(depth * b, a, 2, stride=2, pad_mode="valid", has_bias=True)
        channels, grid = depth * b, (batch, slices, 2 * height, 2 * width)
    else:
        conv2d = nn.Conv2d(depth * b, a, side, pad_mode="pad", padding=side // 2, has_bias=True)
        channels = depth * b
    conv2d.weight.set_data(ms.Tensor(np.ascontiguousarray(weight, np.float32)))
    conv2d.bias.set_data(ms.Tensor(np.ascontiguousarray(bias, np.float32)))
    lowered = OnImages(conv2d, channels, grid, batch * slices)
    if conv.stride[-1] == 2 or depth == 1:
        return lowered
    return nn.SequentialCell(Neighbours(depth, b, grid), lowered)
