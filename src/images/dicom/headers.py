"""What one DICOM file says: of its series, and of each of its slices."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, UID_dictionary

from .files import Files, is_image_without_preamble, one_line, starts_like_dicom

MR_CLASSES = (  # MR Image, Enhanced MR Image, Legacy Converted Enhanced MR Image Storage
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds; written by converters
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # little and big endian
# One volume has one value of each.
OF_ONE_VOLUME = (
    "EchoTime",
    "EchoNumbers",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "StackID",
    "ComplexImageComponent",
)
# What can tell two slices of one position apart, the telling first.
DISTINGUISHING = (
    *OF_ONE_VOLUME,
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
SIEMENS_B_VALUE, PHILIPS_B_VALUE = (0x0019, 0x100C), (0x2001, 0x1003)  # private
HEADER_TAGS = [
    *DISTINGUISHING,
    *CONTRAST_TAGS,
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
    0x00190010,  # creators of the private blocks, then their b-values
    0x20010010,
    0x0019100C,
    0x20011003,
]
AGAIN = "; get the file again"


@dataclass(frozen=True)
class Frame:
    """One slice: a file, or one frame of a multi-frame file."""

    name: str  # of the file, in the folder or zip
    index: int  # of the frame in the file, from 0
    label: str  # for messages
    position_mm: tuple[float, ...] | None  # centre of the first voxel, LPS
    orientation: tuple[float, ...] | None  # direction cosines of a row (3) and of a column (3)
    spacing_mm: tuple[float, ...] | None  # between rows, between columns
    matrix: tuple[int, int]  # rows, columns
    slope: float
    intercept: float
    instance_uid: str
    tags: dict[str, str] = field(hash=False)  # of `DISTINGUISHING`, those that are present


def class_name(sop_class):
    known = UID_dictionary.get(sop_class)  # pydicom's UID would warn of a damaged one
    return known[0] if known else f"SOPClassUID {sop_class or 'missing'}"


def is_mr(modality, sop_class):
    if sop_class in MR_CLASSES:
        return modality in ("MR", "")
    return modality == "MR" and f"{sop_class}.".startswith(SECONDARY_CAPTURE + ".")


@dataclass
class Header:
    """What one file says."""

    name: str
    frames: tuple[Frame, ...] = ()
    problem: str = ""
    values: dict = field(default_factory=dict)  # of the series; empty if the file is unreadable


class Malformed(Exception):
    """What a file says cannot be read as a slice; the message says why and what to do."""


class Damaged(Malformed):
    """Not even the series that a file belongs to can be believed."""


def _read_tags(file):
    return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=HEADER_TAGS)


def read_header(files: Files, name: str) -> Header | None:
    """None for a file that is not DICOM, or a DICOMDIR."""
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
            if start[128:] != b"DICM" and not is_image_without_preamble(ds):
                return None
            header.values = _series_values(ds)
            if "Rows" not in ds and header.values["sop_class"] not in UID_dictionary:
                raise Damaged("neither SOPClassUID nor Rows in its header" + AGAIN)
            if is_mr(header.values["modality"], header.values["sop_class"]):
                is_deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
                if not is_deflated and file.read(4) not in PIXEL_TAGS:
                    raise Damaged("no pixel data after its header, damaged or cut off" + AGAIN)
                header.frames = tuple(_frames(ds, name))
    except Malformed as error:
        header.problem = str(error)
        if isinstance(error, Damaged):
            header.values = {}
    except OSError as error:
        remedy = "; check its rights" if error.strerror else AGAIN
        reason = error.strerror or one_line(error)
        return Header(name, problem=f"cannot be read ({reason}){remedy}")
    except Exception as error:  # pydicom raises many kinds on damaged files
        return Header(name, problem=f"its header cannot be read ({one_line(error)}){AGAIN}")
    return header


def _text(ds, keyword):
    """A value as one line; one that cannot be decoded counts as missing."""
    try:
        value = ds.get(keyword)
        if value is None:
            return ""
        many = isinstance(value, (list, tuple, pydicom.multival.MultiValue))
        return one_line("\\".join(map(str, value)) if many else value, 200)
    except Exception:  # odd character sets, damaged values
        return ""


def _numbers(ds, keyword, count):
    """`count` finite numbers, None where the attribute is missing or empty."""
    try:
        value = ds.get(keyword)
        if value is None or value == "":
            return None
        if isinstance(value, (str, bytes)):  # of a damaged value representation
            raise ValueError
        values = [float(v) for v in (value if hasattr(value, "__iter__") else [value])]
    except Exception:
        raise Malformed(f"{keyword} is no number{AGAIN}") from None
    if not values:
        return None
    if len(values) != count or not np.all(np.isfinite(values)):
        raise Malformed(f"{keyword} {one_line(values)}, expected {count} finite number(s){AGAIN}")
    return tuple(values)


def _number(ds, keyword, otherwise=None):
    values = _numbers(ds, keyword, 1)
    return otherwise if values is None else values[0]


def whole_number(ds, keyword, otherwise=None):
    value = _number(ds, keyword, otherwise)
    if value is None:
        raise Malformed(f"no {keyword} in its header{AGAIN}")
    if value != int(value) or value < 1:
        raise Malformed(f"{keyword} {value:g}, expected a whole number of 1 or more{AGAIN}")
    return int(value)


def _series_values(ds):
    """What a file says of its series. Damaged texts count as missing."""
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
    """The attributes of one frame: its functional groups, the shared ones, then the file's own."""

    def __init__(self, ds, per_frame=None, shared=None):
        self.own = [item for group in (per_frame, shared) if group for item in _items(group)]
        self.places = [*self.own, ds]

    def get(self, keyword, otherwise=None):
        places = self.own if keyword == "ImagePositionPatient" and self.own else self.places
        for place in places:
            value = place.get(keyword)
            if value is not None and value != "":
                return value
        return otherwise

    def private(self, tag, creator):
        """A private number of a vendor's block, None where absent."""
        for place in self.places:
            try:
                value = place.private_block(tag[0], creator)[tag[1] & 0xFF].value
                if isinstance(value, bytes):  # implicit VR tells no type
                    value = np.frombuffer(value, "<f4")[0] if len(value) == 4 else value.decode()
                return float(value)
            except Exception:
                continue
        return None


def _items(group):
    """The first item of each standard functional group; private ones may hold whole headers."""
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
        raise Malformed("ModalityLUTSequence (values by a table); expected RescaleSlope")
    samples, photometric = (
        whole_number(ds, "SamplesPerPixel", 1),
        _text(ds, "PhotometricInterpretation"),
    )
    if samples != 1 or photometric not in ("MONOCHROME2", ""):
        raise Malformed(
            f"SamplesPerPixel {samples}, PhotometricInterpretation {photometric or 'missing'}; "
            "expected grey values (1, MONOCHROME2), no colour; give the MR series"
        )
    count = whole_number(ds, "NumberOfFrames", 1)
    shared = ds.get("SharedFunctionalGroupsSequence") or [None]
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    if not per_frame and count > 1:
        raise Malformed(
            f"{count} frames without PerFrameFunctionalGroupsSequence: no position of each; "
            "export the series again as enhanced MR or one file per slice"
        )
    if per_frame and len(per_frame) != count:
        raise Malformed(
            f"NumberOfFrames {count}, but PerFrameFunctionalGroupsSequence has {len(per_frame)} "
            f"item(s){AGAIN}"
        )
    for index, group in enumerate(per_frame or [None]):
        label = one_line(name, 200) + (f", frame {index + 1}" if count > 1 else "")
        yield _frame(_Groups(ds, group, shared[0]), ds, name, index, label)


def _frame(groups, ds, name, index, label):
    slope = _number(groups, "RescaleSlope", 1.0)
    if slope == 0:
        raise Malformed(f"RescaleSlope 0, expected another number{AGAIN}")
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
    tags.update((keyword, _text(groups, keyword)) for keyword in CONTRAST_TAGS)
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
