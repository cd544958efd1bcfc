"""The header of a NIfTI file: its fields, and how the voxels are stored."""

from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from ...utils.errors import DataError
from .stream import read_up_to

LARGEST_VOLUME_BYTES = 4 * 2**30
ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")  # byte orders: little and big endian
TYPES = {
    code: np.dtype(name)
    for code, name in {
        2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8",
        256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
    }.items()
}  # fmt: skip
OTHER_TYPES = {
    1: "bits", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128",
    2048: "complex256", 2304: "RGBA",
}  # fmt: skip

NIFTI1 = np.dtype([
    ("sizeof_hdr", "i4"), ("unused_1", "V35"), ("dim_info", "u1"), ("dim", "i2", 8),
    ("intent_p", "f4", 3), ("intent_code", "i2"), ("datatype", "i2"), ("bitpix", "i2"),
    ("slice_start", "i2"), ("pixdim", "f4", 8), ("vox_offset", "f4"), ("scl_slope", "f4"),
    ("scl_inter", "f4"), ("slice_end", "i2"), ("slice_code", "u1"), ("xyzt_units", "u1"),
    ("cal_max", "f4"), ("cal_min", "f4"), ("slice_duration", "f4"), ("toffset", "f4"),
    ("unused_2", "V8"), ("descrip", "V80"), ("aux_file", "V24"), ("qform_code", "i2"),
    ("sform_code", "i2"), ("quatern", "f4", 3), ("qoffset", "f4", 3), ("srow", "f4", (3, 4)),
    ("intent_name", "V16"), ("magic", "V4"),
])  # fmt: skip
NIFTI2 = np.dtype([
    ("sizeof_hdr", "i4"), ("magic", "V8"), ("datatype", "i2"), ("bitpix", "i2"), ("dim", "i8", 8),
    ("intent_p", "f8", 3), ("pixdim", "f8", 8), ("vox_offset", "i8"), ("scl_slope", "f8"),
    ("scl_inter", "f8"), ("cal_max", "f8"), ("cal_min", "f8"), ("slice_duration", "f8"),
    ("toffset", "f8"), ("slice_start", "i8"), ("slice_end", "i8"), ("descrip", "V80"),
    ("aux_file", "V24"), ("qform_code", "i4"), ("sform_code", "i4"), ("quatern", "f8", 3),
    ("qoffset", "f8", 3), ("srow", "f8", (3, 4)), ("slice_code", "i4"), ("xyzt_units", "i4"),
    ("intent_code", "i4"), ("intent_name", "V16"), ("dim_info", "u1"), ("unused_2", "V15"),
])  # fmt: skip
MAGIC = {NIFTI1: b"n+1\0", NIFTI2: b"n+2\0\r\n\x1a\n"}
PAIR_MAGIC = {NIFTI1: b"ni1", NIFTI2: b"ni2"}


class VoxelLayout(NamedTuple):
    """Where the voxels are in the decompressed file, by a checked header."""

    size: tuple[int, int, int]  # x, y, z
    volumes: int  # along the 4th axis
    dtype: np.dtype  # as stored, with its byte order
    offset: int  # bytes before the first voxel

    @property
    def volume_bytes(self) -> int:
        """Bytes of one volume."""
        x, y, z = self.size
        return x * y * z * self.dtype.itemsize


def read_header(stream: BinaryIO, path: Path) -> np.void:
    """Reads the header from the start of a stream.

    Returns:
        A record of `NIFTI1` or `NIFTI2` in the file's byte order.

    Raises:
        DataError: no NIfTI header, truncated, or one of a pair of files.
    """
    start = bytes(read_up_to(stream, NIFTI1.itemsize))
    for order in ORDERS if len(start) >= 4 else ():
        size = int(np.frombuffer(start[:4], f"{order}i4")[0])
        for version in (NIFTI1, NIFTI2):
            if size != version.itemsize:
                continue
            start += bytes(read_up_to(stream, size - len(start)))
            if len(start) < size:
                raise DataError(
                    f"{path}: truncated, {len(start)} bytes; its header has {size}: get the file "
                    "again"
                )
            record = np.frombuffer(start, version.newbyteorder(order))[0]
            _check_magic(record, version, path)
            return record
    raise DataError(
        f"{path}: no NIfTI file, its first {len(start)} bytes are no NIfTI-1 or NIfTI-2 header; "
        "check what it is, or get it again"
    )


def _check_magic(record, version, path):
    magic = record["magic"].tobytes()
    if magic.startswith(PAIR_MAGIC[version]):
        raise DataError(
            f"{path}: half of a NIfTI pair (.hdr and .img), expected one file; join them, "
            "e.g. `fslchfiletype NIFTI_GZ FILE`"
        )
    if magic != MAGIC[version]:
        raise DataError(
            f"{path}: its header ends in {magic!r}, expected {MAGIC[version]!r}; "
            "convert it to NIfTI (an Analyze file does not say which side is left), or get it again"
        )


def byte_order(record: np.void) -> Literal["<", ">"]:
    """Returns the byte order of a header, `<` or `>`."""
    field = record.dtype["sizeof_hdr"]
    return "<" if field == field.newbyteorder("<") else ">"


def voxel_layout(record: np.void, path: Path) -> VoxelLayout:
    """Returns how the voxels are stored, by the header's checked fields.

    Raises:
        DataError: an unsupported data type, not 3-D or 4-D, or a damaged or implausible field.
    """
    code = int(record["datatype"])
    if code not in TYPES:
        name = OTHER_TYPES.get(code, "unknown")
        raise DataError(
            f"{path}: voxels of data type {code} ({name}), expected integers, float32 or float64; "
            "convert it"
        )
    size, volumes = _check_dim([int(side) for side in record["dim"]], path)
    header_bytes = int(record["sizeof_hdr"]) + 4  # the extension flag follows the header
    offset = float(record["vox_offset"])
    if not (np.isfinite(offset) and offset == int(offset) and offset >= header_bytes):
        raise DataError(
            f"{path}: vox_offset {offset:g}, expected a whole number from {header_bytes}; "
            "its header is damaged, get the file again"
        )
    layout = VoxelLayout(size, volumes, TYPES[code].newbyteorder(byte_order(record)), int(offset))
    if layout.volume_bytes > LARGEST_VOLUME_BYTES:
        raise DataError(
            f"{path}: a volume of {' x '.join(map(str, size))} voxels, {layout.volume_bytes} "
            f"bytes, expected at most {LARGEST_VOLUME_BYTES}; crop it, or repair its header"
        )
    return layout


def _check_dim(dim, path):
    """Returns `((x, y, z), volumes)` of the header's dim."""
    count, sides = dim[0], dim[1 : dim[0] + 1]
    shown = " x ".join(map(str, sides))
    if not 1 <= count <= 7 or min(sides) < 1:
        raise DataError(
            f"{path}: dim {dim}, expected 3, then three positive sizes; its header is damaged, "
            "get the file again"
        )
    if count < 3:
        raise DataError(f"{path}: {count}-D ({shown}), expected a 3-D volume; stack its slices")
    if any(side > 1 for side in sides[4:]):
        raise DataError(
            f"{path}: size {shown}, a vector or matrix in each voxel, expected a 3-D scalar "
            "volume; save the wanted values as a volume of their own"
        )
    return tuple(sides[:3]), sides[3] if count > 3 else 1
