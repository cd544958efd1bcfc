"""The pictures of the report as data URIs. Matplotlib is imported here and in what this needs.

The functions are called by name through `src.report.painter.Painter`, often in another process;
arguments and results are therefore plain arrays, tuples and texts.
"""

import base64
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..config import config_path_of
from .figures import PLOTTED_COLUMNS, box_plot_figure, progress_figure
from .overlays import annotate_plane, draw_plane, overlays_png
from .page import MetricGroups, format_number
from .planes import CasePictures, Picture, Plane

__all__ = ["box_plot_picture", "case_pictures", "overlays_png", "training_picture_of"]


class RenderStyle(NamedTuple):
    """How a slice becomes a JPEG; it is drawn 3 inches wide, as in overlays.png."""

    dpi: int
    jpeg_quality: int
    line_scale: float
    annotated: bool


VIEW_STYLE = RenderStyle(dpi=110, jpeg_quality=70, line_scale=1, annotated=True)
SLICE_STYLE = RenderStyle(dpi=50, jpeg_quality=60, line_scale=1.5, annotated=False)


def case_pictures(name: str, views: list[Plane], slices: list[Plane]) -> CasePictures:
    """Draws the pictures of a case.

    Args:
        name: of the case, for their descriptions.
        views: of `central_planes`.
        slices: of `axial_planes`.
    """
    return CasePictures(
        [
            _plane_picture(plane, f"{name}, {plane.name} plane with outlines", VIEW_STYLE)
            for plane in views
        ],
        {
            plane.name: _plane_picture(plane, f"{name}, axial slice {plane.name}", SLICE_STYLE)
            for plane in slices
        },
    )


def box_plot_picture(values: MetricGroups) -> Picture:
    """Draws a box plot per group of values."""
    label, unit, groups = values
    title = f"{label} ({unit})" if unit else label
    medians = [
        f"{name} {format_number(float(np.median(group)), unit)}"
        for name, group in groups.items()
        if group
    ]
    alt = f"Box plot of {title}, medians: {', '.join(medians)}"
    return _encode(box_plot_figure(groups, title), alt, dpi=160)


def training_picture_of(checkpoint_path: str | Path) -> Picture | None:
    """Draws the training curves of the run that a checkpoint comes from; None if it has none."""
    return training_picture(read_history_of(checkpoint_path))


def training_picture(history: pd.DataFrame | None) -> Picture | None:
    """Draws training curves.

    Args:
        history: as `src.report.figures.plot_progress` takes it.

    Returns:
        The picture; None if there is no history, or an empty one.
    """
    if history is None or history.empty:
        return None
    last = history.iloc[-1]
    alt = (
        f"Training curves over {last['epoch']:.0f} epochs: loss {last['train_loss']:.4f} at the end"
    )
    return _encode(progress_figure(history), alt, dpi=140)


def read_history_of(checkpoint_path: str | Path) -> pd.DataFrame | None:
    """Reads the history of the run that a checkpoint comes from, which lies beside config.json.

    Returns:
        A row per epoch with `PLOTTED_COLUMNS`; None if there is no readable history.
    """
    config_path = config_path_of(checkpoint_path)
    if config_path is None:
        return None
    history_path = config_path.with_name("history.csv")
    try:
        return pd.read_csv(history_path, usecols=PLOTTED_COLUMNS, dtype=float)
    except (OSError, ValueError):  # the results are complete without it
        return None


def _plane_picture(plane: Plane, alt: str, style: RenderStyle) -> Picture:
    figure = Figure(figsize=(3, 3))
    panel = figure.add_axes((0, 0, 1, 1))
    draw_plane(panel, plane, style.line_scale)
    if style.annotated:
        annotate_plane(panel, plane)
    # Chroma subsampling would blend the colours of outlines that lie on one another.
    jpeg = {"quality": style.jpeg_quality, "subsampling": 0, "optimize": True}
    return _encode(figure, alt, style.dpi, "jpeg", jpeg)


def _encode(
    figure: Figure, alt: str, dpi: int, file_format: str = "png", options: dict | None = None
) -> Picture:
    """Renders a figure as a data URI; `options` go to Pillow."""
    content = BytesIO()
    figure.savefig(content, format=file_format, dpi=dpi, pil_kwargs=options)
    width, height = (round(side * dpi) for side in figure.get_size_inches())
    code = base64.b64encode(content.getvalue()).decode()
    return Picture(alt, f"data:image/{file_format};base64,{code}", width, height)
