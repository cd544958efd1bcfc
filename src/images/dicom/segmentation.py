"""DICOM Segmentation objects: a mask with references to the series that it was made from.

Made with highdicom, an optional package (requirements-dicom.txt). The object has a frame for each
slice of the series, also where the mask is empty, with the slice's own position, so that it has the
series' geometry in every program.
"""

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.charset import python_encoding
from pydicom.uid import generate_uid
from pydicom.valuerep import PersonName, format_number_as_ds

from ... import __version__
from ...utils.errors import DataError, UsageError
from .. import segment
from ..writing import check_written
from .files import Files, one_line, quiet
from .headers import GET_AGAIN, MR_CLASSES, SECONDARY_CAPTURE, Frame, Malformed, class_name
from .series import Series
from .volume import sort_frames

SOFTWARE = "vnet-mindspore"
SINGLE_FRAME_CLASSES = (MR_CLASSES[0], SECONDARY_CAPTURE)
SERIES_NUMBER_OFFSET = 1000  # of the segmentation's series above that of its source
# Of the patient and the study; they may be empty, but not absent.
EMPTY_KEYWORDS = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
UID_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
ISO_2022_ESCAPE = re.compile("\x1b[ -/]+[0-~]")


class Source(NamedTuple):
    """The series that a segmentation refers to."""

    series: Series
    headers: list[pydicom.Dataset]  # one per slice in the order of the volume, or the only file
    planes: list[int]  # for each slice of the volume, its place among the headers' frames

    def identity(self) -> list[list[str]]:
        """Returns what a segmentation says about patient, study and images, of each header."""
        keywords = (*EMPTY_KEYWORDS, *UID_KEYWORDS, "FrameOfReferenceUID")
        return [[str(header.get(word, "")) for word in keywords] for header in self.headers]


def check_highdicom() -> None:
    """Raises a UsageError if highdicom is not installed."""
    if not importlib.util.find_spec("highdicom"):
        raise UsageError(
            "--output_type dicom_seg needs highdicom: pip install -r requirements-dicom.txt"
        )


def read_source(series: Series) -> Source:
    """Reads the headers of a series that a segmentation will refer to.

    Raises:
        DataError: an attribute is missing that a segmentation must have, or several files have
            several frames each.
    """
    try:
        frames, spacing_mm, _ = sort_frames(series)
        names = list(dict.fromkeys(frame.name for frame in frames))
        is_multiframe = series.sop_class not in SINGLE_FRAME_CLASSES
        if len(names) != (1 if is_multiframe else len(frames)):
            raise Malformed(
                f"{len(frames)} slices in {len(names)} file(s) of {class_name(series.sop_class)}; "
                "a segmentation refers to one multi-frame file or to a file for each slice; join "
                "them, or leave out --output_type dicom_seg"
            )
        with Files(series.path) as files, quiet():
            headers = [_read_header(files, name) for name in names]
    except Malformed as error:
        raise DataError(f"{series.path}: series {series.name}: {error}") from None
    except Exception as error:  # pydicom raises exceptions of many types for damaged headers
        raise DataError(
            f"{series.path}: series {series.name}: a header cannot be read "
            f"({one_line(error)}){GET_AGAIN}"
        ) from None
    # In-plane spacing and orientation are equal but for rounding; a segmentation has one of each.
    orientation = Counter(frame.orientation for frame in frames).most_common(1)[0][0]
    if not is_multiframe:
        for header, frame in zip(headers, frames, strict=True):
            _describe_slice(header, frame, orientation, spacing_mm)
        return Source(series, headers, list(range(len(frames))))
    _describe_stack(headers[0], frames, orientation, spacing_mm)
    return Source(series, headers, [frame.index for frame in frames])


def _read_header(files: Files, name: str) -> pydicom.Dataset:
    with files.open(name) as file:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    for keyword in UID_KEYWORDS:
        if not header.get(keyword):
            raise Malformed(f"{one_line(name, 200)}: no {keyword} in its header{GET_AGAIN}")
    if not header.get("FrameOfReferenceUID"):
        raise Malformed(
            f"{one_line(name, 200)}: no FrameOfReferenceUID in its header, so a segmentation cannot"
            " be placed; export the series with it, or leave out --output_type dicom_seg"
        )
    for character_set in _character_sets(header):
        if character_set not in python_encoding:
            raise Malformed(
                f"{one_line(name, 200)}: SpecificCharacterSet {one_line(character_set)}, which is "
                "unknown; repair it, or leave out --output_type dicom_seg"
            )
    _remove_escapes(header)
    for keyword in EMPTY_KEYWORDS:
        if keyword not in header:
            setattr(header, keyword, "")
    return header


def _character_sets(header: pydicom.Dataset) -> list[str]:
    """The names of the character sets of a header's texts; [] if it does not say."""
    value = header.get("SpecificCharacterSet")
    if not value:
        return []
    return [value] if isinstance(value, str) else list(value)


def _remove_escapes(header: pydicom.Dataset) -> None:
    """Removes the escape codes that pydicom leaves in Chinese and Korean texts."""
    if any(name.startswith("ISO 2022") for name in _character_sets(header)):
        for element in header:
            text = str(element.value) if isinstance(element.value, str | PersonName) else ""
            if "\x1b" in text:
                element.value = ISO_2022_ESCAPE.sub("", text)


def _numbers(values: Sequence[float]) -> list[str]:
    """Numbers as DICOM's decimal strings, of at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]


def _item(**values: object) -> pydicom.Dataset:
    item = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _measures(frame: Frame, spacing_mm: Sequence[float]) -> dict[str, object]:
    """Spacing attributes, with the distance of the slices for their thickness: both often lie."""
    assert frame.spacing_mm is not None  # `sort_frames` has checked it
    (step_mm,) = _numbers([round(spacing_mm[2], 6)])
    return {
        "PixelSpacing": _numbers(frame.spacing_mm),
        "SliceThickness": step_mm,
        "SpacingBetweenSlices": step_mm,
    }


def _describe_slice(header, frame, orientation, spacing_mm):
    """Sets the geometry of a file of one slice."""
    header.update(
        _item(
            ImagePositionPatient=_numbers(frame.position_mm),
            ImageOrientationPatient=_numbers(orientation),
            **_measures(frame, spacing_mm),
        )
    )


def _describe_stack(header, frames, orientation, spacing_mm):
    """Sets the geometry of a multi-frame file: what is common to all frames once."""
    header.SharedFunctionalGroupsSequence = [
        _item(
            PlaneOrientationSequence=[_item(ImageOrientationPatient=_numbers(orientation))],
            PixelMeasuresSequence=[_item(**_measures(frames[0], spacing_mm))],
        )
    ]
    header.PerFrameFunctionalGroupsSequence = [
        _item(PlanePositionSequence=[_item(ImagePositionPatient=_numbers(frame.position_mm))])
        for frame in sorted(frames, key=lambda frame: frame.index)
    ]


def make_segmentation(mask: sitk.Image, source: Source) -> pydicom.Dataset:
    """Makes the DICOM Segmentation of a mask: one segment, the prostate.

    Args:
        mask: uint8, 0 and 1, on the grid of `read_series(source.series)`.
        source: of `read_source`.

    Raises:
        DataError: the headers of the series have values that no segmentation may have.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    header = source.headers[0]
    planes = np.empty(mask.GetSize()[::-1], np.uint8)
    planes[source.planes] = sitk.GetArrayViewFromImage(mask)
    prostate = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=segment.NAME,
        segmented_property_category=hd.sr.CodedConcept(*segment.ANATOMICAL_STRUCTURE),
        segmented_property_type=hd.sr.CodedConcept(*segment.PROSTATE),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            SOFTWARE, codes.cid7162.ArtificialIntelligence, __version__
        ),
        tracking_uid=generate_uid(),
        tracking_id=segment.NAME,
        display_color=hd.color.CIELabColor.from_rgb(*segment.RGB),
    )
    try:
        with quiet():
            return hd.seg.Segmentation(
                source_images=source.headers,
                pixel_array=planes,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[prostate],
                series_instance_uid=generate_uid(),
                series_number=SERIES_NUMBER_OFFSET + max(source.series.number or 0, 0),
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer=SOFTWARE,
                manufacturer_model_name="V-Net",
                software_versions=__version__,
                device_serial_number="0",  # must not be empty; software has none
                content_label="PROSTATE",
                content_description="Prostate, segmented automatically",
                series_description="Prostate segmentation (V-Net)",
                omit_empty_frames=False,
                # The patient's name is written in Unicode, unless nothing says what it is read as.
                specific_character_set="ISO_IR 192" if _character_sets(header) else None,
            )
    except Exception as error:  # highdicom and pydicom raise exceptions of many types
        raise DataError(
            f"{source.series.path}: series {source.series.name}: no DICOM segmentation can be made "
            f"of its header ({one_line(error, 200)}); repair it, or leave out --output_type "
            "dicom_seg"
        ) from None


def save_segmentation(segmentation: pydicom.Dataset, mask: sitk.Image, path: Path) -> None:
    """Saves a segmentation, and compares what is read back with its mask.

    Raises:
        OSError, RuntimeError: the file cannot be written completely.
    """
    segmentation.save_as(path)
    try:
        written = read_segmentation(path)
    except DataError as error:
        raise RuntimeError(str(error)) from None
    check_written(written, mask)


def read_segmentation(path: str | Path) -> sitk.Image:
    """Reads a DICOM Segmentation of one segment that `save_segmentation` wrote.

    Returns:
        uint8, 0 and 1, with the geometry of its frames.

    Raises:
        DataError: not such a file.
    """
    try:
        with quiet():
            ds = pydicom.dcmread(path)
            voxels = np.asarray(ds.pixel_array, np.uint8)
        shared = ds.SharedFunctionalGroupsSequence[0]
        cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        rows, columns = shared.PixelMeasuresSequence[0].PixelSpacing
        positions = np.array(
            [
                group.PlanePositionSequence[0].ImagePositionPatient
                for group in ds.PerFrameFunctionalGroupsSequence
            ],
            float,
        )
        steps = np.diff(positions, axis=0)
        direction = np.stack([cosines[:3], cosines[3:], np.cross(cosines[:3], cosines[3:])], axis=1)
        order = np.argsort(positions @ direction[:, 2])
        image = sitk.GetImageFromArray(voxels[order])
        image.SetOrigin(positions[order[0]].tolist())
        image.SetSpacing((float(columns), float(rows), float(np.linalg.norm(steps.mean(axis=0)))))
        image.SetDirection(direction.ravel().tolist())
    except Exception as error:  # pydicom raises exceptions of many types for other files
        raise DataError(
            f"{path}: not a segmentation that this program wrote ({one_line(error)})"
        ) from None
    return image
