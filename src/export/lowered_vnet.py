"""The V-Net with 2-D operators only, for runtimes without 3-D convolution.

MindSpore Lite on a CPU and the Ascend inference chips have none. The stages stay those of
`src.vnet`; only the layers in them are replaced. A volume of C channels travels as a matrix
(batch * X, C * Y * Z), one row per slice, whose sums and concatenations along axis 1 are those of
the channels. Only convolutions and PReLUs look at it as images (batch * X, C, Y, Z), between two
reshapes: MindSpore Lite 2.0 confuses the layouts of such tensors where the graph branches, without
a word where C == Y == Z.

A 3-D convolution becomes a 2-D one over neighbouring slices, laid side by side as channels. Batch
norm is folded into the convolution before it; instance norm stays, as sums over rows.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ..vnet import InstanceNorm3d, VNet

Grid = tuple[int, int, int, int]  # batch, X, Y, Z


class OnImages(nn.Cell):
    """A 2-D layer between two reshapes: matrix to images before it, images to matrix after it.

    Args:
        layer: takes and returns images.
        channels: of its input images.
        grid: slices are counted as `batch * X`; Y and Z are the sides of its input images.
        matrix_rows: of what it returns.
    """

    def __init__(self, layer: nn.Cell, channels: int, grid: Grid, matrix_rows: int) -> None:
        super().__init__()
        batch, slices, height, width = grid
        self.layer = layer
        self.images = (batch * slices, channels, height, width)
        self.matrix = (matrix_rows, -1)

    def construct(self, x):
        return ops.reshape(self.layer(ops.reshape(x, self.images)), self.matrix)


class Neighbours(nn.Cell):
    """Puts each slice's `count` neighbours about it side by side; beyond the volume they are 0."""

    def __init__(self, count: int, channels: int, grid: Grid) -> None:
        super().__init__()
        batch, slices, height, width = grid
        row = channels * height * width
        self.volume = (batch, slices * row)
        self.matrix = (batch * slices, row)
        self.starts = tuple((0, offset * row) for offset in range(count))
        self.beyond = ms.Tensor(np.zeros((batch, count // 2 * row), np.float32))

    def construct(self, x):
        volume = ops.concat((self.beyond, ops.reshape(x, self.volume), self.beyond), axis=1)
        shifted = ()
        for start in self.starts:
            shifted = (*shifted, ops.reshape(ops.slice(volume, start, self.volume), self.matrix))
        return ops.concat(shifted, axis=1)


class LoweredInstanceNorm(nn.Cell):
    """`src.vnet.InstanceNorm3d` of a matrix."""

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

    def mean(self, x):
        """(batch, channels) of a matrix."""
        planes = ops.mean(ops.reshape(x, self.planes), 1)
        return ops.mean(ops.reshape(planes, self.slices), 1)

    def spread(self, values):
        """A matrix with (batch, channels) values at all voxels."""
        voxels = ops.tile(ops.reshape(values, self.column), self.repeats[0])
        return ops.reshape(ops.tile(ops.reshape(voxels, self.volume), self.repeats[1]), self.matrix)

    def construct(self, x):
        centred = x - self.spread(self.mean(x))
        scale = self.gamma / ops.sqrt(self.mean(centred * centred) + self.eps)
        return centred * self.spread(scale) + self.spread(ops.tile(self.beta, self.beta_copies))


class LoweredInput(nn.Cell):
    """`src.vnet.InputStage`: the volume is added to each of its channels."""

    def __init__(self, stage: nn.Cell, channels: int) -> None:
        super().__init__()
        self.conv = stage.conv
        self.bn = stage.bn
        self.relu = stage.relu
        self.copies = (1, channels)

    def construct(self, volume):
        return self.relu(self.bn(self.conv(volume)) + ops.tile(volume, self.copies))


class LoweredVNet(nn.Cell):
    """A V-Net of 2-D operators for one shape of input.

    `construct(volume)` takes and returns what `VNet` does in evaluation mode.

    Args:
        network: has the weights. Its stages are taken over and changed: it is of no use afterwards.
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

    def construct(self, volume):
        x = self.in_tr(ops.reshape(volume, self.matrix))
        skips = ()
        for stage in self.down_stages:
            skips = (x, *skips)
            x = stage(x)
        for stage, skip in zip(self.up_stages, skips):  # noqa: B905, as in src/vnet.py
            x = stage(x, skip)
        return ops.reshape(self.out_tr(x), self.volume)


def _lower(stage, grid, foreground=None):
    """Replaces the layers of a stage whose output lies on `grid`.

    With `foreground`, the logits become one channel: the foreground's less the background's.
    """
    children = stage.name_cells()
    for name, cell in children.items():
        if isinstance(cell, nn.Conv3d | nn.Conv3dTranspose):
            is_last = name == "conv2"  # the head's, which no norm follows
            weight, bias = _folded(cell, None if is_last else children.get("bn"))
            if is_last:
                weight = weight[foreground, None] - weight[1 - foreground]
                bias = bias[foreground, None] - bias[1 - foreground]
            setattr(stage, name, _lowered_conv(cell, weight, bias, grid))
        elif isinstance(cell, nn.BatchNorm3d):
            setattr(stage, name, nn.Identity())
        elif isinstance(cell, InstanceNorm3d):
            setattr(stage, name, LoweredInstanceNorm(cell, grid))
        elif isinstance(cell, nn.PReLU):
            setattr(stage, name, OnImages(cell, cell.w.shape[0], grid, grid[0] * grid[1]))
        else:
            _lower(cell, grid)


def _folded(conv, norm):
    """Weight and bias of a convolution with its batch norm in evaluation mode, NumPy arrays."""
    weight, axis = conv.weight.asnumpy(), int(isinstance(conv, nn.Conv3dTranspose))
    bias = conv.bias.asnumpy() if conv.has_bias else np.zeros(weight.shape[axis], np.float32)
    if not isinstance(norm, nn.BatchNorm3d):
        return weight, bias
    norm = norm.bn2d
    scale = norm.gamma.asnumpy() / np.sqrt(norm.moving_variance.asnumpy() + norm.eps)
    bias = norm.beta.asnumpy() + (bias - norm.moving_mean.asnumpy()) * scale
    return weight * np.expand_dims(scale, tuple({0, 1, 2, 3, 4} - {axis})), bias


def _lowered_conv(conv, weight, bias, grid):
    """The 2-D twin of a convolution whose output lies on `grid`."""
    batch, slices, height, width = grid
    # (a, b, kX, kY, kZ) -> (a, kX * b, kY, kZ): the slices of a kernel are further channels.
    a, b, depth, side, _ = weight.shape
    weight = np.moveaxis(weight, 2, 1).reshape(a, depth * b, side, side)
    if isinstance(conv, nn.Conv3dTranspose):
        twin = nn.Conv2dTranspose(a, depth * b, 2, stride=2, pad_mode="valid", has_bias=True)
        bias = np.tile(bias, depth)
        channels, grid = a, (batch, slices // 2, height // 2, width // 2)
    elif conv.stride[-1] == 2:
        twin = nn.Conv2d(depth * b, a, 2, stride=2, pad_mode="valid", has_bias=True)
        channels, grid = depth * b, (batch, slices, 2 * height, 2 * width)
    else:
        twin = nn.Conv2d(depth * b, a, side, pad_mode="pad", padding=side // 2, has_bias=True)
        channels = depth * b
    twin.weight.set_data(ms.Tensor(np.ascontiguousarray(weight, np.float32)))
    twin.bias.set_data(ms.Tensor(np.ascontiguousarray(bias, np.float32)))
    lowered = OnImages(twin, channels, grid, batch * slices)
    if conv.stride[-1] == 2 or depth == 1:
        return lowered
    return nn.SequentialCell(Neighbours(depth, b, grid), lowered)
