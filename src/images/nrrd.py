"""NRRD: are there patient axes, and the voxels, no more and no less? SimpleITK does not ask."""

import gzip
import re
import zlib
from pathlib import Path

import SimpleITK as sitk

from src.errors import DataError
from src.images.voxel_bytes import check_length, expected_bytes

# The spaces that ITK turns into its own, left-posterior-superior.
SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior")
SHORT_SPACES = ("LPS", "RAS", "LAS")
HEADER_END = re.compile(rb"\r?\n\r?\n")


def check_nrrd(path: Path, reader: sitk.ImageFileReader) -> None:
    """Looks at what SimpleITK takes as it comes.

    Args:
        path: of the file.
        reader: which has read its header.

    Raises:
        DataError: no patient axes, units other than mm, detached voxels, damaged, truncated or too
            long.
    """
    content = path.read_bytes()
    end = HEADER_END.search(content)
    lines = content[: end.start() if end else 0].decode("utf-8", "replace").splitlines()
    header = {
        key.strip().lower(): value.strip()
        for key, separator, value in (line.partition(":") for line in lines)
        if separator and not key.startswith("#")
    }
    if header.get("data file") or header.get("datafile"):
        raise DataError(f"{path}: its voxels lie in another file; save it as one .nrrd file")
    space = header.get("space", "none")
    if space.lower() not in SPACES and space.upper() not in SHORT_SPACES:
        raise DataError(
            f"{path}: no patient directions in its header (space: {space}), expected {SPACES[0]}; "
            "save it again with a program that knows them"
        )
    units = set(re.findall(r'"([^"]*)"', header.get("space units", ""))) - {"", "mm"}
    if units:
        raise DataError(f"{path}: space units {', '.join(sorted(units))}, expected mm")
    voxels = content[end.end() :]
    encoding = header.get("encoding", "raw").lower()
    if {"byte skip", "byteskip", "line skip", "lineskip"} & set(header):
        return
    if encoding in ("gzip", "gz"):
        try:
            voxels = gzip.decompress(voxels)
        except (EOFError, OSError, zlib.error):
            raise DataError(
                f"{path}: its compressed data is truncated or damaged; get the file again"
            ) from None
    elif encoding != "raw":
        return  # text and bzip2, of which SimpleITK sees the end
    check_length(path, len(voxels), expected_bytes(reader))
