"""The surface of a predicted gland from four sides, coloured by its distance to the reference.

A picture is made from the points at which rays, parallel to an axis of the patient, enter the mask.
Masks are first turned into smooth functions, negative within, so that no steps of voxels are seen.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .planes import (
    DISTANCE_COLOURS,
    DISTANCE_LIMIT_MM,
    NO_REFERENCE_COLOUR,
    PLAIN_COLOUR,
    SURFACE_BAR_MM,
    Masks,
)

SIDE = 240  # pixels of a picture
RAY_POINTS = 32  # on each ray; the surface is interpolated between them
MASK_VOXELS = 96  # on the longest side of the masks; up to half as many more
DISTANCE_VOXELS = 72  # on the longest side of the grid of distances to the reference
MARGIN_MM = 6  # around the masks
PADDING = 2  # voxels around the masks, so that the smooth functions end outside of them
# Standard deviation of the smoothing; in voxels the least that shows no steps.
SMOOTHING_MM, SMOOTHING_VOXELS = 1.2, 0.6
LIGHT = np.array((-0.4, 0.5, 0.77), np.float32)  # to the right, up, towards the viewer
AMBIENT = 0.4  # brightness where no light falls


class View(NamedTuple):
    """How a side is seen, with the head up; the axes are those of arrays in LPS, `zyx`."""

    ray_axis: int
    ray_step: int  # 1: rays run with that axis, -1: against it
    column_step: int  # the same of the columns and the remaining axis


VIEWS = {
    "front": View(1, 1, 1),
    "left": View(2, -1, 1),
    "back": View(1, -1, -1),
    "right": View(2, 1, -1),
}


def surface_views(masks: Masks) -> dict[str, np.ndarray]:
    """Draws the surface of the prediction from the sides of `VIEWS`.

    Args:
        masks: of `src.report.planes.cropped_masks`.

    Returns:
        {side: picture}, uint8 RGB of (`SIDE`, `SIDE`, 3); the colour of the surface is its signed
        distance to the reference, or `NO_REFERENCE_COLOUR` if that is empty, or `PLAIN_COLOUR` if
        there is none. Nothing if the prediction is too small to be seen.
    """
    masks = _prepared(masks)
    if not masks.prediction.any():
        return {}
    border_mm = border_distance(masks.prediction, masks.spacing_mm)
    colouring: ReferenceDistance | str = PLAIN_COLOUR
    if masks.reference is not None:
        colouring = ReferenceDistance(masks) if masks.reference.any() else NO_REFERENCE_COLOUR
    size_mm = np.array(masks.prediction.shape) * masks.spacing_mm
    gland_mm = (size_mm - 2 * PADDING * masks.spacing_mm).max()
    width_mm = float(max(gland_mm, SURFACE_BAR_MM) + 2 * MARGIN_MM)
    pictures = {}
    for ray_axis in (1, 2):
        axes_mm = [
            middle + width_mm * ((np.arange(count) + 0.5) / count - 0.5)
            for axis, middle in enumerate(size_mm / 2)
            for count in [RAY_POINTS if axis == ray_axis else SIDE]
        ]
        values_mm = interpolate(border_mm, masks.spacing_mm, axes_mm)
        if values_mm.min() >= 0:
            return {}
        for side, view in VIEWS.items():
            if view.ray_axis == ray_axis:
                pictures[side] = _picture(values_mm, axes_mm, view, colouring)
    return {side: pictures[side] for side in VIEWS}


def _prepared(masks: Masks) -> Masks:
    """Leaves out voxels beyond what a picture can show, and pads the masks."""
    step_mm = (np.array(masks.prediction.shape) * masks.spacing_mm).max() / MASK_VOXELS
    every = np.maximum(1, np.rint(step_mm / masks.spacing_mm)).astype(int)
    kept = tuple(slice(n // 2, None, n) for n in every.tolist())
    prediction = np.pad(masks.prediction[kept], PADDING)
    reference = None if masks.reference is None else np.pad(masks.reference[kept], PADDING)
    return Masks(prediction, reference, masks.spacing_mm * every)


def border_distance(mask: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Returns at each voxel its distance in mm to the nearest one across the border of a mask.

    Args:
        mask: (z, y, x) bool, neither empty nor full.
        spacing_mm: (3,) in the order of the axes.

    Returns:
        float32, negative within the mask; 0 lies half-way between inner and outer voxels.
    """
    outer, inner = (ndimage.distance_transform_edt(m, spacing_mm) for m in (~mask, mask))
    return (outer - inner).astype(np.float32)


def interpolate(
    values: np.ndarray, spacing_mm: np.ndarray, axes_mm: list[np.ndarray]
) -> np.ndarray:
    """Samples values of voxels smoothly on another grid.

    Args:
        values: (z, y, x) float32.
        spacing_mm: of the voxels, (3,) in the order of the axes.
        axes_mm: coordinates of the grid along each axis, from the corner of the first voxel;
            beyond the centre of the last voxel its value holds.

    Returns:
        float32, on the grid.
    """
    # The axis that adds the fewest points comes first.
    for axis in sorted(range(3), key=lambda i: len(axes_mm[i]) / values.shape[i]):
        centres_mm = (np.arange(values.shape[axis]) + 0.5) * spacing_mm[axis]
        at_mm = axes_mm[axis].clip(centres_mm[0], centres_mm[-1])
        sigma_mm = max(SMOOTHING_MM, SMOOTHING_VOXELS * spacing_mm[axis])
        weights = np.exp(-0.5 * ((at_mm[:, None] - centres_mm) / sigma_mm) ** 2)
        weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


class ReferenceDistance:
    """The signed distance to the surface of a reference, on a grid of cubes.

    Args:
        masks: the reference is not empty and has air around it.
    """

    def __init__(self, masks: Masks) -> None:
        assert masks.reference is not None
        size_mm = np.array(masks.reference.shape) * masks.spacing_mm
        self._step_mm = float(size_mm.max()) / DISTANCE_VOXELS
        axes_mm = [
            (np.arange(np.ceil(side / self._step_mm)) + 0.5) * self._step_mm for side in size_mm
        ]
        border_mm = border_distance(masks.reference, masks.spacing_mm)
        smooth_mm = interpolate(border_mm, masks.spacing_mm, axes_mm)
        inside = smooth_mm < max(0, smooth_mm.min() + 1e-3)  # a voxel at least
        border_mm = border_distance(inside, np.full(3, self._step_mm))
        # Distances are measured to the centres of voxels; their border lies closer by up to half a
        # voxel where it follows the grid, by nearly nothing where it is oblique.
        self._values_mm = border_mm - np.sign(border_mm) * self._step_mm / 4

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """Returns distances in mm, positive outside of the reference.

        Args:
            points_mm: (3, n) in the order of the axes, from the corner of the masks.
        """
        places = points_mm / self._step_mm - 0.5
        return ndimage.map_coordinates(self._values_mm, places, order=1, mode="nearest")


def _picture(
    values_mm: np.ndarray,
    axes_mm: list[np.ndarray],
    view: View,
    colouring: ReferenceDistance | str,
) -> np.ndarray:
    """Draws the surface on which the values of a grid become negative along the rays of a view."""
    axes = (view.ray_axis, 0, 3 - view.ray_axis)  # away from the viewer, down, to the right
    flips = tuple(slice(None, None, step) for step in (view.ray_step, -1, view.column_step))
    values_mm = np.ascontiguousarray(values_mm.transpose(axes)[flips])
    along_mm = [axes_mm[axis][flip] for axis, flip in zip(axes, flips, strict=True)]
    steps_mm = [abs(along[1] - along[0]) for along in along_mm]
    pixel_mm = steps_mm[1]
    # Half a pixel farther out, so that the pixels of the rim have a point, too.
    innermost_mm = values_mm.min(axis=0)
    rows, columns = np.nonzero(innermost_mm < pixel_mm / 2)
    inner = (values_mm[:, rows, columns] < pixel_mm / 2).argmax(axis=0).clip(1)
    before, after = (values_mm[inner - n, rows, columns] - pixel_mm / 2 for n in (1, 0))
    falls = np.maximum(before - after, 1e-6)  # of rays that begin in the mask, which do not fall
    places = np.stack([inner - 1 + (before / falls).clip(0, 1), rows, columns])

    if isinstance(colouring, str):
        colours = np.broadcast_to(rgb(colouring), (len(rows), 3))
    else:
        points_mm = np.empty_like(places)
        for axis, along, place in zip(axes, along_mm, places, strict=True):
            points_mm[axis] = along[0] + (along[1] - along[0]) * place
        colours = distance_colours(colouring.at(points_mm))
    brightness = _brightness(values_mm, places, steps_mm)
    coverage = (0.5 - innermost_mm[rows, columns] / pixel_mm).clip(0, 1)
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[rows, columns] = np.rint(colours * (brightness * coverage)[:, None])
    bar = round(SURFACE_BAR_MM / pixel_mm)
    picture[-9:-6, -8 - bar : -8] = 255
    return picture


def distance_colours(distances_mm: np.ndarray) -> np.ndarray:
    """Returns the colours of signed distances, (n, 3) in 0..255."""
    stops_mm = np.linspace(-DISTANCE_LIMIT_MM, DISTANCE_LIMIT_MM, len(DISTANCE_COLOURS))
    channels = np.array([rgb(colour) for colour in DISTANCE_COLOURS]).T
    return np.stack([np.interp(distances_mm, stops_mm, channel) for channel in channels], axis=1)


def rgb(colour: str) -> tuple[int, ...]:
    """Returns red, green and blue of "#RRGGBB"."""
    return tuple(bytes.fromhex(colour[1:]))


def _brightness(values_mm: np.ndarray, places: np.ndarray, steps_mm: list[float]) -> np.ndarray:
    """The light on a surface, by the gradient of the values across it: they grow outwards."""
    nearest = np.rint(places).astype(int)
    slopes = []
    for axis, step_mm in enumerate(steps_mm):
        low, high = nearest.copy(), nearest.copy()
        low[axis] = (nearest[axis] - 1).clip(0)
        high[axis] = (nearest[axis] + 1).clip(None, values_mm.shape[axis] - 1)
        slopes.append((values_mm[tuple(high)] - values_mm[tuple(low)]) / step_mm)
    away, down, right = slopes
    normals = np.stack([right, -down, -away])
    light = LIGHT @ (normals / np.linalg.norm(normals, axis=0).clip(1e-6))
    return AMBIENT + (1 - AMBIENT) * light.clip(0)
