"""Places the volumes of sources in img/ and gt/: which file goes where, copied or converted."""

import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from ..images.formats import MASK_SUFFIX, META_SUFFIXES
from ..images.reading import (
    check_no_label_map,
    foreground,
    read_label_map,
    read_volume,
    read_volume_or_one_of,
)
from ..utils.errors import DataError
from .copying import Conversion, File, write_all
from .layouts import Layout, Options, Pair, detect_layout
from .sources import Dicom, Member, Source, Volume, data_file_name

log = logging.getLogger(__name__)


def lay_out(sources: list[Path], out_path: Path, options: Options | None = None) -> None:
    """Copies volumes to `out_path/SET/img` and `out_path/SET/gt`, SET being a key of `SETS`.

    The layout of a source is detected, see `src.promise12.layouts`. The set of a volume follows
    from the names of its folders and its source: train..., test..., live...; if no name says it,
    sources with masks become TrainData, others TestData. Files are copied byte for byte, except 4-D
    and DICOM images and masks with other labels than 0 and 1, which are converted and keep their
    geometry, and detached MetaImage headers under a new name. Existing files with the same content
    are not written again. If one file cannot be written, none is.

    Args:
        sources: zip files and folders; they are not changed.
        out_path: folder of the sets.
        options: how to read the sources.

    Raises:
        DataError: a source cannot be read, its layout is ambiguous, an image is a label map, two
            different files would get the same path, or `options.series` is for no DICOM.
    """
    options = options or Options()
    with tempfile.TemporaryDirectory(prefix="prepare_data-") as unpacked:
        folders = {Path(unpacked, str(number)): path for number, path in enumerate(sources)}
        try:
            placed = _place(folders, out_path, options)
            written = write_all(placed, out_path)
        except DataError as error:
            message = str(error)
            for folder, path in folders.items():
                # Files unpacked from a zip are named by their places in it.
                message = message.replace(f"{folder / path.stem}/", f"{path}: ")
            raise DataError(message) from None
    for name in sorted({target.parts[0] for target in placed}):
        count = sum(target.parts[0] == name for target in placed)
        new = sum(target.parts[0] == name for target in written)
        log.info(f"{out_path / name}: {new} files written, {count - new} there already")


def _place(folders, out_path, options):
    """Returns `{path below out_path: file}`; `folders` is {folder to unpack to: source}."""
    placed: dict[PurePosixPath, File] = {}
    for folder, path in folders.items():
        source = Source(path, out_path)
        layout, pairs = detect_layout(source, options)
        _log_layout(source, layout, pairs)
        if options.series and not any(isinstance(pair.image, Dicom) for pair in pairs):
            raise DataError(
                f"{path}: holds no DICOM image, of which --series {options.series} would choose "
                "one; leave --series out, with a call for each source"
            )
        for target, file in _files(layout, pairs, folder, options):
            other = placed.setdefault(target, file)
            if other is not file and not _same_content(other, file):
                raise DataError(
                    f"{path}: {file.path} and {other.path} differ and would both become "
                    f"{target}; use a different --out_path for each"
                )
    return placed


def _log_layout(source, layout, pairs):
    images = sum(pair.image is not None for pair in pairs)
    masks = sum(pair.mask is not None for pair in pairs)
    log.info(f"{source.path}: taken for {layout.name}: {images} image(s), {masks} mask(s)")
    for remark in layout.remarks:
        log.info(f"  {remark}")


def _same_content(one, other):
    return isinstance(one, Member) and isinstance(other, Member) and one.read() == other.read()


# --- copy or convert -----------------------------------------------------------------------------


def _files(
    layout: Layout, pairs: list[Pair], folder: Path, options: Options
) -> Iterator[tuple[PurePosixPath, File]]:
    """Yields each file with its path below the output folder."""
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

        # MetaImage has float64 geometry, as DICOM; NIfTI would round it.
        yield _with_suffix(target, ".mha"), Conversion(image.path, from_dicom)
        return
    local = image.local(folder)
    channel = layout.channel
    try:
        volume, is_one_of_several = read_volume_or_one_of(local, channel)
    except DataError:
        if not layout.is_own:
            raise
        yield from _copies(image, target)  # unchanged; the check reports what is wrong with it
        return
    _check_is_image(volume, local)
    if is_one_of_several:
        yield (
            _with_suffix(target, _single_file(image.suffix)),
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
        stored = read_label_map(local)
        merged = foreground(stored, local, options.labels, may_lack=True)
    except DataError:
        if not layout.is_own:
            raise
        yield from _copies(mask, target)  # as above
        return
    values = sitk.GetArrayViewFromImage(stored)
    if values.any() and not sitk.GetArrayViewFromImage(merged).any():
        foreground(stored, local, options.labels)  # raises: it lacks them
    if np.array_equal(np.rint(values), sitk.GetArrayViewFromImage(merged)):
        yield from _copies(mask, target)
    else:
        yield (
            _with_suffix(target, _single_file(mask.suffix)),
            Conversion(
                mask.path,
                lambda: (foreground(read_label_map(local), local, options.labels), local),
            ),
        )


def _single_file(suffix):
    return ".mha" if suffix.lower() in META_SUFFIXES else suffix  # SimpleITK writes no .MHA


def _with_suffix(target, suffix):
    return target.with_name(target.name + suffix)


def _copies(volume: Volume, target: PurePosixPath):
    """Yields a file and that of its voxels beside it, which the header names."""
    header, voxels = volume.header, volume.voxels
    renamed = _with_suffix(target, volume.suffix)
    if not voxels:
        yield renamed, header
        return
    is_same_name = renamed.name == header.path.name
    voxels_name = voxels.path.name if is_same_name else target.name + voxels.path.suffix

    def with_new_name():
        entry = f"ElementDataFile = {voxels_name}".encode()
        return re.sub(rb"(?m)^[ \t]*ElementDataFile[ \t]*=.*", lambda _: entry, header.read())

    is_as_named = data_file_name(header.start()) == voxels_name
    yield renamed, header if is_as_named else Member(header.path, with_new_name)
    yield renamed.with_name(voxels_name), voxels
