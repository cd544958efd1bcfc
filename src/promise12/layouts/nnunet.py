"""nnU-Net and the Medical Segmentation Decathlon: imagesTr, labelsTr, imagesTs, labelsTs."""

import json
import re
from collections import defaultdict
from pathlib import PurePosixPath

from ...images.formats import stem
from ...utils.errors import DataError, list_few
from ..names import (
    LESION_WORDS,
    OTHER_CONTRASTS,
    PROSTATE_WORDS,
    T2_WORDS,
    ZONE_WORDS,
    words,
)
from ..sources import Dicom, Source, Volume
from .layout import Key, Layout, Options, group

NNUNET = "nnU-Net"


def find_channel_folders(source: Source, options: Options) -> Layout | None:
    """Returns the layout of a source with imagesTr or imagesTs, else None."""
    inside = [v for v in source.volumes if v.path.parent.name in ("imagesTr", "imagesTs")]
    roots = sorted({volume.path.parents[1] for volume in inside})
    if not roots:
        return None
    if len(roots) > 1:
        raise DataError(
            f"{source.path}: several data sets: {list_few(map(str, roots))}; give one of them"
        )
    root = roots[0]
    metadata = _dataset_json(source, root)
    sets = {"Tr": "TrainData", "Ts": "TestData"}
    masks = group(
        ((sets[part], stem(volume.path)), volume)
        for part in sets
        for volume in source.volumes
        if volume.path.parent == root / f"labels{part}"
    )
    images = group(
        ((sets[volume.path.parent.name[-2:]], stem(volume.path)), volume) for volume in inside
    )
    are_labels = masks and not options.mask_pattern
    remarks = _check_label_names(metadata, options, root) if are_labels else []
    if _is_nnunet(images, masks, metadata):
        layout = _nnunet_layout(source, images, masks, metadata, options)
    else:
        layout = _decathlon_layout(source, root, images, masks, metadata, options)
    layout.remarks += remarks
    return layout


def _dataset_json(source, root):
    member = source.members.get(root / "dataset.json")
    if member is None:
        return {}
    try:
        metadata = json.loads(member.read().decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(
            f"{source.path}: {member.path} is not a JSON file ({error}); get it again, or move it "
            "away"
        ) from None
    return metadata if isinstance(metadata, dict) else {}


def _is_nnunet(images, masks, metadata):
    """Whether images are named NAME_0000 and their masks NAME."""
    if any(key in masks for key in images):
        return False
    numbered = [bool(re.fullmatch(r".+_\d{4}", case)) for _, case in images]
    if {"channel_names", "file_ending"} & set(metadata):
        return True
    return all(numbered) if "tensorImageSize" not in metadata else False


def _nnunet_layout(source, images, masks, metadata, options):
    by_case: dict[Key, dict[int, list[Volume | Dicom]]] = defaultdict(dict)
    for (set_name, name), volumes in images.items():
        found = re.fullmatch(r"(.+)_(\d{4})", name)
        if not found:
            raise DataError(
                f"{source.path}: {volumes[0].relative}: no channel number in its name; rename it, "
                f"such as {name}_0000{volumes[0].suffix}"
            )
        by_case[set_name, found[1]].setdefault(int(found[2]), []).extend(volumes)
    numbers = sorted({number for channels in by_case.values() for number in channels})
    names = _channel_names(metadata) or dict.fromkeys(numbers, "")
    channel, remarks = _t2_channel(source, names, options.channel)
    for (_, case), channels in by_case.items():
        if channel not in channels:
            raise DataError(
                f"{source.path}: {case} has no channel {channel}; add {case}_{channel:04} or move "
                "the case away"
            )
    chosen = {key: channels[channel] for key, channels in by_case.items()}
    return Layout(NNUNET, chosen, masks, remarks=remarks)


def _decathlon_layout(source, root, images, masks, metadata, options):
    channel, remarks = _t2_channel(source, _channel_names(metadata), options.channel)
    listed = [
        entry.get("image", "") if isinstance(entry, dict) else entry
        for part in ("training", "test")
        for entry in (metadata.get(part) if isinstance(metadata.get(part), list) else [])
    ]
    there = {str(member.relative_to(root)) for member in source.members if root in member.parents}
    missing = [str(name) for name in listed if str(PurePosixPath(str(name))) not in there]
    if missing:
        remarks.append(f"listed in dataset.json, but missing: {list_few(missing)}")
    return Layout("Medical Segmentation Decathlon", images, masks, remarks=remarks, channel=channel)


def _channel_names(metadata):
    names = metadata.get("channel_names") or metadata.get("modality") or {}
    if isinstance(names, str):
        names = [names]
    items = names.items() if isinstance(names, dict) else enumerate(names)
    return {int(number): str(name) for number, name in items if str(number).isdecimal()}


def _t2_channel(source, names, requested):
    """The index of the T2 channel (None if nothing is known of channels) and remarks."""
    listed = ", ".join(f"{number} {name}".strip() for number, name in sorted(names.items()))
    if requested is not None:
        if names and requested not in names:
            raise DataError(
                f"{source.path}: no channel {requested}, only {listed}; give one of these to "
                "--channel"
            )
        return requested, []
    t2 = [
        number
        for number, name in names.items()
        if T2_WORDS.intersection(words(name)) and not OTHER_CONTRASTS.intersection(words(name))
    ]
    if len(t2) == 1:
        return t2[0], [f"channel {t2[0]} ({names[t2[0]]}) of {listed}"] if len(names) > 1 else []
    if len(names) == 1:
        (number, name), *_ = names.items()
        if not {*OTHER_CONTRASTS, "t1"}.intersection(words(name)):
            return number, []
    if names:
        raise DataError(
            f"{source.path}: channels {listed}, not exactly one of them T2 by name; say which, "
            f"such as --channel {min(t2 or names)}"
        )
    return None, []


def _check_label_names(metadata, options, root):
    """Returns remarks; raises a DataError unless it is clear which labels are the prostate."""
    labels = _label_names(metadata)
    if not labels:
        return []
    listed = ", ".join(f"{value} {' or '.join(names)}" for value, names in sorted(labels.items()))
    unknown = [value for value in options.labels if value not in labels]
    if unknown:
        raise DataError(
            f"{root}/dataset.json: no label {unknown[0]}, only {listed}; give some of these to "
            "--labels"
        )
    if options.labels:
        return [f"labels {','.join(map(str, options.labels))} of {listed} become the mask"]
    label_words = {word for names in labels.values() for name in names for word in words(name)}
    is_prostate = label_words & PROSTATE_WORDS and not label_words & (ZONE_WORDS | LESION_WORDS)
    if set(labels) != {1} or not is_prostate:
        raise DataError(
            f"{root}/dataset.json: labels {listed}; say which together are the prostate, such as "
            f"--labels {','.join(map(str, sorted(labels)))}"
        )
    return [f"label {listed} becomes the mask"]


def _label_names(metadata):
    """`{value: [names]}` without the background, for nnU-Net's and the Decathlon's form."""
    labels = metadata.get("labels")
    names_of = defaultdict(list)
    for name, value in labels.items() if isinstance(labels, dict) else ():
        if str(name).isdecimal():
            name, value = str(value), int(name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number > 0 and name.lower() != "ignore":
                names_of[number].append(name)
    return dict(names_of)
