"""MetaImage: what the header says, and whether the voxels are there, no more and no less.

SimpleITK reads the files, but fills up some that are cut, and takes ones that are too long.
Format: itk.org/Wiki/ITK/MetaIO/Documentation.
"""

import difflib
import re
import zlib
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import SimpleITK as sitk

from ..utils.errors import DataError
from .formats import META_SUFFIXES, suffix_of
from .voxel_bytes import check_length, expected_bytes

LINES_OF_A_HEADER = 200
REQUIRED = ("NDims", "DimSize", "ElementType", "ElementDataFile")
# Entries of numbers, and how many each takes for n axes.
NUMBERS = {
    **dict.fromkeys(("NDims", "HeaderSize", "CompressedDataSize"), "1"),
    "ElementNumberOfChannels": "1",
    **dict.fromkeys(("DimSize", "ElementSpacing", "ElementSize", "CenterOfRotation"), "n"),
    **dict.fromkeys(("Offset", "Position", "Origin"), "n"),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), "n x n"),
}
WHOLE = ("NDims", "DimSize", "HeaderSize", "CompressedDataSize", "ElementNumberOfChannels")
SYNONYMS = ({"Offset", "Position", "Origin"}, {"TransformMatrix", "Rotation", "Orientation"})
FLAGS = {"BinaryData", "CompressedData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB"}
OTHERS = "ObjectType ObjectSubType CompressionLevel AnatomicalOrientation "
OTHERS += "DistanceUnits TransformType Modality SequenceID ElementMin ElementMax Comment Name"
KNOWN = {*REQUIRED, *NUMBERS, *FLAGS, *OTHERS.split()}
# Those that say where and how the voxels lie, in lower case; MetaIO passes over ELEMENTSPACING.
COUNTING = {key.lower(): key for key in (*REQUIRED, *NUMBERS, *FLAGS)}
# MetaIO looks at the first letter only.
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
NUMBER_TYPES = ("CHAR", "SHORT", "INT", "LONG", "LONG_LONG", "FLOAT", "DOUBLE")
TYPES = [
    f"MET_{sign}{name}{ending}"
    for name in NUMBER_TYPES
    for sign in (("", "U") if name not in ("FLOAT", "DOUBLE") else ("",))
    for ending in ("", "_ARRAY")
]


def meta_header(file: BinaryIO) -> tuple[dict[str, str], int]:
    """The `key = value` lines of a MetaImage header, and how many bytes they take."""
    header = dict(_entries(file))
    return header, file.tell()


def _entries(file):
    for count, line in enumerate(file):
        key, _, value = line.decode("utf-8", "replace").partition("=")
        yield key.strip(), value.strip()
        if key.strip() == "ElementDataFile" or count >= LINES_OF_A_HEADER:
            break


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


def check_header(path: Path) -> None:
    """Checks the header as strictly as a geometry deserves.

    MetaIO takes `1.2x5` for 1.2, passes over entries that it does not know, and writes what it does
    not like to the terminal.

    Raises:
        DataError: no MetaImage header, or a damaged one.
    """
    with path.open("rb") as file:
        entries = list(_entries(file))
        header = dict(entries)
        behind = b"" if header.get("ElementDataFile", "").upper() == "LOCAL" else file.read(1024)
    missing = [key for key in REQUIRED if key not in header]
    if missing:
        raise DataError(
            f"{path}: its header cannot be read as {suffix_of(path)}, it has no {missing[0]}; get "
            "the file again"
        )
    for key in header.keys() - KNOWN:
        meant = difflib.get_close_matches(key.lower(), COUNTING, n=1, cutoff=0.75)
        if meant:
            name = COUNTING[meant[0]]
            raise DataError(f"{path}: {key} in its header, expected {name}; repair it")
    for keys in SYNONYMS:
        if len(keys & header.keys()) > 1:
            raise DataError(f"{path}: {' and '.join(sorted(keys & header.keys()))} in its header")
    if not {"ElementSpacing", "ElementSize"} & header.keys():
        raise DataError(f"{path}: no ElementSpacing in its header, so its voxels have no size")
    if header["ElementType"] not in TYPES:
        raise DataError(
            f"{path}: its header cannot be read as {suffix_of(path)}: ElementType "
            f"{header['ElementType']} is none of {', '.join(TYPES)}"
        )
    axes = len(header["DimSize"].split())
    for key, count in NUMBERS.items():
        if key in header:
            _check_numbers(path, key, header[key], {"n": axes, "n x n": axes * axes}.get(count, 1))
    if int(header["NDims"]) != axes:
        raise DataError(f"{path}: NDims = {header['NDims']}, but DimSize = {header['DimSize']}")
    keys = [key for key, _ in entries]
    twice = [key for key in keys if key in KNOWN and keys.count(key) > 1]
    if twice:
        raise DataError(f"{path}: {twice[0]} twice in its header; repair it")
    first = next(key for key in header if NUMBERS.get(key, "1") != "1" or key == "NDims")
    if first != "NDims":
        raise DataError(f"{path}: {first} before NDims in its header; move NDims above it")
    if behind.strip():
        line = behind.decode("utf-8", "replace").split()[0]
        raise DataError(
            f"{path}: {line} behind ElementDataFile, where nobody reads it; move ElementDataFile "
            "to the end"
        )
    for key in FLAGS & header.keys():
        if header[key].lower() not in BOOLEANS:
            raise DataError(f"{path}: {key} = {header[key]}, expected True or False")
    if not _flag(header, "BinaryData", True):
        raise DataError(f"{path}: its voxels are text (BinaryData = False); save them as binary")
    if header.get("DistanceUnits", "mm") not in ("mm", "?"):
        raise DataError(f"{path}: DistanceUnits = {header['DistanceUnits']}, expected mm")


def _flag(header, key, otherwise):
    return BOOLEANS[header[key].lower()] if key in header else otherwise


def _check_numbers(path, key, text, count):
    number = r"[+-]?\d+" if key in WHOLE else r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    values = text.split()
    if len(values) != count or not all(re.fullmatch(number, value) for value in values):
        raise DataError(
            f"{path}: its header cannot be read as {suffix_of(path)}: {key} = {text}, expected "
            f"{count} number(s)"
        )


def check_voxels(path: Path, reader: sitk.ImageFileReader) -> None:
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
    skipped = int(header.get("HeaderSize", 0))  # -1: however many there are more than voxels
    content = voxels.read_bytes()[start if voxels == path else max(skipped, 0) :]
    if _flag(header, "CompressedData", False):
        content = _unpacked(content, header, voxels, alone=voxels != path)
    expected = expected_bytes(reader)
    check_length(
        voxels, expected if skipped < 0 <= len(content) - expected else len(content), expected
    )


def _unpacked(content, header, voxels, alone):
    unpacker = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # zlib or gzip, as MetaIO
    try:
        unpacked = unpacker.decompress(content) + unpacker.flush()
    except zlib.error:
        unpacked = b""
    if not unpacker.eof:
        raise DataError(
            f"{voxels}: its compressed data is truncated or damaged; get the file again"
        )
    # MetaIO takes so many bytes, and leaves the voxels as they are in memory where it cannot unpack
    # them; without the entry all of the file.
    stated = int(header.get("CompressedDataSize", 0))
    packed = len(content) - len(unpacker.unused_data)
    if stated != packed and not (stated == 0 and alone):
        raise DataError(
            f"{voxels}: CompressedDataSize {stated or 'missing'}, its compressed data has {packed} "
            "bytes; get the file again"
        )
    return unpacked
