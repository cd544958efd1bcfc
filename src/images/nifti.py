"""NIfTI-1 and NIfTI-2, one file each (`.nii`, `.nii.gz`): to SimpleITK images and back.

SimpleITK's own reader turns NaN to 0, fills up truncated files and chooses between the two forms by
rules of its own, so headers and voxels are read here. Fields, codes and formulas: nifti1.h and
nifti2.h of nifti.nimh.nih.gov. The header's coordinates are RAS+, SimpleITK's are LPS+.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from ..utils.errors import DataError, SeveralVolumesError
from ..utils.log import warn_once

# Near a half turn a float32 quaternion leaves up to 1.2 mrad open, 0.4 mm at the far corner.
FORMS_DIFFER_MM = 0.5
LARGEST_SHEAR_DEG = 0.3  # forms rounded to 1e-3 mm have less, from voxels of 0.4 mm
VOXEL_SIZES_MM = (1e-3, 100.0)  # beyond it a header is damaged, or names the wrong unit
FARTHEST_MM = 1e5  # of any corner from the scanner's centre
LARGEST_VOLUME_BYTES = 4 * 2**30

GZIP_LEVEL = 1  # as nibabel; a mask shrinks to 0.5 % of its size, in half the time of level 6
GZIP_START = b"\x1f\x8b"
CHUNK_BYTES = 2**20
UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, millimetre, micron
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
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])

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


class _Layout(NamedTuple):
    """Where the voxels of a checked header lie in the unpacked file."""

    size: tuple[int, int, int]  # x, y, z
    volumes: int  # along the 4th axis
    dtype: np.dtype  # as stored, with its byte order
    offset: int  # bytes before the first voxel


class _Geometry(NamedTuple):
    """A grid of perpendicular axes, in LPS mm."""

    spacing_mm: np.ndarray  # (3,)
    origin: np.ndarray  # (3,)
    direction: np.ndarray  # (3, 3), columns are the image's axes


# --- bytes -------------------------------------------------------------------------------------


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where its first two bytes say gzip, whatever its name says."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        with path.open("rb") as file:
            packed = file.read(2) == GZIP_START
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if packed else nullcontext(file) as stream:
                yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: its gzip data is damaged ({reason}); get the file again"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check its permissions"
        ) from None


def _pieces(stream, count):
    """The next `count` bytes piece by piece, fewer where the stream ends before or is cut off."""
    while count > 0:
        try:
            piece = stream.read1(min(count, CHUNK_BYTES))
        except EOFError:
            return
        if not piece:
            return
        count -= len(piece)
        yield piece


def _take(stream, count):
    """Up to `count` bytes; memory is taken for what is there, not for what a header claims."""
    content = bytearray()
    for piece in _pieces(stream, count):
        content += piece
    return content


def _pass_over(stream, count):
    return sum(map(len, _pieces(stream, count)))


# --- header ------------------------------------------------------------------------------------


def _read_header(stream, path):
    """The header record, in the file's byte order."""
    start = bytes(_take(stream, NIFTI1.itemsize))
    sizes = {order: int(np.frombuffer(start[:4], f"{order}i4")[0]) for order in "<>" if start[3:4]}
    for order, size in sizes.items():
        for layout in (NIFTI1, NIFTI2):
            if size != layout.itemsize:
                continue
            start += bytes(_take(stream, size - len(start)))
            if len(start) < size:
                raise DataError(f"{path}: truncated, {len(start)} bytes; its header has {size}")
            return _checked_magic(np.frombuffer(start, layout.newbyteorder(order))[0], layout, path)
    raise DataError(
        f"{path}: no NIfTI file, its first {len(start)} bytes are no NIfTI-1 or NIfTI-2 header; "
        "check what it is, or get it again"
    )


def _checked_magic(record, layout, path):
    magic = record["magic"].tobytes()
    if magic.startswith(PAIR_MAGIC[layout]):
        raise DataError(
            f"{path}: half of a NIfTI pair (.hdr and .img), expected one file; join them, "
            "e.g. `fslchfiletype NIFTI_GZ FILE`"
        )
    if magic != MAGIC[layout]:
        raise DataError(
            f"{path}: its header ends in {magic!r}, expected {MAGIC[layout]!r}; "
            "convert it to NIfTI (an Analyze file does not say which side is left), or get it again"
        )
    return record


def _order(record):
    """The byte order of a record, `<` or `>`."""
    field = record.dtype["sizeof_hdr"]
    return "<" if field == field.newbyteorder("<") else ">"


def _layout(record, path):
    """Checks what says how the voxels are stored."""
    code = int(record["datatype"])
    if code not in TYPES:
        name = OTHER_TYPES.get(code, "unknown")
        raise DataError(
            f"{path}: voxels of data type {code} ({name}), expected integers, float32 or float64; "
            "convert it"
        )
    size, volumes = _checked_dim([int(side) for side in record["dim"]], path)
    header_bytes = int(record["sizeof_hdr"]) + 4  # and four bytes on extensions
    offset = float(record["vox_offset"])
    if not (np.isfinite(offset) and offset == int(offset) and offset >= header_bytes):
        raise DataError(
            f"{path}: vox_offset {offset:g}, expected a whole number from {header_bytes}; "
            "its header is damaged, get the file again"
        )
    layout = _Layout(size, volumes, TYPES[code].newbyteorder(_order(record)), int(offset))
    if _volume_bytes(layout) > LARGEST_VOLUME_BYTES:
        raise DataError(
            f"{path}: a volume of {' x '.join(map(str, size))} voxels, {_volume_bytes(layout)} "
            f"bytes, expected at most {LARGEST_VOLUME_BYTES}; crop it, or repair its header"
        )
    return layout


def _volume_bytes(layout):
    x, y, z = layout.size
    return x * y * z * layout.dtype.itemsize


def _checked_dim(dim, path):
    """`((x, y, z), volumes)` of the header's dim."""
    count, sides = dim[0], dim[1 : dim[0] + 1]
    shown = " x ".join(map(str, sides))
    if not 1 <= count <= 7 or min(sides) < 1:
        raise DataError(
            f"{path}: dim {dim}, expected 3, then three positive sizes; its header is damaged"
        )
    if count < 3:
        raise DataError(f"{path}: {count}-D ({shown}), expected a 3-D volume; stack its slices")
    if any(side > 1 for side in sides[4:]):
        raise DataError(
            f"{path}: size {shown}, a vector or matrix in each voxel, expected a 3-D scalar volume"
        )
    return tuple(sides[:3]), sides[3] if count > 3 else 1


# --- geometry ----------------------------------------------------------------------------------


def _geometry(record, size, path):
    """The geometry by the form that is taken, and a line where the other form says otherwise."""
    unit_mm = _unit_mm(record, path)
    codes = {name: int(record[f"{name}_code"]) for name in ("sform", "qform")}
    for name, code in codes.items():
        if not 0 <= code <= 5:
            raise DataError(f"{path}: {name}_code {code}, expected 0 to 5; its header is damaged")
    if not any(codes.values()):
        raise DataError(
            f"{path}: sform_code and qform_code are 0, so nothing says which side is left; check "
            "how it lies and set one, e.g. `fslorient -setqformcode 1 FILE`"
        )
    affines = {name: unit_mm * AFFINES[name](record, path) for name in codes if codes[name]}
    corners = {name: _corners(affine, size, name, path) for name, affine in affines.items()}
    taken = "sform" if codes["sform"] else "qform"
    return _nearest_grid(affines[taken], size, path, taken, codes), _note(corners, path)


def _unit_mm(record, path):
    unit = int(record["xyzt_units"]) & 7
    if unit not in UNIT_MM:
        raise DataError(
            f"{path}: unit {unit} in xyzt_units, expected 0 (unknown, taken as mm), 1 (metre), "
            "2 (mm) or 3 (micron); set it, e.g. with nibabel's header.set_xyzt_units('mm')"
        )
    return UNIT_MM[unit]


def _sform(record, path):
    """Rows x, y, z of the affine (3, 4) from voxel indices to RAS+."""
    return record["srow"].astype(float)


def _qform(record, path):
    """The same from quaternion, voxel sizes and offset."""
    quaternion = record["quatern"].astype(float)
    # As in nibabel: what rounding leaves of w near a half turn is no rotation.
    rounding = 3 * np.finfo(record["quatern"].dtype).eps
    square = 1 - quaternion @ quaternion
    if not square >= -3 * np.finfo(np.float32).eps:  # NaN, too
        raise DataError(
            f"{path}: quaternion {_shown(quaternion)} in its qform is longer than 1 or no number; "
            "its header is damaged: set the qform anew, e.g. `fslorient -copysform2qform FILE`"
        )
    real = np.sqrt(square) if square >= rounding else 0.0
    qfac = float(record["pixdim"][0])
    if qfac not in (-1, 0, 1):  # 0 stands for 1
        raise DataError(f"{path}: qfac (pixdim[0]) {qfac:g}, expected 1 or -1; repair its header")
    step = record["pixdim"][1:4].astype(float) * (1, 1, qfac or 1)
    rotation = Rotation.from_quat([*quaternion, real]).as_matrix()
    return np.column_stack((rotation * step, record["qoffset"].astype(float)))


AFFINES = {"sform": _sform, "qform": _qform}


def _shown(values):
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _check_pixdim(record, path):
    sizes = record["pixdim"][1:4].astype(float)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise DataError(
            f"{path}: voxel size (pixdim) {_shown(sizes)}, expected three positive numbers; "
            "repair its header or convert the scan anew"
        )


def _corners(affine, size, name, path):
    """The eight corners (8, 3) of the voxel centres, in mm."""
    far = np.subtract(size, 1)
    indices = np.array(
        [(x, y, z, 1) for x in (0, far[0]) for y in (0, far[1]) for z in (0, far[2])]
    )
    corners = indices @ affine.T
    step_mm = np.linalg.norm(affine[:, :3], axis=0)
    least, most = VOXEL_SIZES_MM
    if not ((step_mm >= least) & (step_mm <= most)).all():
        raise DataError(
            f"{path}: its {name} has voxels of {_shown(step_mm)} mm, expected {least:g} to "
            f"{most:g}; repair the {name} or the unit (xyzt_units)"
        )
    if not (np.abs(corners) <= FARTHEST_MM).all():
        raise DataError(
            f"{path}: its {name} puts opposite corners at {_shown(corners[0])} and "
            f"{_shown(corners[-1])} mm, expected within {FARTHEST_MM:g}; repair the {name}"
        )
    return corners


def _nearest_grid(affine, size, path, name, codes):
    """The grid of perpendicular axes nearest to an affine, around the same centre, in LPS."""
    spacing_mm = np.linalg.norm(affine[:, :3], axis=0)
    axes = affine[:, :3] / spacing_mm
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, 1)])
    shear_deg = np.degrees(np.arcsin(min(cosines.max(), 1)))
    if shear_deg > LARGEST_SHEAR_DEG:
        other = (
            ", or `fslorient -setsformcode 0 FILE` where its qform is the true one"
            if codes["qform"] and name == "sform"
            else ""
        )
        raise DataError(
            f"{path}: the axes of its {name} are {shear_deg:.2f} degrees off perpendicular, "
            f"expected at most {LARGEST_SHEAR_DEG}: resample it to a perpendicular grid{other}"
        )
    left, _, right = np.linalg.svd(axes)
    direction = left @ right  # the orthogonal factor of the polar decomposition
    middle = np.subtract(size, 1) / 2
    centre = affine[:, :3] @ middle + affine[:, 3]
    origin = centre - direction @ (spacing_mm * middle)
    return _Geometry(spacing_mm, RAS_TO_LPS @ origin, RAS_TO_LPS @ direction)


def _note(corners, path):
    """One line where both forms are set and differ, else nothing."""
    if len(corners) < 2:
        return ""
    apart_mm = np.linalg.norm(corners["sform"] - corners["qform"], axis=1).max()
    if apart_mm <= FORMS_DIFFER_MM:
        return ""
    return f"{path}: its sform and qform are up to {apart_mm:.1f} mm apart; the sform is taken"


# --- voxels ------------------------------------------------------------------------------------


def _read_voxels(stream, start, layout, channel, path):
    """One volume (z, y, x) as stored; `start` bytes of the stream are read already."""
    volume_bytes = _volume_bytes(layout)
    expected = layout.offset + volume_bytes * layout.volumes
    before = layout.offset + volume_bytes * channel
    found = start + _pass_over(stream, before - start)
    content = _take(stream, volume_bytes)
    found += len(content)
    found += _pass_over(stream, expected - found)
    if found < expected:
        raise DataError(f"{path}: truncated, {found} bytes of {expected}; get the file again")
    # Also reads a gzip stream's checksum. Other readers pass over what follows the voxels; with a
    # damaged size or type in the header this is where it shows.
    if stream.read(1):
        raise DataError(
            f"{path}: more bytes than the {expected} that its header describes; the header is "
            "damaged or something is appended: get the file again"
        )
    return np.frombuffer(content, layout.dtype).reshape(layout.size[::-1])


def _scaled(values, record, path):
    """The stored numbers in the machine's byte order; float64 where the header scales them."""
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


def _checked_channel(channel, volumes, path):
    if channel is None and volumes > 1:
        raise SeveralVolumesError(
            f"{path}: {volumes} volumes along its 4th axis, expected one; choose with "
            f"--channel N, N from 0 to {volumes - 1}"
        )
    if not 0 <= (channel or 0) < volumes:
        raise DataError(
            f"{path}: --channel {channel}, but it has {volumes} volume(s); "
            f"expected 0 to {volumes - 1}"
        )
    return channel or 0


# --- reading and writing -----------------------------------------------------------------------


@np.errstate(all="ignore")  # impossible numbers are refused by their results
def read_nifti(path: str | Path, channel: int | None = None) -> sitk.Image:
    """The volume of a NIfTI-1 or NIfTI-2 file, by its sform, else by its qform.

    Packed or plain is told by the first bytes, not by the name. Where both forms are set and
    place a corner more than `FORMS_DIFFER_MM` apart, a line on standard error says so. A form whose
    axes are within `LARGEST_SHEAR_DEG` of perpendicular gives the nearest rotation, with the
    lengths of its columns as spacing and the volume's centre in place.

    Args:
        path: a single file; pairs (.hdr and .img) are refused.
        channel: index into the 4th axis, from 0; None for a file of one volume.

    Returns:
        3-D image, LPS, mm (a header in metre or micron is converted). Voxels have the stored type,
        float64 where the header scales them; NaN and infinity are kept.

    Raises:
        DataError: damaged, truncated or too long; no scalar volume; no such channel; orientation
            or geometry unknown, sheared or impossible.
    """
    path = Path(path)
    with _unpacked(path) as stream:
        record = _read_header(stream, path)
        layout = _layout(record, path)
        channel = _checked_channel(channel, layout.volumes, path)
        _check_pixdim(record, path)
        geometry, note = _geometry(record, layout.size, path)
        values = _read_voxels(stream, record.dtype.itemsize, layout, channel, path)
    image = sitk.GetImageFromArray(_scaled(values, record, path))
    image.SetSpacing(geometry.spacing_mm.tolist())
    image.SetOrigin(geometry.origin.tolist())
    image.SetDirection(geometry.direction.ravel().tolist())
    if note:
        warn_once(note)
    return image


def write_nifti(image: sitk.Image, path: str | Path, like: str | Path | None = None) -> None:
    """Writes a 3-D scalar image, packed where the name ends with `.gz`; not atomically.

    Args:
        image: LPS, mm.
        path: written over where it exists.
        like: NIfTI file on whose grid the image lies. Its header is kept, with both forms, their
            codes, units, pixdim and texts; only what describes the voxels is new, and extensions
            are left out. None: a NIfTI-1 header with sform and qform (code 1), in mm.

    Raises:
        ValueError: not 3-D and scalar, not of the size of `like`, or (without) axes that are not
            perpendicular.
        DataError: `like` is no NIfTI file.
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
    content = values.astype(values.dtype.newbyteorder(_order(record))).tobytes()
    with Path(path).open("wb") as file:
        packed = Path(path).name.lower().endswith(".gz")
        # No name and no time: the same image gives the same bytes.
        gzipped = (
            gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) if packed else nullcontext(file)
        )
        with gzipped as stream:
            stream.write(record.tobytes() + bytes(4))
            stream.write(content)


def _header_like(image, like):
    with _unpacked(like) as stream:
        record = _read_header(stream, like).copy()
    size = tuple(int(side) for side in record["dim"][1:4])
    if size != image.GetSize():
        raise ValueError(f"{like}: size {size}, expected the image's {image.GetSize()}")
    return record


def _new_header(image, path):
    if max(image.GetSize()) > np.iinfo(np.int16).max:
        raise ValueError(f"{path}: size {image.GetSize()}, NIfTI-1 holds up to 32767 a side")
    record = np.zeros((), NIFTI1.newbyteorder("<"))
    direction = RAS_TO_LPS @ np.reshape(image.GetDirection(), (3, 3))
    if np.abs(direction.T @ direction - np.eye(3)).max() > np.radians(LARGEST_SHEAR_DEG):
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
