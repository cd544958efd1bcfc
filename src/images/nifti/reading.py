"""Reads NIfTI files into SimpleITK images."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ...utils.errors import DataError, SeveralVolumesError
from ...utils.log import warn_once
from .geometry import read_grid
from .header import read_header, voxel_layout
from .stream import open_decompressed, read_up_to, skip


@np.errstate(all="ignore")  # impossible numbers in a header are refused by their results
def read_nifti(
    path: str | Path, channel: int | None = None, *, may_warn: bool = True
) -> sitk.Image:
    """Reads a volume of a NIfTI-1 or NIfTI-2 file, with the geometry of its sform, else its qform.

    The first bytes decide whether the file is gzip, not its name. If both forms are set and place
    a corner more than `FORMS_DIFFER_MM` apart, a warning is logged. A form whose axes are within
    `LARGEST_SHEAR_DEG` of perpendicular is replaced by the nearest rotation, with the lengths of
    its columns as spacing and the same centre.

    Args:
        path: a single file; pairs (.hdr and .img) are refused.
        channel: index along the 4th axis, from 0; None for a file of one volume.
        may_warn: whether to log that the forms differ.

    Returns:
        3-D image in LPS mm (a header in metres or microns is converted). Voxels have the stored
        type, or float64 if the header scales them; NaN and infinity are kept.

    Raises:
        DataError: damaged, truncated or too long; not a scalar volume; no such channel; geometry
            unknown, sheared or implausible.
    """
    path = Path(path)
    with open_decompressed(path) as stream:
        record = read_header(stream, path)
        layout = voxel_layout(record, path)
        index = _volume_index(channel, layout.volumes, path)
        grid, warning = read_grid(record, layout.size, path)
        values = _read_voxels(stream, record.dtype.itemsize, layout, index, path)
    image = sitk.GetImageFromArray(_scale(values, record, path))
    image.SetSpacing(grid.spacing_mm.tolist())
    image.SetOrigin(grid.origin.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    if warning and may_warn:
        warn_once(warning)
    return image


def _read_voxels(stream, start, layout, index, path):
    """One volume (z, y, x) as stored; `start` bytes of the stream have been read."""
    expected = layout.offset + layout.volume_bytes * layout.volumes
    before = layout.offset + layout.volume_bytes * index
    found = start + skip(stream, before - start)
    content = read_up_to(stream, layout.volume_bytes)
    found += len(content)
    found += skip(stream, expected - found)
    if found < expected:
        raise DataError(f"{path}: truncated, {found} bytes of {expected}; get the file again")
    # Reading on also checks the checksum of a gzip stream. Bytes behind the voxels, which other
    # readers ignore, reveal a damaged size or type in the header.
    if stream.read(1):
        raise DataError(
            f"{path}: more bytes than the {expected} that its header describes; the header is "
            "damaged or something is appended: get the file again"
        )
    return np.frombuffer(content, layout.dtype).reshape(layout.size[::-1])


def _scale(values, record, path):
    """Converts stored values to the machine's byte order; scaled ones to float64."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    slope, inter = float(record["scl_slope"]), float(record["scl_inter"])
    if slope == 0 or not np.isfinite(slope) or (slope, inter) == (1, 0):
        return values
    if not np.isfinite(inter):
        raise DataError(
            f"{path}: scl_slope {slope:g} with scl_inter {inter}, expected a number; "
            "repair its header"
        )
    return values.astype(np.float64) * slope + inter


def _volume_index(channel, volumes, path):
    if channel is None and volumes > 1:
        raise SeveralVolumesError(
            f"{path}: {volumes} volumes along its 4th axis, expected one; choose with "
            f"--channel N, N from 0 to {volumes - 1}"
        )
    if not 0 <= (channel or 0) < volumes:
        raise DataError(
            f"{path}: channel {channel} (of --channel or the model's config.json), but it has "
            f"{volumes} volume(s); expected 0 to {volumes - 1}"
        )
    return channel or 0
