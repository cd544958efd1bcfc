"""Volumes into files, whole or not at all."""

import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..utils.errors import DataError, reason_of
from ..utils.files import check_name
from .formats import NIFTI_SUFFIXES, suffix_of
from .nifti import read_nifti, write_nifti


def write_volume(image: sitk.Image, path: str | Path, like: str | Path | None = None) -> None:
    """Writes an image, whole or not at all.

    It is written under a folder of its own, read back and compared, since SimpleITK does not notice
    every full disk, and then renamed, the voxels of a `.mhd` before its header.

    Args:
        image: of any size and voxel type.
        path: with one of `SUFFIXES`; `.mhd` gets a compressed `.zraw` beside it.
        like: the file that `image` has its geometry from; a NIfTI written like a NIfTI keeps all
            of its header that tells where the voxels lie.

    Raises:
        DataError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    check_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
            temporary = Path(folder, path.name)
            _write(image, temporary, like)
            written = _read(temporary)
            if not np.array_equal(
                sitk.GetArrayViewFromImage(written), sitk.GetArrayViewFromImage(image)
            ):
                raise RuntimeError("what was written reads back differently: is the disk full?")
            for file in sorted(Path(folder).iterdir(), key=lambda file: file == temporary):
                file.replace(path.with_name(file.name))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be written ({reason_of(error, -1)})") from None


def _write(image, path, like):
    if suffix_of(path) not in NIFTI_SUFFIXES:
        sitk.WriteImage(image, str(path), True)
        return
    is_nifti = like is not None and suffix_of(like) in NIFTI_SUFFIXES
    write_nifti(image, path, like if is_nifti else None)


def _read(path):
    return read_nifti(path) if suffix_of(path) in NIFTI_SUFFIXES else sitk.ReadImage(str(path))
