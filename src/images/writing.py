"""Writes volumes to files, atomically."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..utils.errors import DataError, reason_of
from ..utils.files import check_name, temporary_folder
from .formats import NIFTI_SUFFIXES, suffix_of
from .metaimage import names_several_files
from .nifti import read_nifti, write_nifti

REPORT_SUFFIXES = (".csv", ".json", ".png", ".html")
LONGEST_NAME_BYTES = 250  # of the 255 that file systems have, without the suffix of a `.zraw`


def write_volume(image: sitk.Image, path: str | Path, like: str | Path | None = None) -> None:
    """Writes an image atomically.

    It is written to a temporary folder, read back and compared, since SimpleITK does not report
    every full disk, and then renamed, the voxels of a `.mhd` before its header.

    Args:
        image: of any size and voxel type.
        path: with one of `SUFFIXES`; `.mhd` gets a compressed `.zraw` beside it.
        like: the file that `image` has its geometry from. If both are NIfTI, all fields of its
            header that define the geometry are copied.

    Raises:
        DataError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    write_together(path.parent, {path.name: partial(save_volume, image, like=like)})


def volume_files(names: Iterable[str]) -> list[str]:
    """Lists the files of volumes with these names: a .mhd has its voxels in a .zraw beside it."""
    files = []
    for name in names:
        files.append(name)
        if name.endswith(".mhd"):
            files.append(f"{name[:-4]}.zraw")
    return files


def check_volume_name(name: str) -> None:
    """Raises a DataError for a name that is too long, or a `.mhd` with a special `.zraw`.

    MetaIO would take the latter for a list of files.
    """
    length = len(os.fsencode(Path(name).name))
    if length > LONGEST_NAME_BYTES:
        raise DataError(
            f"{name}: a name of {length} bytes, expected at most {LONGEST_NAME_BYTES}; rename the "
            "image"
        )
    if name.endswith(".mhd") and names_several_files(Path(name).name):
        raise DataError(
            f"{name}: MetaImage takes LIST at the start of a name, or %, for a list of files; "
            "rename the image"
        )


def write_together(folder: Path, writers: dict[str, Callable[[Path], None]]) -> None:
    """Writes files that appear together, once all of them are complete.

    Args:
        folder: created if absent.
        writers: {name of the file, which may lie in a folder below: function that writes it}.

    Raises:
        DataError: the folder cannot be written or the disk is full.
    """
    name = ""
    for name in writers:
        check_name(folder / name)
        check_volume_name(name)
    try:
        with temporary_folder(folder) as temporary:
            for name, write in writers.items():
                path = temporary / name
                path.parent.mkdir(exist_ok=True)
                write(path)
            move_volumes(temporary, folder)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder / name}: cannot be written ({reason_of(error, -1)})") from None


def save_volume(image: sitk.Image, path: Path, like: str | Path | None = None) -> None:
    """Saves an image, and compares what is read back.

    Args:
        image, path, like: see `write_volume`.

    Raises:
        OSError, RuntimeError: the file cannot be written completely.
    """
    if suffix_of(path) in NIFTI_SUFFIXES:
        # A folder of DICOM files may have such a name, too.
        is_nifti = like is not None and suffix_of(like) in NIFTI_SUFFIXES and Path(like).is_file()
        write_nifti(image, path, like if is_nifti else None)
        written = read_nifti(path, may_warn=False)  # the image was read with its warning
    else:
        sitk.WriteImage(image, str(path), True)
        written = sitk.ReadImage(str(path))
    check_written(written, image)


def check_written(written: sitk.Image, image: sitk.Image, fields: Iterable[str] = ()) -> None:
    """Raises a RuntimeError unless an image reads back with its voxels and these fields.

    Args:
        written: as it was read back.
        image: as it was to be written.
        fields: names of metadata.
    """
    found, expected = map(sitk.GetArrayViewFromImage, (written, image))
    if not np.array_equal(found, expected) or any(
        not written.HasMetaDataKey(name) or written.GetMetaData(name) != image.GetMetaData(name)
        for name in fields
    ):
        raise RuntimeError("the written file reads back differently: is the disk full?")


def move_volumes(source: Path, target: Path) -> None:
    """Moves all files below `source` to the same places below `target`.

    Headers after voxels, tables and reports after both: a `.mhd` never exists without the file of
    its voxels, nor a table without the volumes that it lists. Both folders must be on one file
    system.
    """

    def order(file: Path) -> int:
        return 2 if file.suffix in REPORT_SUFFIXES else int(suffix_of(file) == ".mhd")

    files = [path for path in source.rglob("*") if path.is_file()]
    for file in sorted(files, key=order):
        final = target / file.relative_to(source)
        final.parent.mkdir(parents=True, exist_ok=True)
        file.replace(final)
