"""One folder per patient with t2.nii.gz, or another name that is the same in each folder."""

from collections import Counter
from functools import cache
from pathlib import PurePath, PurePosixPath

from ...images.formats import stem
from ...utils.errors import DataError, list_few
from ..names import (
    FILLERS,
    IMAGE_FOLDERS,
    MASK_WORDS,
    T2_WORDS,
    case_names,
    is_other_contrast,
    is_patient_mask,
    is_t2,
    joined_words,
    outlines_lesions,
    relative_path,
    set_of_path,
    words,
)
from ..sources import Source
from .layout import Key, Layout, Options, group


def find_patient_folders(source: Source, options: Options) -> Layout | None:
    """Returns the layout of a source like ID/t2.nii.gz, with other contrasts and masks, else None.

    Raises:
        DataError: a folder does not have exactly one T2 image by name.
    """
    scans = [volume for volume in source.volumes if not is_patient_mask(volume.path)]
    folders = group((volume.path.parent, volume) for volume in scans)
    if not folders or any(
        len(folder.parts) == 1 or IMAGE_FOLDERS.fullmatch(folder.name) for folder in folders
    ):
        return None
    repeated = Counter((set_of_path(volume.path), stem(volume.path).lower()) for volume in scans)
    has_plain_t2 = any(set(words(stem(volume.path))) <= T2_WORDS | FILLERS for volume in scans)
    if max(repeated.values()) == 1 and not has_plain_t2:
        return None
    names = _distinct_names(folders)
    _check_distinct(source, names)
    images = group(
        ((set_of_path(folder), names[folder]), _t2_of(source, folder, volumes))
        for folder, volumes in folders.items()
    )
    keys = {folder: (set_of_path(folder), name) for folder, name in names.items()}
    masks = [volume for volume in source.volumes if is_patient_mask(volume.path)]
    return Layout(
        "one folder per patient",
        images,
        group((patient_key(volume.path, keys), volume) for volume in masks),
    )


def _distinct_names(folders):
    """`{folder: name}`: its own, or that of the first parent whose names are not all equal."""
    level = 1
    while len(folders) > 1 and len({folder.parts[-level] for folder in folders}) == 1:
        level += 1
    return {folder: folder.parts[-level] for folder in folders}


def _check_distinct(source, names):
    """Raises a DataError for two folders of one name, such as P1/v1 and P2/v1."""
    folders = group(((set_of_path(folder), name), folder) for folder, name in names.items())
    for (_, name), same in folders.items():
        if len(same) > 1:
            places = list_few("/".join(folder.parts[1:]) for folder in same)
            raise DataError(
                f"{source.path}: {places}: folders of one name, expected another for each "
                "examination; rename them, such as P1/v1 to sub-P1_ses-v1, by which splits know "
                f"the patient, or take only these with --image_pattern '**/{{case}}/{name}/FILE'"
            )


def _t2_of(source, folder, volumes):
    """The T2 image of a patient's folder."""
    t2 = [volume for volume in volumes if is_t2(volume.path)] or volumes
    if len(t2) == 1 and not is_other_contrast(t2[0].path):
        return t2[0]
    found = ", ".join(volume.path.name for volume in t2)
    raise DataError(
        f"{source.path}: {'/'.join(folder.parts[1:])} holds {found}, not exactly one T2 image by "
        "name; say which, such as --image_pattern '{case}/" + t2[0].path.name + "'"
    )


def patient_key(path: PurePosixPath, folders: dict[PurePosixPath, Key]) -> Key:
    """Returns the key of the patient in whose folder a mask is, or whose name it has.

    Args:
        path: of the mask.
        folders: {folder of a patient: its key}.

    Returns:
        A key of its own for a mask of no patient.

    Raises:
        DataError: in the folder of one patient, and with the name of another.
    """
    above = next((folders[parent] for parent in path.parents if parent in folders), None)
    if above:
        _check_named_as(path, above[1], {name for _, name in folders.values()})
        return above
    wanted = [joined_words(PurePath(path.parent.name)), *case_names(path)]
    keys = [key for key in folders.values() if joined_words(PurePath(key[1])) in wanted]
    return keys[0] if len(keys) == 1 else (None, relative_path(path))


@cache
def _words(name):
    """`words`, of which each patient's are asked for once for each mask."""
    return tuple(words(name))


def _check_named_as(path, patient, patients):
    """Raises a DataError for a mask whose name begins with that of another patient.

    Not for P1_mask in P1_v2, nor for a folder called prostate; and lesions may be numbered.
    """
    split = _words(stem(path))
    named = [name for name in patients if split[: len(_words(name))] == _words(name)]
    named = [name for name in named if not MASK_WORDS.union(FILLERS).issuperset(_words(name))]
    nearest = max(named, key=lambda name: len(_words(name)), default=patient)
    is_own = _words(patient)[: len(_words(nearest))] == _words(nearest)
    if not is_own and not outlines_lesions(path):
        raise DataError(
            f"{path}: in the folder of {patient}, named as of {nearest}; move or rename it, or say "
            "which mask is whose with --mask_pattern"
        )
