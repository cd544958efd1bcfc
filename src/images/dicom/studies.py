"""The studies in a folder tree: a folder of patients is divided into folders of one study each."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ...utils.errors import DataError
from .choosing import choose_series
from .files import read_texts
from .series import find_series

log = logging.getLogger(__name__)


def study_folders(folder: Path, files: Iterable[Path], series: str = "") -> list[Path]:
    """Divides a folder into the folders below it that hold one study each.

    The study of a folder's files is read from one of them. A folder stays whole if it holds one
    study; if the files of a study are in several of its folders, or DICOM files in itself; or if
    several studies of one patient (PatientID) have a single series to read, which is logged.

    Args:
        folder: of DICOM files.
        files: the DICOM files below it.
        series: see `choose_series`.

    Returns:
        Folders in the order of their names; only `folder` if it stays whole.
    """
    firsts: dict[Path, Path] = {}
    for file in files:
        firsts.setdefault(file.parent, file)
    studies = {}
    for place, file in firsts.items():
        patient, study = read_texts(file, "PatientID", "StudyInstanceUID")
        studies[place] = patient, study
    return _divide(folder, studies, series)


def _divide(folder, studies, series):
    """`study_folders`, of {folder of files: (patient, study)}."""
    children: dict[Path, dict[Path, tuple[str, str]]] = {}
    for place, study in studies.items():
        if place == folder:
            return [folder]
        child = folder / place.relative_to(folder).parts[0]
        children.setdefault(child, {})[place] = study
    found = [set(below.values()) for below in children.values()]
    together = set().union(*found)
    if len(together) == 1 or sum(map(len, found)) > len(together):
        return [folder]
    patients = {patient for patient, _ in together}
    if len(children) > 1 and len(patients) == 1 and "" not in patients:
        with suppress(DataError):
            chosen = choose_series(find_series(folder), series, folder)
            log.info(
                f"note: {folder}: {len(together)} studies with one PatientID are taken as one; "
                f"only series {chosen.name} is read. To read the others, name their folders"
            )
            return [folder]
    return [place for child, below in children.items() for place in _divide(child, below, series)]
