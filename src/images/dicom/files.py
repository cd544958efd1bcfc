"""Access to the files of a folder tree, a zip or a single path; detection of DICOM files."""

import io
import logging
import threading
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any, BinaryIO, TypeVar

import pydicom
from pydicom.uid import UID_dictionary

from ...utils.errors import DataError
from ...utils.files import walk

_quiet_lock = threading.Lock()  # `quiet` changes the warnings of the whole process
# What Python's zipfile unpacks; Windows writes large files as Deflate64.
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
AnyPath = TypeVar("AnyPath", bound=PurePath)
# Attributes that identify an image without the preamble of part 10.
IMAGE_TAGS = ["SOPClassUID", "SOPInstanceUID", "Rows", "Columns"]


class Files:
    """The files below a folder, in a zip, or a single file.

    Attributes:
        names: paths relative to the folder or in the zip, with `/`.

    Raises:
        DataError: nothing there, or a zip that cannot be opened or unpacked, or is encrypted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zip: zipfile.ZipFile | None = None
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
                f"{self.path}: cannot be opened as a zip ({one_line(error)}); get it again"
            ) from None
        members = [info for info in self.zip.infolist() if not info.is_dir()]
        if any(info.flag_bits & 1 for info in members):
            raise DataError(f"{self.path}: encrypted zip; unpack it and give the folder")
        for info in members:
            if info.compress_type not in ZIP_METHODS:
                raise DataError(
                    f"{self.path}: {one_line(info.filename)} has compression method "
                    f"{info.compress_type} (9 is Deflate64), which Python cannot unpack; unpack "
                    "the zip and give the folder"
                )
        self.names = sorted(
            {info.filename for info in members if not _is_hidden(info.filename.split("/"))}
        )

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_: object) -> None:
        if self.zip:
            self.zip.close()

    def open(self, name: str) -> BinaryIO:
        """Opens a file; the bytes of a zip member are read and checked here."""
        if self.zip:
            return io.BytesIO(self.zip.read(name))  # seekable, for pydicom
        return (self.root / name).open("rb")

    def start(self, name: str, count: int = 132) -> bytes:
        """Returns the first bytes of a file."""
        file: IO[bytes] = self.zip.open(name) if self.zip else (self.root / name).open("rb")
        with file:
            return file.read(count)


def _is_hidden(parts):
    return parts[-1].upper() == "DICOMDIR" or any(
        part.startswith(".") or part == "__MACOSX" for part in parts
    )


def _names_below(folder):
    for place, folders, names in walk(folder):
        folders[:] = [name for name in folders if not _is_hidden([name])]
        for name in names:
            path = place / name
            if not _is_hidden([name]) and path.is_file():  # a pipe would block
                yield path.relative_to(folder).as_posix()


def starts_like_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes are those of a DICOM file.

    These are the preamble of part 10, or a data set that starts with group 0002 or 0008.
    """
    plain = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")
    return start[128:132] == b"DICM" or (len(start) == 132 and start[:2] in plain)


def is_image_without_preamble(ds: pydicom.Dataset) -> bool:
    """Whether a data set has the attributes of an image; pydicom's `force` parses any file."""
    return str(ds.get("SOPClassUID", "")) in UID_dictionary and bool(
        ds.get("Rows") and ds.get("Columns") and ds.get("SOPInstanceUID")
    )


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM: part 10, or the data set of an image without preamble."""
    path = Path(path)
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return holds_dicom(file)
    except OSError:
        return False


def holds_dicom(file: BinaryIO) -> bool:
    """Whether an open file is DICOM, see `is_dicom`."""
    try:
        start = file.read(132)
        if not starts_like_dicom(start):
            return False
        if start[128:] == b"DICM":
            return True
        file.seek(0)
        with quiet():
            return is_image_without_preamble(
                pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=IMAGE_TAGS)
            )
    except Exception:  # pydicom raises exceptions of many types for other files
        return False


def dicom_files(path: str | Path) -> list[Path]:
    """Returns the DICOM files below a folder, without DICOMDIR and hidden files; else []."""
    path = Path(path)
    if not path.is_dir():
        return []
    return [path / name for name in _names_below(path) if is_dicom(path / name)]


def damaged_files(files: Iterable[AnyPath], dicom: Iterable[AnyPath]) -> list[AnyPath]:
    """Returns files that are named as DICOM but are not, in folders without any DICOM file.

    Those beside DICOM files are problems of their series, see `find_series`.

    Args:
        files: all files of a folder tree.
        dicom: those that are DICOM.
    """
    places = {file.parent for file in dicom}
    return [
        file
        for file in files
        if file.suffix.lower() in DICOM_SUFFIXES and file.parent not in places
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses pydicom's warnings and log messages."""
    logger = logging.getLogger("pydicom")
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        was_disabled, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = was_disabled


def read_texts(file: Path | BinaryIO, *keywords: str) -> list[str]:
    """Reads attributes of a DICOM file, with or without preamble, as texts.

    Those that it lacks are empty, and all of a damaged file, which reading its series reports.
    """
    try:
        with quiet():
            header = pydicom.dcmread(
                file, stop_before_pixels=True, force=True, specific_tags=list(keywords)
            )
            return [str(header.get(keyword, "")) for keyword in keywords]
    except Exception:  # pydicom raises exceptions of many types
        return [""] * len(keywords)


def one_line(value: Any, length: int = 120) -> str:
    """Formats a value for a message: one line of at most `length` printable characters."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
