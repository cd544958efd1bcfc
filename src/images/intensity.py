"""Intensities of MR images: conversion to float32, equalization, z-score."""

import numpy as np
import SimpleITK as sitk

# Of `equalize`.
LOG_OFFSET = 0.01  # added to intensities in 0..1, so that the logarithm is finite
FIELD_SIGMA_MM = 20.0  # standard deviation of the Gaussian that estimates the coil's bias field
SMALLEST_WEIGHT = 1e-4  # lower bound of the share of the Gaussian that lies on tissue
HISTOGRAM_STEPS = 1024


def check_scalar_3d(image: sitk.Image) -> None:
    """Raises a ValueError for an image that is not 3-D with one value per voxel."""
    components = image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() != 3 or components != 1:
        raise ValueError(
            f"an image of size {image.GetSize()} with {components} component(s) per voxel, "
            "expected a 3-D scalar image"
        )


def to_float32(image: sitk.Image) -> sitk.Image:
    """Converts an image of any voxel type to float32.

    Filters return the voxel type of their input: rescaled to 0..1, integers would be rounded.

    Raises:
        ValueError: not a 3-D scalar image, or NaN or infinity in it.
    """
    check_scalar_3d(image)
    image = sitk.Cast(image, sitk.sitkFloat32)
    if not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise ValueError("an image with NaN or infinite voxels")
    return image


def equalize(image: sitk.Image) -> sitk.Image:
    """Removes the bias field of the receive coil and equalizes the histogram.

    The logarithm of the intensities minus its Gaussian mean is each voxel's contrast to its
    surroundings. A voxel becomes the share of voxels with a lower contrast, interpolated linearly
    between quantiles. Tissue next to an endorectal coil is up to ten times as bright as the rest of
    the image; rescaling alone would leave that rest in the dark end of 0..1.

    Args:
        image: 3-D scalar, of any voxel type.

    Returns:
        float32 in 0..1. The darkest voxels, such as padding, become 0 and count neither in the mean
        nor in the shares.

    Raises:
        ValueError: not a 3-D scalar image, or NaN or infinity in it.
    """
    image = to_float32(image)
    intensity = sitk.GetArrayViewFromImage(image)
    tissue = intensity > intensity.min()
    unit = sitk.RescaleIntensity(image, 0.0, 1.0)
    logarithm = np.log(sitk.GetArrayFromImage(unit) + np.float32(LOG_OFFSET))
    logarithm[~tissue] = 0
    weight = np.maximum(_gaussian_mean(tissue, image.GetSpacing()), SMALLEST_WEIGHT)
    contrast = (logarithm - _gaussian_mean(logarithm, image.GetSpacing()) / weight)[tissue]
    equalized_zyx = np.zeros_like(logarithm)
    if contrast.size:
        shares = np.linspace(0, 1, HISTOGRAM_STEPS + 1)
        values, first = np.unique(np.quantile(contrast, shares), return_index=True)
        equalized_zyx[tissue] = np.interp(contrast, values, shares[first])
    result = sitk.GetImageFromArray(equalized_zyx)
    result.CopyInformation(image)
    return result


def _gaussian_mean(array_zyx, spacing_mm):
    """Gaussian mean of `FIELD_SIGMA_MM`; beyond the array its border voxels are repeated."""
    image = sitk.GetImageFromArray(array_zyx.astype(np.float32))
    image.SetSpacing(spacing_mm)
    border = [4, 4, 4]  # the recursive filter needs at least four voxels along each axis
    smooth = sitk.SmoothingRecursiveGaussian(
        sitk.ZeroFluxNeumannPad(image, border, border), FIELD_SIGMA_MM
    )
    return sitk.GetArrayFromImage(sitk.Crop(smooth, border, border))


def z_score(intensity: np.ndarray) -> np.ndarray:
    """Scales intensities to mean 0 and standard deviation 1 over the voxels above 0.

    Returns:
        float32 of the same shape; all 0 where the voxels above 0 have one value, or there are none.

    Raises:
        ValueError: NaN or infinity.
    """
    if not np.isfinite(intensity).all():
        raise ValueError("intensities with NaN or infinity")
    positive = intensity[intensity > 0].astype(np.float64)
    if not positive.size or positive.min() == positive.max():
        return np.zeros(np.shape(intensity), np.float32)
    return ((intensity - positive.mean()) / positive.std()).astype(np.float32)
