"""The results that eval.py, postprocess.py and predict.py write: volumes, pictures, report."""

import logging
import platform
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from ..utils.errors import DataError
from ..utils.files import write_files
from .album import Album, Drawing, draw_case
from .page import metric_groups, render_page, report_cases
from .planes import OverlayCase

log = logging.getLogger(__name__)

OVERLAYS, REPORT = "overlays.png", "report.html"
OVERLAY_ROWS = 12  # at most, in overlays.png


def warn_about_case(case_id: str, texts: Iterable[str], kind: str = "warning") -> None:
    """Logs the findings about a case in one line, above a progress bar if there is one.

    Args:
        case_id: name of the case.
        texts: the findings; nothing is logged without one.
        kind: first word of the line.
    """
    if text := "; ".join(texts):
        with tqdm.external_write_mode(file=sys.stderr):
            log.warning(f"{kind}: {case_id}: {text}")


def write_pictures(
    folder: Path,
    rows: list[dict],
    album: Album,
    metadata: dict,
    read_case: Callable[[dict], OverlayCase] | None = None,
) -> None:
    """Writes overlays.png and report.html; without any mask there is no overlays.png.

    Args:
        folder: of the results.
        rows: of the cases, see `render_page`.
        album: drawings of cases.
        metadata: origin of the results.
        read_case: reads image and masks of a row's case that is to be shown and not in the album; a
            DataError of it, which is logged, leaves the case without pictures. None: all are in the
            album.

    Raises:
        DataError: a file cannot be written.
    """
    drawings = _drawings(rows, album, read_case)
    segmented = [row for row in rows if not row.get("problem")]
    if segmented:
        worst = report_cases(rows)[:OVERLAY_ROWS]
        shown = [drawings[name].overlay for name in worst if name in drawings]
        overlays = album.painter.submit("overlays_png", shown, len(segmented))
    box_plots = [album.painter.submit("box_plot_picture", values) for values in metric_groups(rows)]
    versions = {
        "written": f"{datetime.now():%Y-%m-%d %H:%M}",
        "Python": platform.python_version(),
        "MindSpore": version("mindspore"),
        "NumPy": np.__version__,
        "SimpleITK": sitk.__version__,
    }
    page = render_page(
        rows,
        {name: drawing.pictures.result() for name, drawing in drawings.items()},
        {**metadata, **versions},
        [picture.result() for picture in box_plots],
        None if album.training is None else album.training.result(),
        album.language,
    )
    files = {folder / OVERLAYS: overlays.result()} if segmented else {}
    write_files({**files, folder / REPORT: page})
    if not segmented:
        (folder / OVERLAYS).unlink(missing_ok=True)


def _drawings(
    rows: list[dict], album: Album, read_case: Callable[[dict], OverlayCase] | None
) -> dict[str, Drawing]:
    """The drawings of the cases that are to be shown, {case: drawing}."""
    shown = report_cases(rows)
    drawings, reasons = {}, []
    for row in rows:
        name = row["case"]
        if name in album.drawings:
            drawings[name] = album.drawings[name]
        elif name in shown and read_case is not None:
            try:
                drawings[name] = draw_case(read_case(row), album.painter)
            except DataError as error:
                reasons.append(f"{name}: {error}")
    if reasons:
        log.info(f"{len(reasons)} case(s) without pictures, such as {reasons[0]}")
    return drawings
