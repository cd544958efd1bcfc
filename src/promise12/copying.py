"""Writes placed files to the output folder, all or none: copies, and converted volumes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from ..images.reading import read_volume
from ..images.writing import move_volumes, write_volume
from ..utils.errors import DataError
from ..utils.files import temporary_folder
from .sources import Member

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """A volume that is read and written again.

    Attributes:
        path: see `Member.path`.
        make: returns the image, and the file whose NIfTI header to keep (`write_volume`'s `like`).
    """

    path: PurePosixPath
    make: Callable[[], tuple[sitk.Image, Path | None]]


File = Member | Conversion


def write_all(placed: dict[PurePosixPath, File], out_path: Path) -> set[PurePosixPath]:
    """Writes the files that do not exist yet, all or none.

    They are written to a hidden folder first; then whole sets are renamed, or files beside existing
    ones.

    Args:
        placed: {path below `out_path`: file}.
        out_path: created if absent.

    Returns:
        The paths that were written.

    Raises:
        DataError: a file exists with other content, or cannot be read or written.
    """
    copies = {t: f for t, f in placed.items() if isinstance(f, Member) and _is_new(t, f, out_path)}
    conversions = {t: f for t, f in placed.items() if isinstance(f, Conversion)}
    for left in out_path.glob(".unpacking-*"):
        log.info(f"{left}: left behind by a killed run; it can be deleted")
    with temporary_folder(out_path, ".unpacking-") as staging:
        written = set(copies)
        for target, file in tqdm(
            {**conversions, **copies}.items(), desc="Laying out", unit="file", disable=None
        ):
            staged = staging / target
            staged.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file, Member):
                staged.write_bytes(file.read())
            elif _convert(file, staged, out_path / target):
                written.add(target)
        _rename(staging, out_path)
    return written


def _is_new(target, member, out_path):
    final = out_path / target
    if not final.exists():
        return True
    if not final.is_file() or final.read_bytes() != member.read():
        raise _differs(final, member)
    return False


def _differs(final, file):
    return DataError(
        f"{final}: is there already and differs from {file.path}; move it away or choose another "
        "--out_path"
    )


def _convert(conversion, staged, final):
    """Writes a volume; returns False if the same one exists already."""
    image, like = conversion.make()
    if not final.exists():
        write_volume(image, staged, like)
        return True
    try:
        there = read_volume(final)
    except DataError:
        raise _differs(final, conversion) from None
    with temporary_folder(staged.parent, ".comparing-") as folder:
        again = folder / staged.name
        write_volume(image, again, like)
        written = read_volume(again)
    same = (
        written.GetPixelID() == there.GetPixelID()
        and written.GetSize() == there.GetSize()
        and written.GetSpacing() == there.GetSpacing()
        and written.GetOrigin() == there.GetOrigin()
        and written.GetDirection() == there.GetDirection()
        and np.array_equal(sitk.GetArrayViewFromImage(written), sitk.GetArrayViewFromImage(there))
    )
    if not same:
        raise _differs(final, conversion)
    return False


def _rename(staging, out_path):
    """Moves the sets in `staging` to `out_path`, without empty folders."""
    for staged_set in staging.iterdir():
        final_set = out_path / staged_set.name
        for empty in [folder for folder in staged_set.iterdir() if not any(folder.iterdir())]:
            empty.rmdir()
        if not any(staged_set.iterdir()):
            continue
        if final_set.exists():
            move_volumes(staged_set, final_set)
        else:
            staged_set.rename(final_set)
