"""Orientation of images in the patient: nearest axes, storage order, acquisition plane.

ITK's coordinates are LPS: x increases to the patient's left, y to the back (posterior), z to the
head (superior). A file may store the voxels in 48 orders: six permutations, each axis in either
direction.
"""

from itertools import permutations, product

import numpy as np
import SimpleITK as sitk

PLANES = ("sagittal", "coronal", "axial")  # perpendicular to x, y, z
SIGNS = tuple(product((1, -1), repeat=3))
STACK_RATIO = 1.2  # least ratio of slice spacing to pixel spacing of an image that has a plane


def direction_matrix(image: sitk.Image) -> np.ndarray:
    """Returns the (3, 3) direction cosines; column i is the direction of image axis i in LPS.

    Raises:
        ValueError: not a 3-D image.
    """
    if image.GetDimension() != 3:
        raise ValueError(f"an image of size {image.GetSize()}, expected three axes")
    return np.reshape(image.GetDirection(), (3, 3))


def nearest_patient_axes(image: sitk.Image) -> tuple[list[int], list[int]]:
    """Returns the permutation and flips that bring the image's axes closest to L, P and S.

    Chooses the one of the 48 possibilities with the largest sum of cosines to L, P and S. Ties are
    resolved by the directions of the axes, so the result does not depend on the storage order.

    Returns:
        Axes (the image axis for each of L, P, S) and signs (-1 for an axis to be flipped).

    Raises:
        ValueError: not a 3-D image.
    """
    direction = direction_matrix(image)

    def closeness(candidate):
        axes, signs = candidate
        cosines = np.round(direction[:, axes] * signs, 6)
        return np.trace(cosines).round(6), *cosines.ravel()

    candidates = [(list(axes), list(s)) for axes in permutations(range(3)) for s in SIGNS]
    return max(candidates, key=closeness)


def patient_direction(image: sitk.Image) -> np.ndarray:
    """Returns the (3, 3) direction cosines of the image after `nearest_patient_axes`."""
    axes, signs = nearest_patient_axes(image)
    return direction_matrix(image)[:, axes] * signs


def to_patient_order(array_xyz: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Returns a view of an array with its axes closest to left, posterior and superior.

    Args:
        array_xyz: (X, Y, Z) in the storage order of `image`.
        image: 3-D, for the geometry.

    Raises:
        ValueError: the array has another shape than the image.
    """
    if array_xyz.shape != image.GetSize():
        raise ValueError(f"an array of shape {array_xyz.shape}, expected {image.GetSize()}")
    axes, signs = nearest_patient_axes(image)
    return array_xyz.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]


def reorder_like(image: sitk.Image, like: sitk.Image) -> sitk.Image:
    """Permutes and flips the axes of an image to the storage order of another.

    No voxel moves in patient space and no value changes. Where no order is the nearest, as for an
    image that is rotated by 45 degrees, it is returned unchanged.
    """
    cosines = direction_matrix(like).T @ direction_matrix(image)
    order = np.abs(cosines).argmax(axis=1)
    if len(set(order)) < 3:
        return image
    flips = cosines[range(3), order] < 0
    return sitk.Flip(sitk.PermuteAxes(image, order.tolist()), flips.tolist())


def acquisition_plane(image: sitk.Image) -> str | None:
    """Returns the plane perpendicular to the axis with the largest spacing, one of `PLANES`.

    None unless that spacing is at least `STACK_RATIO` times both others.
    """
    spacing_mm = np.array(image.GetSpacing())
    coarsest = int(np.argmax(spacing_mm))
    if spacing_mm[coarsest] < STACK_RATIO * np.delete(spacing_mm, coarsest).max():
        return None
    axes, _ = nearest_patient_axes(image)
    return PLANES[axes.index(coarsest)]
