"""The number of bytes of an image's voxels, expected and found."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..utils.errors import DataError


def expected_bytes(reader: sitk.ImageFileReader) -> int:
    """Returns the number of bytes of the voxels, from the header that `reader` has read."""
    component_bytes = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    return int(np.prod(reader.GetSize())) * reader.GetNumberOfComponents() * component_bytes


def check_length(path: Path, found: int, expected: int) -> None:
    """Raises a DataError if a file has fewer or more bytes of voxels than its header says."""
    if found < expected:
        raise DataError(f"{path}: truncated, {found} bytes of {expected}; get the file again")
    if found > expected:
        raise DataError(
            f"{path}: {found} bytes of voxels, its header says {expected}; the header is damaged "
            "or another file's: get the file again"
        )
