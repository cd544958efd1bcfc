"""DICOM: find the series of a folder, a zip or a file, choose the axial T2, read its volume.

A volume is what the slices' positions and orientations say. Slice thickness, spacing between slices
and instance numbers are never used: they are often wrong. What is no single regular stack of MR
slices is refused in one line.
"""

import fnmatch
import io
import logging
import os
import re
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UID_dictionary,
)

from src.errors import DataError, note_once
from src.images import dicom_codec

# How far the slices of one volume may differ.
DIRECTION_TOLERANCE = 1e-3  # of a direction cosine; also of their length and right angle
PIXEL_SPACING_TOLERANCE_MM = 1e-3
SAME_POSITION_MM = 0.05  # slices closer than this lie at one position
STEP_TOLERANCE_MM = 0.1  # of a slice's position to the regular grid ...
STEP_TOLERANCE_SHARE = 0.05  # ... and no more than this share of a step
IN_PLANE_DRIFT_MM = 0.1  # of a slice's corner to the line along the normal through the first
ECHO_TIME_TOLERANCE_MS = 1.0
# What speaks for T2 weighting where the description says nothing, and against it where it does.
LEAST_T2_ECHO_TIME_MS = 60.0
LEAST_T2_REPETITION_TIME_MS = 800.0

MR_CLASSES = (  # MR Image, Enhanced MR Image, Legacy Converted Enhanced MR Image Storage
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds; written by converters
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # little and big endian

# Words of a description once all but letters, digits, * and + are blanks.
T2_WORDS = r"(?<!r)t2|tse|fse|space|cube|vista|blade|propeller|multivane"
OTHER_WORDS = (
    r"(?<!r)t1|t2 ?\*|t2 ?star|\bpd|dce|flair|\bperf|\bdyn|twist|vibe|lava|thrive|\bswi|\bswan|"
    r"\bmedic\b|flash|spgr|\bgre\b|\bsub\b|subtr|\bmip\b|\bmap|spectro|\bmrs\b"
)
DIFFUSION_WORDS = r"dwi|\bdiff|adc|\bivim|\bdti\b|trace|bval|\bb ?\d{2,4}\b|ep2d|\bep b ?\d+"
DIFFUSION_TYPES = {"DIFFUSION", "ADC", "TRACE", "TRACEW", "DWI", "EADC", "FA"}
LOCALIZER_WORDS = r"\bloc|plloc|plane ?loc|scout|survey|\bpilot"
OTHER_TYPES = {"MIP", "PROJECTION", "SUBTRACTION"}
AXES = ("sagittal", "coronal", "axial")  # planes whose normal is x, y, z of LPS

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
SYNTAX_OF_ENCODING = {  # of (implicit VR, little endian), for files without a meta header
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
AGAIN = "; get the file again"

_reading = threading.Lock()  # `_quiet` changes what the whole process warns of


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


@dataclass(frozen=True)
class Series:
    """The files of one SeriesInstanceUID.

    Attributes:
        uid, number, description, modality: as the files say; number None where they do not.
        plane: axial, coronal, sagittal (nearest axis of the normal), mixed or unknown.
        diffusion, localizer: what shows that it is one; empty where nothing does.
        path: the folder, zip or file that was searched.
        frames: the slices, in no order; empty for objects that are no images.
        problems: why it cannot be read, each naming a file.
    """

    uid: str
    number: int | None
    description: str
    modality: str
    plane: str
    path: Path
    sop_class: str = ""
    frames: tuple[Frame, ...] = ()
    problems: tuple[str, ...] = ()
    diffusion: str = ""
    localizer: str = ""
    contrast: str = ""  # "T2", what contradicts it, or "" where nothing says
    echo_time_ms: float | None = None
    repetition_time_ms: float | None = None

    @property
    def name(self) -> str:
        """What a message calls it: 5 "t2_tse_tra"."""
        number = "without number" if self.number is None else str(self.number)
        return f'{number} "{self.description}"' if self.description else number

    @property
    def summary(self) -> str:
        """Its line in a list of series."""
        if self.not_mr:
            return f"{self.name} ({self.not_mr})"
        kind = (self.diffusion and "diffusion") or (self.localizer and "localizer")
        damage = self.problems and "not readable"
        known = [self.plane, f"{len(self.frames)} slice(s)", kind or self.contrast, damage]
        return f"{self.name} ({', '.join(text for text in known if text)})"

    @property
    def may_be_t2(self) -> bool:
        """Whether it is axial and nothing speaks against T2 weighting."""
        is_other = self.not_mr or self.diffusion or self.localizer
        return self.plane == "axial" and not is_other and self.contrast in ("T2", "")

    @property
    def not_mr(self) -> str:
        """What it is if no MR image."""
        if _is_mr(self.modality, self.sop_class):
            return ""
        return f"Modality {self.modality or 'missing'}, {_class_name(self.sop_class)}"


def _class_name(sop_class):
    known = UID_dictionary.get(sop_class)  # pydicom's UID would warn of a damaged one
    return known[0] if known else f"SOPClassUID {sop_class or 'missing'}"


def _is_mr(modality, sop_class):
    if sop_class in MR_CLASSES:
        return modality in ("MR", "")
    return modality == "MR" and f"{sop_class}.".startswith(SECONDARY_CAPTURE + ".")


# --- files -------------------------------------------------------------------------------------


class _Files:
    """The files below a folder, in a zip, or one file, opened by their names."""

    def __init__(self, path: Path):
        self.path, self.zip = path, None
        if path.is_dir():
            self.root, self.names = path, list(_names_below(path))
        elif path.is_file() and path.suffix.lower() == ".zip":
            self._open_zip()
        elif path.is_file():
            self.root, self.names = path.parent, [path.name]
        else:
            raise DataError(f"{path}: no such file or folder")

    def _open_zip(self):
        try:
            self.zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{self.path}: cannot be opened as a zip ({_one_line(error)}); get it again"
            ) from None
        members = [info for info in self.zip.infolist() if not info.is_dir()]
        if any(info.flag_bits & 1 for info in members):
            raise DataError(f"{self.path}: encrypted zip; unpack it and give the folder")
        self.names = sorted(
            {info.filename for info in members if not _is_hidden(info.filename.split("/"))}
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.zip:
            self.zip.close()

    def open(self, name: str) -> BinaryIO:
        if self.zip:
            return io.BytesIO(self.zip.read(name))  # pydicom seeks; a damaged member raises here
        return (self.root / name).open("rb")

    def start(self, name: str, count: int = 132) -> bytes:
        file = self.zip.open(name) if self.zip else (self.root / name).open("rb")
        with file:
            return file.read(count)


def _is_hidden(parts):
    return parts[-1].upper() == "DICOMDIR" or any(
        part.startswith(".") or part == "__MACOSX" for part in parts
    )


def _names_below(folder):
    def refuse(error):
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); check its rights")

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not _is_hidden([name]))
        for name in sorted(names):
            path = Path(place, name)
            if not _is_hidden([name]) and path.is_file():  # no pipes: they block
                yield path.relative_to(folder).as_posix()


def _starts_like_dicom(start: bytes) -> bool:
    """Part 10, or a data set without preamble, which starts with group 0002 or 0008."""
    plain = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")
    return start[128:132] == b"DICM" or (len(start) == 132 and start[:2] in plain)


def _is_image_without_preamble(ds):
    """Force reads anything: require what no other file has."""
    return str(ds.get("SOPClassUID", "")) in UID_dictionary and bool(
        ds.get("Rows") and ds.get("Columns") and ds.get("SOPInstanceUID")
    )


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM: part 10, or an image's data set without preamble."""
    path = Path(path)
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file, _quiet():
            start = file.read(132)
            if not _starts_like_dicom(start):
                return False
            if start[128:] == b"DICM":
                return True
            file.seek(0)
            return _is_image_without_preamble(_read_tags(file))
    except Exception:  # unreadable, or not what its first bytes promise
        return False


def dicom_files(path: str | Path) -> list[Path]:
    """The DICOM files below a folder; DICOMDIR and hidden files aside. Empty for anything else."""
    path = Path(path)
    if not path.is_dir():
        return []
    return [path / name for name in _names_below(path) if is_dicom(path / name)]


@contextmanager
def _quiet():
    """pydicom's own words do not reach the user."""
    logger = logging.getLogger("pydicom")
    with _reading, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        was_disabled, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = was_disabled


def _one_line(value, length=120):
    """A value for a message: one line of printable characters, not too long."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


# --- headers -----------------------------------------------------------------------------------


@dataclass
class _Header:
    """What one file says."""

    name: str
    frames: tuple[Frame, ...] = ()
    problem: str = ""
    values: dict = field(default_factory=dict)  # of the series; empty if the file is unreadable


class _Malformed(Exception):
    """What a file says cannot be read as a slice; the message says why and what to do."""


class _Damaged(_Malformed):
    """Not even the series that a file belongs to can be believed."""


def _read_tags(file):
    return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=HEADER_TAGS)


def _read_header(files: _Files, name: str) -> _Header | None:
    """None for a file that is not DICOM, or a DICOMDIR."""
    header = _Header(name)
    try:
        start = files.start(name)
        if not _starts_like_dicom(start):
            return None
        with files.open(name) as file:
            ds = _read_tags(file)
            meta = getattr(ds, "file_meta", {})
            if DIRECTORY_CLASS in (ds.get("SOPClassUID"), meta.get("MediaStorageSOPClassUID")):
                return None
            if start[128:] != b"DICM" and not _is_image_without_preamble(ds):
                return None
            header.values = _series_values(ds)
            if "Rows" not in ds and header.values["sop_class"] not in UID_dictionary:
                raise _Damaged("neither SOPClassUID nor Rows in its header" + AGAIN)
            if _is_mr(header.values["modality"], header.values["sop_class"]):
                is_deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
                if not is_deflated and file.read(4) not in PIXEL_TAGS:
                    raise _Damaged("no pixel data after its header, damaged or cut off" + AGAIN)
                header.frames = tuple(_frames(ds, name))
    except _Malformed as error:
        header.problem = str(error)
        if isinstance(error, _Damaged):
            header.values = {}
    except OSError as error:
        remedy = "; check its rights" if error.strerror else AGAIN
        reason = error.strerror or _one_line(error)
        return _Header(name, problem=f"cannot be read ({reason}){remedy}")
    except Exception as error:  # pydicom raises many kinds on damaged files
        return _Header(name, problem=f"its header cannot be read ({_one_line(error)}){AGAIN}")
    return header


def _text(ds, keyword):
    """A value as one line; one that cannot be decoded counts as missing."""
    try:
        value = ds.get(keyword)
        if value is None:
            return ""
        many = isinstance(value, (list, tuple, pydicom.multival.MultiValue))
        return _one_line("\\".join(map(str, value)) if many else value, 200)
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
        raise _Malformed(f"{keyword} is no number{AGAIN}") from None
    if not values:
        return None
    if len(values) != count or not np.all(np.isfinite(values)):
        raise _Malformed(f"{keyword} {_one_line(values)}, expected {count} finite number(s){AGAIN}")
    return tuple(values)


def _number(ds, keyword, otherwise=None):
    values = _numbers(ds, keyword, 1)
    return otherwise if values is None else values[0]


def _whole(ds, keyword, otherwise=None):
    value = _number(ds, keyword, otherwise)
    if value is None:
        raise _Malformed(f"no {keyword} in its header{AGAIN}")
    if value != int(value) or value < 1:
        raise _Malformed(f"{keyword} {value:g}, expected a whole number of 1 or more{AGAIN}")
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
        if element.VR == "SQ" and not element.tag.is_private and element.value
    ]


def _frames(ds, name) -> Iterator[Frame]:
    if "ModalityLUTSequence" in ds:
        raise _Malformed("ModalityLUTSequence (values by a table); expected RescaleSlope")
    samples, photometric = _whole(ds, "SamplesPerPixel", 1), _text(ds, "PhotometricInterpretation")
    if samples != 1 or photometric not in ("MONOCHROME2", ""):
        raise _Malformed(
            f"SamplesPerPixel {samples}, PhotometricInterpretation {photometric or 'missing'}; "
            "expected grey values (1, MONOCHROME2), no colour; give the MR series"
        )
    count = _whole(ds, "NumberOfFrames", 1)
    shared = ds.get("SharedFunctionalGroupsSequence") or [None]
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    if not per_frame and count > 1:
        raise _Malformed(
            f"{count} frames without PerFrameFunctionalGroupsSequence: no position of each; "
            "export the series again as enhanced MR or one file per slice"
        )
    if per_frame and len(per_frame) != count:
        raise _Malformed(
            f"NumberOfFrames {count}, but PerFrameFunctionalGroupsSequence has {len(per_frame)} "
            f"item(s){AGAIN}"
        )
    for index, group in enumerate(per_frame or [None]):
        label = _one_line(name, 200) + (f", frame {index + 1}" if count > 1 else "")
        yield _frame(_Groups(ds, group, shared[0]), ds, name, index, label)


def _frame(groups, ds, name, index, label):
    slope = _number(groups, "RescaleSlope", 1.0)
    if slope == 0:
        raise _Malformed(f"RescaleSlope 0, expected another number{AGAIN}")
    tags = {keyword: _text(groups, keyword) for keyword in DISTINGUISHING}
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
        (_whole(ds, "Rows"), _whole(ds, "Columns")),
        slope,
        _number(groups, "RescaleIntercept", 0.0),
        _text(ds, "SOPInstanceUID"),
        {keyword: value for keyword, value in tags.items() if value},
    )


# --- series ------------------------------------------------------------------------------------


def find_series(path: str | Path) -> list[Series]:
    """The series of a DICOM file, of a folder tree or of a zip, by number. Reads headers only.

    Raises:
        DataError: nothing there, no DICOM in it, or the zip or folder cannot be opened.
    """
    path = Path(path)
    headers, others = [], []
    with _Files(path) as files, _quiet():
        for name in files.names:
            header = _read_header(files, name)
            if header is None:
                others.append(name)
            else:
                headers.append(header)
        suspects = _suspects(files, headers, others)
    by_uid: dict[str, list[_Header]] = {}
    have_uid = any(header.values.get("uid") for header in headers)
    for header in headers:
        if have_uid and header.values.get("uid") == "" and header.values["sop_class"] in MR_CLASSES:
            suspects[header.name] = f"no SeriesInstanceUID in its header, others have one{AGAIN}"
        elif header.values:
            by_uid.setdefault(header.values["uid"], []).append(header)
        else:
            suspects[header.name] = header.problem
    if not by_uid:
        if suspects:
            name, problem = next(iter(suspects.items()))
            raise DataError(f"{path}: {_place(path, name)}{problem}")
        raise DataError(f"{path}: no DICOM images; expected a series of MR slices")
    series = [_series(path, group, suspects) for group in by_uid.values()]
    return sorted(series, key=lambda s: (s.number is None, s.number or 0, s.uid))


def _place(path, name):
    return "" if path.name == name else f"{_one_line(name, 200)}: "


def _kind_of_name(name):
    """Suffix, where it is one: files are also called by number or UID."""
    suffix = PurePosixPath(name).suffix.lower()
    return "" if re.fullmatch(r"\.?\d*", suffix) else suffix


def _suspects(files, headers, others):
    """Files that are named as DICOM's are and are not readable as DICOM: {name: problem}.

    Without a telling suffix a text (README, LICENSE) is none.
    """
    kinds = {(PurePosixPath(h.name).parent, _kind_of_name(h.name)) for h in headers}
    suspects = {}
    for name in others:
        kind = _kind_of_name(name)
        if kind not in DICOM_SUFFIXES and (PurePosixPath(name).parent, kind) not in kinds:
            continue
        try:
            start = files.start(name, 4096)
        except Exception:
            start = b""
        is_directory = start[128:132] == b"DICM"  # others never are, but for these
        is_text = kind not in DICOM_SUFFIXES and start and _is_text(start)
        if not is_directory and not is_text:
            suspects[name] = (
                f"not readable as DICOM ({'damaged' if start else 'empty'} file){AGAIN}"
            )
    return suspects


def _is_text(start):
    text = start.decode("utf-8", "replace")
    return all(c.isprintable() or c in "\r\n\t\f" for c in text[:-4])


def _common(values):
    """The most frequent value that says something, None if none does."""
    known = [value for value in values if value not in ("", None)]
    return Counter(known).most_common(1)[0][0] if known else None


def _series(path, headers, suspects):
    values = [header.values for header in headers]
    frames = tuple(frame for header in headers for frame in header.frames)
    problems = [f"{_place(path, h.name)}{h.problem}" for h in headers if h.problem]
    folders = {PurePosixPath(header.name).parent for header in headers}
    problems += [
        f"{_place(path, name)}{problem}"
        for name, problem in suspects.items()
        if PurePosixPath(name).parent in folders
    ]
    for key, named in (("modality", "Modality"), ("sop_class", "SOPClassUID"), ("PatientID",) * 2):
        odd = _odd_one([value[key] for value in values])
        if odd is not None:
            problems.append(
                f"{_place(path, headers[odd].name)}{named} differs from the other files' of its "
                "series; take it out or get the file again"
            )
    description = _common(value["description"] for value in values) or ""
    protocol = _common(value["protocol"] for value in values) or ""  # may name the whole study's
    sequence = _common(value["sequence"] for value in values) or ""
    echo_time, repetition_time = (
        _common(_float(frame.tags.get(keyword)) or None for frame in frames)  # 0 says nothing
        for keyword in ("EchoTime", "RepetitionTime")
    )
    plane = _plane(frames)
    words = re.sub(r"[^a-z0-9*+]+", " ", f"{description or protocol} {sequence}".lower())
    types = {
        word
        for frame in frames
        for keyword in ("ImageType", "FrameType")
        for word in re.split(r"[\\ _]", frame.tags.get(keyword, "").upper())
    }
    return Series(
        uid=values[0]["uid"],
        number=_common(value["number"] for value in values),
        description=description,
        modality=_common(value["modality"] for value in values) or "",
        plane=plane,
        path=path,
        sop_class=_common(value["sop_class"] for value in values) or "",
        frames=frames,
        problems=tuple(problems),
        diffusion=_diffusion(frames, words, types),
        localizer=_localizer(frames, words, types, plane),
        contrast=_contrast(frames, words, types, echo_time, repetition_time),
        echo_time_ms=echo_time,
        repetition_time_ms=repetition_time,
    )


def _odd_one(values):
    """Index of the first that differs from the most frequent, None if all are equal."""
    usual = Counter(values).most_common(1)[0][0]
    return next((index for index, value in enumerate(values) if value != usual), None)


def _float(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _plane(frames):
    normals = [np.cross(f.orientation[:3], f.orientation[3:]) for f in frames if f.orientation]
    planes = {AXES[int(np.argmax(np.abs(normal)))] for normal in normals if np.any(normal)}
    if len(planes) > 1:
        return "mixed"
    return planes.pop() if planes else "unknown"


def _values_of(frames, keyword):
    """The different values, numbers in order: "0, 800"."""
    values = {frame.tags.get(keyword, "") for frame in frames}
    ordered = sorted(values, key=lambda v: (v != "", _float(v) or 0, v))
    return _one_line(", ".join(value or "none" for value in ordered), 60)


def _diffusion(frames, words, types):
    if any((_float(frame.tags.get("DiffusionBValue")) or 0) > 0 for frame in frames):
        return f"DiffusionBValue {_values_of(frames, 'DiffusionBValue')}"
    if types & DIFFUSION_TYPES:
        return f"ImageType {', '.join(sorted(types & DIFFUSION_TYPES))}"
    if any(f.tags.get("AcquisitionContrast", "").upper() == "DIFFUSION" for f in frames):
        return "AcquisitionContrast DIFFUSION"
    found = re.search(DIFFUSION_WORDS, words)
    return f'description or sequence name "{found[0]}"' if found else ""


def _localizer(frames, words, types, plane):
    if "LOCALIZER" in types:
        return "ImageType LOCALIZER"
    if plane == "mixed":
        return "slices in several planes"
    found = re.search(LOCALIZER_WORDS, words)
    return f'description "{found[0]}"' if found else ""


def _contrast(frames, words, types, echo_time, repetition_time):
    """T2, what speaks against it, or "" where nothing says."""
    contrast = _common(frame.tags.get("AcquisitionContrast", "") for frame in frames) or ""
    contrast = "" if contrast in ("UNKNOWN", "MIXED") else contrast
    other = re.search(OTHER_WORDS, words)
    if other:
        return f'not T2: description "{other[0]}"'
    if types & OTHER_TYPES:
        return f"not T2: ImageType {', '.join(sorted(types & OTHER_TYPES))}"
    if contrast not in ("", "T2"):
        return f"not T2: AcquisitionContrast {contrast}"
    sequence = {
        word for frame in frames for word in frame.tags.get("ScanningSequence", "").split("\\")
    }
    sequence |= {frame.tags.get("EchoPulseSequence") for frame in frames}
    is_planar = any(frame.tags.get("EchoPlanarPulseSequence") == "YES" for frame in frames)
    if sequence & {"EP", "GR", "GRADIENT"} or is_planar:
        return "not T2: echo-planar or gradient echo"
    if echo_time is not None and echo_time < LEAST_T2_ECHO_TIME_MS:
        return f"not T2: EchoTime {echo_time:g} ms"
    if repetition_time is not None and repetition_time < LEAST_T2_REPETITION_TIME_MS:
        return f"not T2: RepetitionTime {repetition_time:g} ms"
    says_t2 = bool(re.search(T2_WORDS, words)) or contrast == "T2"
    return "T2" if says_t2 or (echo_time is not None and repetition_time is not None) else ""


# --- choosing ----------------------------------------------------------------------------------


def choose_series(series: list[Series], wanted: str, path: str | Path) -> Series:
    """The series that is meant.

    Args:
        series: those found.
        wanted: a SeriesInstanceUID, a series number, or a pattern on the description (`*t2*tra*`,
            or a part of it), case aside. Empty: the only axial T2; or the only image series, if
            nothing says that it is none.
        path: where they were found, for messages.

    Raises:
        DataError: none or several match; the message lists the series.
    """
    if wanted:
        return _wanted_series(series, wanted, path)
    likely = [s for s in series if s.may_be_t2]
    chosen = [s for s in likely if s.contrast == "T2"]
    images = [s for s in series if not s.not_mr or "Image Storage" in _class_name(s.sop_class)]
    if not chosen and len(images) == 1:
        only = images[0]
        if only.problems or (only.plane == "unknown" and not only.not_mr):
            return only  # `read_series` says what is wrong
        chosen = likely
    if len(chosen) == 1:
        return chosen[0]
    if len(series) == 1:
        raise DataError(f"{path}: series {_reason(series[0])}")
    found = "several axial T2 series" if chosen else "no axial T2 series"
    raise DataError(
        f"{path}: {found} among {_listed(series)}; choose one with --series (number, UID or a "
        "pattern on the description)"
    )


def _reason(series):
    """Why the only series is not taken by default, and what to do."""
    name = f"{series.name} ({series.plane}, {len(series.frames)} slice(s))"
    if series.not_mr:
        return f"{series.name} is {series.not_mr}; expected an axial T2 MR series"
    if series.diffusion or series.localizer:
        kind = "diffusion" if series.diffusion else "a localizer"
        evidence = series.diffusion or series.localizer
        return f"{name} is {kind} ({evidence}); expected an axial T2 series"
    found = series.contrast if series.contrast not in ("", "T2") else f"{series.plane}, not axial"
    return f"{name} is {found}; expected an axial T2 series, choose it with --series to read it"


def _listed(series):
    twice = Counter((s.number, s.description) for s in series)
    return f"{len(series)} series: " + "; ".join(
        s.summary + (f" UID {s.uid}" if twice[s.number, s.description] > 1 else "") for s in series
    )


def _wanted_series(series, wanted, path):
    pattern = wanted.strip().lower()
    rules = (
        lambda s: s.uid.lower() == pattern,
        lambda s: pattern.isdecimal() and s.number == int(pattern),
        lambda s: s.description.lower() == pattern,
        lambda s: fnmatch.fnmatchcase(s.description.lower(), pattern),
        lambda s: pattern in s.description.lower(),
    )
    for matches in rules:
        found = [s for s in series if matches(s)]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"{path}: --series {wanted} matches {_listed(found)}; give the number or UID of one"
            )
    raise DataError(f"{path}: --series {wanted} matches none of {_listed(series)}")


# --- reading -----------------------------------------------------------------------------------


def read_dicom(path: str | Path, series: str = "") -> sitk.Image:
    """The volume of the series chosen in a DICOM file, folder tree or zip.

    Args:
        path: see `find_series`.
        series: see `choose_series`.

    Raises:
        DataError: no such series, or not one regular volume.
    """
    chosen = choose_series(find_series(path), series, path)
    image = read_series(chosen)
    kinds = {"diffusion": chosen.diffusion, "a localizer": chosen.localizer}
    found = [f"{kind} ({sign})" for kind, sign in kinds.items() if sign]
    if found or chosen.contrast not in ("T2", ""):
        kind = found[0] if found else chosen.contrast
        note_once(f"note: {path}: series {chosen.name} is {kind}; read since --series chose it")
    return image


def read_series(series: Series) -> sitk.Image:
    """The volume of a series, float32, LPS, slices by position along their common normal.

    Values are stored values times RescaleSlope plus RescaleIntercept, each slice's own.

    Raises:
        DataError: not MR, a file is damaged, or the slices are no regular stack: missing, two at
            one position, sheared, differing in orientation, spacing, matrix or echo.
    """
    try:
        _check_kind(series)
        frames, spacing_mm, direction = _stack(series)
        with _Files(series.path) as files, _quiet():
            volume = _voxels(files, frames)
    except _Malformed as error:
        raise DataError(f"{series.path}: series {series.name}: {error}") from None
    image = sitk.GetImageFromArray(volume)
    image.SetOrigin(frames[0].position_mm)
    image.SetSpacing(spacing_mm)
    image.SetDirection(direction.ravel().tolist())
    return image


def _check_kind(series):
    if series.not_mr:
        raise _Malformed(f"{series.not_mr}; expected MR images")
    if series.problems:
        more = f"; {len(series.problems) - 1} more such" if len(series.problems) > 1 else ""
        raise _Malformed(series.problems[0] + more)
    if series.plane == "mixed":
        raise _Malformed(
            f"{len(series.frames)} slices in several planes, a localizer or projections; expected "
            "parallel slices"
        )
    if len(series.frames) < 2:
        raise _Malformed(
            f"one slice only ({series.frames[0].label}); expected a volume, give the folder of all "
            "its slices"
        )


def _stack(series):
    """Frames in order of position, spacing (x, y, z) and the 3x3 direction.

    Raises:
        _Malformed: no regular stack.
    """
    frames = series.frames
    for keyword, attribute in (
        ("ImagePositionPatient", "position_mm"),
        ("ImageOrientationPatient", "orientation"),
        ("PixelSpacing", "spacing_mm"),
    ):
        missing = [frame for frame in frames if getattr(frame, attribute) is None]
        if missing:
            raise _Malformed(
                f"{missing[0].label}: no {keyword} ({len(missing)} of {len(frames)} slices); a "
                "volume cannot be built, export the series again from the scanner or archive"
            )
    direction = _direction(Counter(frame.orientation for frame in frames).most_common(1)[0][0])
    along = np.array([frame.position_mm for frame in frames]) @ direction
    order = np.argsort(along[:, 2], kind="stable")
    frames, along = [frames[i] for i in order], along[order]
    _check_equal(frames, along[:, 2])
    _check_one_each(series, frames, along[:, 2])
    step_mm = _regular_step(frames, along[:, 2])
    drift = np.linalg.norm(along[:, :2] - along[0, :2], axis=1)
    if drift.max() > IN_PLANE_DRIFT_MM:
        worst = int(np.argmax(drift > IN_PLANE_DRIFT_MM))
        raise _Malformed(
            f"{_at(frames, along[:, 2], worst)}: its corner lies {drift[worst]:.2f} mm beside the "
            f"normal through the first slice's, allowed {IN_PLANE_DRIFT_MM} mm (sheared stack, by "
            "ImagePositionPatient); reformat the series to one without shear"
        )
    row_spacing, column_spacing = frames[0].spacing_mm
    return frames, (column_spacing, row_spacing, step_mm), direction


def _at(frames, along_mm, index):
    return f"slice at {along_mm[index]:.2f} mm ({frames[index].label})"


def _direction(orientation):
    """Columns: direction of a row, of a column, their normal; orthonormal."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > DIRECTION_TOLERANCE:
        raise _Malformed(
            f"ImageOrientationPatient {_list(orientation)}, expected two unit vectors at a right "
            "angle; the header is damaged, get the files again"
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    column /= np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)], axis=1)


def _check_equal(frames, along_mm):
    """Matrix, orientation and in-plane spacing, each as in most slices."""
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
            raise _Malformed(
                f"{_at(frames, along_mm, index)}: {keyword} {_list(values[index])}, the others "
                f"{_list(usual)}; take it out or export the series again"
            )
    if min(frames[0].spacing_mm) <= 0:
        raise _Malformed(
            f"PixelSpacing {_list(frames[0].spacing_mm)} mm, expected more than 0{AGAIN}"
        )


def _list(values):
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _check_one_each(series, frames, along_mm):
    """One slice at each position, of one echo, time and stack."""
    same = np.flatnonzero(np.diff(along_mm) < SAME_POSITION_MM)
    kind = f", a diffusion series ({series.diffusion})" if series.diffusion else ""
    if same.size:
        first, second = frames[same[0]], frames[same[0] + 1]
        where = f"{same.size} such pair(s)"
        if same.size == len(frames) - 1:
            where = f"all {len(frames)} slices lie there (ImagePositionPatient)"
        raise _Malformed(
            f"two slices at {along_mm[same[0]]:.2f} mm ({first.label}; {second.label}), "
            f"{_difference(first, second)}; {where}{kind}; keep one slice for each position"
        )
    for keyword in OF_ONE_VOLUME:
        values = [frame.tags.get(keyword, "") for frame in frames]
        numbers = [_float(value) for value in values]
        if keyword == "EchoTime" and None not in numbers:
            is_one = max(numbers) - min(numbers) <= ECHO_TIME_TOLERANCE_MS
        else:
            is_one = len(set(values)) == 1
        if not is_one:
            raise _Malformed(
                f"slices of different {keyword} ({_values_of(frames, keyword)}){kind}; expected "
                "one volume, keep the slices of one"
            )


def _difference(first, second):
    """What tells two slices of one position apart."""
    for keyword in DISTINGUISHING:
        values = [frame.tags.get(keyword, "none") for frame in (first, second)]
        numbers = [_float(value) for value in values]
        if values[0] != values[1] and (None in numbers or numbers[0] != numbers[1]):
            shown = ", ".join(_one_line(value, 60) for value in values)
            return f"which differ in {keyword} ({shown})"
    if first.instance_uid == second.instance_uid and first.name != second.name:
        return "copies (same SOPInstanceUID)"
    return "which no attribute tells apart"


def _regular_step(frames, along_mm):
    """The mean step; all positions lie on its grid."""
    steps = np.diff(along_mm)
    # The lower quartile: a few gaps do not move it, nor does one slice that was shifted.
    usual = float(np.sort(steps)[len(steps) // 4])
    gaps = np.flatnonzero(steps > 1.5 * usual)
    multiple = np.round(steps[gaps] / usual)
    if gaps.size and np.all(np.abs(steps[gaps] / usual - multiple) < 0.1 * multiple):
        gap = gaps[0]
        raise _Malformed(
            f"{int(np.sum(multiple - 1))} slice(s) missing: nothing between "
            f"{_at(frames, along_mm, gap)} and {_at(frames, along_mm, gap + 1)}, steps are "
            f"{usual:.2f} mm; get the missing file(s)"
        )
    mean = float((along_mm[-1] - along_mm[0]) / len(steps))
    tolerance = min(STEP_TOLERANCE_MM, STEP_TOLERANCE_SHARE * mean)
    off = np.abs(along_mm - along_mm[0] - mean * np.arange(len(frames)))
    if off.max() > tolerance:
        odd = int(np.argmax(np.abs(steps - np.median(steps))))
        raise _Malformed(
            f"uneven steps from {steps.min():.2f} to {steps.max():.2f} mm (ImagePositionPatient), "
            f"the odd one after {_at(frames, along_mm, odd)}; positions may lie {tolerance:.2f} mm "
            "off a regular grid; export the series again"
        )
    return mean


def _voxels(files, frames):
    """float32, axes (z, y, x)."""
    stored = _stored_values(files, {frame.name: frame.label for frame in reversed(frames)})
    slices = []
    for frame in frames:
        values = stored[frame.name][frame.index].astype(np.float64) * frame.slope + frame.intercept
        if not np.all(np.abs(values) <= np.finfo(np.float32).max):
            raise _Malformed(f"{frame.label}: values are not finite after RescaleSlope{AGAIN}")
        slices.append(values.astype(np.float32))
    return np.stack(slices)


def _stored_values(files, labels):
    """The pixel values of whole files, {name: array with axes (frame, y, x)}.

    Raises:
        _Malformed: one is truncated, damaged, or of another size than its header says.
    """
    stored, shapes, compressed = {}, {}, {}
    for name in labels:
        with _named(labels[name]):
            ds = _whole_file(files, name)
            shapes[name] = (_whole(ds, "NumberOfFrames", 1), int(ds.Rows), int(ds.Columns))
            if ds.file_meta.TransferSyntaxUID in dicom_codec.SYNTAXES:
                with files.open(name) as file:
                    compressed[name] = file.read()
            else:
                stored[name] = _pixels(ds, shapes[name])
    decoded = dicom_codec.decode(list(compressed.values())) if compressed else []
    for name, values in zip(compressed, decoded, strict=False):  # ends with the first damaged
        with _named(labels[name]):
            if isinstance(values, str):
                raise ValueError(values)
            stored[name] = values
    for name, shape in shapes.items():
        values = stored[name]
        values = values[None] if values.ndim == 2 else values
        if values.shape != shape:
            raise _Malformed(
                f"{labels[name]}: pixel data of shape {values.shape}, its header says "
                f"{shape}{AGAIN}"
            )
        stored[name] = values
    return stored


@contextmanager
def _named(label):
    """Errors name the slice."""
    try:
        yield
    except _Malformed as error:
        raise _Malformed(f"{label}: {error}") from None
    except Exception as error:  # pydicom and its decoders raise many kinds
        raise _Malformed(
            f"{label}: its pixel data cannot be read, damaged or cut off "
            f"({_one_line(error, 200)}){AGAIN}"
        ) from None


def _whole_file(files, name):
    with files.open(name) as file:
        ds = pydicom.dcmread(file, force=True)
    if "PixelData" not in ds:
        raise _Malformed(f"its pixel data are cut off{AGAIN}")
    if "TransferSyntaxUID" not in ds.file_meta:
        ds.file_meta.TransferSyntaxUID = SYNTAX_OF_ENCODING[ds.original_encoding]
    return ds


def _pixels(ds, shape):
    """Of a file that is not compressed, or by run lengths."""
    if not ds.file_meta.TransferSyntaxUID.is_compressed:
        _check_bytes(
            len(ds.PixelData), np.prod(shape, dtype=float) * ds.BitsAllocated / 8, shape[0]
        )
        return ds.pixel_array
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = ds.pixel_array
    if shape[0] > 1 and any("padding" in str(warning.message) for warning in caught):
        raise _Malformed(f"its run lengths hold more pixels than Rows, Columns say{AGAIN}")
    return values


def _check_bytes(found, expected, frames):
    """Some writers pad the pixels of a slice; in a file of many frames padding would shift them."""
    if found < expected:
        raise _Malformed(f"cut off, {found} bytes of pixels of {expected:.0f}{AGAIN}")
    if frames > 1 and found > expected + 1:
        raise _Malformed(
            f"{found} bytes of pixels, Rows, Columns and NumberOfFrames say {expected:.0f}; "
            f"the header is damaged{AGAIN}"
        )
