"""The results that eval.py, postprocess.py and predict.py write: volumes, pictures, report."""

import logging
import platform
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import mindspore as ms
import numpy as np
import pandas as pd
import SimpleITK as sitk
from tqdm import tqdm

from ..config import config_path_of
from ..images.writing import write_volume
from ..utils import output_folder
from ..utils.errors import DataError
from .album import Album, Drawing, draw_case
from .figures import PLOTTED_COLUMNS
from .overlays import OverlayCase, overlay_cases, write_overlays
from .page import report_cases, write_report

log = logging.getLogger(__name__)

OVERLAYS, REPORT = "overlays.png", "report.html"


def volume_files(names: Iterable[str]) -> list[str]:
    """Lists the files of volumes with these names: a .mhd has its voxels in a .zraw beside it."""
    files = []
    for name in names:
        files.append(name)
        if name.endswith(".mhd"):
            files.append(f"{name[:-4]}.zraw")
    return files


def write_volumes(
    folder: Path, volumes: dict[str, sitk.Image], like: str | Path | None = None
) -> None:
    """Writes volumes into a results folder, where only our own earlier files may be replaced.

    Args:
        folder: of the results.
        volumes: {file name: image}.
        like: see `write_volume`.

    Raises:
        DataError: a file cannot be written, or is there and not ours.
    """
    with output_folder.register(folder, volume_files(volumes)):
        for name, volume in volumes.items():
            write_volume(volume, folder / name, like)


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
    read_case: Callable[[dict], OverlayCase],
    metadata: dict,
) -> None:
    """Writes overlays.png, unless no case has a mask, and report.html.

    Args:
        folder: of the results.
        rows: of the cases, see `write_report`.
        album: drawings of cases.
        read_case: reads image and masks of a row's case that is to be shown and not in the album; a
            DataError of it leaves the case without pictures.
        metadata: origin of the results. The report shows the training curves of the run that a
            "checkpoint" comes from.

    Raises:
        DataError: a file cannot be written.
    """
    drawings = _drawings(rows, album, read_case)
    segmented = [row for row in rows if not row.get("problem")]
    if segmented:
        shown = [drawings[name].overlay for name in overlay_cases(rows) if name in drawings]
        write_overlays(shown, len(segmented), folder / OVERLAYS)
    versions = {
        "written": f"{datetime.now():%Y-%m-%d %H:%M}",
        "Python": platform.python_version(),
        "MindSpore": ms.__version__,
        "NumPy": np.__version__,
        "SimpleITK": sitk.__version__,
    }
    history = read_history_of(metadata["checkpoint"]) if "checkpoint" in metadata else None
    pictures = {name: drawing.pictures for name, drawing in drawings.items()}
    write_report(folder / REPORT, rows, pictures, {**metadata, **versions}, history)


def _drawings(
    rows: list[dict], album: Album, read_case: Callable[[dict], OverlayCase]
) -> dict[str, Drawing]:
    """The drawings of the cases that are to be shown, {case: drawing}."""
    shown = {*overlay_cases(rows), *report_cases(rows)}
    drawings = {}
    for row in rows:
        name = row["case"]
        if name in album.drawings:
            drawings[name] = album.drawings[name]
        elif name in shown:
            with suppress(DataError):
                drawings[name] = draw_case(read_case(row))
    return drawings


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
