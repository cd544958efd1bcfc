"""Pictures of cases: slices of the image with the outlines of reference and prediction."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..images.grid import grid_difference
from ..metrics import bounding_box, dice, volume_ml
from .figures import PREDICTION_COLOUR, REFERENCE_COLOUR, add_line_legend, save_png

# In points. The thin line of the prediction is drawn over the broad one of the reference, so that
# both are visible where they coincide.
REFERENCE_LINE_PT, PREDICTION_LINE_PT = 3.2, 1.6

OVERLAY_ROWS = 12
OVERLAY_MARGIN_MM = 15  # around the masks, to show the tissue next to the gland
SCALE_BAR_MM = 20
# Layout in inches: side of a view, gap between views, title above a row, legend.
VIEW, GAP, TITLE, LEGEND = 3.0, 0.1, 0.36, 0.3


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


class OverlayRow(NamedTuple):
    """A row of overlays.png; `dice` is NaN without a reference."""

    title: str
    dice: float
    planes: list[Plane]


def write_overlays(rows: list[OverlayRow], count: int, path: str | Path) -> None:
    """Writes a PNG of the masks' outlines on the image, a row per case, the lowest Dice first.

    A row has the three `central_planes`. Of more than `OVERLAY_ROWS` cases the worst are shown.

    Args:
        rows: from `overlay_row`.
        count: of all cases, of which `rows` may be the worst.
        path: of the PNG.

    Raises:
        DataError: the file cannot be written.
    """
    save_png(_overlay_figure(rows, count), path)


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


def axial_planes(volumes: Volumes, count: int) -> list[Plane]:
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


def _overlay_figure(rows: list[OverlayRow], count: int) -> Figure:
    order = lowest_dice([{"dice": row.dice, "row": row} for row in rows])
    shown = [item["row"] for item in order[:OVERLAY_ROWS]]
    has_reference = any(not np.isnan(row.dice) for row in shown)
    width, height = 3 * (VIEW + GAP) + GAP, len(shown) * (VIEW + TITLE) + LEGEND + GAP
    figure = Figure(figsize=(width, height), facecolor="white")
    for i, row in enumerate(shown):
        bottom = height - LEGEND - (i + 1) * (VIEW + TITLE)
        for j, plane in enumerate(row.planes):
            left = GAP + j * (VIEW + GAP)
            box = (left / width, bottom / height, VIEW / width, VIEW / height)
            panel = figure.add_axes(box, label=plane.name)
            draw_plane(panel, plane)
            annotate_plane(panel, plane)
        x, y = GAP / width, (bottom + VIEW + 0.07) / height
        figure.text(x, y, row.title, fontsize=12, parse_math=False)
    lines = [("prediction", PREDICTION_COLOUR, PREDICTION_LINE_PT)]
    if has_reference:
        lines.insert(0, ("reference", REFERENCE_COLOUR, REFERENCE_LINE_PT))
    add_line_legend(figure, lines, (1 - GAP / width, 1 - 0.05 / height), fontsize=11)
    if count > len(shown):
        kind = "lowest Dice" if has_reference else "first"
        text = f"{len(shown)} of {count} cases, {kind}"
        figure.text(GAP / width, 1 - 0.26 / height, text, fontsize=11)
    return figure


def draw_plane(panel: Axes, plane: Plane, line_scale: float = 1) -> None:
    """Draws a slice and the outlines of its masks.

    Args:
        panel: its axes become mm from the slice's upper left corner.
        plane: the slice.
        line_scale: factor of the line widths.
    """
    shown = _shown_voxels(plane)
    # From the upper left corner of the slice: top, left, bottom, right.
    top_mm, left_mm = (
        side.start * step for side, step in zip(shown, plane.spacing_mm, strict=True)
    )
    bottom_mm, right_mm = (
        side.stop * step for side, step in zip(shown, plane.spacing_mm, strict=True)
    )
    panel.imshow(
        plane.image[shown],
        cmap="gray",
        vmin=plane.grey_range[0],
        vmax=plane.grey_range[1],
        extent=(left_mm, right_mm, bottom_mm, top_mm),
        interpolation="bilinear",
    )
    for mask, colour, line in (
        (plane.reference, REFERENCE_COLOUR, REFERENCE_LINE_PT),
        (plane.prediction, PREDICTION_COLOUR, PREDICTION_LINE_PT),
    ):
        if mask[shown].any():
            style = {"colors": colour, "linewidths": line_scale * line}
            _outline(panel, mask[shown], plane.spacing_mm, (top_mm, left_mm), **style)
    panel.set(facecolor="black", xticks=[], yticks=[])
    half = plane.width_mm / 2
    panel.set_xlim(plane.centre_mm[1] - half, plane.centre_mm[1] + half)
    panel.set_ylim(plane.centre_mm[0] + half, plane.centre_mm[0] - half)


def _shown_voxels(plane: Plane) -> tuple[slice, slice]:
    """The voxels in the square to show, and two more on each side for interpolation."""
    first = np.floor((plane.centre_mm - plane.width_mm / 2) / plane.spacing_mm).astype(int) - 2
    last = np.ceil((plane.centre_mm + plane.width_mm / 2) / plane.spacing_mm).astype(int) + 2
    sides = zip(first.clip(0), np.minimum(last, plane.image.shape), strict=True)
    rows, columns = (slice(int(start), int(stop)) for start, stop in sides)
    return rows, columns


def annotate_plane(panel: Axes, plane: Plane) -> None:
    """Writes the slice's name and the patient directions, and draws a scale bar."""
    style = {
        "transform": panel.transAxes,
        "color": "white",
        "path_effects": [withStroke(linewidth=3, foreground="black")],
    }
    for letter, x, y in zip(
        plane.letters, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.96, 0.04), strict=True
    ):
        panel.text(x, y, letter, ha="center", va="center", **style)
    panel.text(0.03, 0.96, plane.name, ha="left", va="center", **style)
    bar = SCALE_BAR_MM / plane.width_mm
    panel.plot((0.97 - bar, 0.97), (0.04, 0.04), linewidth=2, solid_capstyle="butt", **style)
    panel.text(0.97, 0.055, f"{SCALE_BAR_MM} mm", ha="right", va="bottom", **style)


def _outline(
    panel: Axes, mask: np.ndarray, spacing_mm: np.ndarray, corner_mm: tuple[float, float], **style
) -> None:
    """Draws the border of a mask, half-way between the centres of inner and outer voxels."""
    padded = np.pad(mask, 1).astype(float)  # closes the outline at the edge of the image
    y_mm, x_mm = (
        start + (np.arange(n) - 0.5) * step
        for n, step, start in zip(padded.shape, spacing_mm, corner_mm, strict=True)
    )
    panel.contour(x_mm, y_mm, padded, levels=[0.5], **style)
