"""Finds the series in a folder, a zip or a file, with plane and contrast of each."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from ...utils.errors import DataError
from ..orientation import PLANES
from .files import DICOM_SUFFIXES, Files, is_dicom, one_line, quiet
from .headers import GET_AGAIN, MR_CLASSES, Frame, Header, class_name, is_mr, read_header

# A series with a lower echo or repetition time is not T2-weighted; one with higher ones is, unless
# its description contradicts.
LEAST_T2_ECHO_TIME_MS = 60.0
LEAST_T2_REPETITION_TIME_MS = 800.0
# Searched in a lower-case description in which all but letters, digits, * and + are blanks.
T2_WORDS = r"(?<!r)t2|tse|fse|space|cube|vista|blade|propeller|multivane"
OTHER_WORDS = (
    r"(?<!r)t1|t2 ?\*|t2 ?star|\bpd|dce|flair|\bperf|\bdyn|twist|vibe|lava|thrive|\bswi|\bswan|"
    r"\bmedic\b|flash|spgr|\bgre\b|\bsub\b|subtr|\bmip\b|\bmap|spectro|\bmrsi?\b|\bk ?trans|"
    r"fiesta|trufi|ssfp|\bdisco\b|\bp?c?asl\b|\bcine\b|\bstir\b|\bauc|\bfa\b"
)
DIFFUSION_WORDS = (
    r"dwi|\bdiff|\badc|adc\b|\bivim|\bdti\b|\btracew?\b|\bb ?val|\bb ?\d{2,4}\b|ep2d|\bep b ?\d+"
)
DIFFUSION_TYPES = {"DIFFUSION", "ADC", "TRACE", "TRACEW", "DWI", "EADC", "FA"}
LOCALIZER_WORDS = r"\bloc|plloc|plane ?loc|scout|survey|\bpilot"
OTHER_TYPES = {"MIP", "PROJECTION", "SUBTRACTION"}


@dataclass(frozen=True)
class Series:
    """The files of one SeriesInstanceUID; where no file has one, of one number and description.

    Attributes:
        uid, number, description, modality, sop_class: the most frequent values of the files; number
            is None if missing.
        plane: axial, coronal, sagittal (by the nearest axis of the normal), mixed or unknown.
        path: the folder, zip or file that was searched.
        frames: the slices, unordered; empty for objects that are not MR images.
        problems: why it cannot be read; each names a file.
        diffusion, localizer: the evidence that it is one, else "".
        contrast: "T2", the evidence against T2, or "" if there is none.
        patient_id: "" if missing.
        lost: of all that was searched, the problems of files that may be another series: damaged,
            or MR without a SeriesInstanceUID, in folders without MR series; each names its file.
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
    contrast: str = ""
    patient_id: str = ""
    lost: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name in messages: 5 "t2_tse_tra"."""
        number = "without number" if self.number is None else str(self.number)
        return f'{number} "{self.description}"' if self.description else number

    @property
    def summary(self) -> str:
        """The entry in a list of series."""
        if self.not_mr:
            return f"{self.name} ({self.not_mr})"
        kind = (self.diffusion and "diffusion") or (self.localizer and "localizer")
        damage = self.problems and "not readable"
        known = [self.plane, f"{len(self.frames)} slice(s)", kind or self.contrast, damage]
        return f"{self.name} ({', '.join(text for text in known if text)})"

    @property
    def may_be_t2(self) -> bool:
        """Whether it is axial and nothing contradicts T2 weighting."""
        is_other = self.not_mr or self.diffusion or self.localizer
        return self.plane == "axial" and not is_other and self.contrast in ("T2", "")

    @property
    def may_be_t2_without_plane(self) -> bool:
        """Whether it may be the axial T2, but no slice tells its orientation."""
        is_other = self.diffusion or self.localizer
        is_unknown = self.plane == "unknown" and self.sop_class in MR_CLASSES
        return is_unknown and not is_other and self.contrast == "T2"

    @property
    def not_mr(self) -> str:
        """Modality and SOP class of a series that is not MR, else ""."""
        if is_mr(self.modality, self.sop_class):
            return ""
        return f"Modality {self.modality or 'missing'}, {class_name(self.sop_class)}"


def find_series(path: str | Path) -> list[Series]:
    """Finds the series in a DICOM file, folder tree or zip; reads headers only.

    Returns:
        Sorted by series number.

    Raises:
        DataError: nothing there, no DICOM in it, or the zip or folder cannot be opened.
    """
    path = Path(path)
    headers: list[Header] = []
    others: list[str] = []  # names of files that are not DICOM
    with Files(path) as files, quiet():
        for name in files.names:
            header = read_header(files, name)
            if header is None:
                others.append(name)
            else:
                headers.append(header)
        suspects = _suspects(files, headers, others)
    groups: dict[tuple, list[Header]] = {}
    have_uid = any(header.values.get("uid") for header in headers)
    keys = ("uid",) if have_uid else ("number", "description")
    for header in headers:
        if have_uid and header.values.get("uid") == "" and header.values["sop_class"] in MR_CLASSES:
            suspects[header.name] = (
                f"no SeriesInstanceUID in its header, others have one{GET_AGAIN}"
            )
        elif header.values:
            groups.setdefault(tuple(header.values[key] for key in keys), []).append(header)
        else:
            suspects[header.name] = header.problem
    if not groups:
        if suspects:
            name, problem = next(iter(suspects.items()))
            raise DataError(f"{path}: {file_prefix(path, name)}{problem}")
        if not path.is_dir() and is_dicom(path):
            raise DataError(f"{path}: a DICOMDIR, which only lists files; give its folder")
        among = f" among {len(others)} file(s), such as {one_line(others[0])}" if others else ""
        raise DataError(f"{path}: no DICOM images{among}; expected a series of MR slices")
    series = [_series(path, group, suspects) for group in groups.values()]
    mr_folders = {
        _folder(header.name)
        for group, found in zip(groups.values(), series, strict=True)
        for header in group
        if not found.not_mr
    }
    lost = tuple(
        f"{file_prefix(path, name)}{problem}"
        for name, problem in suspects.items()
        if _folder(name) not in mr_folders
    )
    series = [replace(found, lost=lost) for found in series]
    return sorted(series, key=lambda s: (s.number is None, s.number or 0, s.uid))


def file_prefix(path: Path, name: str) -> str:
    """Returns `name: ` for messages about a file below `path`, "" for `path` itself."""
    return "" if path.name == name else f"{one_line(name, 200)}: "


def _folder(name):
    return PurePosixPath(name).parent


def _kind_of_file(name):
    """The suffix; "" for one of digits, part of a number or UID as name."""
    suffix = PurePosixPath(name).suffix.lower()
    return "" if re.fullmatch(r"\.?\d*", suffix) else suffix


def _pattern(name):
    """The file's name without its numbers: IM0001 and IM0002, or two hashes, have the same."""
    number = r"(?=[a-f.]*\d)[\da-f.]{8,}|\d+"
    return re.sub(number, "#", PurePosixPath(name).name.lower())


def _suspects(files, headers, others):
    """Damaged files: named like DICOM files, but not readable as such. {name: problem}.

    Either by a DICOM suffix, or like those in their own folder (suffix) or in others (pattern). A
    text file without a DICOM suffix (README, LICENSE) does not count.
    """
    kinds = {(_folder(h.name), _kind_of_file(h.name)) for h in headers}
    patterns = {_pattern(header.name) for header in headers}
    suspects = {}
    for name in others:
        kind = _kind_of_file(name)
        is_like_dicom = (_folder(name), kind) in kinds or _pattern(name) in patterns
        if kind not in DICOM_SUFFIXES and not is_like_dicom:
            continue
        try:
            start = files.start(name, 4096)
        except Exception:
            start = b""
        # `read_header` skips part 10 files only if they are a DICOMDIR
        is_directory = start[128:132] == b"DICM"
        is_text = kind not in DICOM_SUFFIXES and start and _is_text(start)
        if not is_directory and not is_text:
            suspects[name] = (
                f"not readable as DICOM ({'damaged' if start else 'empty'} file){GET_AGAIN}"
            )
    return suspects


def _is_text(start):
    text = start.decode("utf-8", "replace")
    return all(c.isprintable() or c in "\r\n\t\f" for c in text[:-4])


def _common(values):
    """The most frequent value that is neither "" nor None; None if there is none."""
    known = [value for value in values if value not in ("", None)]
    return Counter(known).most_common(1)[0][0] if known else None


def _series(path, headers, suspects):
    values = [header.values for header in headers]
    frames = tuple(frame for header in headers for frame in header.frames)
    problems = [f"{file_prefix(path, h.name)}{h.problem}" for h in headers if h.problem]
    folders = {_folder(header.name) for header in headers}
    problems += [
        f"{file_prefix(path, name)}{problem}"
        for name, problem in suspects.items()
        if _folder(name) in folders
    ]
    for key, keyword in (
        ("modality", "Modality"),
        ("sop_class", "SOPClassUID"),
        ("PatientID",) * 2,
    ):
        odd = _odd_one([value[key] for value in values])
        if odd is not None:
            problems.append(
                f"{file_prefix(path, headers[odd].name)}{keyword} differs from the other files' of "
                "its series; take it out or get the file again"
            )
    description = _common(value["description"] for value in values) or ""
    protocol = _common(value["protocol"] for value in values) or ""  # sometimes of the whole study
    sequence = _common(value["sequence"] for value in values) or ""
    echo_time, repetition_time = (  # 0 counts as missing
        _common(number_or_none(frame.tags.get(keyword)) or None for frame in frames)
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
        localizer=_localizer(words, types, plane),
        contrast=_contrast(frames, words, types, echo_time, repetition_time),
        patient_id=_common(value["PatientID"] for value in values) or "",
    )


def _odd_one(values):
    """Index of the first value that differs from the most frequent; None if all are equal."""
    usual = Counter(values).most_common(1)[0][0]
    return next((index for index, value in enumerate(values) if value != usual), None)


def number_or_none(text: str | None) -> float | None:
    """Returns the number that a text holds, else None."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _plane(frames):
    normals = [np.cross(f.orientation[:3], f.orientation[3:]) for f in frames if f.orientation]
    planes = {PLANES[int(np.argmax(np.abs(normal)))] for normal in normals if np.any(normal)}
    if len(planes) > 1:
        return "mixed"
    return planes.pop() if planes else "unknown"


def list_values(frames: Iterable[Frame], keyword: str) -> str:
    """Lists the different values of an attribute, sorted: "0, 800"."""
    values = {frame.tags.get(keyword, "") for frame in frames}
    ordered = sorted(values, key=lambda v: (v != "", number_or_none(v) or 0, v))
    return one_line(", ".join(value or "none" for value in ordered), 60)


def _diffusion(frames, words, types):
    if any((number_or_none(frame.tags.get("DiffusionBValue")) or 0) > 0 for frame in frames):
        return f"DiffusionBValue {list_values(frames, 'DiffusionBValue')}"
    if types & DIFFUSION_TYPES:
        return f"ImageType {', '.join(sorted(types & DIFFUSION_TYPES))}"
    if any(f.tags.get("AcquisitionContrast", "").upper() == "DIFFUSION" for f in frames):
        return "AcquisitionContrast DIFFUSION"
    found = re.search(DIFFUSION_WORDS, words)
    return f'description or sequence name "{found[0]}"' if found else ""


def _localizer(words, types, plane):
    if "LOCALIZER" in types:
        return "ImageType LOCALIZER"
    if plane == "mixed":
        return "slices in several planes"
    found = re.search(LOCALIZER_WORDS, words)
    return f'description "{found[0]}"' if found else ""


def _contrast(frames, words, types, echo_time, repetition_time):
    """See `Series.contrast`."""
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
