"""What the pictures of a case show: slices of the image with the masks; needs no Matplotlib."""

from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from ..images.grid import grid_difference
from ..metrics import bounding_box, dice, volume_ml

OVERLAY_ROWS = 12
AXIAL_SLICES = 12  # of a case in report.html, at most
OVERLAY_MARGIN_MM = 15  # around the masks, to show the tissue next to the gland


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
    spacing_mm: np.ndarray
    low: np.ndarray  # first voxel of the box
    high: np.ndarray  # last voxel of the box + 1
    margin_mm: float
    grey_range: tuple[float, float]


class Picture(NamedTuple):
    """An image of the report; width and height in pixels."""

    alt: str
    uri: str
    width: int
    height: int


class CasePictures(NamedTuple):
    """The three planes through a case, and its axial slices by their name."""

    views: list[Picture]
    slices: dict[str, Picture]


class OverlayRow(NamedTuple):
    """A row of overlays.png; `dice` is NaN without a reference."""

    title: str
    dice: float
    planes: list[Plane]


def overlay_row(case: OverlayCase, volumes: Volumes) -> OverlayRow:
    """Cuts the slices of a case for overlays.png, and writes the title above them.

    Args:
        case: to draw.
        volumes: the same, from `orient_to_lps`.
    """
    title, score = f"{case.case}   prediction {volume_ml(case.prediction):.1f} ml", np.nan
    if case.reference is not None:
        score = dice(volumes.reference, volumes.prediction)
        title = (
            f"{case.case}   Dice {score:.3f}   reference {volume_ml(case.reference):.1f} ml, "
            f"prediction {volume_ml(case.prediction):.1f} ml"
        )
    return OverlayRow(title, score, central_planes(volumes))


def orient_to_lps(case: OverlayCase) -> Volumes:
    """Reorients a case to LPS by permuting and flipping its axes, without interpolation.

    In LPS the rows of an axial slice run from anterior to posterior and its columns from right to
    left, as radiologists view it. The grey range is the 1st to the 99th percentile of the image.

    Raises:
        ValueError: a mask has another grid than the image.
    """
    for name in ("prediction", "reference"):
        mask = getattr(case, name)
        difference = "" if mask is None else grid_difference(case.image, mask)
        if difference:
            raise ValueError(f"{case.case}: {name} on another grid than its image: {difference}")
    image = sitk.DICOMOrient(case.image, "LPS")
    image_zyx = sitk.GetArrayFromImage(image)
    prediction, reference = (
        np.zeros(image_zyx.shape, bool)
        if mask is None
        else sitk.GetArrayFromImage(sitk.DICOMOrient(mask, "LPS")) != 0
        for mask in (case.prediction, case.reference)
    )
    if prediction.any() or reference.any():
        box, margin_mm = bounding_box(prediction | reference), OVERLAY_MARGIN_MM
    else:
        box, margin_mm = tuple(slice(0, side) for side in image_zyx.shape), 0
    return Volumes(
        image_zyx,
        prediction,
        reference,
        np.array(image.GetSpacing()[::-1]),
        np.array([side.start for side in box]),
        np.array([side.stop for side in box]),
        margin_mm,
        tuple(np.percentile(image_zyx, (1, 99))),
    )


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


def axial_planes(volumes: Volumes, count: int = AXIAL_SLICES) -> list[Plane]:
    """Cuts at most `count` axial slices, evenly spaced from the first to the last one with a mask.

    Their names count all slices from the feet: "3 of 24".
    """
    first, last = volumes.low[0], volumes.high[0] - 1
    slices = np.unique(np.linspace(first, last, count).round().astype(int))
    width_mm = _width_mm(volumes, (1, 2))
    return [
        _plane(volumes, f"{z + 1} of {len(volumes.image)}", 0, z, "RLAP", width_mm) for z in slices
    ]


def _width_mm(volumes: Volumes, axes: tuple[int, ...]) -> float:
    sides_mm = (volumes.high - volumes.low) * volumes.spacing_mm
    return float(max(sides_mm[list(axes)]) + 2 * volumes.margin_mm)


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


def lowest_dice(rows: list[dict]) -> list[dict]:
    """Sorts rows by their "dice"; those without one, or with NaN, come last."""

    def key(row):
        dice = row.get("dice", np.nan)
        return (bool(np.isnan(dice)), dice)

    return sorted(rows, key=key)


def overlay_cases(rows: list[dict]) -> list[str]:
    """Names the cases of overlays.png: `OVERLAY_ROWS` of those with a mask, the lowest Dice first.

    Args:
        rows: of the results, see `src.report.page.write_report`.
    """
    segmented = [row for row in rows if not row.get("problem")]
    return [row["case"] for row in lowest_dice(segmented)[:OVERLAY_ROWS]]
