"""The images that a command line names: files, folders and DICOM studies."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .images.formats import SUFFIXES, is_other_image, stem, suffix_of
from .promise12.names import is_other_contrast, is_patient_mask, looks_like_mask
from .utils import output_folder
from .utils.errors import DataError
from .utils.files import printable, walk

log = logging.getLogger(__name__)

SINGLE_FILE_SUFFIXES = (".zip", ".dcm", ".dicom", ".ima")  # not part of a case's name


class InputImage(NamedTuple):
    """An image to segment."""

    name: str  # of the case
    source: Path | DataError  # file or DICOM folder; the error of a folder without a usable image
    series: str = ""  # the DICOM series to read, see `src.images.dicom.choose_series`
    has_folder: bool = False  # whether its results get a folder of their own, called like it


def find_images(inputs: Iterable[str | Path], series: str = "") -> list[InputImage]:
    """Finds the images that a command line names.

    In folders, files that are masks or other contrasts by their names and this program's earlier
    results are left out; their number is logged.

    Args:
        inputs: image files, folders of image files, and DICOM: a file, a .zip of one study, a
            folder tree of one study, or one of several, see `study_folders`.
        series: the DICOM series to read, see `src.images.dicom.choose_series`.

    Returns:
        The images, each of another name. The studies found in a folder of several get a folder
        each for their results.

    Raises:
        DataError: two images have the same name, or the only input has no usable image.
    """
    given = [Path(item) for item in inputs]
    images: list[InputImage] = []
    paths: dict[str, Path] = {}
    for item in given:
        sources: dict[Path, Path | DataError]
        try:
            sources = {path: path for path in _images_of(item, series)}
        except DataError as error:
            sources = {item: error}
        for path, source in sources.items():
            name = _case_name(path, item)
            if name in paths:
                raise DataError(f"{path}: also called {name}, like {paths[name]}; rename one")
            paths[name] = path
            images.append(InputImage(name, source, series, path.is_dir() and path not in given))
    if len(images) == 1 and isinstance(images[0].source, DataError):
        raise images[0].source
    return images


def _case_name(path: Path, item: Path) -> str:
    if path.is_dir() and path != item:  # a study in a folder of several
        return printable("_".join(path.relative_to(item).parts))
    if path.is_dir():  # "." and ".." have no name of their own
        return printable(path.name if path.name not in ("", "..") else path.resolve().name)
    return printable(path.stem if path.suffix.lower() in SINGLE_FILE_SUFFIXES else stem(path))


def _images_of(item: Path, series: str) -> list[Path]:
    """The images of one input; for a DICOM folder the folder itself, or those of its studies."""
    if item.is_dir():
        return _images_in(item, series)
    if item in _results_in(item.parent):
        raise DataError(f"{item}: a result of this program, expected an image to segment")
    if looks_like_mask(item.absolute()):
        log.info(f"{item}: a mask by its name; segmented because it was given as input")
    elif is_other_contrast(item) and suffix_of(item):
        log.info(f"{item}: no axial T2 by its name; segmented because it was given as input")
    return [item]


def _images_in(folder: Path, series: str) -> list[Path]:
    """The images directly in a folder, or the folders of its DICOM studies."""
    from .images.dicom import (  # pydicom takes 0.1 s to import
        damaged_files,
        dicom_files,
        study_folders,
    )

    files = list(_files_below(folder))
    volumes = [path for path in files if suffix_of(path)]
    dicom = sorted(set(files).intersection(dicom_files(folder)))
    is_mask = is_patient_mask if dicom else looks_like_mask
    masks, scans = _split(volumes, lambda path: is_mask(path.absolute()))
    others, images = _split(scans, is_other_contrast)
    if dicom and scans:
        raise DataError(
            f"{folder}: holds images ({scans[0]}) and DICOM files ({dicom[0]}); give the ones that "
            "are meant by their own path"
        )
    _log_left_out(folder, masks, "mask(s) left out, by name or folder")
    zips = [path for path in files if path.suffix.lower() == ".zip"]
    _log_left_out(folder, zips, ".zip file(s) left out", "; name them as inputs if they are meant")
    unread = [path for path in files if is_other_image(path)]
    _log_left_out(folder, unread, "image(s) of formats that are not read", "; convert them")
    damaged = damaged_files(files, dicom)
    _log_left_out(folder, damaged, "damaged or empty DICOM file(s) left out", "; get them again")
    if dicom:
        studies = study_folders(folder, dicom, series)
        if len(studies) > 1:
            log.info(f"{folder}: {len(studies)} studies, an image each")
        return studies
    here = [path for path in images if path.parent == folder]
    if images:
        kind = "image(s) of another contrast or plane left out, by name"
        _log_left_out(folder, others, kind, "; name them as inputs if they are meant")
    if not here:
        found = _describe(masks, others, images)
        raise DataError(
            f"{folder}: no image there ({', '.join(SUFFIXES)}), {found}; give the images"
        )
    _check_no_channels(folder, here)
    if below := len(images) - len(here):
        log.info(f"{folder}: {below} image(s) in folders below it left out; give these folders too")
    return here


def _split(paths: list[Path], is_first: Callable[[Path], bool]) -> tuple[list[Path], list[Path]]:
    """Those for which the condition holds, and the others."""
    return [p for p in paths if is_first(p)], [p for p in paths if not is_first(p)]


def _log_left_out(folder: Path, paths: list[Path], kind: str, remedy: str = "") -> None:
    if paths:
        log.info(f"{folder}: {len(paths)} {kind}, such as {paths[0]}{remedy}")


def _describe(masks: list[Path], others: list[Path], images: list[Path]) -> str:
    """What a folder without images of its own holds instead."""
    if images:
        return f"only in folders below it, such as {images[0]}"
    if others:
        return f"only other contrasts or planes, by name, such as {others[0]}"
    return "only masks, by name or folder" if masks else "nor DICOM"


def _check_no_channels(folder: Path, images: list[Path]) -> None:
    """Refuses nnU-Net's folders in which a case has several contrasts: NAME_0000, NAME_0001."""
    if folder.resolve().name not in ("imagesTr", "imagesTs"):
        return
    first: dict[str, Path] = {}
    for path in images:
        name = re.fullmatch(r"(.+)_\d{4}", stem(path))
        if name and first.setdefault(name[1], path) != path:
            raise DataError(
                f"{folder}: {first[name[1]].name} and {path.name} are channels of one case; give "
                f"the T2 images themselves, such as {folder}/*_0000{suffix_of(path)}"
            )


def _files_below(folder: Path) -> Iterator[Path]:
    """Files of a folder tree, except hidden ones and those that this program wrote."""
    ours = _results_in(folder.parent)  # among them those of a study, in a folder of its own
    for place, _, names in walk(folder):
        ours |= _results_in(place)
        for path in (place / name for name in names):
            if not path.name.startswith(".") and path not in ours:
                yield path


def _results_in(folder: Path) -> set[Path]:
    return {folder / name for name in output_folder.list_outputs(folder)}
