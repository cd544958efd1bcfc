"""Writes SimpleITK images to NIfTI files."""

import gzip
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from ..grid import LARGEST_SHEAR_DEG
from ..orientation import direction_matrix
from .geometry import RAS_TO_LPS
from .header import MAGIC, NIFTI1, TYPES, byte_order, read_header
from .stream import open_decompressed

GEOMETRY_FIELDS = ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern", "qoffset", "srow")
GZIP_LEVEL = 1  # as nibabel: a mask shrinks to 0.5 % of its size, in half the time of level 6


def write_nifti(image: sitk.Image, path: str | Path, like: str | Path | None = None) -> None:
    """Writes a 3-D scalar image, compressed if the name ends with `.gz`; not atomically.

    Args:
        image: in LPS mm.
        path: overwritten if it exists.
        like: NIfTI file with the same grid. Its header is copied, with both forms, their codes,
            units, pixdim and texts; only the fields that describe the voxels are new, and there are
            no extensions. None: a NIfTI-1 header with sform and qform (code 1), in mm.

    Raises:
        ValueError: not 3-D and scalar, of another size than `like`, or (without `like`) axes that
            are not perpendicular or more than 32767 voxels along one.
        DataError: `like` is not a NIfTI file.
    """
    values = sitk.GetArrayViewFromImage(image)
    codes = {dtype: code for code, dtype in TYPES.items()}
    if image.GetDimension() != 3 or values.ndim != 3 or values.dtype not in codes:
        raise ValueError(f"{path}: {image.GetPixelIDTypeAsString()} {image.GetSize()}, not 3-D")
    record = _new_header(image, path) if like is None else _header_like(image, Path(like))
    record["dim"] = [3, *image.GetSize(), 1, 1, 1, 1]
    record["datatype"], record["bitpix"] = codes[values.dtype], 8 * values.dtype.itemsize
    record["scl_slope"], record["vox_offset"] = 1, record.dtype.itemsize + 4
    for name in ("scl_inter", "cal_max", "cal_min", "intent_code", "intent_p"):
        record[name] = 0
    record["intent_name"] = b""
    content = values.astype(values.dtype.newbyteorder(byte_order(record))).tobytes()
    with Path(path).open("wb") as file:
        compressed = Path(path).name.lower().endswith(".gz")
        # Without name and time the same image gives the same bytes.
        gzipped = (
            gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) if compressed else nullcontext(file)
        )
        with gzipped as stream:
            stream.write(record.tobytes() + bytes(4))
            stream.write(content)


def copied_geometry(like: Path) -> str:
    """Returns all fields of a NIfTI header that place its voxels; a mask written like it has them.

    Raises:
        DataError: not a NIfTI file.
    """
    with open_decompressed(like) as stream:
        record = read_header(stream, like)
    return repr([record[name].tolist() for name in GEOMETRY_FIELDS])


def _header_like(image, like):
    with open_decompressed(like) as stream:
        record = read_header(stream, like).copy()
    size = tuple(int(side) for side in record["dim"][1:4])
    if size != image.GetSize():
        raise ValueError(f"{like}: size {size}, expected the image's {image.GetSize()}")
    return record


def _new_header(image, path):
    if max(image.GetSize()) > np.iinfo(np.int16).max:
        raise ValueError(f"{path}: size {image.GetSize()}, NIfTI-1 holds up to 32767 a side")
    record = np.zeros((), NIFTI1.newbyteorder("<"))
    direction = RAS_TO_LPS @ direction_matrix(image)
    direction /= np.linalg.norm(direction, axis=0)  # MetaImage may store them less exactly
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1.1 * np.radians(LARGEST_SHEAR_DEG):
        raise ValueError(f"{path}: direction {image.GetDirection()}, not perpendicular")
    origin = RAS_TO_LPS @ image.GetOrigin()
    qfac = -1.0 if np.linalg.det(direction) < 0 else 1.0
    quaternion = Rotation.from_matrix(direction * (1, 1, qfac)).as_quat()
    record["sizeof_hdr"], record["magic"] = NIFTI1.itemsize, MAGIC[NIFTI1]
    record["pixdim"] = [qfac, *image.GetSpacing(), 1, 1, 1, 1]
    record["xyzt_units"], record["qform_code"], record["sform_code"] = 2, 1, 1
    record["quatern"] = quaternion[:3] * (-1 if quaternion[3] < 0 else 1)
    record["qoffset"] = origin
    record["srow"] = np.column_stack((direction * image.GetSpacing(), origin))
    return record
