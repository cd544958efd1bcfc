"""The files of an image's results in a prediction: their names, how they are written and read."""

from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import SimpleITK as sitk

from .images.formats import OUTPUT_TYPES, suffix_of
from .images.reading import read_volume
from .images.seg_nrrd import save_seg_nrrd
from .images.writing import check_volume_name, save_volume, volume_files, write_together
from .input_images import InputImage
from .utils import output_folder
from .utils.errors import UsageError
from .utils.files import printable

if TYPE_CHECKING:
    from .images.dicom.segmentation import Source


class ResultFiles(NamedTuple):
    """Names of the files of an image's results, relative to the results folder."""

    names: dict[str, str]  # {output type or "probability": name}; masks first
    written: list[str]  # of these, with the voxels that a .mhd has in a file beside it
    others: set[str]  # that an earlier prediction with other output types may have written


def check_types(output_types: Collection[str], images: Iterable[InputImage]) -> tuple[str, ...]:
    """Returns the output types in the order of `OUTPUT_TYPES`; "image" if there are none.

    Raises:
        UsageError: an unknown type, one that an image cannot have, or whose package is not
            installed.
    """
    if unknown := set(output_types).difference(OUTPUT_TYPES):
        raise UsageError(
            f"--output_type {min(unknown)}: expected one or several of {', '.join(OUTPUT_TYPES)}"
        )
    if "dicom_seg" in output_types:
        from .images.dicom.segmentation import check_highdicom

        check_highdicom()
        for image in images:
            if isinstance(image.source, Path) and _suffix_of_file(image.source):
                raise UsageError(
                    f"--output_type dicom_seg: {printable(image.source)} is no DICOM series, which "
                    "a DICOM segmentation refers to; give the series, or another output type"
                )
    return tuple(kind for kind in OUTPUT_TYPES if kind in output_types) or ("image",)


def result_files(image: InputImage, output_types: Iterable[str], probability: bool) -> ResultFiles:
    """Returns the names of an image's files.

    Args:
        image: with or without a folder of its own.
        output_types: of its mask, from `check_types`.
        probability: whether the foreground probability is written, too.
    """
    suffix = _suffix_of_file(image.source) if isinstance(image.source, Path) else None
    suffix = suffix or ".nii.gz"
    place = f"{image.name}/{image.name}" if image.has_folder else image.name
    possible = {kind: f"{place}_test{end or suffix}" for kind, end in OUTPUT_TYPES.items()}
    possible["probability"] = f"{place}_probability{suffix}"
    wanted = [*output_types, "probability"] if probability else output_types
    names = {kind: possible[kind] for kind in wanted}
    written = volume_files(names.values())
    return ResultFiles(names, written, set(volume_files(possible.values())).difference(written))


def _suffix_of_file(path: Path) -> str | None:
    """The suffix of an image file; None for DICOM, of which a folder may have any name."""
    return None if path.is_dir() else suffix_of(path)


def writers_of(
    names: dict[str, str],
    mask: sitk.Image,
    probability: sitk.Image,
    source: Path,
    dicom: "Source | None",
) -> dict[str, Callable[[Path], None]]:
    """Returns what writes the results of an image, {file name: function of a path}.

    Args:
        names: of `ResultFiles`.
        mask: uint8, in the image's geometry.
        probability: of the foreground, float32, in the same geometry.
        source: file or folder of the image.
        dicom: what a DICOM segmentation refers to, if one is wanted.

    Raises:
        DataError: the series cannot have a DICOM segmentation, or a file not this name.
    """
    for file in names.values():
        check_volume_name(file)
    writers = {
        "image": partial(save_volume, mask, like=source),
        "seg_nrrd": partial(save_seg_nrrd, mask),
        "probability": partial(save_volume, probability, like=source),
    }
    if dicom is not None:
        from .images.dicom.segmentation import make_segmentation, save_segmentation

        writers["dicom_seg"] = partial(save_segmentation, make_segmentation(mask, dicom), mask)
    return {file: writers[kind] for kind, file in names.items()}


def write_volumes(folder: Path, writers: dict[str, Callable[[Path], None]]) -> None:
    """Writes volumes into a results folder, where only our own earlier files may be replaced.

    Args:
        folder: of the results.
        writers: of `writers_of`.

    Raises:
        DataError: a file cannot be written, or is there and not ours, or edited since.
    """
    with output_folder.register(folder, volume_files(writers)):
        write_together(folder, writers)


def read_mask(path: Path) -> sitk.Image:
    """Reads a mask of any output type.

    Raises:
        DataError: the file is missing or damaged.
    """
    if path.name.endswith(OUTPUT_TYPES["dicom_seg"]):
        from .images.dicom.segmentation import read_segmentation

        return read_segmentation(path)
    return read_volume(path)
