"""What the pictures of a case show: slices of the image with the masks; needs no Matplotlib."""

from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from ..images.grid import grid_difference
from ..images.intensity import without_padding
from ..images.orientation import nearest_patient_axes
from ..metrics import bounding_box, dice, volume_ml

AXIAL_SLICES = 12  # of a case in report.html, at most
OVERLAY_MARGIN_MM = 15  # around the masks, to show the tissue next to the gland
LONGEST_NAME = 36  # characters of a case's name in overlays.png
EAST_ASIAN = "\u2e80"  # the first of the characters that are twice as wide, in fonts of their own
LEAST_WIDTH_MM = 50  # of what is shown; the scale bar then ends before the letter beside it
# Of the grey values in the box that is shown. An endorectal coil makes the tissue next to it
# several times as bright as the gland, so that a higher percentile would leave the gland dark.
GREY_PERCENTILES = (1, 95)

# Of the pictures of surfaces. The colours are those of signed distances, from minus to plus the
# limit; they are told apart by colour-blind readers, too.
PLAIN_COLOUR, NO_REFERENCE_COLOUR = "#56B4E9", "#8C8C8C"  # of a prediction, of an evaluation
DISTANCE_COLOURS = ("#2166AC", "#67A9CF", "#F7F7F7", "#F4A582", "#CA4A3C")
DISTANCE_LIMIT_MM = 5
SURFACE_BAR_MM = 20
# Patient directions at the edges of each side, with the names that page.css has for the places.
SURFACE_LETTERS = {
    side: tuple(zip(letters, ("at-left", "at-right", "at-top", "at-bottom"), strict=True))
    for side, letters in {"front": "RLSI", "left": "APSI", "back": "LRSI", "right": "PASI"}.items()
}


class OverlayCase(NamedTuple):
    """A case to draw, with image and masks on one grid; `reference` is None if there is none."""

    case: str
    image: sitk.Image
    prediction: sitk.Image
    reference: sitk.Image | None = None


class Plane(NamedTuple):
    """A slice of image and masks, and the square of it to show; rows down, columns to the right."""

    name: str
    letters: str  # patient directions at the left, right, top and bottom edge
    image: np.ndarray
    prediction: np.ndarray
    reference: np.ndarray
    spacing_mm: np.ndarray  # of rows, of columns
    centre_mm: np.ndarray  # of the square, from the slice's upper left corner
    width_mm: float  # of the square
    grey_range: tuple[float, float]


class Volumes(NamedTuple):
    """A case as arrays in LPS, and the bounding box of its masks (of the image if both are empty).

    All arrays and vectors have the axis order `zyx`.
    """

    image: np.ndarray
    prediction: np.ndarray  # bool
    reference: np.ndarray  # bool; empty if there is none
    has_reference: bool  # also an empty one
    spacing_mm: np.ndarray
    low: np.ndarray  # first voxel of the box
    high: np.ndarray  # last voxel of the box + 1
    margin_mm: float
    grey_range: tuple[float, float]


class Masks(NamedTuple):
    """The masks of a case in their common bounding box; axes and vectors are `zyx`, in LPS."""

    prediction: np.ndarray  # bool
    reference: np.ndarray | None  # bool; None if there is none
    spacing_mm: np.ndarray


class Picture(NamedTuple):
    """An image of the report; width and height in pixels."""

    uri: str
    width: int
    height: int


class CasePictures(NamedTuple):
    """Three planes through a case, its axial slices and sides of the predicted surface, by name."""

    views: dict[str, Picture]
    slices: dict[str, Picture]
    surfaces: dict[str, Picture]


class OverlayRow(NamedTuple):
    """A row of overlays.png; `dice` is NaN without a reference."""

    title: str
    dice: float
    planes: list[Plane]


def overlay_row(case: OverlayCase, volumes: Volumes) -> OverlayRow:
    """Cuts the slices of a case for overlays.png, and writes the title above them.

    The middle of a long name is left out, so that the numbers behind it are seen.

    Args:
        case: to draw.
        volumes: the same, from `orient_to_lps`.
    """
    name, score = case.case, np.nan
    longest = LONGEST_NAME if max(name) < EAST_ASIAN else LONGEST_NAME // 2  # East Asian: wider
    if len(name) > longest:
        name = f"{name[: longest // 2]}…{name[-(longest // 2) :]}"
    title = f"{name}   prediction {volume_ml(case.prediction):.1f} ml"
    if case.reference is not None:
        score = dice(volumes.reference, volumes.prediction)
        title = (
            f"{name}   Dice {score:.3f}   reference {volume_ml(case.reference):.1f} ml, "
            f"prediction {volume_ml(case.prediction):.1f} ml"
        )
    return OverlayRow(title, score, central_planes(volumes))


def orient_to_lps(case: OverlayCase) -> Volumes:
    """Reorients a case to LPS by permuting and flipping its axes (see `nearest_patient_axes`).

    In LPS the rows of an axial slice run from anterior to posterior and its columns from right to
    left, as radiologists view it.

    Raises:
        ValueError: a mask has another grid than the image.
    """
    for name in ("prediction", "reference"):
        mask = getattr(case, name)
        difference = "" if mask is None else grid_difference(case.image, mask)
        if difference:
            raise ValueError(f"{case.case}: {name} on another grid than its image: {difference}")
    axes, signs = nearest_patient_axes(case.image)

    def to_lps(image: sitk.Image) -> sitk.Image:
        return sitk.Flip(sitk.PermuteAxes(image, axes), [sign < 0 for sign in signs])

    image = to_lps(case.image)
    image_zyx = sitk.GetArrayFromImage(image)
    prediction, reference = (
        np.zeros(image_zyx.shape, bool)
        if mask is None
        else sitk.GetArrayFromImage(to_lps(mask)) != 0
        for mask in (case.prediction, case.reference)
    )
    if prediction.any() or reference.any():
        box, margin_mm = bounding_box(prediction | reference), OVERLAY_MARGIN_MM
    else:
        box, margin_mm = tuple(slice(0, side) for side in image_zyx.shape), 0
    spacing_mm = np.array(image.GetSpacing()[::-1])
    low, high = (np.array([getattr(side, end) for side in box]) for end in ("start", "stop"))
    measured_zyx = sitk.GetArrayFromImage(without_padding(image))
    margin = np.ceil(margin_mm / spacing_mm).astype(int)
    grey_range = _grey_range(measured_zyx, low, high, margin)
    return Volumes(
        image=image_zyx,
        prediction=prediction,
        reference=reference,
        has_reference=case.reference is not None,
        spacing_mm=spacing_mm,
        low=low,
        high=high,
        margin_mm=margin_mm,
        grey_range=grey_range,
    )


def _grey_range(
    image: np.ndarray, low: np.ndarray, high: np.ndarray, margin: np.ndarray
) -> tuple[float, float]:
    """The grey values to show as black and as white, by the voxels in a box and around it."""
    ends = zip((low - margin).clip(0), high + margin, strict=True)
    shown = image[tuple(slice(*side) for side in ends)]
    black, white = np.percentile(shown, GREY_PERCENTILES)
    return (black, white) if white > black else (image.min(), image.max())


def cropped_masks(volumes: Volumes) -> Masks | None:
    """Returns the part of the masks that pictures of a surface need; None: an empty prediction."""
    if not volumes.prediction.any():
        return None
    box = tuple(slice(low, high) for low, high in zip(volumes.low, volumes.high, strict=True))
    prediction, reference = (mask[box].copy() for mask in (volumes.prediction, volumes.reference))
    return Masks(prediction, reference if volumes.has_reference else None, volumes.spacing_mm)


def central_planes(volumes: Volumes) -> list[Plane]:
    """Cuts the axial, sagittal and coronal slice through the centre of mass of a mask.

    The mask is the reference; if that is empty, the prediction; if both are, the slices go through
    the middle of the image. All three show a square of the same size in mm.
    """
    masks = (volumes.reference, volumes.prediction)
    mask = next((mask for mask in masks if mask.any()), None)
    if mask is None:
        centre = np.array(volumes.image.shape) // 2
    else:
        centre = np.rint(np.mean(np.nonzero(mask), axis=1)).astype(int)
    width_mm = _width_mm(volumes, (0, 1, 2))
    return [
        _plane(volumes, name, axis, centre[axis], letters, width_mm)
        for name, axis, letters in (
            ("axial", 0, "RLAP"),
            ("sagittal", 2, "APSI"),
            ("coronal", 1, "RLSI"),
        )
    ]


def axial_planes(volumes: Volumes) -> list[Plane]:
    """Cuts axial slices, `AXIAL_SLICES` at most, evenly from the first to the last with a mask.

    Their names count all slices from the feet: "3/24".
    """
    first, last = volumes.low[0], volumes.high[0] - 1
    slices = np.unique(np.linspace(first, last, AXIAL_SLICES).round().astype(int))
    width_mm = _width_mm(volumes, (1, 2))
    return [
        _plane(volumes, f"{z + 1}/{len(volumes.image)}", 0, z, "RLAP", width_mm) for z in slices
    ]


def _width_mm(volumes: Volumes, axes: tuple[int, ...]) -> float:
    sides_mm = (volumes.high - volumes.low) * volumes.spacing_mm
    return max(LEAST_WIDTH_MM, float(max(sides_mm[list(axes)]) + 2 * volumes.margin_mm))


def _plane(
    volumes: Volumes, name: str, axis: int, index: int, letters: str, width_mm: float
) -> Plane:
    rows, columns = (i for i in range(3) if i != axis)
    image, prediction, reference = (
        array.take(index, axis) for array in (volumes.image, volumes.prediction, volumes.reference)
    )
    spacing_mm = volumes.spacing_mm[[rows, columns]]
    centre = (volumes.low + volumes.high)[[rows, columns]] / 2
    if rows == 0:  # z: flipped, so that the head is at the top
        image, prediction, reference = image[::-1], prediction[::-1], reference[::-1]
        centre[0] = len(volumes.image) - centre[0]
    return Plane(
        name=name,
        letters=letters,
        image=image,
        prediction=prediction,
        reference=reference,
        spacing_mm=spacing_mm,
        centre_mm=centre * spacing_mm,
        width_mm=width_mm,
        grey_range=volumes.grey_range,
    )
