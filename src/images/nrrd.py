"""Checks of NRRD files that SimpleITK does not make: patient axes, number of voxel bytes.

Format: teem.sourceforge.net/nrrd/format.html.
"""

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..utils.errors import DataError
from .formats import suffix_of
from .voxel_bytes import check_length, expected_bytes

# Spaces that ITK converts to LPS.
SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior")
SHORT_SPACES = ("LPS", "RAS", "LAS")
HEADER_END = re.compile(rb"\r?\n\r?\n")
NUMBER = r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*"
VECTOR = rf"\({NUMBER},{NUMBER},{NUMBER}\)"
# Field -> pattern of its value; `none` is the axis of a voxel's components.
FIELDS = {
    "sizes": r"\d+( +\d+){2,3}",
    "space directions": rf"(none +)?{VECTOR}( +{VECTOR}){{2}}( +none)?",
    "space origin": VECTOR,
}
TEXT = ("ascii", "text", "txt")
ENCODINGS = ("raw", "gzip", "gz", "hex", *TEXT)
DETACHED = ("data file", "datafile", "byte skip", "byteskip", "line skip", "lineskip")


def _header(path):
    """The fields, in lower case, and the bytes after them."""
    content = path.read_bytes()
    end = HEADER_END.search(content)
    if not content.startswith(b"NRRD") or end is None:
        raise DataError(
            f"{path}: its header cannot be read as {suffix_of(path)}; get the file again"
        )
    fields = {}
    for line in content[: end.start()].decode("utf-8", "replace").split("\n")[1:]:
        name, separator, value = line.partition(": ")
        name = name.strip().lower()
        if not separator or line.startswith("#"):
            continue
        if name in fields:
            raise DataError(f"{path}: {name} twice in its header; repair it")
        fields[name] = value.strip()
    return fields, content[end.end() :]


def check_header(path: Path) -> None:
    """Checks the geometry and the encoding in a header.

    Raises:
        DataError: not an NRRD header, no patient axes, units other than mm, a detached data file.
    """
    header, _ = _header(path)
    detached = [name for name in DETACHED if header.get(name, "0") != "0"]
    if detached:
        raise DataError(
            f"{path}: its voxels are in another file or behind other data ({detached[0]}); save it "
            "as one .nrrd file"
        )
    space = header.get("space", "none")
    if space.lower() not in SPACES and space.upper() not in SHORT_SPACES:
        raise DataError(
            f"{path}: no patient directions in its header (space: {space}), expected {SPACES[0]}; "
            "save it again with a program that writes them"
        )
    for name, pattern in FIELDS.items():
        if not re.fullmatch(pattern, header.get(name, "")):
            raise DataError(
                f"{path}: its header cannot be read as {suffix_of(path)}: {name} is "
                f"{header.get(name, 'missing')}; save it again with its geometry"
            )
    encoding = header.get("encoding", "missing")
    if encoding.lower() not in ENCODINGS:
        raise DataError(f"{path}: encoding {encoding}, expected gzip or raw; save it again")
    axes = re.findall(r"none|\(.*?\)", header["space directions"])
    kind = dict(zip(axes, header.get("kinds", "").split(), strict=False)).get("none")
    if kind in ("time", "space", "domain"):
        raise DataError(
            f"{path}: its axis without a direction is of kind {kind}, expected list or vector; "
            "save the wanted volume as a file of its own"
        )
    units = set(re.findall(r'"([^"]*)"', header.get("space units", ""))) - {"", "mm"}
    if units:
        raise DataError(
            f"{path}: space units {', '.join(sorted(units))}, expected mm; save it again in mm"
        )


def check_voxels(path: Path, reader: sitk.ImageFileReader) -> None:
    """Compares the number of voxel bytes with the header.

    Args:
        path: of the file.
        reader: has read the header.

    Raises:
        DataError: damaged, truncated or too long.
    """
    header, voxels = _header(path)
    encoding = header.get("encoding", "").lower()
    if encoding in ("gzip", "gz"):
        try:
            voxels = gzip.decompress(voxels)
        except (EOFError, OSError, zlib.error):
            raise DataError(
                f"{path}: its compressed data is truncated or damaged; get the file again"
            ) from None
    expected = expected_bytes(reader)
    count = int(np.prod(reader.GetSize())) * reader.GetNumberOfComponents()
    found = len(voxels)
    if encoding == "hex":
        found = len(b"".join(voxels.split())) // 2
    elif encoding in TEXT:
        found = len(voxels.split()) * (expected // count)
    check_length(path, found, expected)
