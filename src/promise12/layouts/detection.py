"""Detects the layout of a source and pairs images with masks."""

import re

from ...images.formats import MASK_SUFFIX, SUFFIXES, is_other_image, stem
from ...utils.errors import DataError, list_few
from ..names import outlines_lesions, relative_path, set_folder
from ..sources import Source
from .dicom import find_dicom_patients
from .file_names import find_by_names
from .layout import Layout, Options, Pair, group, use_sets_of
from .nnunet import NNUNET, find_channel_folders
from .patient_folders import find_patient_folders
from .patterns import find_images, find_masks
from .picai import find_picai

# In this order; the first that returns a layout is taken.
RULES = (
    find_channel_folders,
    find_picai,
    find_dicom_patients,
    find_patient_folders,
    find_by_names,
)


def detect_layout(source: Source, options: Options) -> tuple[Layout, list[Pair]]:
    """Returns the layout of a source and its images with their masks.

    Raises:
        DataError: no volumes, no image, or an ambiguity that an option has to resolve.
        UsageError: a pattern without `{case}`.
    """
    if not source.volumes and not source.dicom:
        zips = any(path.suffix == ".zip" for path in source.members)
        raise DataError(
            f"{source.path}: holds no volume ({', '.join(SUFFIXES)}, DICOM)"
            + (
                f"; for its zip files say --source {source.path}/*.zip"
                if zips
                else "; give the folder or zip that does to --source"
            )
        )
    masks = {}
    if options.mask_pattern:
        masks = find_masks(source, options.mask_pattern)
        source.set_aside = {mask.path for found in masks.values() for mask in found}
    if options.image_pattern:
        images = find_images(source, options.image_pattern)
        layout = Layout("images by --image_pattern", images, channel=options.channel)
    else:
        layout = next(filter(None, (rule(source, options) for rule in RULES)))
        if layout.channel is None and layout.name != NNUNET:
            layout.channel = options.channel
    if options.mask_pattern:
        layout.masks = use_sets_of(layout.images, masks)
        layout.name += ", masks by --mask_pattern"
        layout.is_own = False
    pairs = _pairs(source, layout, options)
    _remark_on_sets(layout, pairs)
    _remark_on_the_rest(source, layout, pairs)
    return layout, pairs


def _pairs(source, layout, options):
    if not options.mask_pattern:
        _drop_lesions(source, layout)
    default = _default_set(layout)
    pairs = []
    for key in sorted({*layout.images, *layout.masks}, key=lambda key: (key[0] or "", key[1])):
        images, masks = layout.images.get(key, []), layout.masks.get(key, [])
        set_name, case = key[0] or default, key[1]
        if layout.is_own:
            pairs += _own_pairs(source, set_name, case, images, masks)
            continue
        _check_one(source, case, images, "images", "image")
        _check_one(source, case, masks, "masks", "mask")
        if images:
            pairs.append(Pair(set_name, case, images[0], masks[0] if masks else None))
    lone = sorted(
        (mask for key, masks in layout.masks.items() if key not in layout.images for mask in masks),
        key=lambda mask: mask.path,
    )
    if lone and layout.lone_masks == "refuse":
        raise DataError(
            f"{source.path}: {list_few(mask.relative for mask in lone)}: mask without an image; "
            "add the image, move the mask away, or say where they are: --image_pattern and "
            "--mask_pattern"
        )
    if lone and layout.lone_masks == "leave":
        names = list_few(mask.relative for mask in lone)
        layout.remarks.append(f"masks without an image here: {names}")
        layout.mentioned.update(mask.path for mask in lone)
    if not pairs:
        raise DataError(
            f"{source.path}: masks only, such as {lone[0].relative}; give the folder above, which "
            "holds the images too"
        )
    bare = [pair for pair in pairs if pair.mask is None and pair.set_name == default]
    if bare and any(layout.masks.values()) and not layout.is_own:
        layout.remarks.append(f"images without a mask: {list_few(pair.case for pair in bare)}")
    return pairs


def _default_set(layout):
    """The set of images in no folder whose name says it."""
    return "TrainData" if any(layout.masks.values()) else "TestData"


def _remark_on_sets(layout, pairs):
    """Names the folders whose names make another set than the default."""
    folders = group(
        (pair.set_name, set_folder(pair.image.path))
        for pair in pairs
        if pair.image and pair.set_name != _default_set(layout)
    )
    for name, found in folders.items():
        if any(found):  # nnU-Net's folders are none of these
            listed = list_few(sorted(filter(None, set(found))))
            layout.remarks.append(f"{name} by the name of the folder {listed}")


def _own_pairs(source, set_name, case, images, masks):
    if any(not stem(mask.path).endswith(MASK_SUFFIX) for mask in masks):
        _check_one(source, case, masks, "masks", "mask")
    if len(images) == len(masks) == 1:
        return [Pair(set_name, case, images[0], masks[0])]
    return [
        *(Pair(set_name, case, image) for image in images),
        *(Pair(set_name, case, None, mask) for mask in masks),
    ]


def _check_one(source, case, found, plural, kind):
    if len(found) > 1:
        paths = [volume.relative for volume in found]
        patterns = " or ".join(f"'{_pattern(path, case)}'" for path in paths)
        raise DataError(
            f"{source.path}: {case} has several {plural}: {', '.join(paths)}; say which, such as "
            f"--{kind}_pattern {patterns}"
        )


def _pattern(path, case):
    """The path with `{case}` in place of the case's name, where that is a whole word."""
    return re.sub(rf"(?<![^\W_]){re.escape(case)}(?![^\W_])", "{case}", path)


def _drop_lesions(source, layout):
    """Drops masks of lesions; raises a DataError if there are no others."""
    glands = {
        key: [mask for mask in masks if not outlines_lesions(mask.path)]
        for key, masks in layout.masks.items()
    }
    lesions = [m for masks in layout.masks.values() for m in masks if outlines_lesions(m.path)]
    layout.masks = {key: masks for key, masks in glands.items() if masks}
    if lesions and not layout.masks:
        raise DataError(
            f"{source.path}: {list_few(mask.relative for mask in lesions)}: outlines of lesions by "
            "their names, and no masks of the prostate; add these, or give --mask_pattern to train "
            "on the lesions, or --image_pattern for images only"
        )
    if lesions:
        names = list_few(mask.relative for mask in lesions)
        layout.remarks.append(f"outlines of lesions, not of the prostate, left out: {names}")
        layout.mentioned.update(mask.path for mask in lesions)


def _remark_on_the_rest(source, layout, pairs):
    used = {volume.path for pair in pairs for volume in (pair.image, pair.mask) if volume}
    used |= layout.mentioned
    rest = [volume.relative for volume in source.volumes if volume.path not in used]
    if rest:
        layout.remarks.append(f"{len(rest)} other volume(s) left out: {list_few(rest)}")
    unread = [relative_path(path) for path in source.members if is_other_image(path)]
    if unread:
        layout.remarks.append(
            f"{len(unread)} image(s) of formats that are not read: {list_few(unread)}; convert "
            f"them to one of {', '.join(SUFFIXES)}"
        )
