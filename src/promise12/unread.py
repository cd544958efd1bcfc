"""Images in img/ or gt/ that are not read there: other formats, DICOM, folders."""

from collections.abc import Collection
from pathlib import Path

from ..images.dicom import is_dicom
from ..images.formats import (
    MASK_ENDING,
    MASK_SUFFIX,
    OTHER_SUFFIXES,
    SUFFIXES,
    is_other_image,
    stem,
    suffix_of,
)
from ..utils.files import walk
from .sources import NO_DICOM

LAY_OUT = "lay it out with prepare_data.py --source"


def unread_images(folder: Path) -> dict[Path, str]:
    """Returns the files and folders in img/ or gt/ that hold images not read there.

    Returns:
        {path: what it is and what to do}, by name; of DICOM files directly there the first one.
        Empty without such a folder.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    entries = [path for path in entries if not _is_systems(path)]
    found = {}
    for path in entries:
        if path.is_dir():
            inside = (place / name for place, _, names in walk(path) for name in names)
            inside = (file for file in inside if not _is_systems(file))
            if any(suffix_of(file) or is_other_image(file) or _is_dicom(file) for file in inside):
                found[path] = f"a folder of images, and only files are read here; {LAY_OUT}"
        elif is_other_image(path):
            found[path] = (
                f"of a format that is not read; convert it to one of {', '.join(SUFFIXES)}"
            )
    dicom = next((path for path in entries if path.is_file() and _is_dicom(path)), None)
    return found | ({dicom: f"DICOM, which is not read here; {LAY_OUT}"} if dicom else {})


def _is_systems(path):
    """Whether a file or folder is hidden, or macOS's copy of such in a zip."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def _is_dicom(path):
    return not path.name.lower().endswith(NO_DICOM) and is_dicom(path)


def misnamed_masks(masks: dict[str, list[Path]], images: Collection[str]) -> dict[Path, str]:
    """Returns the masks in gt/ whose names do not end with `MASK_SUFFIX`, as `unread_images`.

    Args:
        masks: {name without suffix: paths}.
        images: names of the cases that have an image.
    """
    found = {}
    for name, paths in masks.items():
        for path in () if name.endswith(MASK_SUFFIX) else paths:
            case = case_of(path)
            if case + MASK_SUFFIX in masks:
                found[path] = f"a second mask of {case}; move it away"
            elif case in images:
                wanted = f"{case}{MASK_SUFFIX}{path.name[len(name) :]}"
                found[path] = f"not found for its image by this name; rename it to {wanted}"
            else:
                found[path] = f"of no image: there is none called {case}; move it away"
    return found


def case_of(path: Path) -> str:
    """Returns the case that an image or mask is probably of: Case00 of gt/Case00_label.nhdr."""
    ending = max((s for s in OTHER_SUFFIXES if path.name.lower().endswith(s)), key=len, default="")
    name = path.name[: len(path.name) - len(ending)] if ending else stem(path)
    return MASK_ENDING.sub("", name) or name
