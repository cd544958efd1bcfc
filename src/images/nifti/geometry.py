"""The grid of a NIfTI file in patient space, by its sform or qform."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from ...utils.errors import DataError
from ..grid import FARTHEST_MM, LARGEST_SHEAR_DEG, VOXEL_SIZES_MM

# float32 quaternions near a half turn are off by up to 1.2 mrad, 0.4 mm at the far corner.
FORMS_DIFFER_MM = 0.5
SIZES_DIFFER = 0.01  # largest relative difference of the voxel sizes by sform and by pixdim
UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, millimetre, micron
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


class Grid(NamedTuple):
    """A grid with perpendicular axes, in LPS mm."""

    spacing_mm: np.ndarray  # (3,)
    origin: np.ndarray  # (3,)
    direction: np.ndarray  # (3, 3), column i is the direction of the image's axis i


def read_grid(record: np.void, size: tuple[int, int, int], path: Path) -> tuple[Grid, str]:
    """Returns the grid by the sform, else by the qform, and a warning if they differ.

    Args:
        record: the header.
        size: voxels along x, y, z.
        path: of the file, for messages.

    Returns:
        The grid of perpendicular axes nearest to the form's affine, and one line (or "") for two
        forms that place a corner more than `FORMS_DIFFER_MM` apart.

    Raises:
        DataError: no form, or one that is damaged, implausible or sheared.
    """
    _check_pixdim(record, path)
    unit_mm = _unit_mm(record, path)
    codes = {name: int(record[f"{name}_code"]) for name in ("sform", "qform")}
    for name, code in codes.items():
        if not 0 <= code <= 5:
            raise DataError(
                f"{path}: {name}_code {code}, expected 0 to 5; its header is damaged, get the file "
                "again"
            )
    if not any(codes.values()):
        raise DataError(
            f"{path}: sform_code and qform_code are 0, so nothing says which side is left; check "
            "how it lies and set one, e.g. `fslorient -setqformcode 1 FILE`"
        )
    affines = {name: unit_mm * AFFINES[name](record, path) for name in codes if codes[name]}
    corners = {name: _corners(affine, size, name, path) for name, affine in affines.items()}
    if codes["sform"]:
        _check_voxel_size(affines["sform"], unit_mm * record["pixdim"][1:4].astype(float), path)
    taken = "sform" if codes["sform"] else "qform"
    return _nearest_grid(affines[taken], size, path, taken, codes), _warning(corners, path)


def _unit_mm(record, path):
    unit = int(record["xyzt_units"]) & 7
    if unit not in UNIT_MM:
        raise DataError(
            f"{path}: unit {unit} in xyzt_units, expected 0 (unknown, taken as mm), 1 (metre), "
            "2 (mm) or 3 (micron); set it, e.g. with nibabel's header.set_xyzt_units('mm')"
        )
    return UNIT_MM[unit]


def _sform(record, path):
    """The (3, 4) affine from voxel indices to RAS+, by the rows of the sform."""
    return record["srow"].astype(float)


def _qform(record, path):
    """The (3, 4) affine from voxel indices to RAS+, by quaternion, voxel sizes and offset."""
    quaternion = record["quatern"].astype(float)
    # As in nibabel: near a half turn, w is 0 up to rounding.
    rounding = 3 * np.finfo(record["quatern"].dtype).eps
    square = 1 - quaternion @ quaternion
    if not square >= -3 * np.finfo(np.float32).eps:  # also true for NaN
        raise DataError(
            f"{path}: quaternion {_shown(quaternion)} in its qform is longer than 1 or no number; "
            "its header is damaged: set the qform anew, e.g. `fslorient -copysform2qform FILE`"
        )
    real = np.sqrt(square) if square >= rounding else 0.0
    qfac = float(record["pixdim"][0])
    if qfac not in (-1, 0, 1):  # 0 means 1
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


def _check_voxel_size(sform, pixdim_mm, path):
    """A DataError if the sform has other voxels than pixdim, which ITK takes beside an sform."""
    found_mm = np.linalg.norm(sform[:, :3], axis=0)
    if np.abs(found_mm / pixdim_mm - 1).max() > SIZES_DIFFER:
        raise DataError(
            f"{path}: voxels of {_shown(found_mm)} mm by its sform, {_shown(pixdim_mm)} by its "
            "pixdim, and programs differ in which they take; set both to the true size"
        )


def _corners(affine, size, name, path):
    """Returns the centres (8, 3) of the corner voxels in mm, after checks of size and position."""
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
    """Returns the grid of perpendicular axes nearest to an affine, with the same centre."""
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
    return Grid(spacing_mm, RAS_TO_LPS @ origin, RAS_TO_LPS @ direction)


def _warning(corners, path):
    """One line if both forms are set and differ, else ""."""
    if len(corners) < 2:
        return ""
    apart_mm = np.linalg.norm(corners["sform"] - corners["qform"], axis=1).max()
    if apart_mm <= FORMS_DIFFER_MM:
        return ""
    return f"{path}: its sform and qform are up to {apart_mm:.1f} mm apart; the sform is taken"
