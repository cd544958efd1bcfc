"""Intensities of MR images: conversion to float32, equalization, z-score."""

import numpy as np
import SimpleITK as sitk
from scipy.special import ndtr

# Of `equalize`.
LOG_OFFSET = 0.01  # added to intensities in 0..1, so that the logarithm is finite
FIELD_SIGMA_MM = 20.0  # standard deviation of the Gaussian that estimates the coil's bias field
BLOCK_MM = 2.5  # the Gaussian is evaluated on means of blocks of voxels, so wide at most
SMALLEST_WEIGHT = 1e-4  # lower bound of the share of the Gaussian that lies on tissue
HISTOGRAM_STEPS = 1024
TABLE_STEPS = 1 << 17  # of the table from contrast to share
CHUNK = 1 << 16  # voxels that are looked up at a time


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
        equalized_zyx[tissue] = _shares_below(contrast)
    result = sitk.GetImageFromArray(equalized_zyx)
    result.CopyInformation(image)
    return result


def _gaussian_mean(array_zyx, spacing_mm):
    """Gaussian mean of `FIELD_SIGMA_MM`; beyond the array its border voxels are repeated."""
    factors = [
        _gaussian_factors(count, size_mm)
        for count, size_mm in zip(array_zyx.shape, spacing_mm[::-1], strict=True)
    ]
    mean = array_zyx.astype(np.float32, copy=False)
    for axis in (2, 1, 0):  # the first product makes the array small, the last one large again
        mean = _multiply_axis(mean, factors[axis][0], axis)
    for axis in (0, 1, 2):
        mean = _multiply_axis(mean, factors[axis][1], axis)
    return mean


def _gaussian_factors(count, spacing_mm):
    """The Gaussian mean along an axis as two matrices, applied one after the other.

    The first, (blocks, count), takes means of equal blocks of voxels, and has a block of its own at
    both ends for the repeated border voxel. The second, (count, blocks), weights each block with
    the Gaussian's mass in it. Both steps widen the Gaussian by the variance of a block, which is
    subtracted from its own.
    """
    is_fine = spacing_mm <= BLOCK_MM / 2
    blocks = int(np.ceil(count * spacing_mm / BLOCK_MM)) if is_fine else count
    edges = np.linspace(-0.5, count - 0.5, blocks + 1)
    voxels = np.arange(count)
    shared = np.minimum(edges[1:, None], voxels + 0.5) - np.maximum(edges[:-1, None], voxels - 0.5)
    means = shared.clip(0) * (blocks / count)
    variance = means @ voxels**2 - (means @ voxels) ** 2  # of the voxels' centres in each block
    widening = (count / blocks) ** 2 / 12 + variance.mean()
    sigma = np.sqrt(max((FIELD_SIGMA_MM / spacing_mm) ** 2 - widening, 1e-6))
    means = np.vstack([voxels == 0, means, voxels == count - 1])
    borders = np.array([-np.inf, *edges, np.inf])
    weights = np.diff(ndtr((borders - voxels[:, None]) / sigma), axis=1)
    return means.astype(np.float32), weights.astype(np.float32)


def _multiply_axis(array, matrix, axis):
    """Multiplies a matrix with an array along one of its axes."""
    if axis == array.ndim - 1:
        return array @ matrix.T
    if axis == array.ndim - 2:
        return matrix @ array
    return np.tensordot(matrix, array, 1)


def _shares_below(contrast):
    """The share of the values below each value, linear between `HISTOGRAM_STEPS` quantiles.

    A table in equal steps from the lowest to the highest value replaces the search among the
    quantiles. Its error is the share of voxels within half a step.
    """
    ordered = np.sort(contrast)
    places = np.linspace(0, len(ordered) - 1, HISTOGRAM_STEPS + 1)
    below = places.astype(int)
    above = np.minimum(below + 1, len(ordered) - 1)
    quantiles = ordered[below] + (places - below) * (ordered[above] - ordered[below])
    values, first = np.unique(quantiles, return_index=True)
    span = values[-1] - values[0]
    if span == 0:
        return np.zeros_like(contrast)
    steps = np.linspace(values[0], values[-1], TABLE_STEPS + 1)
    table = np.interp(steps, values, first / HISTOGRAM_STEPS).astype(np.float32)
    shares = np.empty_like(contrast)
    for start in range(0, len(contrast), CHUNK):  # which stay in the processor's cache
        part = slice(start, start + CHUNK)
        scaled = (contrast[part] - np.float32(values[0])) * np.float32(TABLE_STEPS / span)
        np.take(table, np.rint(scaled).astype(np.int32), mode="clip", out=shares[part])
    return shares


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
