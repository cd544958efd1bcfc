"""MetaImage: what the header says, and whether the voxels are there, no more and no less.

SimpleITK reads the files, but fills up some that are cut, and takes ones that are too long.
"""

import zlib
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import SimpleITK as sitk

from src.errors import DataError
from src.images.formats import META_SUFFIXES, suffix_of
from src.images.voxel_bytes import check_length, expected_bytes

LINES_OF_A_HEADER = 200


def meta_header(file: BinaryIO) -> tuple[dict[str, str], int]:
    """The `key = value` lines of a MetaImage header, and how many bytes they take."""
    header = {}
    for line in file:
        key, _, value = line.decode("utf-8", "replace").partition("=")
        header[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile" or len(header) > LINES_OF_A_HEADER:
            break
    return header, file.tell()


def data_file(path: str | Path) -> Path:
    """The file that holds the voxels: the image file, or the one that a MetaImage header names.

    Raises:
        DataError: no such entry, several files, or a file outside the header's own folder.
    """
    path = Path(path)
    if suffix_of(path) not in META_SUFFIXES:
        return path
    with path.open("rb") as file:
        name = meta_header(file)[0].get("ElementDataFile", "")
    if not name:
        raise DataError(f"{path}: no ElementDataFile in its header; expected a MetaImage header")
    place = PureWindowsPath(name)  # knows both kinds of slashes, and drives
    if place.anchor or ".." in place.parts:
        raise DataError(
            f"{path}: ElementDataFile {name} is not in its folder; put the file there and "
            "write its bare name into the header"
        )
    if name.upper().startswith("LIST") or "%" in name:
        raise DataError(f"{path}: its voxels lie in several files; expected one, save it as .mha")
    return path if name.upper() == "LOCAL" else path.parent / name


def check_metaimage(path: Path, reader: sitk.ImageFileReader) -> None:
    """Compares the bytes of the voxels with what the header promises.

    Args:
        path: of the header.
        reader: which has read it.

    Raises:
        DataError: the data file is missing, damaged, truncated or too long.
    """
    voxels = data_file(path)
    with path.open("rb") as file:
        header, start = meta_header(file)
    if not voxels.is_file():
        raise DataError(
            f"{path}: its data file {voxels.name} is missing; copy it beside the header"
        )
    skipped = _header_size(path, header)
    content = voxels.read_bytes()[start if voxels == path else max(skipped, 0) :]
    if header.get("CompressedData", "").lower() == "true":
        try:  # zlib or gzip, as MetaIO
            content = zlib.decompress(content, wbits=32 + zlib.MAX_WBITS)
        except zlib.error:
            raise DataError(
                f"{voxels}: its compressed data is truncated or damaged; get the file again"
            ) from None
    expected = expected_bytes(reader)
    check_length(
        voxels, expected if skipped < 0 <= len(content) - expected else len(content), expected
    )


def _header_size(path, header):
    """Bytes before the voxels of a data file; -1: however many there are more than voxels."""
    try:
        return int(header.get("HeaderSize", 0))
    except ValueError:
        raise DataError(f"{path}: HeaderSize {header['HeaderSize']}, expected a number") from None
