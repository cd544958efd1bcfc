"""The header of a DICOM file: attributes of its series and of each of its slices."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, UID_dictionary

from .files import Files, is_image_without_preamble, one_line, starts_like_dicom

MR_CLASSES = (  # MR Image, Enhanced MR Image, Legacy Converted Enhanced MR Image Storage
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and multi-frame classes; used by converters
STANDARD_ROOT = "1.2.840.10008."  # of DICOM's own UIDs
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # little and big endian
# Attributes that have the same value in all slices of a volume.
VOLUME_KEYWORDS = (
    "EchoTime",
    "EchoNumbers",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "StackID",
    "ComplexImageComponent",
    "FrameOfReferenceUID",
)
# Attributes that may distinguish two slices at one position, the most informative first.
DISTINGUISHING = (
    *VOLUME_KEYWORDS,
    "DiffusionGradientOrientation",
    "ImageType",
    "FrameType",
    "InversionTime",
    "TriggerTime",
    "AcquisitionNumber",
    "AcquisitionTime",
    "FrameAcquisitionDateTime",
    "FrameReferenceDateTime",
    "ContentTime",
    "InstanceNumber",
    "StudyInstanceUID",
)
CONTRAST_TAGS = (
    "RepetitionTime",
    "ScanningSequence",
    "EchoPulseSequence",
    "EchoPlanarPulseSequence",
    "AcquisitionContrast",
)
STEP_TAGS = ("SliceThickness", "SpacingBetweenSlices")  # mm; some scanners write others
COUNT_TAGS = ("ImagesInAcquisition", "NumberOfSeriesRelatedInstances")  # of the slices sent
SIEMENS_B_VALUE, PHILIPS_B_VALUE = (0x0019, 0x100C), (0x2001, 0x1003)  # private
HEADER_TAGS = [
    *DISTINGUISHING,
    *CONTRAST_TAGS,
    *COUNT_TAGS,
    *STEP_TAGS,
    "EffectiveEchoTime",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "SequenceName",
    "Modality",
    "PatientID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    0x00190010,  # creators of the private blocks, then the b-values
    0x20010010,
    0x0019100C,
    0x20011003,
]
GET_AGAIN = "; get the file again"


@dataclass(frozen=True)
class Frame:
    """One slice: a file, or one frame of a multi-frame file."""

    name: str  # of the file, see `Files.names`
    index: int  # of the frame in the file, from 0
    label: str  # for messages
    position_mm: tuple[float, ...] | None  # centre of the first voxel, LPS
    orientation: tuple[float, ...] | None  # direction cosines of a row (3) and of a column (3)
    spacing_mm: tuple[float, ...] | None  # between rows, between columns (PixelSpacing)
    matrix: tuple[int, int]  # rows, columns
    slope: float
    intercept: float
    instance_uid: str
    # Non-empty ones of DISTINGUISHING, CONTRAST_TAGS, COUNT_TAGS and STEP_TAGS.
    tags: dict[str, str] = field(hash=False)


def class_name(sop_class: str) -> str:
    """Returns the name of a SOP class for messages."""
    known = UID_dictionary.get(sop_class)  # pydicom's UID class warns about a damaged one
    return known[0] if known else f"SOPClassUID {sop_class or 'missing'}"


def is_mr(modality: str, sop_class: str) -> bool:
    """Whether Modality and SOPClassUID are those of MR images."""
    if sop_class in MR_CLASSES:
        return modality in ("MR", "")
    return modality == "MR" and f"{sop_class}.".startswith(SECONDARY_CAPTURE + ".")


@dataclass
class Header:
    """The header of one file."""

    name: str
    frames: tuple[Frame, ...] = ()
    problem: str = ""  # why the file cannot be used
    values: dict[str, Any] = field(default_factory=dict)  # of the series; {} if unreadable


class Malformed(Exception):
    """A file that cannot be read as slices; the message gives reason and remedy."""


class Damaged(Malformed):
    """A file whose series cannot be trusted either."""


def _is_other_object(values, file_class):
    """Whether a file is an object other than MR images, such as a report, or a vendor's own.

    Args:
        values: of the file.
        file_class: the class that the head of the file names, "" without one.
    """
    sop_class = values["sop_class"]
    is_private = re.fullmatch(r"[12](\.\d+)+", sop_class) and not sop_class.startswith(
        STANDARD_ROOT
    )
    # The SeriesInstanceUID comes late: with it, SOPClassUID is not cut off.
    is_whole = values["uid"] or file_class == sop_class
    is_class = sop_class in UID_dictionary or is_private
    return bool(is_class and is_whole and sop_class not in MR_CLASSES)


def _read_tags(file):
    return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=HEADER_TAGS)


def read_header(files: Files, name: str) -> Header | None:
    """Reads the header of a file.

    Returns:
        The header, with a `problem` if the file cannot be used; None for a DICOMDIR or a file that
        is not DICOM.
    """
    header = Header(name)
    try:
        start = files.start(name)
        if not starts_like_dicom(start):
            return None
        with files.open(name) as file:
            ds = _read_tags(file)
            meta = getattr(ds, "file_meta", {})
            if DIRECTORY_CLASS in (ds.get("SOPClassUID"), meta.get("MediaStorageSOPClassUID")):
                return None
            header.values = _series_values(ds)
            file_class = str(meta.get("MediaStorageSOPClassUID", ""))
            is_object = _is_other_object(header.values, file_class)
            if start[128:] != b"DICM" and not (is_object or is_image_without_preamble(ds)):
                return None
            is_known = is_object or header.values["sop_class"] in UID_dictionary
            if "Rows" not in ds and not is_known:
                raise Damaged("no known SOPClassUID and no Rows in its header" + GET_AGAIN)
            if is_mr(header.values["modality"], header.values["sop_class"]):
                is_deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
                if not is_deflated and file.read(4) not in PIXEL_TAGS:
                    raise Damaged(
                        "no pixel data after its header, damaged or truncated" + GET_AGAIN
                    )
                header.frames = tuple(_frames(ds, name))
    except Malformed as error:
        header.problem = str(error)
        if isinstance(error, Damaged):
            header.values = {}
    except OSError as error:
        remedy = "; check its permissions" if error.strerror else GET_AGAIN
        reason = error.strerror or one_line(error)
        return Header(name, problem=f"cannot be read ({reason}){remedy}")
    except Exception as error:  # pydicom raises exceptions of many types for damaged files
        return Header(name, problem=f"its header cannot be read ({one_line(error)}){GET_AGAIN}")
    return header


def _text(ds, keyword):
    """The value as one line; "" if missing or not decodable."""
    try:
        value = ds.get(keyword)
        if value is None:
            return ""
        is_sequence = isinstance(value, (list, tuple, pydicom.multival.MultiValue))
        return one_line("\\".join(map(str, value)) if is_sequence else value, 200)
    except Exception:  # unknown character sets, damaged values
        return ""


def _numbers(ds, keyword, count):
    """`count` finite numbers, None if the attribute is missing or empty."""
    try:
        value = ds.get(keyword)
        if value is None or value == "":
            return None
        if isinstance(value, (str, bytes)):  # a damaged value representation
            raise ValueError
        values = [float(v) for v in (value if hasattr(value, "__iter__") else [value])]
    except Exception:
        raise Malformed(f"{keyword} is no number{GET_AGAIN}") from None
    if not values:
        return None
    if len(values) != count or not np.all(np.isfinite(values)):
        raise Malformed(
            f"{keyword} {one_line(values)}, expected {count} finite number(s){GET_AGAIN}"
        )
    return tuple(values)


def _number(ds, keyword, default=None):
    values = _numbers(ds, keyword, 1)
    return default if values is None else values[0]


def whole_number(ds: pydicom.Dataset, keyword: str, default: int | None = None) -> int:
    """Returns an attribute that is a positive integer.

    Raises:
        Malformed: another value, or missing without a default.
    """
    value = _number(ds, keyword, default)
    if value is None:
        raise Malformed(f"no {keyword} in its header{GET_AGAIN}")
    if value != int(value) or value < 1:
        raise Malformed(f"{keyword} {value:g}, expected a whole number of 1 or more{GET_AGAIN}")
    return int(value)


def _series_values(ds):
    """The attributes of the series; damaged ones count as missing."""
    number = _text(ds, "SeriesNumber")
    return {
        "uid": _text(ds, "SeriesInstanceUID"),
        "number": int(number) if re.fullmatch(r"-?\d{1,12}", number) else None,
        "description": _text(ds, "SeriesDescription"),
        "modality": _text(ds, "Modality"),
        "sop_class": _text(ds, "SOPClassUID"),
        "PatientID": _text(ds, "PatientID"),
        "protocol": _text(ds, "ProtocolName"),
        "sequence": _text(ds, "SequenceName"),
    }


class _Groups:
    """Attributes of one frame, from its functional groups, else the shared ones, else the file.

    An enhanced MR file has the position of each frame in its own groups only.
    """

    def __init__(self, ds, per_frame=None, shared=None):
        self.groups = [item for group in (per_frame, shared) if group for item in _items(group)]
        self.sources = [*self.groups, ds]

    def get(self, keyword: str, default: Any = None) -> Any:
        in_groups = keyword == "ImagePositionPatient" and self.groups
        for source in self.groups if in_groups else self.sources:
            value = source.get(keyword)
            if value is not None and value != "":
                return value
        return default

    def private(self, tag: tuple[int, int], creator: str) -> float | None:
        """A number in a vendor's private block, None if absent."""
        for source in self.sources:
            try:
                value = source.private_block(tag[0], creator)[tag[1] & 0xFF].value
                if isinstance(value, bytes):  # implicit VR has no type
                    value = np.frombuffer(value, "<f4")[0] if len(value) == 4 else value.decode()
                return float(value)
            except Exception:
                continue
        return None


def _items(group):
    """The first item of each standard functional group; private ones may have whole headers."""
    return [
        element.value[0]
        for element in group
        if element.VR == "SQ"
        and not element.tag.is_private
        and element.value
        and not element.keyword.startswith(("Referenced", "Source", "Derivation"))
    ]


def _frames(ds, name) -> Iterator[Frame]:
    if "ModalityLUTSequence" in ds:
        raise Malformed("ModalityLUTSequence (a table of values); export it with RescaleSlope")
    samples = whole_number(ds, "SamplesPerPixel", 1)
    photometric = _text(ds, "PhotometricInterpretation")
    if samples == 1 and photometric == "MONOCHROME1":
        raise Malformed("inverted grey values (MONOCHROME1); export it as MONOCHROME2")
    if samples != 1 or photometric not in ("MONOCHROME2", ""):
        raise Malformed(
            f"SamplesPerPixel {samples}, PhotometricInterpretation {photometric or 'missing'}; "
            "expected grey values (1, MONOCHROME2), not colour; give the MR series"
        )
    count = whole_number(ds, "NumberOfFrames", 1)
    shared = ds.get("SharedFunctionalGroupsSequence") or [None]
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    if not per_frame and count > 1:
        raise Malformed(
            f"{count} frames without PerFrameFunctionalGroupsSequence, so without positions; "
            "export the series again as enhanced MR or one file per slice"
        )
    if per_frame and len(per_frame) != count:
        raise Malformed(
            f"NumberOfFrames {count}, but PerFrameFunctionalGroupsSequence has {len(per_frame)} "
            f"item(s){GET_AGAIN}"
        )
    for index, group in enumerate(per_frame or [None]):
        label = one_line(name, 200) + (f", frame {index + 1}" if count > 1 else "")
        yield _frame(_Groups(ds, group, shared[0]), ds, name, index, label)


def _frame(groups, ds, name, index, label):
    slope = _number(groups, "RescaleSlope", 1.0)
    if slope == 0:
        raise Malformed(f"RescaleSlope 0, expected another number{GET_AGAIN}")
    tags = {keyword: _text(groups, keyword) for keyword in DISTINGUISHING}
    if "MOSAIC" in tags["ImageType"].split("\\"):
        raise Malformed("a mosaic of slices (ImageType); export it as one file per slice")
    if not tags["EchoTime"]:
        tags["EchoTime"] = _text(groups, "EffectiveEchoTime")
    if not tags["DiffusionBValue"]:
        private = groups.private(SIEMENS_B_VALUE, "SIEMENS MR HEADER")
        if private is None:
            private = groups.private(PHILIPS_B_VALUE, "Philips Imaging DD 001")
        tags["DiffusionBValue"] = "" if private is None else f"{private:g}"
    others = (*CONTRAST_TAGS, *COUNT_TAGS, *STEP_TAGS)
    tags.update((keyword, _text(groups, keyword)) for keyword in others)
    return Frame(
        name,
        index,
        label,
        _numbers(groups, "ImagePositionPatient", 3),
        _numbers(groups, "ImageOrientationPatient", 6),
        _numbers(groups, "PixelSpacing", 2),
        (whole_number(ds, "Rows"), whole_number(ds, "Columns")),
        slope,
        _number(groups, "RescaleIntercept", 0.0),
        _text(ds, "SOPInstanceUID"),
        {keyword: value for keyword, value in tags.items() if value},
    )
