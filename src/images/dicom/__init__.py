"""DICOM: find the series in a folder, a zip or a file, choose the axial T2, read its volume.

The geometry comes from the positions and orientations of the slices. Slice thickness, spacing
between slices and instance numbers are not used: they are often wrong. A series that is not one
regular stack of MR slices raises a DataError.
"""

from pathlib import Path

import SimpleITK as sitk

from ...utils.log import warn_once
from .choosing import choose_series
from .files import damaged_files, dicom_files, holds_dicom, is_dicom, read_texts
from .series import Series, find_series
from .studies import study_folders
from .volume import read_series

__all__ = [
    "Series",
    "choose_series",
    "damaged_files",
    "dicom_files",
    "find_series",
    "holds_dicom",
    "is_dicom",
    "read_dicom",
    "read_series",
    "read_texts",
    "study_folders",
]


def read_dicom(path: str | Path, series: str | Series = "") -> sitk.Image:
    """Reads the volume of one series of a DICOM file, folder tree or zip.

    Args:
        path: see `find_series`.
        series: see `choose_series`; or the series itself, chosen before.

    Returns:
        See `read_series`.

    Raises:
        DataError: no such series, or not one regular volume.
    """
    if isinstance(series, Series):
        chosen = series
    else:
        chosen = choose_series(find_series(path), series, path)
    image = read_series(chosen)
    kinds = {"diffusion": chosen.diffusion, "a localizer": chosen.localizer}
    found = [f"{kind} ({evidence})" for kind, evidence in kinds.items() if evidence]
    if found or chosen.contrast not in ("T2", ""):
        kind = found[0] if found else chosen.contrast
        warn_once(f"note: {path}: series {chosen.name} is {kind}; read because --series chose it")
    return image
