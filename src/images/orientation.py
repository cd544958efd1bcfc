"""Where an image's axes point in the patient.

ITK's world is LPS: x grows to the patient's left, y to the back (posterior), z to the head
(superior). A file may store these in any of 48 orders: six permutations, each axis either way.
"""

from itertools import permutations, product

import numpy as np
import SimpleITK as sitk

PLANES = ("sagittal", "coronal", "axial")  # perpendicular to x, y, z
SIGNS = tuple(product((1, -1), repeat=3))
STACK_RATIO = 1.2  # a stack's slices are this much thicker than its pixels, or it has no plane


def direction_matrix(image: sitk.Image) -> np.ndarray:
    """(3, 3) direction cosines; column i is where the image's axis i points, in LPS.

    Raises:
        ValueError: no 3-D image.
    """
    if image.GetDimension() != 3:
        raise ValueError(f"an image of size {image.GetSize()}, expected three axes")
    return np.reshape(image.GetDirection(), (3, 3))


def nearest_patient_axes(image: sitk.Image) -> tuple[list[int], list[int]]:
    """The image's axes as they come closest to the patient's left, posterior and superior.

    Of the 48 ways to permute and flip the axes the one with the largest sum of cosines to L, P and
    S; where several have the same, the choice rests on where the axes point, not on their order.

    Returns:
        Axes (the image axis for each of L, P, S) and signs (-1 where it runs the other way).
    """
    direction = direction_matrix(image)

    def closeness(way):
        axes, signs = way
        cosines = np.round(direction[:, axes] * signs, 6)
        return np.trace(cosines).round(6), *cosines.ravel()

    ways = [(list(axes), list(s)) for axes in permutations(range(3)) for s in SIGNS]
    return max(ways, key=closeness)


def patient_direction(image: sitk.Image) -> np.ndarray:
    """(3, 3) direction cosines of `nearest_patient_axes`; those of the image if stored as LPS."""
    axes, signs = nearest_patient_axes(image)
    return direction_matrix(image)[:, axes] * signs


def in_patient_order(array_xyz: np.ndarray, image: sitk.Image) -> np.ndarray:
    """A view of an image's voxels with axes to the left, posterior and superior.

    Args:
        array_xyz: (X, Y, Z) in the order in which `image` stores them.
        image: gives the geometry.

    Raises:
        ValueError: an array of another shape than the image.
    """
    if array_xyz.shape != image.GetSize():
        raise ValueError(f"an array of shape {array_xyz.shape}, expected {image.GetSize()}")
    axes, signs = nearest_patient_axes(image)
    return array_xyz.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]


def stored_like(image: sitk.Image, like: sitk.Image) -> sitk.Image:
    """An image with its axes permuted and flipped to the order and senses of another's.

    No voxel moves in the patient and no value changes.
    """
    cosines = direction_matrix(like).T @ direction_matrix(image)
    order = np.abs(cosines).argmax(axis=1)
    if len(set(order)) < 3:  # half-way between two axes: no order is the same
        return image
    flips = cosines[range(3), order] < 0
    return sitk.Flip(sitk.PermuteAxes(image, order.tolist()), flips.tolist())


def acquisition_plane(image: sitk.Image) -> str | None:
    """One of `PLANES`, after the coarsest axis; None where no axis is coarser than both others."""
    spacing_mm = np.array(image.GetSpacing())
    coarsest = int(np.argmax(spacing_mm))
    if spacing_mm[coarsest] < STACK_RATIO * np.delete(spacing_mm, coarsest).max():
        return None
    axes, _ = nearest_patient_axes(image)
    return PLANES[axes.index(coarsest)]
