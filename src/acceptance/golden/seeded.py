"""Weights, inputs and summaries that golden files and tests share, generated with NumPy only.

An array depends only on the seed and on its name. So both sides may generate arrays in any order,
and a layer in the wrong place gets the wrong weights.
"""

import json
import zlib
from pathlib import Path

import numpy as np

SEED = 1
BATCH = 2
SIDES = (48, 32, 32)  # X, Y, Z; not a cube, so that swapped axes show
STRIDE = 3  # odd: a transposed convolution treats even and odd voxels differently
PROBABILITY_PROJECTIONS = 16
GRADIENT_PROJECTIONS = 4


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


def dropout_mask(stage: str, place: str, channels: int) -> np.ndarray:
    """Returns the dropout mask at a place of a stage, (BATCH, channels) float32 of 0 and 2."""
    return (generator(f"{stage} {place}").random((BATCH, channels)) < 0.5).astype(np.float32) * 2


def projections(name: str, array: np.ndarray, count: int) -> np.ndarray:
    """Returns the inner products of an array with `count` random arrays of unit variance.

    Their mean square estimates the squared norm of the array, so that the difference of the
    projections of two arrays estimates the norm of the difference of the arrays.
    """
    random = generator(f"projection {name}")
    flat = np.asarray(array, np.float64).ravel()
    return np.array(
        [random.standard_normal(flat.size, dtype=np.float32) @ flat for _ in range(count)]
    )


def probability_summary(probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the summary of a (BATCH, X, Y, Z) probability in a golden file.

    Returns:
        Every third voxel along each axis as float32, and projections of the whole, scaled so that
        two volumes' projections differ by about the root mean square of their difference.
    """
    scaled = np.asarray(probability, np.float64) / np.sqrt(probability.size)
    return (
        np.asarray(probability[:, ::STRIDE, ::STRIDE, ::STRIDE], np.float32),
        projections("probability", scaled, PROBABILITY_PROJECTIONS),
    )


def write(
    path: str | Path,
    versions: dict[str, str],
    shapes: dict[str, tuple[int, ...]],
    probabilities: dict[str, np.ndarray],
    loss: float,
    gradients: dict[str, np.ndarray],
    moving: dict[str, np.ndarray],
) -> None:
    """Writes a golden file.

    Args:
        path: of the .npz file.
        versions: library -> version, for the reader.
        shapes: name -> shape of each parameter in the oracle's checkpoint.
        probabilities: "eval", "train" and "dropout" -> (BATCH, X, Y, Z).
        loss: of one training step.
        gradients: parameter name -> gradient in that step.
        moving: name -> moving statistics after that step.
    """
    arrays = {
        "meta": json.dumps({"versions": versions, "shapes": shapes}),
        "volume_sample": volume().ravel()[:: BATCH * SIDES[0] * SIDES[1]],
        "loss": np.float64(loss),
        "gradient_names": np.array(list(gradients)),
        "gradient_norms": np.array([np.linalg.norm(array) for array in gradients.values()]),
        "gradient_projections": np.stack(
            [projections(name, array, GRADIENT_PROJECTIONS) for name, array in gradients.items()]
        ),
        "moving_names": np.array(list(moving)),
        "moving": np.concatenate(list(moving.values())).astype(np.float32),
    }
    for mode, probability in probabilities.items():
        arrays[f"{mode}_voxels"], arrays[f"{mode}_projections"] = probability_summary(probability)
    np.savez_compressed(path, **arrays)
    total = np.sqrt((arrays["gradient_norms"] ** 2).sum())
    print(f"{path}: loss {loss:.6f}, gradient norm {total:.4g}")
    for mode, probability in probabilities.items():
        low, middle, high = np.percentile(probability, (1, 50, 99))
        print(f"  {mode} probability: 1 % {low:.3f}, median {middle:.3f}, 99 % {high:.3f}")
