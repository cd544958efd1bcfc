"""Reads the volume of a series, which must be one regular stack of slices."""

import warnings
from collections import Counter
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
)

from ...utils.errors import DataError
from ...utils.log import warn_once
from . import codec
from .files import Files, one_line, quiet
from .headers import (
    COUNT_TAGS,
    DISTINGUISHING,
    GET_AGAIN,
    VOLUME_KEYWORDS,
    Frame,
    Malformed,
    whole_number,
)
from .series import Series, list_values, number_or_none

# Largest differences between the slices of one volume.
DIRECTION_TOLERANCE = 1e-3  # of direction cosines, their length and their scalar product
PIXEL_SPACING_TOLERANCE_MM = 1e-3
SAME_POSITION_MM = 0.05  # slices closer than this have the same position
STEP_TOLERANCE_MM = 0.1  # distance of a slice from its position on the regular grid ...
STEP_TOLERANCE_SHARE = 0.05  # ... but at most this share of a step
IN_PLANE_DRIFT_MM = 0.1  # distance of a slice's corner from the normal through the first one's
OVERLAP_SHARE = 0.75  # steps below this share of the slices' thickness: half, of two stacks
ECHO_TIME_TOLERANCE_MS = 1.0
SYNTAX_OF_ENCODING = {  # of (implicit VR, little endian), for files without a meta header
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
SYNTAXES = (
    *SYNTAX_OF_ENCODING.values(),
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    *codec.SYNTAXES,
)


def read_series(series: Series) -> sitk.Image:
    """Reads the volume of a series; slices are sorted by position along their common normal.

    Values are stored values times RescaleSlope plus RescaleIntercept of each slice.

    Returns:
        3-D float32 image in LPS mm.

    Raises:
        DataError: not MR, a damaged file, or not a regular stack: slices missing, two at one
            position, sheared, or differing in orientation, spacing, matrix or echo.
    """
    try:
        _check_kind(series)
        frames, spacing_mm, direction = sort_frames(series)
        with Files(series.path) as files, quiet():
            volume = _read_voxels(files, frames)
    except Malformed as error:
        raise DataError(f"{series.path}: series {series.name}: {error}") from None
    _warn_about_missing_slices(series, frames, spacing_mm[2])
    image = sitk.GetImageFromArray(volume)
    image.SetOrigin(frames[0].position_mm)
    image.SetSpacing(spacing_mm)
    image.SetDirection(direction.ravel().tolist())
    return image


def _warn_about_missing_slices(series, frames, step_mm):
    """Warns where the header tells of more slices than there are.

    Slices that are missing between others are an error, see `_regular_step`; an end can be missing,
    too, of a copy that was not completed.
    """
    if len({frame.name for frame in frames}) < len(frames):
        return  # enhanced files: their frames are complete, and the counts are of files
    for keyword in COUNT_TAGS:
        counts = _numbers(frames, keyword)
        if min(counts) > len(frames):
            warn_once(
                f"warning: {series.path}: series {series.name}: {keyword} is {min(counts):g}, but "
                f"{len(counts)} slices are there; if some are missing, get them"
            )
            return
    spacing_mm = min(_numbers(frames, "SpacingBetweenSlices"))
    every = round(step_mm / spacing_mm) if spacing_mm > SAME_POSITION_MM else 1
    is_multiple = every > 1 and abs(step_mm / every / spacing_mm - 1) < STEP_TOLERANCE_SHARE
    if is_multiple and np.all(np.abs(np.diff(_numbers(frames, "InstanceNumber"))) == every):
        warn_once(
            f"warning: {series.path}: series {series.name}: steps of {step_mm:g} mm, but "
            f"SpacingBetweenSlices is {spacing_mm:g} and InstanceNumber goes in steps of {every}; "
            "if slices between are missing, get them"
        )


def _numbers(frames, keyword):
    """An attribute of each frame; 0 where it is missing."""
    return [number_or_none(frame.tags.get(keyword)) or 0 for frame in frames]


def _check_kind(series):
    if series.not_mr:
        raise Malformed(f"{series.not_mr}; expected MR images, choose another series")
    if series.problems:
        more = f"; {len(series.problems) - 1} more such" if len(series.problems) > 1 else ""
        raise Malformed(series.problems[0] + more)
    if series.plane == "mixed":
        raise Malformed(
            f"{len(series.frames)} slices in several planes, a localizer or projections; expected "
            "parallel slices, choose another series"
        )
    if len(series.frames) < 2:
        raise Malformed(
            f"one slice only ({series.frames[0].label}); expected a volume, give the folder of all "
            "its slices"
        )


def sort_frames(
    series: Series,
) -> tuple[list[Frame], tuple[float, float, float], np.ndarray]:
    """Returns a series' frames in the order of their positions along their normal.

    Returns:
        Frames; spacing (x, y, z) in mm; direction (3, 3), whose columns are the directions of rows,
        of columns, and their normal.

    Raises:
        Malformed: not a regular stack.
    """
    frames: list[Frame] = list(series.frames)
    for keyword, attribute in (
        ("ImagePositionPatient", "position_mm"),
        ("ImageOrientationPatient", "orientation"),
        ("PixelSpacing", "spacing_mm"),
    ):
        missing = [frame for frame in frames if getattr(frame, attribute) is None]
        if missing:
            raise Malformed(
                f"{missing[0].label}: no {keyword} ({len(missing)} of {len(frames)} slices); a "
                "volume cannot be built, export the series again from the scanner or archive"
            )
    direction = _direction(Counter(frame.orientation for frame in frames).most_common(1)[0][0])
    # Positions along the rows, the columns and the normal, in mm.
    along = np.array([frame.position_mm for frame in frames]) @ direction
    order = np.argsort(along[:, 2], kind="stable")
    frames, along = [frames[i] for i in order], along[order]
    _check_equal(frames, along[:, 2])
    _check_single_volume(series, frames, along[:, 2])
    step_mm = _regular_step(frames, along[:, 2])
    _check_one_acquisition(frames, step_mm)
    drift = np.linalg.norm(along[:, :2] - along[0, :2], axis=1)
    if drift.max() > IN_PLANE_DRIFT_MM:
        worst = int(np.argmax(drift > IN_PLANE_DRIFT_MM))
        raise Malformed(
            f"{_where(frames, along[:, 2], worst)}: its corner is {drift[worst]:.2f} mm off the "
            f"normal through the first slice's, expected at most {IN_PLANE_DRIFT_MM} mm (sheared "
            "stack, by ImagePositionPatient); reformat the series without shear"
        )
    row_spacing, column_spacing = frames[0].spacing_mm or (0.0, 0.0)  # checked above
    return frames, (column_spacing, row_spacing, step_mm), direction


def _where(frames, along_mm, index):
    return f"slice at {along_mm[index]:.2f} mm ({frames[index].label})"


def _direction(orientation):
    """Orthonormal matrix; its columns are the directions of rows, of columns, and their normal."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > DIRECTION_TOLERANCE:
        raise Malformed(
            f"ImageOrientationPatient {_list(orientation)}, expected two unit vectors at a right "
            "angle; the header is damaged, get the files again"
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    column /= np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)], axis=1)


def _check_equal(frames, along_mm):
    """Raises Malformed unless matrix, orientation and in-plane spacing agree in all slices."""
    for keyword, attribute, tolerance in (
        ("Rows, Columns", "matrix", 0),
        ("ImageOrientationPatient", "orientation", DIRECTION_TOLERANCE),
        ("PixelSpacing", "spacing_mm", PIXEL_SPACING_TOLERANCE_MM),
    ):
        values = np.array([getattr(frame, attribute) for frame in frames], float)
        usual = np.array(Counter(map(tuple, values)).most_common(1)[0][0])
        odd = np.abs(values - usual).max(axis=1) > tolerance
        if odd.any():
            index = int(np.argmax(odd))
            raise Malformed(
                f"{_where(frames, along_mm, index)}: {keyword} {_list(values[index])}, the others "
                f"{_list(usual)}; take it out or export the series again"
            )
    if min(frames[0].spacing_mm) <= 0:
        raise Malformed(
            f"PixelSpacing {_list(frames[0].spacing_mm)} mm, expected more than 0{GET_AGAIN}"
        )


def _list(values):
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _check_single_volume(series, frames, along_mm):
    """Raises Malformed for two slices at one position, or different echoes, times or stacks."""
    same = np.flatnonzero(np.diff(along_mm) < SAME_POSITION_MM)
    kind = f", a diffusion series ({series.diffusion})" if series.diffusion else ""
    if same.size:
        first, second = frames[same[0]], frames[same[0] + 1]
        where = f"{same.size} such pair(s)"
        if same.size == len(frames) - 1:
            where = f"all {len(frames)} slices lie there (ImagePositionPatient)"
        raise Malformed(
            f"two slices at {along_mm[same[0]]:.2f} mm ({first.label}; {second.label}), "
            f"{_difference(first, second)}; {where}{kind}; keep one slice for each position"
        )
    for keyword in VOLUME_KEYWORDS:
        values = [frame.tags.get(keyword, "") for frame in frames]
        numbers = [number for number in map(number_or_none, values) if number is not None]
        if keyword == "EchoTime" and len(numbers) == len(values):
            is_one = max(numbers) - min(numbers) <= ECHO_TIME_TOLERANCE_MS
        else:
            is_optional = keyword == "FrameOfReferenceUID"  # some files of a series may lack it
            is_one = len(set(filter(None, values) if is_optional else values)) <= 1
        if not is_one:
            raise Malformed(
                f"slices of different {keyword} ({list_values(frames, keyword)}){kind}; expected "
                "one volume, keep the slices of one"
            )


def _check_one_acquisition(frames, step_mm):
    """Raises Malformed for whole stacks of several acquisitions, shifted by a part of a step.

    The slices of such a series overlap, and InstanceNumber counts one stack after the other; those
    of one volume that was acquired in turns (concatenations) lie side by side.
    """
    turns = [frame.tags.get("AcquisitionNumber", "") for frame in frames]
    count = len(set(turns))
    in_turn = count > 1 and 2 * count <= len(turns) and turns[count:] == turns[:-count]
    overlap = step_mm < OVERLAP_SHARE * min(_numbers(frames, "SliceThickness"))
    by_number = np.argsort(_numbers(frames, "InstanceNumber"), kind="stable")
    runs = len(list(groupby(turns[index] for index in by_number)))
    if in_turn and overlap and runs == count:
        raise Malformed(
            f"{count} stacks of overlapping slices, one between the other (AcquisitionNumber "
            f"{list_values(frames, 'AcquisitionNumber')}); expected one volume, keep the slices of "
            "one"
        )


def _difference(first, second):
    """Describes how two slices at one position differ."""
    for keyword in DISTINGUISHING:
        values = [frame.tags.get(keyword, "none") for frame in (first, second)]
        numbers = [number_or_none(value) for value in values]
        if values[0] != values[1] and (None in numbers or numbers[0] != numbers[1]):
            shown = ", ".join(one_line(value, 60) for value in values)
            return f"which differ in {keyword} ({shown})"
    if first.instance_uid == second.instance_uid and first.name != second.name:
        return "copies (same SOPInstanceUID)"
    return "which differ in no attribute"


def _regular_step(frames, along_mm):
    """The mean distance of slices in mm.

    Raises:
        Malformed: slices missing, or positions off the regular grid.
    """
    steps = np.diff(along_mm)
    # The lower quartile: robust to a few gaps and to one shifted slice.
    usual = float(np.sort(steps)[len(steps) // 4])
    gaps = np.flatnonzero(steps > 1.5 * usual)
    multiple = np.round(steps[gaps] / usual)
    if gaps.size and np.all(np.abs(steps[gaps] / usual - multiple) < 0.1 * multiple):
        gap = gaps[0]
        raise Malformed(
            f"{int(np.sum(multiple - 1))} slice(s) missing: nothing between "
            f"{_where(frames, along_mm, gap)} and {_where(frames, along_mm, gap + 1)}, steps are "
            f"{usual:.2f} mm; get the missing file(s)"
        )
    mean = float((along_mm[-1] - along_mm[0]) / len(steps))
    tolerance = min(STEP_TOLERANCE_MM, STEP_TOLERANCE_SHARE * mean)
    off = np.abs(along_mm - along_mm[0] - mean * np.arange(len(frames)))
    if off.max() > tolerance:
        odd = int(np.argmax(np.abs(steps - np.median(steps))))
        raise Malformed(
            f"uneven steps from {steps.min():.2f} to {steps.max():.2f} mm (ImagePositionPatient), "
            f"the odd one after {_where(frames, along_mm, odd)}; expected positions within "
            f"{tolerance:.2f} mm of a regular grid; export the series again"
        )
    return mean


def _read_voxels(files, frames):
    """Rescaled values of all slices, (z, y, x) float32."""
    stored = _stored_values(files, {frame.name: frame.label for frame in reversed(frames)})
    slices = []
    for frame in frames:
        values = stored[frame.name][frame.index].astype(np.float64) * frame.slope + frame.intercept
        if not np.all(np.abs(values) <= np.finfo(np.float32).max):
            raise Malformed(f"{frame.label}: values are not finite after RescaleSlope{GET_AGAIN}")
        slices.append(values.astype(np.float32))
    return np.stack(slices)


def _stored_values(files, labels):
    """Stored values of whole files as `{name: array (frame, y, x)}`.

    Args:
        files: the source.
        labels: {name of a file: its label in messages}.

    Raises:
        Malformed: a file is truncated, damaged, or has another size than its header says.
    """
    stored, shapes, compressed = {}, {}, {}
    unused = []  # the files with bits that are left out, and which
    for name in labels:
        with _name_in_errors(labels[name]):
            ds = _read_dataset(files, name)
            shapes[name] = (whole_number(ds, "NumberOfFrames", 1), int(ds.Rows), int(ds.Columns))
            if ds.file_meta.TransferSyntaxUID in codec.SYNTAXES:
                with files.open(name) as file:
                    compressed[name] = file.read()
            else:
                stored[name] = _pixels(ds, shapes[name])
                if bits := _unused_bits(ds, shapes[name]):
                    unused.append(f"{labels[name]}: {bits}")
    decoded = codec.decode(list(compressed.values())) if compressed else []
    for name, values in zip(compressed, decoded, strict=False):  # ends at a damaged file
        with _name_in_errors(labels[name]):
            if isinstance(values, str):
                raise ValueError(values)
            stored[name] = values
    for name, shape in shapes.items():
        values = stored[name]
        values = values[None] if values.ndim == 2 else values
        if values.shape != shape:
            raise Malformed(
                f"{labels[name]}: pixel data of shape {values.shape}, its header says "
                f"{shape}{GET_AGAIN}"
            )
        stored[name] = values
    if unused:
        warn_once(
            f"warning: {files.path}: {len(unused)} file(s), such as {unused[0]}, are left out; if "
            "the image looks wrong, export it again"
        )
    return stored


@contextmanager
def _name_in_errors(label):
    """Turns any exception into a Malformed that names the slice."""
    try:
        yield
    except Malformed as error:
        raise Malformed(f"{label}: {error}") from None
    except Exception as error:  # pydicom and its decoders raise exceptions of many types
        raise Malformed(
            f"{label}: its pixel data cannot be read, damaged or truncated "
            f"({one_line(error, 200)}){GET_AGAIN}"
        ) from None


def _read_dataset(files, name):
    with files.open(name) as file:
        ds = pydicom.dcmread(file, force=True)
    if "PixelData" not in ds:
        raise Malformed(f"its pixel data is truncated{GET_AGAIN}")
    if not ds.file_meta.get("TransferSyntaxUID"):
        ds.file_meta.TransferSyntaxUID = SYNTAX_OF_ENCODING[ds.original_encoding]
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax not in SYNTAXES or (syntax == JPEGExtended12Bit and ds.BitsStored != 8):
        bits = f" of {ds.BitsStored} bits" if syntax == JPEGExtended12Bit else ""
        raise Malformed(
            f"compressed as {one_line(syntax.name)}{bits}, which is not read; export it "
            "uncompressed or as JPEG 2000 Lossless"
        )
    return ds


def _pixels(ds, shape):
    """Stored values of a file that is not compressed, or run-length encoded."""
    if not ds.file_meta.TransferSyntaxUID.is_compressed:
        _check_bytes(
            len(ds.PixelData), np.prod(shape, dtype=float) * ds.BitsAllocated / 8, shape[0]
        )
        return ds.pixel_array
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = ds.pixel_array
    if shape[0] > 1 and any("padding" in str(warning.message) for warning in caught):
        raise Malformed(f"its run lengths encode more pixels than Rows, Columns say{GET_AGAIN}")
    return values


def _unused_bits(ds, shape):
    """Describes bits above BitsStored that are neither an overlay nor the sign; "" for none.

    They do not count, by the standard, but other programs read them as part of the value. Those of
    compressed pixels are not looked at.
    """
    allocated, stored = ds.BitsAllocated, ds.BitsStored
    is_compressed = ds.file_meta.TransferSyntaxUID.is_compressed
    if is_compressed or allocated not in (8, 16, 32) or stored >= allocated:
        return ""
    if ds.HighBit != stored - 1:
        raise Malformed(
            f"HighBit {ds.HighBit} with BitsStored {stored}, expected HighBit {stored - 1}; export "
            "the series again"
        )
    tags = list(ds.keys())  # the elements themselves may be damaged
    if any(tag.group >> 8 == 0x60 and tag.elem == 0x0102 and ds[tag].value for tag in tags):
        return ""
    order = ">" if ds.original_encoding == (False, False) else "<"
    values = np.frombuffer(ds.PixelData, f"{order}u{allocated // 8}", np.prod(shape))
    unused = values >> stored
    allowed = unused == 0
    if ds.PixelRepresentation:
        is_negative = (values >> (stored - 1)) & 1 == 1
        allowed |= is_negative & (unused == (1 << (allocated - stored)) - 1)
    if allowed.all():
        return ""
    return f"bits of pixels above BitsStored {stored}, such as of {values[~allowed][0]}"


def _check_bytes(found, expected, frames):
    """Compares the pixel bytes of a file with its header.

    A file with one frame may have padding; in one with several, padding would shift the frames.
    """
    if found < expected:
        raise Malformed(f"truncated, {found} bytes of pixels of {expected:.0f}{GET_AGAIN}")
    if frames > 1 and found > expected + 1:
        raise Malformed(
            f"{found} bytes of pixels, Rows, Columns and NumberOfFrames say {expected:.0f}; "
            f"the header is damaged{GET_AGAIN}"
        )
