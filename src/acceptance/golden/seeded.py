"""Weights and inputs of the networks in golden files, generated with NumPy only.

An array depends only on the seed and on its name. So both sides may generate arrays in any order,
and a layer in the wrong place gets the wrong weights.
"""

import zlib

import numpy as np

SEED = 1
BATCH = 2
SIDES = (48, 32, 32)  # X, Y, Z; not a cube, so that swapped axes show
# Of a golden file's voxels; odd: a transposed convolution treats even and odd voxels differently.
STRIDE = 3


def generator(name: str) -> np.random.Generator:
    """Returns the random generator that belongs to a name."""
    return np.random.default_rng((SEED, zlib.crc32(name.encode())))


def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a float32 array for a parameter with PyTorch's or MindSpore's name and shape.

    The scales are such that activations stay of order one and no normalization is the identity.
    """
    random = generator(name)
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if len(shape) == 5:
        # A voxel of a 2x2x2 transposed convolution of stride 2 sums over the input channels alone.
        fan_in = shape[0] if "up_conv" in name else np.prod(shape[1:])
        return random.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(fan_in))
    if last in ("running_var", "moving_variance"):
        return random.uniform(0.5, 2, shape).astype(np.float32)
    if last in ("running_mean", "moving_mean", "bias", "beta"):
        return random.normal(0, 0.3, shape).astype(np.float32)
    return random.uniform(0.5, 1.5, shape).astype(np.float32)  # batch norm's factor, PReLU's slope


def volume() -> np.ndarray:
    """Returns the input, (BATCH, 1, X, Y, Z) float32."""
    return generator("volume").standard_normal((BATCH, 1, *SIDES), dtype=np.float32)


def mask() -> np.ndarray:
    """Returns the reference, (BATCH, X, Y, Z) float32 of 0 and 1."""
    return (generator("mask").random((BATCH, *SIDES)) < 0.3).astype(np.float32)
