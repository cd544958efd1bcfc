"""Reads volumes, MR images and reference masks from files, with all checks."""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..utils.errors import DataError, SeveralVolumesError, reason_of
from ..utils.files import check_name
from . import metaimage, nrrd
from .formats import MASK_SUFFIX, META_SUFFIXES, NIFTI_SUFFIXES, SUFFIXES, suffix_of
from .grid import (
    FARTHEST_MM,
    LARGEST_SHEAR_DEG,
    VOXEL_SIZES_MM,
    check_same_grid,
    image_like,
)
from .nifti import read_nifti
from .orientation import direction_matrix, reorder_like

if TYPE_CHECKING:
    from .dicom import Series

LARGEST_LABEL = 2**31
LABEL_TOLERANCE = 1e-3  # largest difference of a mask's values from whole numbers
SHOWN_LABELS = 20
# A label map has few different values and many voxels of each; even an 8-bit scan has some hundred
# values. One with more, as of all organs, has areas of one value: 0.9 of the neighbours are equal,
# in scans less than 0.1, in coarse ones (20 grey values, or each voxel repeated four times along
# all axes) up to 0.79.
LABEL_MAP_VALUES = 16  # at most
VOXELS_PER_LABEL = 16  # at least, on average
MANY_LABELS = 256
EQUAL_NEIGHBOURS = 0.85
SAMPLED_VOXELS = 10_000  # enough to tell most images from a label map

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings would mix with our messages


def read_volume(
    path: str | Path, channel: int | None = None, series: "str | Series" = ""
) -> sitk.Image:
    """Reads a 3-D scalar image with its stored voxel type.

    Args:
        path: a file with one of `SUFFIXES`, or DICOM: a file, a folder, a .zip of a study.
        channel: index of the volume in a 4-D file, from 0; None for 3-D files.
        series: DICOM series, see `src.images.dicom.read_dicom`.

    Raises:
        DataError: missing, unreadable, truncated or too long; not a 3-D scalar volume; NaN or
            infinity; geometry unknown, implausible or sheared; a header that names a data file
            outside its folder; a `series` of a file that is not DICOM.
        SeveralVolumesError: several volumes, and no `channel`.
    """
    path = Path(path)
    check_name(path)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file() and not path.is_dir():  # reading a pipe would block
        raise DataError(f"{path}: neither a file nor a folder; expected an image")
    if path.is_dir() or not suffix_of(path):  # a folder whatever its name
        image = _read_dicom(path, channel, series)
    elif series:
        raise DataError(f"{path}: not DICOM, so it has no series {series}; leave the series out")
    elif suffix_of(path) in NIFTI_SUFFIXES:
        image = read_nifti(path, channel)
    else:
        image = _read_with_simpleitk(path, channel)
    check_volume(image, path)
    return image


def read_volume_or_one_of(path: str | Path, channel: int | None) -> tuple[sitk.Image, bool]:
    """Reads a 3-D image; of a file with several volumes, that of `channel`.

    Args:
        path: see `read_volume`.
        channel: index of the volume, which does not count for a file with one.

    Returns:
        The volume, and whether the file has several.

    Raises:
        DataError, SeveralVolumesError: see `read_volume`.
    """
    try:
        return read_volume(path), False
    except SeveralVolumesError:
        return read_volume(path, channel), True


def _read_dicom(path: Path, channel: int | None, series: "str | Series") -> sitk.Image:
    from .dicom import is_dicom, read_dicom  # pydicom takes 0.1 s to import

    if path.is_dir() or path.suffix.lower() == ".zip" or is_dicom(path):
        _check_only_channel(path, channel)
        return read_dicom(path, series)
    raise DataError(
        f"{path}: not one of the image formats {', '.join(SUFFIXES)}, nor a DICOM file; convert it"
    )


def check_volume(image: sitk.Image, name: str | Path) -> None:
    """Raises a DataError unless an image is a 3-D scalar volume, finite and of a sound geometry.

    Args:
        image: of any voxel type.
        name: for messages, such as its path.
    """
    pixels = image.GetPixelIDTypeAsString()
    if "label" in pixels:  # SimpleITK ends the process where a LabelMap is asked for its components
        raise DataError(
            f"{name}: {pixels}; expected a 3-D scalar volume, such as SimpleITK's LabelMapToLabel "
            "makes"
        )
    count = image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() != 3 or count != 1 or "vector" in pixels or "complex" in pixels:
        raise DataError(
            f"{name}: size {image.GetSize()} with {count} component(s) per voxel, {pixels}; "
            f"expected a 3-D scalar volume; {_volume_remedy(image.GetSize())}"
        )
    _check_geometry(image, name)
    _check_finite(image, name)


def _volume_remedy(size):
    """What to do about an image that is no 3-D scalar volume."""
    if 0 in size:
        return "get the file again"
    return "stack its slices" if len(size) < 3 else "save the wanted volume by itself"


def _read_with_simpleitk(path, channel):
    is_meta = suffix_of(path) in META_SUFFIXES
    image_format = metaimage if is_meta else nrrd
    with _unread_as_data_error(path):
        image_format.check_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("MetaImageIO" if is_meta else "NrrdImageIO")  # ITK knows no .MHA
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise DataError(
            f"{path}: its header cannot be read as {suffix_of(path)}; get the file again"
        ) from None
    index = _volume_index(path, reader.GetSize(), reader.GetNumberOfComponents(), channel)
    with _unread_as_data_error(path):
        image_format.check_voxels(path, reader)
    try:
        image = reader.Execute()
    except RuntimeError:
        raise DataError(
            f"{path}: truncated, damaged, or of an impossible geometry; get the file again"
        ) from None
    if image.GetDimension() == 4:
        axes = np.reshape(image.GetDirection(), (4, 4))
        if np.abs([*axes[3, :3], *axes[:3, 3]]).max() > 1e-3:
            raise DataError(
                f"{path}: its 4th axis lies in space, expected volumes along it; save the wanted "
                "volume by itself"
            )
        return image[:, :, :, index]
    is_vector = "vector" in image.GetPixelIDTypeAsString()  # also of one component
    return sitk.VectorIndexSelectionCast(image, index) if is_vector else image


@contextmanager
def _unread_as_data_error(path):
    """A DataError for a file that the system does not let read: the header, or its data file."""
    try:
        yield
    except OSError as error:
        file = error.filename or path
        raise DataError(f"{file}: cannot be read ({reason_of(error)})") from None


def _volume_index(path, size, components, channel):
    """Index of the wanted volume along the fourth axis or among the components of a voxel."""
    count = components * int(np.prod(size[3:]))
    if len(size) not in (3, 4) or 0 in size or (len(size) == 4 and components > 1):
        raise DataError(
            f"{path}: size {size} with {components} component(s) per voxel, "
            f"expected a 3-D scalar volume; {_volume_remedy(size)}"
        )
    if count == 1:
        _check_only_channel(path, channel)
        return 0
    if channel is None or not 0 <= channel < count:
        raise SeveralVolumesError(
            f"{path}: size {size} with {components} component(s) per voxel, expected a 3-D scalar "
            f"volume; choose one of its {count} volumes with --channel 0 to {count - 1}"
        )
    return channel


def _check_only_channel(path, channel):
    """Raises a DataError if another volume is asked for than the only one."""
    if channel not in (None, 0):
        raise DataError(
            f"{path}: channel {channel} (of --channel or the model's config.json), but it has 1 "
            "volume(s); expected 0"
        )


def _check_geometry(image, path):
    geometry = [*image.GetOrigin(), *image.GetSpacing(), *image.GetDirection()]
    if not np.isfinite(geometry).all():
        raise DataError(f"{path}: its geometry holds NaN or infinity; repair the header")
    least, most = VOXEL_SIZES_MM
    if min(image.GetSpacing()) < least or max(image.GetSpacing()) > most:
        raise DataError(
            f"{path}: voxels of {_list(image.GetSpacing())} mm, expected {least:g} to {most:g}; "
            "repair the header"
        )
    if np.abs(image.GetOrigin()).max() > FARTHEST_MM:
        raise DataError(
            f"{path}: origin at {_list(image.GetOrigin())} mm, expected within {FARTHEST_MM:g}; "
            "repair the header"
        )
    cosines = direction_matrix(image)
    lengths = np.linalg.norm(cosines, axis=0)
    products = (cosines.T @ cosines)[np.triu_indices(3, 1)]
    tolerance = np.sin(np.radians(LARGEST_SHEAR_DEG))
    if np.abs(lengths - 1).max() > tolerance or np.abs(products).max() > tolerance:
        raise DataError(
            f"{path}: its axes are not perpendicular unit vectors (directions "
            f"{np.round(cosines.T, 4).tolist()}); resample it to a grid without shear"
        )


def _list(values):
    return ", ".join(f"{value:g}" for value in values)


def _check_finite(image, path):
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise DataError(f"{path}: {count} voxels are NaN or infinite; repair or leave out the file")


def read_image(
    path: str | Path, channel: int | None = None, series: "str | Series" = ""
) -> sitk.Image:
    """Reads an MR image as float32, with its intensities unchanged.

    Args:
        path, channel, series: see `read_volume`.

    Raises:
        DataError: see `read_volume`, `mr_image`.
    """
    return mr_image(read_volume(path, channel, series), path)


def mr_image(volume: sitk.Image, name: str | Path) -> sitk.Image:
    """Returns a volume as a float32 MR image, with its intensities unchanged.

    Args:
        volume: one that passes `check_volume`.
        name: for messages, such as its path.

    Raises:
        DataError: one slice, values beyond float32, a label map, or voxels that all have one value.
    """
    image = sitk.Cast(volume, sitk.sitkFloat32)
    if min(image.GetSize()) < 2:
        raise DataError(
            f"{name}: size {image.GetSize()}, one slice only; expected a volume, give all of its "
            "slices"
        )
    _check_finite(image, name)  # a float64 may exceed float32
    values = sitk.GetArrayViewFromImage(image)
    if values.min() == values.max():
        raise DataError(
            f"{name}: every voxel is {values.min():g}, expected an MR image; get or export it again"
        )
    check_no_label_map(image, name)
    return image


def check_no_label_map(image: sitk.Image, path: str | Path) -> None:
    """Raises a DataError for an image that has the values of a label map."""
    values = sitk.GetArrayViewFromImage(image)
    sample = values.ravel()[:: max(1, values.size // SAMPLED_VOXELS)]
    if len(np.unique(sample)) > MANY_LABELS:
        return
    found, counts = np.unique(values, return_counts=True)
    few = len(found) <= min(LABEL_MAP_VALUES, values.size // VOXELS_PER_LABEL)
    grounds = found[[0, counts.argmax(), -1]]  # background or padding, and clipped values
    if few or (len(found) <= MANY_LABELS and _equal_share(values, grounds) > EQUAL_NEIGHBOURS):
        raise DataError(
            f"{path}: only the values {_shown(found)}: looks like a label map, not an MR image; "
            f"give the image, and call a mask NAME{MASK_SUFFIX}"
        )


def _equal_share(values, grounds):
    """The share of equal ones among neighbours of voxels with other values than `grounds`."""
    inner, pairs, equal = ~np.isin(values, grounds), 0, 0
    for axis in range(values.ndim):
        is_pair = np.delete(inner, -1, axis)
        pairs += is_pair.sum()
        equal += (is_pair & (np.diff(values, axis=axis) == 0)).sum()
    return equal / max(pairs, 1)


def read_mask(
    path: str | Path, image: sitk.Image, image_path: str | Path, labels: Sequence[int] = ()
) -> sitk.Image:
    """Reads the reference mask of an image: uint8, 0 and 1, with exactly the image's geometry.

    A mask stored in another order than its image is reordered.

    Args:
        path: of the mask.
        image: the image that it belongs to.
        image_path: of the image, for messages.
        labels: see `foreground`.

    Raises:
        DataError: unreadable, another grid than the image's, or see `foreground`.
    """
    volume = reorder_like(read_label_map(path), image)
    check_same_grid(image, image_path, volume, path)
    mask = foreground(volume, path, labels)
    mask.CopyInformation(image)
    return mask


def read_label_map(path: str | Path) -> sitk.Image:
    """Reads a mask as it is stored.

    Raises:
        DataError: see `read_volume`; also several volumes.
    """
    try:
        return read_volume(path)
    except SeveralVolumesError:
        raise DataError(
            f"{path}: several volumes, expected a mask of one; overlapping segments of 3D Slicer "
            "are exported as one label map with an image as reference"
        ) from None


def foreground(
    label_map: sitk.Image, path: str | Path, labels: Sequence[int] = (), may_lack: bool = False
) -> sitk.Image:
    """Returns the foreground of a label map, uint8, 0 and 1, on its grid.

    Args:
        label_map: from `read_label_map`.
        path: for messages.
        labels: foreground values, all others are background; empty: the label map must have only 0
            and 1.
        may_lack: whether a label map that is not empty may have none of `labels`, such as a
            prediction in which only another organ was found.

    Raises:
        DataError: values that are not labels, or none of `labels` but others, without `may_lack`.
    """
    values = sitk.GetArrayViewFromImage(label_map)
    whole = np.rint(values) if values.dtype.kind == "f" else values
    if values.dtype.kind == "f" and np.abs(values - whole).max() > LABEL_TOLERANCE:
        odd = np.unique(values[np.abs(values - whole) > LABEL_TOLERANCE])
        raise DataError(
            f"{path}: values {_shown(odd)}, expected whole numbers; if these are probabilities, "
            "write a mask of them"
        )
    if max(abs(float(whole.min())), abs(float(whole.max()))) > LARGEST_LABEL:
        raise DataError(
            f"{path}: values of {whole.min():g} to {whole.max():g}, expected labels; write a mask "
            "with 1 for the prostate"
        )
    found = _distinct(whole).astype(np.int64)
    if not labels and not np.isin(found, (0, 1)).all():
        raise DataError(
            f"{path}: labels {_shown(found)}, expected only 0 and 1 (1 is the prostate); "
            f"{_labels_remedy(found)}"
        )
    if labels and not may_lack and found.any() and not np.isin(found, labels).any():
        raise DataError(
            f"{path}: labels {_shown(found)}, none of them among --labels "
            f"{','.join(map(str, labels))}; {_labels_remedy(found)}"
        )
    return image_like(np.isin(whole, labels or (1,)).astype(np.uint8), label_map)


def _distinct(values):
    """Sorted distinct values, as `np.unique`; only those other than 0 and 1 are sorted."""
    zeros, ones = values == 0, values == 1
    common = [value for value, where in ((0, zeros), (1, ones)) if where.any()]
    return np.union1d(values[~(zeros | ones)], common)


def _labels_remedy(found):
    """What to do about the labels of a mask: an argument that it can be read with."""
    positive = found[found > 0][:2]
    if not positive.size:
        return "write a mask with 1 for the prostate"
    return f"choose those of the prostate, such as --labels {','.join(map(str, positive))}"


def _shown(values):
    listed = ", ".join(f"{value:.9g}" for value in values[:SHOWN_LABELS].tolist())
    more = len(values) - SHOWN_LABELS
    return listed + (f" and {more} more" if more > 0 else "")
