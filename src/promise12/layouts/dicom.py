"""DICOM files in one folder per patient, with masks as volumes."""

from io import BytesIO
from pathlib import PurePosixPath

from ...images.dicom import damaged_files, read_texts
from ...images.formats import SUFFIXES
from ...utils.errors import DataError, list_few
from ..names import IMAGE_FOLDERS, is_patient_mask, relative_path, set_of_path
from ..sources import Dicom, Member, Source, Volume
from .layout import Key, Layout, Options, group
from .patient_folders import patient_key


def find_dicom_patients(source: Source, options: Options) -> Layout | None:
    """Returns the layout of a source with DICOM files, else None.

    Raises:
        DataError: there are other images, too.
    """
    if not source.dicom:
        return None
    others = [volume for volume in source.volumes if not is_patient_mask(volume.path)]
    if others:
        raise DataError(
            f"{source.path}: holds DICOM ({source.dicom[0].path}) and other images "
            f"({list_few(volume.relative for volume in others)}); say which are meant with "
            "--image_pattern, or give a source with one kind only"
        )
    patients = _patient_folders(source.dicom, PurePosixPath(source.dicom[0].path.parts[0]))
    images: dict[Key, list[Volume | Dicom]] = {
        (set_of_path(path), path.name): [source.dicom_folder(path)] for path in patients
    }
    layout = Layout("DICOM, one folder per patient", images)
    folders = {image.path: key for key, (image,) in images.items()}
    layout.masks = group((patient_key(v.path, folders), v) for v in source.volumes)
    objects = _non_image_objects(source.dicom)
    if objects:
        layout.remarks.append(
            f"DICOM objects that are not images are not read: {list_few(objects)}; to use them as "
            f"masks, convert them to one of {', '.join(SUFFIXES)}"
        )
    dicom = [member.path for member in source.dicom]
    damaged = [relative_path(path) for path in damaged_files(source.members, dicom)]
    if damaged:
        layout.remarks.append(
            f"{len(damaged)} damaged or empty DICOM file(s) left out: {list_few(damaged)}; get "
            "them again"
        )
    return layout


def _patient_folders(files, folder):
    """Returns `{folder: files}` at the level of the tree that has one study per folder."""
    depth = len(folder.parts)
    if any(len(member.path.parts) == depth + 1 for member in files):
        return {folder: files}
    children = {
        folder / name: below
        for name, below in group((m.path.parts[depth], m) for m in files).items()
    }
    if all(IMAGE_FOLDERS.fullmatch(child.name) for child in children):
        found: dict[PurePosixPath, list[Member]] = {}
        for child, below in children.items():
            found |= _patient_folders(below, child)
        return found
    if len(children) == 1:
        ((child, below),) = children.items()
        deeper = _patient_folders(below, child)
        return deeper if len(deeper) > 1 else {child: below}
    studies = {_text(below[0], "StudyInstanceUID") or child for child, below in children.items()}
    return {folder: files} if len(studies) == 1 else children


def _text(member, keyword):
    return read_texts(member.file or BytesIO(member.read()), keyword)[0]


def _non_image_objects(files):
    """Folders whose first file is a DICOM segmentation or contour, with its modality."""
    firsts = {member.path.parent: member for member in reversed(files)}
    kinds = {path: _text(member, "Modality") for path, member in firsts.items()}
    return [f"{path} ({kind})" for path, kind in kinds.items() if kind in ("SEG", "RTSTRUCT")]
