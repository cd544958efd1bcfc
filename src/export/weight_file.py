"""The weight file of the C++ program on CPUs, NAME.vnet; docs/export.md describes its format.

`src/fast_conv3d/native/weight_file.h` reads it. Batch norm is stored as it is: the reader folds it
to a scale and a shift of each channel, as the checkpoint's network does, so both compute the same.
"""

import ctypes
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mindspore import nn

from ..fast_conv3d import operators
from ..fast_conv3d.network import ACTIVATIONS, look_up
from ..utils.errors import DataError
from ..vnet import InstanceNorm3d, VNet

MAGIC = b"VNETCPU\n"
VERSION = 1
HEADER = struct.Struct("<8sIIQII3ii5i4i10if")
ENTRY = struct.Struct("<QQIHH")
ALIGNMENT = 64  # of the arrays, in bytes
CRC_OFFSET = 24  # of the header's own checksum
NORMS = {nn.Identity: 0, nn.BatchNorm3d: 1, InstanceNorm3d: 2}
# The order of a layer's arrays; a layer has only those that it needs.
ARRAYS = (
    *("weight", "bias", "gamma", "beta", "moving_mean", "moving_variance"),
    *("first_slopes", "second_slopes"),
)


class Layer(NamedTuple):
    """A convolution, and what is applied to its output."""

    conv: nn.Cell
    norm: nn.Cell
    first: nn.Cell | None = None  # activation before the sum with the residual
    second: nn.Cell | None = None  # and after it


def layers_of(network: VNet) -> Iterator[Layer]:
    """Yields the convolutions of a network in the order in which they are computed."""
    first = network.in_tr
    yield Layer(first.conv, first.bn, second=first.relu)
    for stage in network.down_stages:
        yield from _layers_of_stage(stage, stage.down_conv)
    for stage in network.up_stages:
        yield from _layers_of_stage(stage, stage.up_conv)
    head = network.out_tr
    if not isinstance(head.conv1, nn.Identity):
        yield Layer(head.conv1, head.bn, head.relu)
    yield Layer(head.conv2, nn.Identity())


def _layers_of_stage(stage, conv):
    yield Layer(conv, stage.bn, stage.relu1)
    *units, last = _units(stage)
    for unit in units:
        yield Layer(unit.conv, unit.bn, unit.relu)
    yield Layer(last.conv, last.bn, last.relu, stage.relu2)


def _units(stage):
    return list(stage.ops) if isinstance(stage.ops, nn.SequentialCell) else [stage.ops]


def arrays_of(layer: Layer) -> dict[str, np.ndarray]:
    """The arrays of a layer, float32, in the order of `ARRAYS`."""
    conv, norm = layer.conv, layer.norm
    found = {"weight": conv.weight}
    if conv.has_bias:
        found["bias"] = conv.bias
    if isinstance(norm, nn.BatchNorm3d):
        norm = norm.bn2d
        found |= {"moving_mean": norm.moving_mean, "moving_variance": norm.moving_variance}
    if not isinstance(norm, nn.Identity):
        found |= {"gamma": norm.gamma, "beta": norm.beta}
    for name, activation in (("first_slopes", layer.first), ("second_slopes", layer.second)):
        if isinstance(activation, nn.PReLU):
            found[name] = activation.w
    return {name: found[name].asnumpy().astype("<f4") for name in ARRAYS if name in found}


def write_weights(network: VNet, grid: Sequence[int], path: Path) -> None:
    """Writes the weight file of a network.

    Args:
        network: its parameters are written.
        grid: sides X, Y, Z of the volumes, in voxels.
        path: of the file.
    """
    layers = list(layers_of(network))
    arrays = [
        (number, ARRAYS.index(name), array)
        for number, layer in enumerate(layers)
        for name, array in arrays_of(layer).items()
    ]
    start = _aligned(HEADER.size + ENTRY.size * len(arrays))
    table, content, offset = b"", b"", start
    with path.open("wb") as file:
        file.seek(start)
        for layer, name, array in arrays:
            content = array.tobytes()
            table += ENTRY.pack(offset, array.size, zlib.crc32(content), layer, name)
            file.write(content.ljust(_aligned(len(content)), b"\0"))
            offset += _aligned(len(content))
        header = HEADER.pack(
            *(MAGIC, VERSION, start, offset, 0, len(arrays)),
            *(*grid, *_description(network, layers)),
        )
        beginning = bytearray((header + table).ljust(start, b"\0"))
        struct.pack_into("<I", beginning, CRC_OFFSET, zlib.crc32(beginning))
        file.seek(0)
        file.write(beginning)


def _aligned(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


def _description(network, layers):
    """The header's numbers from the width on."""
    first, down, up, head = layers[0], network.down_stages[0], network.up_stages[0], network.out_tr
    unit, last = _units(up)[-1], layers[-1].conv
    norm = getattr(first.norm, "bn2d", first.norm)
    return (
        *(first.conv.out_channels, 1, *(len(_units(stage)) for stage in network.down_stages)),
        *(len(_units(stage)) for stage in network.up_stages),
        *(look_up(down.relu1, ACTIVATIONS), look_up(first.norm, NORMS)),
        not isinstance(unit.relu, nn.Identity),
        *(first.conv.has_bias, unit.conv.has_bias, up.up_conv.has_bias),
        not isinstance(head.conv1, nn.Identity),
        *(last.kernel_size[0], last.has_bias, head.foreground),
        getattr(norm, "eps", 0.0),
    )


def run_weights(path: Path, volume: np.ndarray) -> np.ndarray:
    """Returns the C++ program's output for a volume.

    Args:
        path: of a weight file.
        volume: (1, 1, X, Y, Z) float32.

    Returns:
        The foreground's probability, (1, X, Y, Z) float32.

    Raises:
        BuildError: the native library cannot be built on this machine.
        DataError: the file cannot be used, or is for another grid.
    """
    library = ctypes.CDLL(operators.library())
    library.vnet_load.restype = ctypes.c_void_p
    library.vnet_error.restype = ctypes.c_char_p
    model = library.vnet_load(os.fsencode(path), operators.thread_count())
    if not model:
        raise DataError(library.vnet_error().decode())
    model = ctypes.c_void_p(model)
    try:
        sides = (ctypes.c_int * 3)()
        library.vnet_grid(model, sides)
        if volume.shape != (1, 1, *sides):
            raise DataError(f"{path}: is for volumes of {tuple(sides)}, not {volume.shape[2:]}")
        volume = np.ascontiguousarray(volume, np.float32)
        output = np.empty((1, *sides), np.float32)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (volume, output)]
        if library.vnet_run(model, *pointers) != 0:
            raise DataError(f"{path}: {library.vnet_error().decode()}")
        return output
    finally:
        library.vnet_free(model)
