"""Pictures of cases: slices of the image with the outlines of reference and prediction."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from .figures import PREDICTION_COLOUR, REFERENCE_COLOUR, add_line_legend, figure_png
from .planes import OverlayRow, Plane

# In points. The thin line of the prediction is drawn over the broad one of the reference, so that
# both are visible where they coincide.
REFERENCE_LINE_PT, PREDICTION_LINE_PT = 3.2, 1.6

SCALE_BAR_MM = 20
# Layout in inches: side of a view, gap between views, title above a row, legend.
VIEW, GAP, TITLE, LEGEND = 3.0, 0.1, 0.36, 0.3


def overlays_png(rows: list[OverlayRow], count: int) -> bytes:
    """Returns a PNG of the masks' outlines on the image, a row per case with `central_planes`.

    Args:
        rows: from `overlay_row`, the worst case first.
        count: of all cases, of which `rows` are the worst.
    """
    return figure_png(_overlay_figure(rows, count))


def _overlay_figure(rows: list[OverlayRow], count: int) -> Figure:
    has_reference = any(not np.isnan(row.dice) for row in rows)
    width, height = 3 * (VIEW + GAP) + GAP, len(rows) * (VIEW + TITLE) + LEGEND + GAP
    figure = Figure(figsize=(width, height), facecolor="white")
    for i, row in enumerate(rows):
        bottom = height - LEGEND - (i + 1) * (VIEW + TITLE)
        for j, plane in enumerate(row.planes):
            left = GAP + j * (VIEW + GAP)
            box = (left / width, bottom / height, VIEW / width, VIEW / height)
            panel = figure.add_axes(box, label=plane.name)
            draw_plane(panel, plane)
            annotate_plane(panel, plane, plane.name)
        x, y = GAP / width, (bottom + VIEW + 0.07) / height
        figure.text(x, y, row.title, fontsize=12, parse_math=False)
    lines = [("prediction", PREDICTION_COLOUR, PREDICTION_LINE_PT)]
    if has_reference:
        lines.insert(0, ("reference", REFERENCE_COLOUR, REFERENCE_LINE_PT))
    add_line_legend(figure, lines, (1 - GAP / width, 1 - 0.05 / height), fontsize=11)
    if count > len(rows):
        kind = "lowest Dice" if has_reference else "those with findings first"
        text = f"{len(rows)} of {count} cases, {kind}"
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


def annotate_plane(panel: Axes, plane: Plane, name: str = "") -> None:
    """Writes a name and the patient directions on a slice, and draws a scale bar."""
    style = {
        "transform": panel.transAxes,
        "color": "white",
        "path_effects": [withStroke(linewidth=3, foreground="black")],
    }
    for letter, x, y in zip(
        plane.letters, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.96, 0.04), strict=True
    ):
        panel.text(x, y, letter, ha="center", va="center", **style)
    panel.text(0.03, 0.96, name, ha="left", va="center", **style)
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
