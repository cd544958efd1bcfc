"""Checks of MetaImage files (`.mhd`, `.mha`): header entries, number of voxel bytes.

SimpleITK reads the files, but pads some that are truncated and accepts ones that are too long.
Format: itk.org/Wiki/ITK/MetaIO/Documentation.
"""

import difflib
import re
import zlib
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import SimpleITK as sitk

from ..utils.errors import DataError
from ..utils.log import warn_once
from .formats import META_SUFFIXES, suffix_of
from .voxel_bytes import check_length, expected_bytes

MAX_HEADER_LINES = 5000  # of other files, that have no ElementDataFile
REQUIRED = ("NDims", "DimSize", "ElementType", "ElementDataFile")
POSITIONS = {"Offset", "Position", "Origin", "ImagePosition"}
DIRECTIONS = {"TransformMatrix", "Rotation", "Orientation"}
UNKNOWN_ORIENTATION, IDENTITY_ORIENTATION = "???", "RAI"
# Numeric entries, and how many numbers each has for n axes.
NUMBERS = {
    **dict.fromkeys(("NDims", "HeaderSize", "CompressedDataSize"), "1"),
    "ElementNumberOfChannels": "1",
    **dict.fromkeys(("DimSize", "ElementSpacing", "ElementSize", "CenterOfRotation"), "n"),
    **dict.fromkeys(POSITIONS, "n"),
    **dict.fromkeys(DIRECTIONS, "n x n"),
}
INTEGERS = ("NDims", "DimSize", "HeaderSize", "CompressedDataSize", "ElementNumberOfChannels")
SYNONYMS = (POSITIONS, DIRECTIONS)
BYTE_ORDERS = {"BinaryDataByteOrderMSB", "ElementByteOrderMSB"}
FLAGS = {"BinaryData", "CompressedData", *BYTE_ORDERS}
OTHERS = "ObjectType ObjectSubType CompressionLevel AnatomicalOrientation "
OTHERS += "DistanceUnits TransformType Modality SequenceID ElementMin ElementMax Comment Name"
KNOWN = {*REQUIRED, *NUMBERS, *FLAGS, *OTHERS.split()}
# Entries that define voxels and geometry, by their names in lower case: MetaIO ignores misspelt
# ones, such as ELEMENTSPACING.
GEOMETRY_KEYS = {key.lower(): key for key in (*REQUIRED, *NUMBERS, *FLAGS)}
# MetaIO reads the first letter only.
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
NUMBER_TYPES = ("CHAR", "SHORT", "INT", "LONG", "LONG_LONG", "FLOAT", "DOUBLE")
TYPES = [
    f"MET_{sign}{name}{ending}"
    for name in NUMBER_TYPES
    for sign in (("", "U") if name not in ("FLOAT", "DOUBLE") else ("",))
    for ending in ("", "_ARRAY")
]


def read_meta_header(file: BinaryIO) -> tuple[dict[str, str], int]:
    """Returns the `key = value` lines of a MetaImage header, and their number of bytes."""
    header = dict(_entries(file))
    return header, file.tell()


def _entries(file):
    for count, line in enumerate(file):
        key, _, value = line.decode("utf-8", "replace").partition("=")
        yield key.strip(), value.strip()
        if key.strip() == "ElementDataFile" or count >= MAX_HEADER_LINES:
            break


def names_several_files(name: str) -> bool:
    """Whether MetaIO takes the name of a data file for a list or a pattern of files."""
    return name.startswith("LIST") or "%" in name


def data_file(path: str | Path) -> Path:
    """Returns the file that holds the voxels: `path`, or the file that a MetaImage header names.

    Raises:
        DataError: no such entry, several files, or a file outside the header's own folder.
    """
    path = Path(path)
    if suffix_of(path) not in META_SUFFIXES:
        return path
    with path.open("rb") as file:
        name = read_meta_header(file)[0].get("ElementDataFile", "")
    if not name:
        raise DataError(f"{path}: no ElementDataFile in its header; expected a MetaImage header")
    place = PureWindowsPath(name)  # handles both kinds of slashes, and drives
    if place.anchor or ".." in place.parts:
        raise DataError(
            f"{path}: ElementDataFile {name} is not in the header's folder; put the file there and "
            "write its name without a folder into the header"
        )
    if names_several_files(name):
        raise DataError(f"{path}: its voxels are in several files, expected one; save it as .mha")
    return path if name.upper() == "LOCAL" else path.parent / name


def check_header(path: Path) -> None:
    """Checks the entries of a header, more strictly than MetaIO.

    MetaIO reads `1.2x5` as 1.2, ignores unknown entries and prints errors to the terminal.

    Raises:
        DataError: not a MetaImage header, or a damaged one.
    """
    with path.open("rb") as file:
        entries = list(_entries(file))
        header = dict(entries)
        is_local = header.get("ElementDataFile", "").upper() == "LOCAL"
        behind = b"" if is_local else file.read(1024)
    _check_keys(path, header)
    data_file(path)  # one file: the lines of a list of them would be taken for entries
    _check_values(path, header)
    _check_order(path, entries, behind)
    _check_encoding(path, header)
    _check_place(path, header, is_local)
    if not DIRECTIONS & header.keys():
        letters = header.get("AnatomicalOrientation", UNKNOWN_ORIENTATION)
        if letters not in (UNKNOWN_ORIENTATION, IDENTITY_ORIENTATION):
            raise DataError(
                f"{path}: AnatomicalOrientation = {letters}, but no TransformMatrix in its header; "
                "programs that read it take no notice of the former: add the latter"
            )
        warn_once(
            f"note: {path}: no TransformMatrix in its header, so its axes are taken as the "
            "patient's: to the left, to the back, to the head"
        )


def _check_keys(path, header):
    """Missing, misspelt and contradictory entries."""
    missing = [key for key in REQUIRED if key not in header]
    if missing:
        raise DataError(
            f"{path}: its header cannot be read as {suffix_of(path)}, it has no {missing[0]}; get "
            "the file again"
        )
    for key in header.keys() - KNOWN:
        meant = difflib.get_close_matches(key.lower(), GEOMETRY_KEYS, n=1, cutoff=0.84)
        if meant:
            name = GEOMETRY_KEYS[meant[0]]
            raise DataError(f"{path}: {key} in its header, expected {name}; repair it")
    for keys in SYNONYMS:
        if len(keys & header.keys()) > 1:
            both = " and ".join(sorted(keys & header.keys()))
            raise DataError(f"{path}: {both} in its header, expected one of them; repair it")
    if not {"ElementSpacing", "ElementSize"} & header.keys():
        raise DataError(
            f"{path}: no ElementSpacing in its header, so the voxel size is unknown; add it"
        )


def _check_values(path, header):
    if header["ElementType"] not in TYPES:
        raise DataError(
            f"{path}: its header cannot be read as {suffix_of(path)}: ElementType "
            f"{header['ElementType']} is none of {', '.join(TYPES)}; save it "
            "again as one of them"
        )
    axes = len(header["DimSize"].split())
    for key, count in NUMBERS.items():
        if key in header:
            _check_numbers(path, key, header[key], {"n": axes, "n x n": axes * axes}.get(count, 1))
    if int(header["NDims"]) != axes:
        raise DataError(
            f"{path}: NDims = {header['NDims']}, but DimSize = {header['DimSize']}; repair its "
            "header"
        )


def _check_order(path, entries, behind):
    """Repeated entries, and entries where MetaIO does not read them."""
    keys = [key for key, _ in entries]
    repeated = [key for key in keys if key in KNOWN and keys.count(key) > 1]
    if repeated:
        raise DataError(f"{path}: {repeated[0]} twice in its header; repair it")
    first = next(key for key in keys if NUMBERS.get(key, "1") != "1" or key == "NDims")
    if first != "NDims":
        raise DataError(f"{path}: {first} before NDims in its header; move NDims above it")
    if behind.strip():
        line = behind.decode("utf-8", "replace").split()[0]
        raise DataError(
            f"{path}: {line} after ElementDataFile, where it is not read; move ElementDataFile to "
            "the end of the header"
        )


def _check_encoding(path, header):
    for key in FLAGS & header.keys():
        if header[key].lower() not in BOOLEANS:
            raise DataError(f"{path}: {key} = {header[key]}, expected True or False; repair it")
    orders = {_flag(header, key, None) for key in BYTE_ORDERS & header.keys()}
    if len(orders) > 1:
        raise DataError(
            f"{path}: {' and '.join(sorted(BYTE_ORDERS))} contradict each other in its header; "
            "keep the right one"
        )
    if not _flag(header, "BinaryData", True):
        raise DataError(f"{path}: its voxels are text (BinaryData = False); save it as binary")
    if header.get("DistanceUnits", "mm") not in ("mm", "?"):
        raise DataError(
            f"{path}: DistanceUnits = {header['DistanceUnits']}, expected mm; save it again in mm"
        )


def _check_place(path, header, is_local):
    """Where the voxels begin, which MetaIO takes from HeaderSize where it is positive."""
    skipped = int(header.get("HeaderSize", 0))
    is_compressed = _flag(header, "CompressedData", False)
    if skipped < -1 or (skipped > 0 and is_local) or (skipped < 0 and is_compressed):
        expected = "none with ElementDataFile = LOCAL" if is_local else "0 or more bytes"
        raise DataError(f"{path}: HeaderSize = {skipped}, expected {expected}; repair its header")


def _flag(header, key, default):
    return BOOLEANS[header[key].lower()] if key in header else default


def _check_numbers(path, key, text, count):
    number = r"[+-]?\d+" if key in INTEGERS else r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    values = text.split()
    if len(values) != count or not all(re.fullmatch(number, value) for value in values):
        raise DataError(
            f"{path}: its header cannot be read as {suffix_of(path)}: {key} = {text}, expected "
            f"{count} number(s); repair it"
        )


def check_voxels(path: Path, reader: sitk.ImageFileReader) -> None:
    """Compares the number of voxel bytes with the header.

    Args:
        path: of the header.
        reader: has read the header.

    Raises:
        DataError: the data file is missing, damaged, truncated or too long.
    """
    voxels = data_file(path)
    with path.open("rb") as file:
        header, start = read_meta_header(file)
    if not voxels.is_file():
        raise DataError(
            f"{path}: its data file {voxels.name} is missing; copy it beside the header"
        )
    skipped = int(header.get("HeaderSize", 0))  # -1: the voxels are the end of the file
    content = voxels.read_bytes()[start if voxels == path else max(skipped, 0) :]
    if _flag(header, "CompressedData", False):
        alone = voxels != path and skipped == 0
        content = _decompress(content, header, voxels, alone)
    expected = expected_bytes(reader)
    check_length(
        voxels, expected if skipped < 0 <= len(content) - expected else len(content), expected
    )


def _decompress(content, header, voxels, alone):
    decompressor = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # zlib or gzip, as MetaIO
    try:
        voxel_bytes = decompressor.decompress(content) + decompressor.flush()
    except zlib.error:
        voxel_bytes = b""
    if not decompressor.eof:
        raise DataError(
            f"{voxels}: its compressed data is truncated or damaged; get the file again"
        )
    # MetaIO decompresses CompressedDataSize bytes (the whole file if the entry is missing). If that
    # fails, it returns voxels in uninitialized memory.
    stated = int(header.get("CompressedDataSize", 0))
    found = len(content) - len(decompressor.unused_data)
    if stated != found and not (stated == 0 and alone):
        raise DataError(
            f"{voxels}: CompressedDataSize {stated or 'missing'}, its compressed data has {found} "
            "bytes; get the file again"
        )
    return voxel_bytes
