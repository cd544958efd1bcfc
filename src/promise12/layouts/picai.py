"""PI-CAI: PATIENT_STUDY_t2w beside the other contrasts; masks PATIENT_STUDY in another tree."""

import re

from ...images.formats import stem
from ...utils.errors import DataError
from ..names import LESION_WORDS, ZONE_WORDS, set_of_path, words
from ..sources import Dicom, Source, Volume
from .layout import Key, Layout, Options, group, use_sets_of

IMAGE_NAME = re.compile(r"(\d+_\d+)_(t2w|adc|hbv|sag|cor)")
MASK_NAME = re.compile(r"(\d+_\d+)(_.*)?")


def find_picai(source: Source, options: Options) -> Layout | None:
    """Returns the layout of a source with PI-CAI's names, else None."""
    found = [(IMAGE_NAME.fullmatch(stem(volume.path)), volume) for volume in source.volumes]
    contrasts = [(name, volume) for name, volume in found if name]
    if not contrasts:
        return None
    images: dict[Key, list[Volume | Dicom]] = group(
        ((set_of_path(volume.path), name[1]), volume)
        for name, volume in contrasts
        if name[2] == "t2w"
    )
    if not images:
        raise DataError(
            f"{source.path}: PI-CAI's names, but none ends with _t2w; add the T2 images, or say "
            "which are meant with --image_pattern"
        )
    rest = [(MASK_NAME.fullmatch(stem(volume.path)), volume) for name, volume in found if not name]
    kinds = group((_mask_kind(volume.path), (name[1], volume)) for name, volume in rest if name)
    layout = Layout("PI-CAI", images, lone_masks="leave")
    kind = next((kind for kind in ("whole gland", "zones", "lesions") if kinds.get(kind)), None)
    masks: dict[Key, list[Volume]] = group(
        ((None, case), volume) for case, volume in kinds.get(kind, ())
    )
    layout.masks = use_sets_of(images, masks)
    if kind in ("whole gland", "zones"):
        lesions = [volume.path for _, volume in kinds.get("lesions", ())]
        layout.mentioned.update(lesions)
        if lesions:
            layout.remarks.append(
                f"{len(lesions)} outline(s) of lesions, not of the prostate, left out"
            )
    if kind == "zones":
        layout.remarks.append("masks of the zones, as there are none of the whole gland")
    return layout


def _mask_kind(path):
    split = {word for part in path.parts[1:] for word in words(part)}
    if split & LESION_WORDS:
        return "lesions"
    return "zones" if split & ZONE_WORDS else "whole gland"
