"""Intensities of MR images: conversion to float32, equalization, z-score."""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from scipy.special import ndtr

from .grid import check_scalar_3d, image_like

LOG_OFFSET = 0.01  # added to intensities in 0..1, so that the logarithm is finite
FIELD_SIGMA_MM = 20.0  # standard deviation of the Gaussian that estimates the coil's bias field
HISTOGRAM_STEPS = 1024
TABLE_STEPS = 1 << 17  # of the table from contrast to share
CHUNK = 1 << 16  # voxels that are looked up at a time
AIR_FACTOR, AIR_BOUNDS = 2, (0.04, 0.1)  # see `tissue`
AIR_SIGMA_MM = 2.5  # standard deviation of the Gaussian over which air's noise is averaged
MAX_AIR_SHARE = 0.01  # share of that Gaussian that lies on air
# Shares of an image's voxels; see `without_padding`.
MIN_PADDING_SHARE = 0.005
MIN_NONNEGATIVE_SHARE = 0.9
MIN_WEIGHT = 1e-4  # lower bound of the share of a Gaussian that lies on what counts


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


def without_padding(image: sitk.Image) -> sitk.Image:
    """Makes a constant where nothing was measured as dark as the darkest measured voxel.

    MR intensities are not negative; some programs fill with -1024 or -32768, or with -1 that became
    65535. Such a constant would take the scale that the tissue needs. It is the lowest intensity,
    if that is negative, or the highest, if it is further above all others than these are apart,
    each of at least `MIN_PADDING_SHARE` of the voxels.

    An interpolation leaves intensities between padding and tissue. Those below 0 are raised to 0
    where they are few (more than `MIN_NONNEGATIVE_SHARE` of the others are not negative) and the
    padding is as far below 0 as the tissue reaches above.

    Args:
        image: 3-D scalar, of any voxel type.

    Returns:
        The same voxel type and geometry.
    """
    values = sitk.GetArrayViewFromImage(image)
    padded = np.zeros(values.shape, bool)
    for constant, is_lowest in ((values.min(), True), (values.max(), False)):
        if is_lowest and constant >= 0:
            continue
        where = values == constant
        if where.mean() < MIN_PADDING_SHARE:
            continue
        others = values[~(where | padded)].astype(np.float64)  # differences may exceed float32
        if others.size and np.ptp(others) > 0:
            padded |= where & (is_lowest or constant - others.max() > np.ptp(others))
    if not padded.any():
        return image
    measured = values[~padded]
    lowest = measured.min()
    if values.min() < -float(measured.max()) and (measured >= 0).mean() > MIN_NONNEGATIVE_SHARE:
        lowest = max(lowest, values.dtype.type(0))
    return image_like(np.where(padded, lowest, np.maximum(values, lowest)), image)


def equalize(intensity: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Removes the bias field of the receive coil and equalizes the histogram.

    The logarithm of the intensities minus its Gaussian mean is each voxel's contrast to its
    surroundings. A voxel becomes the share of the tissue with a lower contrast, interpolated
    linearly between quantiles. Tissue next to an endorectal coil is up to ten times as bright as
    the rest of the image; rescaling alone would leave that rest in the dark end of 0..1.

    Args:
        intensity: (X, Y, Z), NaN outside the image.
        spacing_mm: (3,) voxel size.

    Returns:
        (X, Y, Z) float32 in 0..1. What is not `tissue` becomes 0 and counts neither in the mean nor
        in the shares.
    """
    counted = tissue(intensity, spacing_mm)
    equalized = np.zeros(intensity.shape, np.float32)
    values = intensity[counted].astype(np.float32)
    if values.size == 0 or values.min() == values.max():
        return equalized
    unit = (values - values.min()) / np.ptp(values)
    logarithm = np.zeros(intensity.shape, np.float32)
    logarithm[counted] = np.log(unit + np.float32(LOG_OFFSET))
    weight = _gaussian_mean(counted, spacing_mm, FIELD_SIGMA_MM)
    mean = _gaussian_mean(logarithm, spacing_mm, FIELD_SIGMA_MM) / np.maximum(weight, MIN_WEIGHT)
    equalized[counted] = _shares_below((logarithm - mean)[counted])
    return equalized


def tissue(intensity: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Finds what is neither outside the image nor air or padding.

    Air has noise, whose mean over some voxels is nearly the same everywhere. Air is what stays
    below `AIR_FACTOR` times the lowest such mean, within `AIR_BOUNDS` of the tissue's median. That
    is first estimated by the 90th percentile of all voxels, since most of them may be air.

    Args:
        intensity, spacing_mm: see `equalize`.

    Returns:
        (X, Y, Z) bool.
    """
    inside = ~np.isnan(intensity)
    if not inside.any():
        return inside
    weight = _gaussian_mean(inside, spacing_mm, AIR_SIGMA_MM)
    mean = _gaussian_mean(np.where(inside, intensity, 0), spacing_mm, AIR_SIGMA_MM)
    mean /= np.maximum(weight, MIN_WEIGHT)
    zero = min(mean[inside].min(), 0)  # below 0 in standardized images
    mean -= zero
    lowest, median = mean[inside].min(), np.quantile(mean[inside], 0.9)
    for _ in range(2):
        floor = np.clip(AIR_FACTOR * lowest, *np.multiply(AIR_BOUNDS, median))
        found = inside & (mean > floor)
        if not found.any():
            return found
        median = np.median(mean[found])
    # The tissue's brightness reaches into the mean of the air beside it.
    beside_air = _gaussian_mean(inside & ~found, spacing_mm, AIR_SIGMA_MM) > MAX_AIR_SHARE
    return found & ~(beside_air & (intensity - zero <= floor))


def _gaussian_mean(array, spacing_mm, sigma_mm):
    """Gaussian mean, float32; beyond the array its border voxels are repeated."""
    mean = array.astype(np.float32)
    for axis, size_mm in enumerate(spacing_mm):
        matrix = _gaussian_matrix(array.shape[axis], sigma_mm / size_mm)
        mean = np.moveaxis(np.tensordot(matrix, mean, (1, axis)), 0, axis)
    return mean


def _gaussian_matrix(count, sigma):
    """(count, count) weights of the voxels in each voxel's mean: the Gaussian's mass in each."""
    voxels = np.arange(count)
    borders = np.array([-np.inf, *(voxels[1:] - 0.5), np.inf])
    return np.diff(ndtr((borders - voxels[:, None]) / sigma), axis=1).astype(np.float32)


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
