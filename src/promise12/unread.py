"""Images in img/ or gt/ that are not read there: other formats, DICOM, folders."""

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
    entries = [path for path in entries if not path.name.startswith(".")]
    found = {}
    for path in entries:
        if path.is_dir():
            inside = (place / name for place, _, names in walk(path) for name in names)
            if any(suffix_of(file) or is_other_image(file) or _is_dicom(file) for file in inside):
                found[path] = f"a folder of images, and only files are read here; {LAY_OUT}"
        elif is_other_image(path):
            found[path] = (
                f"of a format that is not read; convert it to one of {', '.join(SUFFIXES)}"
            )
    dicom = next((path for path in entries if path.is_file() and _is_dicom(path)), None)
    return found | ({dicom: f"DICOM, which is not read here; {LAY_OUT}"} if dicom else {})


def _is_dicom(path):
    return not path.name.lower().endswith(NO_DICOM) and is_dicom(path)


def misnamed_masks(masks: dict[str, list[Path]]) -> dict[Path, str]:
    """Returns the masks in gt/ whose names do not end with `MASK_SUFFIX`, as `unread_images`."""
    return {
        path: "not found for its image by this name; rename it to "
        f"{case_of(path)}{MASK_SUFFIX}{path.name[len(name) :]}"
        for name, paths in masks.items()
        if not name.endswith(MASK_SUFFIX)
        for path in paths
    }


def case_of(path: Path) -> str:
    """Returns the case that an image or mask is probably of: Case00 of gt/Case00_label.nhdr."""
    ending = max((s for s in OTHER_SUFFIXES if path.name.lower().endswith(s)), key=len, default="")
    name = path.name[: len(path.name) - len(ending)] if ending else stem(path)
    return MASK_ENDING.sub("", name) or name
