"""What a run and an evaluation leave behind for people: tables, the training curve, overlays.

Everything is written to a temporary name in the target folder and renamed when complete, so a
reader never meets half a file and a failure leaves the earlier one as it was.
"""

import json
import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..metrics import bounding_box, dice, grid_difference, summary, volume_ml
from ..utils.files import write_files

# Okabe and Ito's palette, told apart with every common form of colour blindness; orange and sky
# blue also stand out from any grey.
REFERENCE_COLOUR, PREDICTION_COLOUR = "#E69F00", "#56B4E9"
# The prediction runs as a thin line over a broad one: where both agree, both are seen.
REFERENCE_LINE, PREDICTION_LINE = 3.2, 1.6
LOSS_COLOUR, DICE_COLOUR, RATE_COLOUR = "#D55E00", "#0072B2", "#555555"

OVERLAY_ROWS = 12
OVERLAY_MARGIN_MM = 15  # around the masks: enough to see what the gland borders on
SCALE_BAR_MM = 20


def write_metrics(rows: list[dict], directory: str | Path, extra: dict | None = None) -> None:
    """Writes `metrics.csv` (a row per case) and `metrics.json`.

    Args:
        rows: {"case": id, **case_metrics(...)} of each case; also "findings", a list of codes, and
            "findings_text", which is for the JSON only.
        directory: where to; created if absent.
        extra: more for the JSON, such as checkpoint and configuration. The JSON has these keys,
            then `summary`, then `flagged` (cases with an empty mask), then `cases`.

    Raises:
        DataError: the files cannot be written.
        ValueError: a number is NaN or infinite, which strict JSON cannot hold.
    """
    table = pd.DataFrame(rows).drop(columns="findings_text", errors="ignore")
    if "findings" in table:
        table["findings"] = table["findings"].map(";".join)
    table = table[["case", *table.columns.drop("case")]]
    flags = [key for key in table.columns if key.endswith("empty")]
    csv = table.astype(dict.fromkeys(flags, int)).to_csv(index=False, float_format="%.6f")
    content = {
        **(extra or {}),
        "summary": summary(rows),
        "flagged": [row["case"] for row in rows if row["empty"]],
        "cases": rows,
    }
    text = json.dumps(content, indent=2, allow_nan=False, default=os.fspath, ensure_ascii=False)
    write_files(
        {
            Path(directory, "metrics.csv"): csv.encode(),
            # What of a name is not UTF-8 becomes an escape, as JSON has it.
            Path(directory, "metrics.json"): f"{text}\n".encode(errors="backslashreplace"),
        }
    )


def zoo_lines(rows: list[dict]) -> list[str]:
    """The two lines with which the model zoo's evaluation ends: mean distance (mm), mean Dice.

    The zoo measures from mask to mask (SimpleITK), this from surface to surface: the same for
    convex shapes, and a little more where the surface has dents that the other mask fills.
    """
    statistics = summary(rows)
    return [
        f"avg_Hausdorff_distance: {statistics['hausdorff_mm']['mean']}",
        f"avg_dice: {statistics['dice']['mean']}",
    ]


def plot_progress(history: str | Path | pd.DataFrame, path: str | Path) -> None:
    """Draws loss, validation Dice (where there is any; the best one marked) and learning rate.

    Args:
        history: `history.csv` of a run or its table: epoch, learning_rate, train_loss, val_dice.
        path: the PNG to write.

    Raises:
        DataError: the picture cannot be written.
        ValueError: a table without rows or without these columns.
    """
    if not isinstance(history, pd.DataFrame):
        history = pd.read_csv(history)
    _save(progress_figure(history), path)


def progress_figure(history: pd.DataFrame) -> Figure:
    """The picture of `plot_progress`."""
    columns = {"epoch", "learning_rate", "train_loss", "val_dice"}
    if not columns <= set(history.columns) or history.empty:
        raise ValueError(
            f"a history of {len(history)} rows with {', '.join(map(str, history.columns))}, "
            f"expected one row at least, with {', '.join(sorted(columns))}"
        )
    validated = history[history["val_dice"].notna()]
    heights = [3, 3, 1.6] if len(validated) else [3, 1.6]
    figure = Figure(figsize=(8, 1.1 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)

    loss = history["train_loss"]
    panels[0].plot(history["epoch"], loss, color=LOSS_COLOUR, **_markers(history))
    panels[0].set_ylabel("training loss")
    positive = loss[loss > 0]
    if len(positive) and positive.max() > 4 * positive.min():
        # A Dice loss ends at some hundredths: only a logarithmic axis still shows it falling.
        _use_log_axis(panels[0])

    if len(validated):
        best = validated.loc[validated["val_dice"].idxmax()]
        panels[1].plot(
            validated["epoch"],
            validated["val_dice"],
            color=DICE_COLOUR,
            **_markers(validated),
        )
        panels[1].plot(
            best["epoch"],
            best["val_dice"],
            linestyle="none",
            marker="*",
            markersize=13,
            markerfacecolor=REFERENCE_COLOUR,
            markeredgecolor="black",
            label=f"best: {best['val_dice']:.4f} in epoch {best['epoch']:.0f}",
        )
        panels[1].legend(loc="lower right", edgecolor="none", framealpha=1)
        panels[1].set_ylabel("validation Dice")

    panels[-1].plot(
        history["epoch"], history["learning_rate"], color=RATE_COLOUR, **_markers(history)
    )
    panels[-1].set_ylabel("learning rate")
    panels[-1].set_ylim(bottom=0)
    panels[-1].yaxis.set_major_formatter(_plain)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(
        MaxNLocator(integer=True, min_n_ticks=1, steps=(1, 2, 5, 10))
    )
    for panel in panels:
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
        if len(validated):
            panel.axvline(best["epoch"], color="0.6", linestyle=":", zorder=0)
    figure.align_ylabels()
    return figure


def _markers(points: pd.DataFrame) -> dict:
    # A curve of few points needs them marked, and of one point has nothing else to show.
    return {"marker": "o", "markersize": 3.5} if len(points) <= 30 else {}


def _plain(value, _):
    return f"{value:g}"


def _use_log_axis(panel: Axes) -> None:
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(_plain)
    panel.yaxis.set_minor_locator(NullLocator())


class OverlayCase(NamedTuple):
    """One case to draw; image and masks on the same grid, the reference None where unknown."""

    case: str
    image: sitk.Image
    prediction: sitk.Image
    reference: sitk.Image | None = None


class Plane(NamedTuple):
    """A slice of image and masks with its place in mm: rows downwards, columns to the right."""

    name: str
    letters: str  # left, right, top, bottom
    image: np.ndarray
    prediction: np.ndarray
    reference: np.ndarray
    spacing_mm: np.ndarray  # of rows, of columns
    centre_mm: np.ndarray  # of the square to show, from the plane's upper left corner
    width_mm: float  # of the square
    grey_range: tuple[float, float]


class Volumes(NamedTuple):
    """A case as arrays `zyx` in LPS, with the box around its masks, or of the image without any."""

    image: np.ndarray
    prediction: np.ndarray
    reference: np.ndarray  # empty where unknown
    spacing_mm: np.ndarray
    low: np.ndarray  # first voxel of the box
    high: np.ndarray  # first one beyond it
    margin_mm: float
    grey_range: tuple[float, float]


class _Row(NamedTuple):
    title: str
    dice: float
    planes: list[Plane]


def plot_overlays(cases: Iterable[OverlayCase], path: str | Path) -> None:
    """Draws the masks' outlines on the image, a row per case, the worst Dice first.

    Axial, sagittal and coronal slices (of the volume's own grid, nearest to the patient's axes)
    through the centre of mass of the reference, or of the prediction where there is none. The
    grey range is the image's 1st to 99th percentile. With more than `OVERLAY_ROWS` cases the
    worst ones are shown.

    Args:
        cases: may be a generator: of each case only three slices are kept.
        path: the PNG to write.

    Raises:
        DataError: the picture cannot be written.
        ValueError: a mask on another grid than its image.
    """
    _save(_overlay_figure([_overlay_row(case) for case in cases]), path)


def _overlay_row(case: OverlayCase) -> _Row:
    volumes = oriented(case)
    title, score = f"{case.case}   prediction {volume_ml(case.prediction):.1f} ml", np.nan
    if case.reference is not None:
        score = dice(volumes.reference, volumes.prediction)
        title = (
            f"{case.case}   Dice {score:.3f}   reference {volume_ml(case.reference):.1f} ml, "
            f"prediction {volume_ml(case.prediction):.1f} ml"
        )
    return _Row(title, score, central_planes(volumes))


def oriented(case: OverlayCase) -> Volumes:
    """The arrays of a case, from which planes are cut.

    LPS: rows from anterior to posterior and columns from right to left, as radiologists look at an
    axial slice. The grey range is the image's 1st to 99th percentile.

    Raises:
        ValueError: a mask on another grid than the image.
    """
    for name in ("prediction", "reference"):
        mask = getattr(case, name)
        difference = "" if mask is None else grid_difference(case.image, mask)
        if difference:
            raise ValueError(f"{case.case}: {name} with {difference}, its image's")
    image = sitk.DICOMOrient(case.image, "LPS")
    image_zyx = sitk.GetArrayFromImage(image)
    prediction, reference = (
        np.zeros(image_zyx.shape, bool)
        if mask is None
        else sitk.GetArrayFromImage(sitk.DICOMOrient(mask, "LPS")) != 0
        for mask in (case.prediction, case.reference)
    )
    box, margin_mm = bounding_box(prediction | reference), OVERLAY_MARGIN_MM
    if not (prediction.any() or reference.any()):
        box, margin_mm = [slice(0, side) for side in image_zyx.shape], 0
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
    """Axial, sagittal and coronal plane through the centre of mass of the reference, or of the
    prediction where there is none, or through the middle; in a square of the same size in mm."""
    masks = (volumes.reference, volumes.prediction)
    centred_on = next((mask for mask in masks if mask.any()), None)
    if centred_on is None:
        cut = np.array(volumes.image.shape) // 2
    else:
        cut = np.rint(np.mean(np.nonzero(centred_on), axis=1)).astype(int)
    width_mm = _width_mm(volumes, (0, 1, 2))
    return [
        _plane(volumes, name, axis, cut[axis], letters, width_mm)
        for name, axis, letters in (
            ("axial", 0, "RLAP"),
            ("sagittal", 2, "APSI"),
            ("coronal", 1, "RLSI"),
        )
    ]


def axial_planes(volumes: Volumes, count: int) -> list[Plane]:
    """At most `count` axial planes from the first to the last slice of the masks, evenly chosen.

    Their names count the slices from the feet: "3 of 24".
    """
    first, last = volumes.low[0], volumes.high[0] - 1
    slices = np.unique(np.linspace(first, last, count).round().astype(int))
    width_mm = _width_mm(volumes, (1, 2))
    return [
        _plane(volumes, f"{z + 1} of {len(volumes.image)}", 0, z, "RLAP", width_mm) for z in slices
    ]


def _width_mm(volumes, axes):
    sides_mm = (volumes.high - volumes.low) * volumes.spacing_mm
    return float(max(sides_mm[list(axes)]) + 2 * volumes.margin_mm)


def _plane(volumes, name, axis, index, letters, width_mm):
    rows, columns = (i for i in range(3) if i != axis)
    arrays = (volumes.image, volumes.prediction, volumes.reference)
    slices = [array.take(index, axis) for array in arrays]
    spacing_mm = volumes.spacing_mm[[rows, columns]]
    centre = (volumes.low + volumes.high)[[rows, columns]] / 2
    if rows == 0:  # the head is up
        slices = [plane[::-1] for plane in slices]
        centre[0] = len(volumes.image) - centre[0]
    return Plane(
        name, letters, *slices, spacing_mm, centre * spacing_mm, width_mm, volumes.grey_range
    )


def _overlay_figure(rows: list[_Row]) -> Figure:
    shown = sorted(rows, key=lambda row: (np.isnan(row.dice), row.dice))[:OVERLAY_ROWS]
    has_reference = any(not np.isnan(row.dice) for row in shown)
    cell, gap, head = 3.0, 0.36, 0.3  # inches: a view, the title above a row, the legend
    width, height = 3 * cell + 0.4, len(shown) * (cell + gap) + head + 0.1
    figure = Figure(figsize=(width, height), facecolor="white")
    for i, row in enumerate(shown):
        bottom = height - head - (i + 1) * (cell + gap)
        for j, plane in enumerate(row.planes):
            left = 0.1 + j * (cell + 0.1)
            panel = figure.add_axes(
                (left / width, bottom / height, cell / width, cell / height), label=plane.name
            )
            draw_plane(panel, plane)
            annotate_plane(panel, plane)
        figure.text(
            0.1 / width,
            (bottom + cell + 0.07) / height,
            row.title,
            fontsize=12,
            parse_math=False,
        )
    lines = [("prediction", PREDICTION_COLOUR, PREDICTION_LINE)]
    if has_reference:
        lines.insert(0, ("reference", REFERENCE_COLOUR, REFERENCE_LINE))
    figure.legend(
        handles=[Line2D([], [], label=n, color=c, linewidth=width) for n, c, width in lines],
        loc="upper right",
        bbox_to_anchor=(1 - 0.1 / width, 1 - 0.05 / height),
        borderaxespad=0,
        ncols=2,
        fontsize=11,
        frameon=False,
    )
    if len(rows) > len(shown):
        kind = "lowest Dice" if has_reference else "first"
        figure.text(
            0.1 / width,
            1 - 0.26 / height,
            f"{len(shown)} of {len(rows)} cases, {kind}",
            fontsize=11,
        )
    return figure


def draw_plane(panel: Axes, plane: Plane, line_scale: float = 1) -> None:
    """Draws image and outlines in mm from the upper left corner of the slice."""
    size_mm = np.array(plane.image.shape) * plane.spacing_mm
    panel.imshow(
        plane.image,
        cmap="gray",
        vmin=plane.grey_range[0],
        vmax=plane.grey_range[1],
        extent=(0, size_mm[1], size_mm[0], 0),
        interpolation="bilinear",
    )
    for mask, colour, line in (
        (plane.reference, REFERENCE_COLOUR, REFERENCE_LINE),
        (plane.prediction, PREDICTION_COLOUR, PREDICTION_LINE),
    ):
        if mask.any():
            _outline(panel, mask, plane.spacing_mm, colors=colour, linewidths=line_scale * line)
    panel.set(facecolor="black", xticks=[], yticks=[])
    half = plane.width_mm / 2
    panel.set_xlim(plane.centre_mm[1] - half, plane.centre_mm[1] + half)
    panel.set_ylim(plane.centre_mm[0] + half, plane.centre_mm[0] - half)


def annotate_plane(panel: Axes, plane: Plane) -> None:
    """Writes the plane's name and directions, and draws the scale bar."""
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


def _outline(panel: Axes, mask: np.ndarray, spacing_mm: np.ndarray, **style) -> None:
    """Draws the border of a mask half-way between its voxels' centres and the next ones outside."""
    padded = np.pad(mask, 1).astype(float)  # closes what touches the edge of the image
    y_mm, x_mm = (
        (np.arange(n) - 0.5) * step for n, step in zip(padded.shape, spacing_mm, strict=True)
    )
    panel.contour(x_mm, y_mm, padded, levels=[0.5], **style)


def _save(figure: Figure, path: str | Path) -> None:
    png = BytesIO()
    figure.savefig(png, format="png", dpi=110)
    write_files({Path(path): png.getvalue()})
