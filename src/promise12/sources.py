"""A source of data, a folder or a zip: its files, volumes and DICOM files."""

import io
import re
import shutil
import stat
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..images.dicom import holds_dicom, is_dicom
from ..images.formats import META_SUFFIXES, SUFFIXES, stem, suffix_of
from ..images.metaimage import read_meta_header
from ..utils.errors import DataError
from ..utils.files import walk
from .names import relative_path

START_BYTES = 1 << 16
# Files with these suffixes are not opened to detect DICOM.
NO_DICOM = (*SUFFIXES, ".raw", ".zraw", ".zip", ".json", ".csv", ".txt", ".md", ".png", ".pdf")

# Programs for compression methods that zipfile does not support (older archives use Deflate64), and
# their arguments to write one entry to stdout. The entry's size and CRC are checked afterwards.
UNPACKERS = {
    "7zz": ("x", "-so", "-spd", "--"),
    "7z": ("x", "-so", "-spd", "--"),
    "unzip": ("-p",),
}


@dataclass(frozen=True)
class Member:
    """A file of a source.

    Attributes:
        path: the source's name (without .zip) and the path in the source.
        read: returns its bytes.
        file: the file on disk; None inside a zip.
    """

    path: PurePosixPath
    read: Callable[[], bytes]
    file: Path | None = None

    def start(self) -> bytes:
        """Returns the first bytes, enough for a header."""
        if self.file is None:
            return self.read()
        with self.file.open("rb") as file:
            return file.read(START_BYTES)

    def local(self, folder: Path) -> Path:
        """Returns the file on disk; one in a zip is unpacked below `folder`."""
        if self.file:
            return self.file
        unpacked = folder / self.path
        if not unpacked.exists():
            unpacked.parent.mkdir(parents=True, exist_ok=True)
            unpacked.write_bytes(self.read())
        return unpacked


@dataclass(frozen=True)
class Volume:
    """A file with one of `SUFFIXES`, and the file of its voxels if that is another one."""

    header: Member
    voxels: Member | None = None

    @property
    def path(self) -> PurePosixPath:
        """See `Member.path`."""
        return self.header.path

    @property
    def relative(self) -> str:
        """The path below the source."""
        return relative_path(self.path)

    @property
    def suffix(self) -> str:
        """The image suffix as spelt in the name."""
        return self.path.name[len(stem(self.path)) :]

    def local(self, folder: Path) -> Path:
        """Returns the file on disk, with its voxels beside it."""
        if self.voxels:
            self.voxels.local(folder)
        return self.header.local(folder)


@dataclass(frozen=True)
class Dicom:
    """A folder of DICOM files.

    Attributes:
        path: see `Member.path`.
        files: all files below it except volumes.
    """

    path: PurePosixPath
    files: tuple[Member, ...] = field(repr=False)

    @property
    def relative(self) -> str:
        """The path below the source."""
        return relative_path(self.path)

    def local(self, folder: Path) -> Path:
        """Returns the folder on disk."""
        for member in self.files:
            file = member.local(folder)
        return file.parents[len(member.path.relative_to(self.path).parts) - 1]


class Source:
    """A folder or a zip.

    Args:
        path: of the folder or zip.
        exclude: a folder to ignore: that of the output.

    Attributes:
        members: all files but hidden ones, by path.
        set_aside: volumes that `--mask_pattern` has matched; no longer in `volumes`.

    Raises:
        DataError: neither a folder nor a zip, or a zip that cannot be used.
    """

    def __init__(self, path: Path, exclude: Path | None = None) -> None:
        self.path = path
        self.set_aside: set[PurePosixPath] = set()
        if path.is_dir():
            members = _folder_members(path, exclude)
        elif path.is_file():
            members = _zip_members(path)
        else:
            raise DataError(f"{path}: no such file or folder; expected zip files or a folder")
        self.members = {
            member.path: member
            for member in members
            if not any(part.startswith((".", "__MACOSX")) for part in member.path.parts[1:])
        }

    @property
    def volumes(self) -> list[Volume]:
        """The volumes by path, without those set aside."""
        return [volume for volume in self.all_volumes if volume.path not in self.set_aside]

    @cached_property
    def all_volumes(self) -> list[Volume]:
        """The volumes by path."""
        headers = [member for path, member in self.members.items() if suffix_of(path)]
        return [Volume(member, self._voxels(member)) for member in headers]

    def _voxels(self, header):
        name = data_file_name(header.start()) if suffix_of(header.path) in META_SUFFIXES else None
        if name is None or ".." in PurePosixPath(name).parts:
            return None
        return self.members.get(header.path.parent / name)  # below it, or absolute and not found

    @cached_property
    def dicom(self) -> list[Member]:
        """The DICOM files by path, without DICOMDIR."""
        return [
            member
            for path, member in self.members.items()
            if path.name.upper() != "DICOMDIR"
            and not path.name.lower().endswith(NO_DICOM)
            and _is_dicom(member)
        ]

    def dicom_folder(self, path: PurePosixPath) -> Dicom:
        """Returns a folder of DICOM files with all of its files but volumes.

        Files that are not recognized as DICOM are included, since they may be damaged slices.

        Args:
            path: see `Member.path`.
        """
        members = (member for place, member in self.members.items() if path in place.parents)
        return Dicom(path, tuple(member for member in members if not suffix_of(member.path)))


def _is_dicom(member):
    return is_dicom(member.file) if member.file else holds_dicom(io.BytesIO(member.read()))


def data_file_name(header: bytes) -> str | None:
    """Returns ElementDataFile of a MetaImage header; None if the voxels are in the same file."""
    name = read_meta_header(io.BytesIO(header))[0].get("ElementDataFile", "LOCAL")
    return None if name.upper() == "LOCAL" else name


def _folder_members(source: Path, exclude: Path | None) -> list[Member]:
    root = source.resolve()
    left_out = exclude.resolve() if exclude else None
    found = []
    for place, folders, names in walk(root):
        folders[:] = [name for name in folders if place / name != left_out]
        found += [place / name for name in names if (place / name).is_file()]
    return [
        Member(PurePosixPath(root.name, path.relative_to(root)), path.read_bytes, path)
        for path in sorted(found, key=lambda path: (len(path.parts), path))
    ]


def _zip_members(source: Path) -> list[Member]:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        remedy = "fetch the archive again, or unpack it and pass the folder"
        raise DataError(f"{source}: cannot be opened as a zip file ({error}); {remedy}") from error
    members = []
    for entry in entries:
        path = PureWindowsPath(entry.filename)  # also splits at the backslashes of some archives
        if path.anchor or ".." in path.parts or stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(
                f"{source}: entry {entry.filename!r} would leave the folder it is unpacked to; "
                "nothing was unpacked, get the archive from a source you trust"
            )
        if not entry.is_dir():
            members.append(
                Member(
                    PurePosixPath(source.stem, *path.parts),
                    partial(_read_entry, source, entry),
                )
            )
    return members


def _read_entry(source: Path, entry: zipfile.ZipInfo) -> bytes:
    try:
        with zipfile.ZipFile(source) as archive:
            return archive.read(entry)
    except NotImplementedError:
        return _read_with_program(source, entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(
            f"{source}: {entry.filename} cannot be unpacked ({error}); fetch the archive again"
        ) from error


def _read_with_program(source: Path, entry: zipfile.ZipInfo) -> bytes:
    tool = next(filter(shutil.which, UNPACKERS), None)
    if tool is None:
        raise DataError(
            f"{source}: Python cannot unpack {entry.filename} (compression method "
            f"{entry.compress_type}; 9 is Deflate64); install 7-Zip (Debian: apt install 7zip, "
            "before Debian 12 p7zip-full) and run the command again"
        )
    if not re.fullmatch(r"[\w. /][\w. /-]*", entry.filename):
        raise DataError(
            f"{source}: {entry.filename!r} cannot be passed to {tool} as a name; unpack the "
            "archive yourself and pass the folder to --source"
        )
    command = [tool, *UNPACKERS[tool], str(source.resolve()), entry.filename]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if len(result.stdout) != entry.file_size or zlib.crc32(result.stdout) != entry.CRC:
        reason = " ".join(result.stderr.decode(errors="replace").split())
        raise DataError(
            f"{source}: {tool} cannot unpack {entry.filename} ({reason or 'size or CRC differs'}); "
            "fetch the archive again"
        )
    return result.stdout
