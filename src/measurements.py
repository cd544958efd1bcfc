"""Measures of a segmented gland: volume, diameters along the patient's axes, mean probability."""

import numpy as np
import SimpleITK as sitk

from .images.orientation import direction_matrix
from .metrics import bounding_box, mask_array, volume_ml

# The patient's axes in the order of ITK's coordinates: x to the left, y to the back, z to the head.
DIAMETERS = ("left_right_mm", "front_back_mm", "head_foot_mm")
MEASURES = ("prostate_ml", "ellipsoid_ml", *DIAMETERS, "mean_probability")


def measure_gland(
    mask: sitk.Image, probability: sitk.Image | None = None
) -> dict[str, float | None]:
    """Measures a mask.

    Args:
        mask: uint8, 0 and 1; of any orientation.
        probability: the network's foreground probability on the same grid, 0..1; None: unknown.

    Returns:
        `prostate_ml`: volume of the mask's voxels.
        `left_right_mm`, `front_back_mm`, `head_foot_mm`: `diameters_mm`.
        `ellipsoid_ml`: pi/6 times the product of the three, the usual estimate from diameters.
        `mean_probability`: mean of `probability` over the mask's voxels; None if it is unknown or
        the mask is empty. All other measures of an empty mask are 0.

    Raises:
        ValueError: not a 3-D mask of 0 and 1, or a probability of another size.
    """
    diameters = diameters_mm(mask)
    return {
        "prostate_ml": volume_ml(mask),
        "ellipsoid_ml": float(np.pi / 6 * np.prod(diameters) / 1000),
        **dict(zip(DIAMETERS, diameters.tolist(), strict=True)),
        "mean_probability": None if probability is None else _mean_inside(mask, probability),
    }


def diameters_mm(mask: sitk.Image) -> np.ndarray:
    """Returns the extents of a mask along the patient's axes, in mm.

    The extent along an axis is the distance between the two planes perpendicular to it that enclose
    all voxels of the mask, as the boxes that they are: measured between the outermost corners, not
    between the centres. The patient's axes are those of the file's coordinates. The image's axes
    may lie at any angle to them.

    Args:
        mask: uint8, 0 and 1.

    Returns:
        (3,): left-right, front-back, head-foot; zeros for an empty mask.

    Raises:
        ValueError: not a 3-D mask of 0 and 1.
    """
    voxels = mask_array(mask)
    # Column i is the step in mm from a voxel to the next along image axis i.
    steps_mm = direction_matrix(mask) * np.array(mask.GetSpacing())
    indices = np.argwhere(voxels[bounding_box(voxels)])[:, ::-1]  # x, y, z
    if not len(indices):
        return np.zeros(3)
    between_centres = np.ptp(indices @ steps_mm.T, axis=0)
    return between_centres + np.abs(steps_mm).sum(axis=1)  # and half a voxel at both ends


def _mean_inside(mask: sitk.Image, probability: sitk.Image) -> float | None:
    inside = mask_array(mask)
    values = sitk.GetArrayViewFromImage(probability)
    if values.shape != inside.shape:
        raise ValueError(f"a probability of size {probability.GetSize()}, mask {mask.GetSize()}")
    return float(values[inside].mean(dtype=np.float64)) if inside.any() else None
