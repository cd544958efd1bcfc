"""A synthetic volume of a chosen size, the same for every implementation."""

import argparse
from pathlib import Path

import numpy as np

SIDE_MULTIPLE = 16


def write_volume(folder: str | Path, size: tuple[int, int, int], batch: int) -> None:
    """Writes volume.npy (batch, 1, X, Y, Z) and mask.npy (batch, X, Y, Z), both float32.

    A bright ellipsoid in noise, with zero mean and unit variance like a preprocessed case.
    """
    grid = np.ogrid[tuple(slice(side) for side in size)]
    distance = sum(
        ((index - (side - 1) / 2) / (share * side)) ** 2
        for index, side, share in zip(grid, size, (0.25, 0.2, 0.3), strict=True)
    )
    mask = np.broadcast_to(distance < 1, (batch, *size)).astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(mask.shape, dtype=np.float32)
    volume = noise + 2 * mask
    volume = (volume - volume.mean()) / volume.std()
    np.save(Path(folder, "volume.npy"), volume[:, None])
    np.save(Path(folder, "mask.npy"), mask)


def volume_size(text: str) -> tuple[int, int, int]:
    """Parses "X,Y,Z", three multiples of 16."""
    try:
        size = tuple(int(side) for side in text.split(","))
    except ValueError:
        size = ()
    if len(size) != 3 or any(side <= 0 or side % SIDE_MULTIPLE for side in size):
        raise argparse.ArgumentTypeError(f"{text}: expected three multiples of 16 as X,Y,Z")
    return size
