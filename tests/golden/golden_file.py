"""What the golden files of networks hold, for the scripts that write them and the tests.

Network and inputs are of `src/acceptance/golden/seeded.py`; needs NumPy only.
"""

import json
from pathlib import Path

import numpy as np

from src.acceptance.golden.seeded import BATCH, SIDES, STRIDE, generator, volume

PROBABILITY_PROJECTIONS = 16
GRADIENT_PROJECTIONS = 4


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
