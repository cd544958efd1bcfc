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
from matplotlib.image import imsave

from ..config import config_path_of
from ..run_record import read_history
from ..utils.errors import DataError
from .figures import box_plot_figure, progress_figure
from .overlays import annotate_plane, draw_plane, overlays_png
from .page import MetricGroups, TrainingCurves
from .planes import CasePictures, Masks, Picture, Plane
from .surfaces import surface_views

__all__ = ["box_plot_picture", "case_pictures", "overlays_png", "training_curves_of"]


class RenderStyle(NamedTuple):
    """How a slice becomes a JPEG; it is drawn 3 inches wide, as in overlays.png."""

    dpi: int
    jpeg_quality: int
    line_scale: float
    annotated: bool


VIEW_STYLE = RenderStyle(dpi=110, jpeg_quality=70, line_scale=1, annotated=True)
SLICE_STYLE = RenderStyle(dpi=50, jpeg_quality=60, line_scale=1.5, annotated=False)
SURFACE_QUALITY = 80


def case_pictures(views: list[Plane], slices: list[Plane], masks: Masks | None) -> CasePictures:
    """Draws the pictures of a case.

    Args:
        views: of `central_planes`.
        slices: of `axial_planes`.
        masks: of `cropped_masks`.
    """
    surfaces = {} if masks is None else surface_views(masks)
    return CasePictures(
        {plane.name: _plane_picture(plane, VIEW_STYLE) for plane in views},
        {plane.name: _plane_picture(plane, SLICE_STYLE) for plane in slices},
        {side: _surface_picture(pixels) for side, pixels in surfaces.items()},
    )


def box_plot_picture(values: MetricGroups) -> Picture:
    """Draws a box plot per group of values."""
    _, _, groups = values
    return _encode(box_plot_figure(list(groups.values())), dpi=160)


def training_curves_of(checkpoint_path: str | Path) -> TrainingCurves | None:
    """Draws the training curves of the run that a checkpoint comes from; None if it has none.

    The run's history lies beside its config.json. The results are complete without a readable one.
    """
    config_path = config_path_of(checkpoint_path)
    if config_path is None:
        return None
    try:
        history = read_history(config_path.parent)
    except DataError:
        return None
    return None if history.empty else training_curves(history)


def training_curves(history: pd.DataFrame) -> TrainingCurves:
    """Draws training curves.

    Args:
        history: of one epoch or more, as `src.report.figures.plot_progress` takes it.

    Returns:
        The picture and its figures.
    """
    last, best = history.iloc[-1], None
    if history["val_dice"].notna().any():
        row = history.loc[history["val_dice"].idxmax()]
        best = (int(row["epoch"]), float(row["val_dice"]))
    picture = _encode(progress_figure(history, labelled=False), dpi=140)
    return TrainingCurves(picture, int(last["epoch"]), float(last["train_loss"]), best)


def _plane_picture(plane: Plane, style: RenderStyle) -> Picture:
    figure = Figure(figsize=(3, 3))
    panel = figure.add_axes((0, 0, 1, 1))
    draw_plane(panel, plane, style.line_scale)
    if style.annotated:
        annotate_plane(panel, plane)
    # Chroma subsampling would blend the colours of outlines that lie on one another.
    jpeg = {"quality": style.jpeg_quality, "subsampling": 0, "optimize": True}
    return _encode(figure, style.dpi, "jpeg", jpeg)


def _surface_picture(pixels: np.ndarray) -> Picture:
    content = BytesIO()
    imsave(content, pixels, format="jpeg", pil_kwargs={"quality": SURFACE_QUALITY})
    return _picture(content, "jpeg", pixels.shape[1], pixels.shape[0])


def _encode(
    figure: Figure, dpi: int, file_format: str = "png", options: dict | None = None
) -> Picture:
    """Renders a figure as a data URI; `options` go to Pillow."""
    content = BytesIO()
    figure.savefig(content, format=file_format, dpi=dpi, pil_kwargs=options)
    return _picture(content, file_format, *(round(side * dpi) for side in figure.get_size_inches()))


def _picture(content: BytesIO, file_format: str, width: int, height: int) -> Picture:
    code = base64.b64encode(content.getvalue()).decode()
    return Picture(f"data:image/{file_format};base64,{code}", width, height)
