"""Names: img/ and gt/, NAME and NAME_segmentation, images/ and labels/, NAME_seg and the like."""

from collections import defaultdict

from ...images.formats import MASK_SUFFIX, stem
from ...utils.errors import DataError, list_few
from ..names import (
    T2_WORDS,
    case_names,
    has_mask_name,
    is_other_contrast,
    is_t2,
    looks_like_mask,
    outlines_lesions,
    set_of_path,
    words,
)
from ..sources import Source
from .layout import Layout, Options, group


def find_by_names(source: Source, options: Options) -> Layout:
    """Returns the layout by the names of files and folders; the last rule, fits any source."""
    scans = [volume for volume in source.volumes if not looks_like_mask(volume.path)]
    layout = Layout("NAME and NAME_segmentation", {}, lone_masks="keep", is_own=True)
    t2 = [volume for volume in scans if is_t2(volume.path)]
    if t2 and any(is_other_contrast(volume.path) for volume in scans):
        scans = [volume for volume in scans if not is_other_contrast(volume.path)]
    elif scans and all(is_other_contrast(volume.path) for volume in scans):
        layout.remarks.append("no T2 images by their names; this network is for T2 images")
    layout.images = group(((set_of_path(v.path), stem(v.path)), v) for v in scans)
    known = defaultdict(set)  # set and words of a name without T2 -> cases
    for volume in scans:
        split = words(stem(volume.path))
        for end in range(len(split), 0, -1):
            if T2_WORDS.issuperset(split[end:]):
                known[set_of_path(volume.path), " ".join(split[:end])].add(stem(volume.path))
    masks = [volume for volume in source.volumes if looks_like_mask(volume.path)]
    layout.masks = group((_key_of_mask(source, mask, known, options), mask) for mask in masks)
    renamed = [m.relative for m in masks if not stem(m.path).endswith(MASK_SUFFIX)]
    if renamed:
        layout.name = "images and masks by their names and folders"
        layout.remarks.append(f"taken for masks: {list_few(renamed)}")
    return layout


def _key_of_mask(source, mask, known, options):
    """Set and case of the image that a mask belongs to."""
    set_name, case = set_of_path(mask.path), stem(mask.path)
    several: set[str] = set()
    for name in case_names(mask.path):
        cases = known.get((set_name, name), set())
        exact = {image for image in cases if " ".join(words(image)) == name} or cases
        spelt = {image for image in exact if case.startswith(image) or case.endswith(image)}
        if len(spelt or exact) == 1:  # a_seg is of a, not of A
            return set_name, *(spelt or exact)
        several |= exact
    is_lesion = outlines_lesions(mask.path)
    if case.endswith(MASK_SUFFIX) or is_lesion or options.mask_pattern:
        return set_name, case.removesuffix(MASK_SUFFIX)
    found = (
        f"several images for it ({', '.join(sorted(several))})" if several else "no image for it"
    )
    why = "name" if has_mask_name(mask.path) else "folder"
    raise DataError(
        f"{source.path}: {mask.relative}: a mask by its {why}, and {found}; give the "
        "folder of both, or say where they are: --image_pattern and --mask_pattern"
    )
