"""File names of volumes: formats, case names, names of masks."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from ..utils.errors import DataError

SUFFIXES = (".mhd", ".mha", ".nii.gz", ".nii", ".nrrd")
META_SUFFIXES = (".mhd", ".mha")  # MetaImage
NIFTI_SUFFIXES = (".nii.gz", ".nii")
# Images that this program does not read.
OTHER_SUFFIXES = (".nhdr", ".hdr", ".hdr.gz", ".img.gz", ".nii.bz2", ".mgz", ".mgh", ".mnc")
OTHER_SUFFIXES += (".par", ".gipl", ".gipl.gz", ".vtk")
# What a predicted mask may be written as, and its suffix; the image's own format has the image's.
OUTPUT_TYPES = {"image": "", "dicom_seg": ".dcm", "seg_nrrd": ".seg.nrrd"}
MASK_SUFFIX = "_segmentation"
# Names of masks in other data sets.
MASK_ENDING = re.compile(r"[ ._-](segmentation|d?seg|labels?|masks?)$", re.IGNORECASE)
MASK_FOLDER = re.compile(
    r"(labels?|masks?|segs?|segmentations?|gt|ground_?truth|annotations?|delineations?|rois?"
    r"|contours?)([_-]?(tr|ts|va|train|test|val))?",
    re.IGNORECASE,
)


def suffix_of(path: str | PurePath) -> str | None:
    """Returns which of `SUFFIXES` a file name ends with, in any case; None for others."""
    return next((suffix for suffix in SUFFIXES if Path(path).name.lower().endswith(suffix)), None)


def is_other_image(path: str | PurePath) -> bool:
    """Whether a file is named as an image of a format that is not read, one of `OTHER_SUFFIXES`."""
    return Path(path).name.lower().endswith(OTHER_SUFFIXES)


def stem(path: str | PurePath) -> str:
    """Returns the file's name without folder and image suffix: Case03 of img/Case03.nii.gz."""
    name = Path(path).name
    return name[: len(name) - len(suffix_of(name) or "")]


def list_images(folder: str | Path) -> dict[str, list[Path]]:
    """Returns the image files of a folder as `{stem: [paths]}`, sorted by name.

    Raises:
        DataError: no such folder.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; expected images or masks there")
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).iterdir()):
        if suffix_of(path) and not path.name.startswith("."):
            found.setdefault(stem(path), []).append(path)
    return found


def only_file(paths: Sequence[Path]) -> Path:
    """Returns the file of a case, which must be the only one of its stem.

    Args:
        paths: the image files of one stem in a folder, at least one; see `list_images`.

    Raises:
        DataError: there are several.
    """
    if len(paths) > 1:
        raise DataError(
            f"{paths[0].parent}: {' and '.join(path.name for path in paths)} have the same case "
            f"name, {stem(paths[0])}; keep one of them"
        )
    return paths[0]
