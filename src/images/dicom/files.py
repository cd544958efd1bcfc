"""The files of a folder tree, a zip or a single path: which of them are DICOM, and their bytes."""

import io
import logging
import os
import threading
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.uid import UID_dictionary

from ...utils.errors import DataError

_reading = threading.Lock()  # `quiet` changes what the whole process warns of
# What tells an image without the preamble of part 10.
IMAGE_TAGS = ["SOPClassUID", "SOPInstanceUID", "Rows", "Columns"]


class Files:
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
                f"{self.path}: cannot be opened as a zip ({one_line(error)}); get it again"
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


def starts_like_dicom(start: bytes) -> bool:
    """Part 10, or a data set without preamble, which starts with group 0002 or 0008."""
    plain = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")
    return start[128:132] == b"DICM" or (len(start) == 132 and start[:2] in plain)


def is_image_without_preamble(ds):
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
        with path.open("rb") as file, quiet():
            start = file.read(132)
            if not starts_like_dicom(start):
                return False
            if start[128:] == b"DICM":
                return True
            file.seek(0)
            return is_image_without_preamble(
                pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=IMAGE_TAGS)
            )
    except Exception:  # unreadable, or not what its first bytes promise
        return False


def dicom_files(path: str | Path) -> list[Path]:
    """The DICOM files below a folder; DICOMDIR and hidden files aside. Empty for anything else."""
    path = Path(path)
    if not path.is_dir():
        return []
    return [path / name for name in _names_below(path) if is_dicom(path / name)]


@contextmanager
def quiet():
    """pydicom's own words do not reach the user."""
    logger = logging.getLogger("pydicom")
    with _reading, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        was_disabled, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = was_disabled


def one_line(value, length=120):
    """A value for a message: one line of printable characters, not too long."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
