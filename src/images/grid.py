"""Grids of images: what is plausible, images on the grid of another one, comparison of two."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..utils.errors import DataError

# Largest distance of the corner voxels of two equal grids, in voxels. Rounding in headers (NIfTI to
# float32, text to some digits) moves the corners by less, and so small a shift is far below the
# precision of any annotation.
SAME_GRID_VOXELS = 0.05
# What a header of any format may say.
VOXEL_SIZES_MM = (1e-3, 100.0)  # outside this range it is damaged or has the wrong unit
FARTHEST_MM = 1e5  # of any corner from the scanner's isocentre
# Largest deviation of two axes from perpendicular. An affine rounded to 1e-3 mm has less for voxels
# of 0.4 mm and more.
LARGEST_SHEAR_DEG = 0.3


def check_scalar_3d(image: sitk.Image) -> None:
    """Raises a ValueError for an image that is not 3-D with one value per voxel."""
    components = image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() != 3 or components != 1:
        raise ValueError(
            f"an image of size {image.GetSize()} with {components} component(s) per voxel, "
            "expected a 3-D scalar image"
        )


def image_like(voxels: np.ndarray, reference: sitk.Image) -> sitk.Image:
    """Returns an image of voxels (z, y, x) with the geometry of another one of the same size."""
    image = sitk.GetImageFromArray(voxels)
    image.CopyInformation(reference)
    return image


def grid_difference(reference: sitk.Image, other: sitk.Image) -> str:
    """Returns how the grid of `other` differs from the reference's, "" if it is the same.

    For example "size (4, 4, 2), expected (4, 4, 3)", or "corners up to 2.50 mm away: origin
    (0.0, 2.5, 0.0), expected (0.0, 0.0, 0.0)".
    """
    if reference.GetSize() != other.GetSize():
        return f"size {other.GetSize()}, expected {reference.GetSize()}"
    largest = [side - 1 for side in reference.GetSize()]
    corners = [np.multiply(end, largest).tolist() for end in np.ndindex(*[2] * len(largest))]
    places_mm = [
        np.array([image.TransformIndexToPhysicalPoint(corner) for corner in corners])
        for image in (reference, other)
    ]
    apart_mm = float(np.linalg.norm(places_mm[0] - places_mm[1], axis=1).max())
    if apart_mm <= SAME_GRID_VOXELS * min(reference.GetSpacing()):
        return ""
    geometry = {
        name: (getattr(other, f"Get{name}")(), getattr(reference, f"Get{name}")())
        for name in ("Spacing", "Origin", "Direction")
    }
    parts = [
        f"{name.lower()} {found}, expected {expected}"
        for name, (found, expected) in geometry.items()
        if not np.allclose(found, expected, rtol=1e-6, atol=1e-6)
    ]
    return f"corners up to {apart_mm:.2f} mm away: {'; '.join(parts)}"


def check_same_grid(
    image: sitk.Image, image_path: str | Path, mask: sitk.Image, mask_path: str | Path
) -> None:
    """Raises a DataError unless a mask has the same grid as its image."""
    difference = grid_difference(image, mask)
    if difference:
        raise DataError(
            f"{mask_path}: not on the grid of its image {image_path}: {difference}; resample the "
            "mask onto its image"
        )
