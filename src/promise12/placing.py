"""Lays sources out as img/ and gt/, whole or not at all; their own files stay as they are."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from ..images.formats import MASK_SUFFIX
from ..images.reading import check_no_label_map, read_mask, read_volume
from ..images.writing import move_volumes, write_volume
from ..utils.errors import DataError
from ..utils.files import temporary_folder
from .checking import is_stack
from .layouts import Layout, Options, Pair, detect_layout
from .sources import Dicom, Member, Source, Volume

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """A volume that is written anew.

    Attributes:
        path: place in the source.
        make: returns the image, and the file that it has its header from.
    """

    path: PurePosixPath
    make: Callable[[], tuple[sitk.Image, Path | None]]


File = Member | Conversion


def lay_out(sources: list[Path], out_path: Path, options: Options | None = None) -> None:
    """Copies volumes to `out_path/SET/img` and `out_path/SET/gt`, SET being a key of `SETS`.

    What is where in a source, `src.promise12.layouts` finds out. A volume's set follows from the
    names of its folder, the folders above, and its source: train..., test..., live...; where none
    tells, sources with masks become TrainData, those without TestData. Files are copied byte for
    byte, but for 4-D and DICOM images and masks of other labels than 0 and 1, which are converted
    with their geometry, and detached MetaImage headers that get another name. Files that are there
    already with the same content are kept. New ones get their names when all of them are complete.

    Args:
        sources: zip files and folders; they stay as they are.
        out_path: where the sets go.
        options: how to read them.

    Raises:
        DataError: a source cannot be used or understood, an image is a label map, or two files of
            different content have one target.
    """
    options = options or Options()
    with tempfile.TemporaryDirectory(prefix="prepare_data-") as unpacked:
        folders = {Path(unpacked, str(number)): path for number, path in enumerate(sources)}
        try:
            placed = _place(folders, out_path, options)
            written = _write_all(placed, out_path)
        except DataError as error:
            message = str(error)
            for folder, path in folders.items():
                message = message.replace(
                    f"{folder / path.stem}/", f"{path}: "
                )  # what was read from a zip
            raise DataError(message) from None
    for name in sorted({target.parts[0] for target in placed}):
        count = sum(target.parts[0] == name for target in placed)
        new = sum(target.parts[0] == name for target in written)
        log.info(f"{out_path / name}: {new} files written, {count - new} there already")


def _place(folders, out_path, options):
    """Where each file of the sources goes; `folders` are for unpacking each of them."""
    placed: dict[PurePosixPath, File] = {}
    for folder, path in folders.items():
        source = Source(path, out_path)
        layout, pairs = detect_layout(source, options)
        _say(source, layout, pairs)
        for target, file in _files(layout, pairs, folder, options):
            other = placed.setdefault(target, file)
            if other is not file and not _same(other, file):
                raise DataError(
                    f"{path}: {file.path} and {other.path} differ and would both become "
                    f"{target}; lay them out into different --out_path folders"
                )
    return placed


def _say(source, layout, pairs):
    images = sum(pair.image is not None for pair in pairs)
    masks = sum(pair.mask is not None for pair in pairs)
    log.info(f"{source.path}: taken for {layout.name}: {images} image(s), {masks} mask(s)")
    for remark in layout.remarks:
        log.info(f"  {remark}")


def _same(one, other):
    return isinstance(one, Member) and isinstance(other, Member) and one.read() == other.read()


# What becomes of a volume -----------------------------------------------------------------------


def _files(layout: Layout, pairs: list[Pair], folder: Path, options: Options):
    """Where each file goes, relative to the output folder."""
    for pair in tqdm(pairs, desc="Reading", unit="case", disable=None):
        if pair.image:
            target = PurePosixPath(pair.set_name, "img", pair.case)
            yield from _image_files(pair.image, target, layout, folder, options)
        if pair.mask:
            target = PurePosixPath(pair.set_name, "gt", pair.case + MASK_SUFFIX)
            yield from _mask_files(pair.mask, target, layout, folder, options)


def _check_is_image(volume, path):
    try:
        check_no_label_map(volume, path)
    except DataError as error:
        raise DataError(
            f"{error}, or say where images and masks are: --image_pattern and --mask_pattern"
        ) from None


def _image_files(image, target, layout, folder, options):
    if isinstance(image, Dicom):

        def from_dicom():
            local = image.local(folder)
            volume = read_volume(local, series=options.series)
            _check_is_image(volume, local)
            return volume, None

        # MetaImage holds float64 geometry, as DICOM does; NIfTI would round it.
        yield _named(target, ".mha"), Conversion(image.path, from_dicom)
        return
    local = image.local(folder)
    has_channels = is_stack(local)
    channel = layout.channel if has_channels else None
    try:
        volume = read_volume(local, channel)
    except DataError:
        if not layout.is_own or channel is not None:
            raise
        yield from _copies(image, target)  # as it is; the check tells what is wrong with it
        return
    _check_is_image(volume, local)
    if has_channels:
        yield (
            _named(target, _single_file(image.suffix)),
            Conversion(image.path, lambda: (read_volume(local, channel), local)),
        )
    else:
        yield from _copies(image, target)


def _mask_files(mask, target, layout, folder, options):
    if layout.is_own and not options.labels:
        yield from _copies(mask, target)
        return
    local = mask.local(folder)
    try:
        stored = read_volume(local)
        merged = read_mask(local, stored, local, options.labels)
    except DataError:
        if not layout.is_own:
            raise
        yield from _copies(mask, target)
        return
    values = sitk.GetArrayViewFromImage(stored)
    if np.array_equal(np.rint(values), sitk.GetArrayViewFromImage(merged)):
        yield from _copies(mask, target)
    else:
        yield (
            _named(target, _single_file(mask.suffix)),
            Conversion(
                mask.path,
                lambda: (read_mask(local, read_volume(local), local, options.labels), local),
            ),
        )


def _single_file(suffix):
    return ".mha" if suffix.lower() == ".mhd" else suffix


def _named(target, suffix):
    return target.with_name(target.name + suffix)


def _copies(volume: Volume, target: PurePosixPath):
    """The file and that of its voxels, whose name follows where the volume gets another one."""
    header, voxels = volume.header, volume.voxels
    renamed = _named(target, volume.suffix)
    if not voxels or renamed.name == header.path.name:
        yield renamed, header
        if voxels:
            yield renamed.with_name(voxels.path.name), voxels
        return
    voxels_name = target.name + voxels.path.suffix

    def with_new_name():
        start, key, _ = header.read().partition(b"ElementDataFile")
        return start + key + f" = {voxels_name}\n".encode()

    yield renamed, Member(header.path, with_new_name)
    yield renamed.with_name(voxels_name), voxels


# Writing ----------------------------------------------------------------------------------------


def _write_all(placed: dict[PurePosixPath, File], out_path: Path) -> set[PurePosixPath]:
    """Writes what is not there yet; returns its targets.

    Into a hidden folder first; then whole sets are renamed, or files beside existing ones.
    """
    copies = {t: f for t, f in placed.items() if isinstance(f, Member) and _is_new(t, f, out_path)}
    conversions = {t: f for t, f in placed.items() if isinstance(f, Conversion)}
    for left in out_path.glob(".unpacking-*"):
        log.info(f"{left}: left by a run that was killed; it can be deleted")
    with temporary_folder(out_path, ".unpacking-") as staging:
        fresh = set(copies)
        for target, file in tqdm(
            {**conversions, **copies}.items(), desc="Laying out", unit="file", disable=None
        ):
            staged = staging / target
            staged.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file, Member):
                staged.write_bytes(file.read())
            elif _convert(file, staged, out_path / target):
                fresh.add(target)
        _rename(staging, out_path)
    return fresh


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
    """Writes a volume; False, and nothing, where it is there already."""
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
        and np.array_equal(*map(sitk.GetArrayViewFromImage, (written, there)))
    )
    if not same:
        raise _differs(final, conversion)
    return False


def _rename(staging, out_path):
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
