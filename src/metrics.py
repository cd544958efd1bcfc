"""Metrics of a predicted mask against its reference: overlap, volume and surface distances.

The measures are those of the PROMISE12 challenge (Litjens et al. 2014, "Evaluation of prostate
segmentation algorithms for MRI"), for the whole gland and for its apex and base.

Arrays are boolean with axes (z, y, x). The surface is the set of foreground voxels with at least
one of their six neighbours outside the mask or the image. Distances are between voxel centres, in
mm, and take anisotropic spacing into account.

Two empty masks match perfectly (Dice 1, distances and volume difference 0). One empty mask is the
worst match: Dice 0, distances equal to the diagonal of the image, volume difference -100 % for an
empty prediction and +100 % for an empty reference, for which the quotient is undefined.
"""

from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .images.grid import grid_difference
from .images.orientation import nearest_patient_axes
from .utils.errors import DataError


class Metric(NamedTuple):
    """A row of the table of metrics."""

    key: str
    unit: str
    better: str  # "high" or "low"; of a signed difference the magnitude


METRICS = tuple(
    Metric(prefix + key, unit, better)
    for prefix in ("", "apex_", "base_")
    for key, unit, better in (
        ("dice", "", "high"),
        ("volume_difference_percent", "%", "low"),
        ("absolute_volume_difference_percent", "%", "low"),
        ("hausdorff_mm", "mm", "low"),
        ("hausdorff95_mm", "mm", "low"),
        ("boundary_distance_mm", "mm", "low"),
    )
)


def case_metrics(reference: sitk.Image, prediction: sitk.Image) -> dict[str, float]:
    """Returns all metrics of one case.

    Apex and base are the lowest and the highest third of the reference's slices (`apex_and_base`).
    Their Dice and volumes count the voxels in these slices. Their distances are those from the
    surface points of the whole gland in these slices to the other mask's whole surface, so that
    the cut adds no surface.

    Args:
        reference: mask 0/1.
        prediction: mask 0/1 on the same grid.

    Returns:
        The keys of `METRICS`; `reference_ml` and `prediction_ml`; and `empty`, `apex_empty`,
        `base_empty`: 1.0 if a mask has no voxel in that part, so that the values follow from the
        definition for empty masks, else 0.0.

    Raises:
        DataError: the masks are not on the same grid.
        ValueError: an image is not a 3-D mask of 0 and 1.
    """
    reference_mask, prediction_mask = mask_array(reference), mask_array(prediction)
    difference = grid_difference(reference, prediction)
    if difference:
        raise DataError(
            f"the prediction is not on the grid of its reference: {difference}; resample it"
        )
    spacing_zyx_mm = np.array(reference.GetSpacing()[::-1])
    size_zyx = np.array(reference.GetSize()[::-1])
    diagonal_mm = float(np.linalg.norm(size_zyx * spacing_zyx_mm))
    axis, ascending = superior_axis(reference)

    box = bounding_box(reference_mask | prediction_mask)
    reference_mask, prediction_mask = reference_mask[box], prediction_mask[box]
    to_prediction, to_reference = surface_distance_maps(
        reference_mask, prediction_mask, spacing_zyx_mm
    )
    # With an empty reference, apex and base are those of the prediction.
    sliced = reference_mask if reference_mask.any() else prediction_mask
    apex, base = apex_and_base(sliced, axis, ascending)

    metrics: dict[str, float] = {}
    for prefix, slices in (("", slice(None)), ("apex_", apex), ("base_", base)):
        slab = (slice(None),) * axis + (slices,)
        values = _part_metrics(
            reference_mask[slab],
            prediction_mask[slab],
            to_prediction[slab],
            to_reference[slab],
            diagonal_mm,
        )
        metrics |= {prefix + key: value for key, value in values.items()}

    metrics["reference_ml"], metrics["prediction_ml"] = volume_ml(reference), volume_ml(prediction)
    return metrics


def _part_metrics(reference, prediction, to_prediction, to_reference, diagonal_mm):
    """The metrics of the whole gland, its apex or its base, without prefix.

    Args:
        reference, prediction: masks of this part.
        to_prediction, to_reference: see `surface_distance_maps`.
        diagonal_mm: the distance to an empty mask.
    """
    difference = volume_difference_percent(reference, prediction)
    return {
        "dice": dice(reference, prediction),
        "volume_difference_percent": difference,
        "absolute_volume_difference_percent": abs(difference),
        **_distances(reference, prediction, to_prediction, to_reference, diagonal_mm),
        "empty": float(not (reference.any() and prediction.any())),
    }


def volume_ml(mask: sitk.Image) -> float:
    """Returns the volume of a mask's foreground in ml.

    Raises:
        ValueError: not a 3-D mask of 0 and 1.
    """
    voxel_ml = float(np.prod(mask.GetSpacing())) / 1000
    return float(np.count_nonzero(mask_array(mask)) * voxel_ml)


def mask_array(mask: sitk.Image) -> np.ndarray:
    """Returns the voxels of a mask, (z, y, x) bool.

    Raises:
        ValueError: not a 3-D scalar image, or values other than 0 and 1.
    """
    if mask.GetDimension() != 3 or mask.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"a mask of size {mask.GetSize()}, expected a 3-D scalar image")
    values = sitk.GetArrayViewFromImage(mask)
    foreground = values == 1
    if np.count_nonzero(values) != np.count_nonzero(foreground):
        odd = np.unique(values[(values != 0) & ~foreground])
        raise ValueError(f"a mask with the values {odd[:6].tolist()}, expected 0 and 1")
    return foreground


def _check_masks(*masks):
    """Raises a ValueError unless all are boolean arrays of the same shape."""
    for mask in masks:
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            kind = getattr(mask, "dtype", type(mask).__name__)
            raise ValueError(f"a mask of {kind}, expected an array of bool")
        if mask.shape != masks[0].shape:
            raise ValueError(f"masks of shapes {masks[0].shape} and {mask.shape}, expected one")


def summarize(cases: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Returns mean, standard deviation (of the population), median and worst value of each metric.

    Args:
        cases: results of `case_metrics`, at least one; other keys are ignored.

    Returns:
        {key of `METRICS`: {"mean": .., "std": .., "median": .., "worst": ..}}; the worst signed
        difference is the one farthest from 0.

    Raises:
        ValueError: no cases.
    """
    if not cases:
        raise ValueError("no cases, expected at least one")
    statistics = {}
    for key, _, better in METRICS:
        values = np.array([case[key] for case in cases], dtype=float)
        statistics[key] = {
            "mean": float(values.mean()),
            "std": float(values.std()),
            "median": float(np.median(values)),
            "worst": float(values.min() if better == "high" else max(values, key=abs)),
        }
    return statistics


def superior_axis(image: sitk.Image) -> tuple[int, bool]:
    """Returns the (z, y, x) array axis closest to the patient's superior direction.

    See `nearest_patient_axes`: the axes together are closest to the patient's.

    Returns:
        The axis, and whether its index increases towards the head.
    """
    axes, signs = nearest_patient_axes(image)
    return 2 - axes[2], signs[2] > 0


def apex_and_base(mask: np.ndarray, axis: int, ascending: bool) -> tuple[slice, slice]:
    """Returns the lowest (apex) and the highest (base) third of a mask's slices.

    Of the n slices from the mask's first to its last, apex and base get n / 3 each, rounded to the
    nearest and at least one; the middle gets the rest: 1 + 2 + 1 of four, 2 + 1 + 2 of five. A
    single slice is both apex and base.

    Args:
        mask: (z, y, x) bool.
        axis: across the slices (`superior_axis`).
        ascending: whether the index along `axis` increases towards the head.

    Returns:
        Apex and base as slices along `axis`; empty slices for an empty mask.

    Raises:
        ValueError: not a boolean array, or no such axis.
    """
    _check_masks(mask)
    if not 0 <= axis < mask.ndim:
        raise ValueError(f"axis {axis} of a mask of shape {mask.shape}")
    extent = bounding_box(mask)[axis]
    count = extent.stop - extent.start
    third = max(1, round(count / 3)) if count else 0
    first = slice(extent.start, extent.start + third)
    last = slice(extent.stop - third, extent.stop)
    return (first, last) if ascending else (last, first)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Returns the bounding box of a mask as slices; empty slices for an empty mask.

    Raises:
        ValueError: not a boolean array.
    """
    _check_masks(mask)
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else slice(0, 0))
    return tuple(box)


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Returns the Dice coefficient, 0..1; 1 for two empty masks.

    Raises:
        ValueError: not two boolean arrays of the same shape.
    """
    _check_masks(reference, prediction)
    total = np.count_nonzero(reference) + np.count_nonzero(prediction)
    return 2 * np.count_nonzero(reference & prediction) / total if total else 1.0


def volume_difference_percent(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Returns the volume of the prediction minus the reference's, in percent of the reference's.

    Raises:
        ValueError: not two boolean arrays of the same shape.
    """
    _check_masks(reference, prediction)
    reference_voxels, prediction_voxels = map(np.count_nonzero, (reference, prediction))
    if not reference_voxels:
        return 100.0 if prediction_voxels else 0.0
    return 100.0 * (prediction_voxels - reference_voxels) / reference_voxels


def surface(mask: np.ndarray) -> np.ndarray:
    """Returns the foreground voxels with one of their six neighbours outside the mask or the array.

    Raises:
        ValueError: not a boolean array.
    """
    _check_masks(mask)
    return mask & ~ndimage.binary_erosion(mask)


def surface_distance_maps(
    reference: np.ndarray, prediction: np.ndarray, spacing_zyx_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distances between the surfaces of two masks, in both directions.

    Uses distance transforms, not a k-d tree: on a gland's bounding box both take 50 ms, but if a
    prediction fills the whole volume (an untrained network), a tree takes 30 s and this 2 s.

    Args:
        reference, prediction: (z, y, x) bool of the same shape; crop them to their common bounding
            box first.
        spacing_zyx_mm: (3,) in the axis order of the arrays.

    Returns:
        Two float arrays of the masks' shape. The first holds, at each surface voxel of the
        reference, the distance in mm to the nearest surface voxel of the prediction; the second
        the distances from the prediction to the reference. NaN at all other voxels, infinity if
        the other mask is empty.

    Raises:
        ValueError: not two boolean arrays of the same shape, or a spacing that does not fit them.
    """
    _check_masks(reference, prediction)
    spacing_zyx_mm = np.asarray(spacing_zyx_mm, float)
    if spacing_zyx_mm.shape != (reference.ndim,) or not (spacing_zyx_mm > 0).all():
        raise ValueError(
            f"a spacing of {spacing_zyx_mm} mm, expected {reference.ndim} positive numbers"
        )
    surfaces = [surface(mask) for mask in (reference, prediction)]
    maps = []
    for points, others in (surfaces, surfaces[::-1]):
        if others.any():
            distance_mm = ndimage.distance_transform_edt(~others, sampling=spacing_zyx_mm)
        else:
            distance_mm = np.full(points.shape, np.inf)
        maps.append(np.where(points, distance_mm, np.nan))
    return maps[0], maps[1]


def _distances(reference, prediction, to_prediction, to_reference, diagonal_mm) -> dict[str, float]:
    """Hausdorff, 95 % Hausdorff and average boundary distance of one part of the gland.

    Litjens et al. 2014: the 95 % Hausdorff distance is the larger of the two directed 95th
    percentiles, the average boundary distance the mean over all points of both surfaces.
    """
    keys = ("hausdorff_mm", "hausdorff95_mm", "boundary_distance_mm")
    if not (reference.any() and prediction.any()):
        either = reference.any() or prediction.any()
        return dict.fromkeys(keys, diagonal_mm if either else 0.0)
    directed = [values[~np.isnan(values)] for values in (to_prediction, to_reference)]
    both = np.concatenate(directed)
    percentile95 = max(np.percentile(values, 95) for values in directed)
    return dict(
        zip(keys, (float(both.max()), float(percentile95), float(both.mean())), strict=True)
    )
