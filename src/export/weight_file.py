"""The weight file of the C++ program on CPUs, NAME.vnet; docs/export.md describes its format.

`src/fast_conv3d/native/weight_file.h` reads it. Batch norm is stored as it is: the reader folds it
to a scale and a shift of each channel, as the checkpoint's network does, so both compute the same.
"""

import ctypes
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..fast_conv3d import operators
from ..fast_conv3d.layers import PARAMETERS, description_of, layers_of, parameters_of
from ..utils.errors import DataError
from ..vnet import VNet

MAGIC = b"VNETCPU\n"
VERSION = 1
HEADER = struct.Struct("<8sIIQII3ii5i4i10if")
ENTRY = struct.Struct("<QQIHH")
ALIGNMENT = 64  # of the arrays, in bytes
CRC_OFFSET = 24  # of the header's own checksum


def write_weights(network: VNet, grid: Sequence[int], path: Path) -> None:
    """Writes the weight file of a network.

    Args:
        network: its parameters are written.
        grid: sides X, Y, Z of the volumes, in voxels.
        path: of the file.
    """
    arrays = [
        (number, PARAMETERS.index(name), parameter.asnumpy().astype("<f4"))
        for number, layer in enumerate(layers_of(network))
        for name, parameter in parameters_of(layer).items()
    ]
    description = description_of(network)
    depths = (*description.encoder_depths, *description.decoder_depths)
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
            *(*grid, description.width, *depths, *description[3:]),
        )
        beginning = bytearray((header + table).ljust(start, b"\0"))
        struct.pack_into("<I", beginning, CRC_OFFSET, zlib.crc32(beginning))
        file.seek(0)
        file.write(beginning)


def _aligned(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


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
