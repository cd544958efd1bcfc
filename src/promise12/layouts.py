"""Which layout a source has: where its images are, and which mask belongs to which.

The rules in their order; the first that fits is taken, and a line says which:

1. nnU-Net and the Medical Segmentation Decathlon: folders imagesTr, imagesTs, labelsTr, labelsTs;
2. PI-CAI: PATIENT_STUDY_t2w beside _adc, _hbv, _sag, _cor, masks called PATIENT_STUDY elsewhere;
3. DICOM: one folder per patient;
4. one folder per patient with t2.nii.gz or another name that comes again in each;
5. this project's img/ and gt/, and whatever tells masks from images by names or folders.
"""

import json
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import PurePath, PurePosixPath

import pydicom

from ..images.formats import MASK_SUFFIX, SUFFIXES, stem, suffix_of
from ..utils.errors import DataError, UsageError
from .names import (
    FILLERS,
    GLAND_WORDS,
    LESION_WORDS,
    OTHER_CONTRASTS,
    PROSTATE_WORDS,
    T2_WORDS,
    ZONE_WORDS,
    case_names,
    is_other_contrast,
    is_t2,
    joined_words,
    looks_like_mask,
    named_as_mask,
    outlines_lesions,
    set_named,
    words,
)
from .sources import LEVELS, Dicom, Source, Volume

Key = tuple[str | None, str]  # set, where the names tell one, and case
NNUNET = "nnU-Net"
SHOWN = 3
IMAGE_FOLDERS = re.compile(
    r"ima?ge?s?(tr|ts)?|(live)?(train|test)(ing)?([_-]?(data|set))?", re.IGNORECASE
)
PICAI_NAME = re.compile(r"(\d+_\d+)_(t2w|adc|hbv|sag|cor)")
PICAI_MASK = re.compile(r"(\d+_\d+)(_.*)?")


@dataclass(frozen=True)
class Options:
    """What the command line says about a source.

    Attributes:
        labels: mask values that together are the prostate; empty: masks hold 0 and 1.
        channel: which volume of 4-D files, or of nnU-Net's channels, is the T2 image.
        series: which DICOM series, see `src.images.dicom.choose_series`.
        image_pattern, mask_pattern: paths below the source with `{case}`, see `matches`.
    """

    labels: tuple[int, ...] = ()
    channel: int | None = None
    series: str = ""
    image_pattern: str = ""
    mask_pattern: str = ""


@dataclass(frozen=True)
class Pair:
    """An image and its mask, of which one may be missing, and where they go."""

    set_name: str
    case: str
    image: Volume | Dicom | None
    mask: Volume | None = None


@dataclass
class Layout:
    """What a rule has found.

    Attributes:
        name: for the line that says which layout it is.
        images, masks: candidates; `pairs` wants one of each.
        lone_masks: what becomes of masks without an image: "refuse", "keep" or "leave".
        channel: which volume of 4-D images is taken.
        is_ours: NAME and NAME_segmentation, whose faults the check tells case by case.
        remarks: lines for the user.
        named: volumes that a remark is about.
    """

    name: str
    images: dict[Key, list[Volume | Dicom]]
    masks: dict[Key, list[Volume]] = field(default_factory=dict)
    lone_masks: str = "refuse"
    channel: int | None = None
    is_ours: bool = False
    remarks: list[str] = field(default_factory=list)
    named: set[PurePosixPath] = field(default_factory=set)


def recognise(source: Source, options: Options) -> tuple[Layout, list[Pair]]:
    """The layout of a source, and what is to be laid out.

    Raises:
        DataError: no volumes, no image, or something that can be understood in two ways.
        UsageError: a pattern without `{case}`.
    """
    if not source.volumes and not source.dicom:
        zips = any(path.suffix == ".zip" for path in source.members)
        raise DataError(
            f"{source.path}: holds no volume ({', '.join(SUFFIXES)}, DICOM) within {LEVELS} levels "
            "of folders" + (f"; for its zip files say --source {source.path}/*.zip" if zips else "")
        )
    masks = {}
    if options.mask_pattern:
        masks = _matching(source, options.mask_pattern, "--mask_pattern")
        source.set_aside = {mask.path for found in masks.values() for mask in found}
    if options.image_pattern:
        images = _matching(source, options.image_pattern, "--image_pattern")
        layout = Layout("images by --image_pattern", images, channel=options.channel)
    else:
        rules = (_channels_in_folders, _picai, _dicom_patients, _patients, _names)
        layout = next(filter(None, (rule(source, options) for rule in rules)))
        if layout.channel is None and layout.name != NNUNET:
            layout.channel = options.channel
    if options.mask_pattern:
        layout.masks = _with_sets_of(layout.images, masks)
        layout.name += ", masks by --mask_pattern"
        layout.is_ours = False
    if options.series and not source.dicom:
        layout.remarks.append("--series has no effect: there is no DICOM")
    pairs = _pairs(source, layout, options)
    _say_what_is_left_out(source, layout, pairs)
    return layout, pairs


def _pairs(source, layout, options):
    if not options.mask_pattern:
        _leave_lesions_out(source, layout)
    default = "TrainData" if any(layout.masks.values()) else "TestData"
    pairs = []
    for key in sorted({*layout.images, *layout.masks}, key=lambda key: (key[0] or "", key[1])):
        images, masks = layout.images.get(key, []), layout.masks.get(key, [])
        set_name, case = key[0] or default, key[1]
        if layout.is_ours:
            pairs += _pairs_of_ours(source, set_name, case, images, masks)
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
            f"{source.path}: {_few(_below(mask) for mask in lone)}: mask without an image; add the "
            "image, move the mask away, or say where they are: --image_pattern and --mask_pattern"
        )
    if lone and layout.lone_masks == "leave":
        layout.remarks.append(f"masks without an image here: {_few(_below(mask) for mask in lone)}")
        layout.named.update(mask.path for mask in lone)
    if not pairs:
        raise DataError(
            f"{source.path}: masks only, such as {_below(lone[0])}; give the folder above, which "
            "holds the images too"
        )
    bare = [pair for pair in pairs if pair.mask is None and pair.set_name == default]
    if bare and any(layout.masks.values()) and not layout.is_ours:
        layout.remarks.append(f"images without a mask: {_few(pair.case for pair in bare)}")
    return pairs


def _pairs_of_ours(source, set_name, case, images, masks):
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
        patterns = " or ".join(f"'{_pattern(_below(volume), case)}'" for volume in found)
        raise DataError(
            f"{source.path}: {case} has several {plural}: {', '.join(map(_below, found))}; say "
            f"which, such as --{kind}_pattern {patterns}"
        )


def _pattern(path, case):
    """The path with `{case}` where the case's name stands by itself."""
    return re.sub(rf"(?<![^\W_]){re.escape(case)}(?![^\W_])", "{case}", path)


def _leave_lesions_out(source, layout):
    """Drops masks of lesions; refuses a source that has no others."""
    glands = {
        key: [mask for mask in masks if not outlines_lesions(mask.path)]
        for key, masks in layout.masks.items()
    }
    lesions = [m for masks in layout.masks.values() for m in masks if outlines_lesions(m.path)]
    layout.masks = {key: masks for key, masks in glands.items() if masks}
    if lesions and not layout.masks:
        raise DataError(
            f"{source.path}: {_few(_below(mask) for mask in lesions)}: outlines of lesions by "
            "their names, and no masks of the prostate; add these, or say --mask_pattern to take "
            "the lesions for the target, or --image_pattern to take images only"
        )
    if lesions:
        names = _few(_below(mask) for mask in lesions)
        layout.remarks.append(f"outlines of lesions, not of the prostate, left out: {names}")
        layout.named.update(mask.path for mask in lesions)


def _say_what_is_left_out(source, layout, pairs):
    used = {volume.path for pair in pairs for volume in (pair.image, pair.mask) if volume}
    used |= layout.named
    rest = [_below(volume) for volume in source.volumes if volume.path not in used]
    if rest:
        layout.remarks.append(f"{len(rest)} other volume(s) left out: {_few(rest)}")


def _below(volume):
    """A volume's path below its source."""
    return "/".join(volume.path.parts[1:])


def _few(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _set_of(path):
    """The set that the nearest folder with a telling name says, the source's own name included."""
    return next(filter(None, map(set_named, reversed(path.parts[:-1]))), None)


def _grouped(volumes_and_keys):
    found = defaultdict(list)
    for key, volume in volumes_and_keys:
        found[key].append(volume)
    return dict(found)


# Patterns ---------------------------------------------------------------------------------------


def matches(pattern: str, path: str) -> str | None:
    """The case of a path that fits a pattern.

    Args:
        pattern: `{case}` stands for the case's name, `*` and `?` for other letters of one folder's
            or file's name, `**/` for any folders. A second `{case}` must be the same again.
        path: below the source.

    Raises:
        UsageError: no `{case}`.
    """
    if "{case}" not in pattern:
        raise UsageError(f"{pattern}: no {{case}} in it, expected one such as '{{case}}/t2.nii.gz'")
    wild = {"{case}": r"(?P<case>[^/]+)", "**/": r"(?:.+/)?", "*": r"[^/]*", "?": r"[^/]"}
    parts = re.split(r"(\{case\}|\*\*/|\*|\?)", pattern.removeprefix("./"))
    expression = "".join(wild.get(part, re.escape(part)) for part in parts)
    first, named, rest = expression.partition(wild["{case}"])
    found = re.fullmatch(first + named + rest.replace(wild["{case}"], "(?P=case)"), path)
    return found["case"] if found else None


def _matching(source, pattern, flag):
    """Volumes that a pattern finds, and for images folders of DICOM files."""
    folders = sorted({member.path.parent for member in source.dicom} if "image" in flag else ())
    candidates = [*source.volumes, *(_dicom_in(source, folder) for folder in folders)]
    cases = [(matches(pattern, _below(candidate)), candidate) for candidate in candidates]
    found = _grouped(((_set_of(c.path), case), c) for case, c in cases if case)
    if not found:
        example = f", such as {_below(candidates[0])}" if candidates else ""
        raise DataError(
            f"{source.path}: {flag} {pattern} finds none of {len(candidates)} volumes{example}"
        )
    return found


def _with_sets_of(images, masks):
    """Masks under the keys of the images of the same case, whatever set their own folders tell."""
    keys = _grouped((case, (set_name, case)) for set_name, case in images)
    return _grouped(
        (key if key in images or len(keys.get(key[1], [])) != 1 else keys[key[1]][0], mask)
        for key, found in masks.items()
        for mask in found
    )


# nnU-Net, Medical Segmentation Decathlon --------------------------------------------------------


def _channels_in_folders(source, options):
    """imagesTr, labelsTr, imagesTs, labelsTs: nnU-Net's layout, or the Decathlon's."""
    inside = [v for v in source.volumes if v.path.parent.name in ("imagesTr", "imagesTs")]
    roots = sorted({volume.path.parents[1] for volume in inside})
    if not roots:
        return None
    if len(roots) > 1:
        raise DataError(
            f"{source.path}: several data sets: {_few(map(str, roots))}; give one of them"
        )
    root = roots[0]
    about = _dataset_json(source, root)
    sets = {"Tr": "TrainData", "Ts": "TestData"}
    masks = _grouped(
        ((sets[tail], stem(volume.path)), volume)
        for tail in sets
        for volume in source.volumes
        if volume.path.parent == root / f"labels{tail}"
    )
    images = _grouped(
        ((sets[volume.path.parent.name[-2:]], stem(volume.path)), volume) for volume in inside
    )
    are_labels = masks and not options.mask_pattern
    remarks = _check_label_names(about, options, root) if are_labels else []
    if _is_nnunet(images, masks, about):
        layout = _nnunet(source, images, masks, about, options)
    else:
        layout = _decathlon(source, root, images, masks, about, options)
    layout.remarks += remarks
    return layout


def _dataset_json(source, root):
    member = source.members.get(root / "dataset.json")
    if member is None:
        return {}
    try:
        about = json.loads(member.read().decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{source.path}: {member.path} is no JSON file ({error})") from None
    return about if isinstance(about, dict) else {}


def _is_nnunet(images, masks, about):
    """Whether images are called NAME_0000 and their masks NAME."""
    if any(key in masks for key in images):
        return False
    numbered = [bool(re.fullmatch(r".+_\d{4}", case)) for _, case in images]
    if {"channel_names", "file_ending"} & set(about):
        return True
    return all(numbered) if "tensorImageSize" not in about else False


def _nnunet(source, images, masks, about, options):
    by_case = defaultdict(dict)
    for (set_name, name), volumes in images.items():
        found = re.fullmatch(r"(.+)_(\d{4})", name)
        if not found:
            raise DataError(
                f"{source.path}: {_below(volumes[0])}: no channel number in its name, expected "
                f"{name}_0000{volumes[0].suffix}"
            )
        by_case[set_name, found[1]].setdefault(int(found[2]), []).extend(volumes)
    numbers = sorted({number for channels in by_case.values() for number in channels})
    names = _channel_names(about) or dict.fromkeys(numbers, "")
    channel, remarks = _t2_channel(source, names, options.channel)
    for (_, case), channels in by_case.items():
        if channel not in channels:
            raise DataError(
                f"{source.path}: {case} has no channel {channel}, no {case}_{channel:04}"
            )
    chosen = {key: channels[channel] for key, channels in by_case.items()}
    return Layout(NNUNET, chosen, masks, remarks=remarks)


def _decathlon(source, root, images, masks, about, options):
    channel, remarks = _t2_channel(source, _channel_names(about), options.channel)
    listed = [
        entry.get("image", "") if isinstance(entry, dict) else entry
        for part in ("training", "test")
        for entry in (about.get(part) if isinstance(about.get(part), list) else [])
    ]
    there = {str(member.relative_to(root)) for member in source.members if root in member.parents}
    missing = [str(name) for name in listed if str(PurePosixPath(str(name))) not in there]
    if missing:
        remarks.append(f"in dataset.json, but not here: {_few(missing)}")
    return Layout("Medical Segmentation Decathlon", images, masks, remarks=remarks, channel=channel)


def _channel_names(about):
    names = about.get("channel_names") or about.get("modality") or {}
    if isinstance(names, str):
        names = [names]
    items = names.items() if isinstance(names, dict) else enumerate(names)
    return {int(number): str(name) for number, name in items if str(number).isdecimal()}


def _t2_channel(source, names, asked):
    """The number of the T2 channel and a line on it; None where nothing is known of channels."""
    listed = ", ".join(f"{number} {name}".strip() for number, name in sorted(names.items()))
    if asked is not None:
        if names and asked not in names:
            raise DataError(f"{source.path}: no channel {asked}, only {listed}")
        return asked, []
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
            "such as --channel 0"
        )
    return None, []


def _check_label_names(about, options, root):
    """Refuses labels of which nobody has said that they are the prostate; returns lines."""
    labels = _label_names(about)
    if not labels:
        return []
    listed = ", ".join(f"{value} {' or '.join(names)}" for value, names in sorted(labels.items()))
    unknown = [value for value in options.labels if value not in labels]
    if unknown:
        raise DataError(f"{root}/dataset.json: no label {unknown[0]}, only {listed}")
    if options.labels:
        return [f"labels {','.join(map(str, options.labels))} of {listed} become the mask"]
    said = {word for names in labels.values() for name in names for word in words(name)}
    if set(labels) != {1} or not said & PROSTATE_WORDS or said & (ZONE_WORDS | LESION_WORDS):
        raise DataError(
            f"{root}/dataset.json: labels {listed}; say which together are the prostate, such as "
            f"--labels {','.join(map(str, sorted(labels)))}"
        )
    return [f"label {listed} becomes the mask"]


def _label_names(about):
    """`{value: [names]}` without the background, of either form of dataset.json."""
    labels = about.get("labels")
    named = defaultdict(list)
    for name, value in labels.items() if isinstance(labels, dict) else ():
        if str(name).isdecimal():
            name, value = str(value), int(name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number > 0 and name.lower() != "ignore":
                named[number].append(name)
    return dict(named)


# PI-CAI -----------------------------------------------------------------------------------------


def _picai(source, options):
    """PATIENT_STUDY_t2w.mha beside the other contrasts; masks PATIENT_STUDY in another tree."""
    found = [(PICAI_NAME.fullmatch(stem(volume.path)), volume) for volume in source.volumes]
    contrasts = [(name, volume) for name, volume in found if name]
    if not contrasts:
        return None
    images = _grouped(
        ((_set_of(volume.path), name[1]), volume) for name, volume in contrasts if name[2] == "t2w"
    )
    if not images:
        raise DataError(f"{source.path}: PI-CAI's names, but none ends with _t2w")
    rest = [(PICAI_MASK.fullmatch(stem(volume.path)), volume) for name, volume in found if not name]
    kinds = _grouped((_picai_kind(volume.path), (name[1], volume)) for name, volume in rest if name)
    layout = Layout("PI-CAI", images, lone_masks="leave")
    kind = next((kind for kind in ("whole gland", "zones", "lesions") if kinds.get(kind)), None)
    masks = _grouped(((None, case), volume) for case, volume in kinds.get(kind, ()))
    layout.masks = _with_sets_of(images, masks)
    if kind in ("whole gland", "zones"):
        lesions = [volume.path for _, volume in kinds.get("lesions", ())]
        layout.named.update(lesions)
        if lesions:
            layout.remarks.append(
                f"{len(lesions)} outline(s) of lesions, not of the prostate, left out"
            )
    if kind == "zones":
        layout.remarks.append("masks of the zones, as there are none of the whole gland")
    return layout


def _picai_kind(path):
    split = {word for part in path.parts[1:] for word in words(part)}
    if split & LESION_WORDS:
        return "lesions"
    return "zones" if split & ZONE_WORDS else "whole gland"


# One folder per patient -------------------------------------------------------------------------


def _dicom_patients(source, options):
    """A tree of DICOM files, one folder per patient; masks are volumes with telling names."""
    if not source.dicom:
        return None
    others = [volume for volume in source.volumes if not _is_patients_mask(volume.path)]
    if others:
        raise DataError(
            f"{source.path}: holds DICOM ({source.dicom[0].path}) and other images "
            f"({_few(_below(volume) for volume in others)}); say which are meant with "
            "--image_pattern, or give one kind"
        )
    patients = _patient_folders(source.dicom, PurePosixPath(source.dicom[0].path.parts[0]))
    images = {(_set_of(path), path.name): [_dicom_in(source, path)] for path in patients}
    layout = Layout("DICOM, one folder per patient", images)
    folders = {image.path: key for key, (image,) in images.items()}
    layout.masks = _grouped((_patient_of(v.path, folders), v) for v in source.volumes)
    objects = _objects(source.dicom)
    if objects:
        layout.remarks.append(
            f"DICOM objects that are no images are not read: {_few(objects)}; for masks convert "
            "them to one of " + ", ".join(SUFFIXES)
        )
    return layout


def _dicom_in(source, folder):
    """A folder with all of its files: one that is damaged may not be known as DICOM any more."""
    below = (member for path, member in source.members.items() if folder in path.parents)
    return Dicom(folder, tuple(member for member in below if not suffix_of(member.path)))


def _patient_folders(files, folder):
    """`{folder: files}`: the level of the tree at which studies part."""
    depth = len(folder.parts)
    if any(len(member.path.parts) == depth + 1 for member in files):
        return {folder: files}
    children = {
        folder / name: below
        for name, below in _grouped((m.path.parts[depth], m) for m in files).items()
    }
    if all(IMAGE_FOLDERS.fullmatch(child.name) for child in children):
        found = {}
        for child, below in children.items():
            found |= _patient_folders(below, child)
        return found
    if len(children) == 1:
        ((child, below),) = children.items()
        deeper = _patient_folders(below, child)
        return deeper if len(deeper) > 1 else {child: below}
    studies = {
        _header(below[0]).get("StudyInstanceUID", child) for child, below in children.items()
    }
    return {folder: files} if len(studies) == 1 else children


def _header(member):
    tags = ["StudyInstanceUID", "Modality"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(
                member.file or BytesIO(member.read()), stop_before_pixels=True, specific_tags=tags
            )
    except Exception:  # a damaged file, which reading the series will name
        return pydicom.Dataset()


def _objects(files):
    """Folders that begin with a segmentation or contours as DICOM."""
    firsts = {member.path.parent: member for member in reversed(files)}
    kinds = {path: str(_header(member).get("Modality", "")) for path, member in firsts.items()}
    return [f"{path} ({kind})" for path, kind in kinds.items() if kind in ("SEG", "RTSTRUCT")]


def _is_patients_mask(path):
    """As `looks_like_mask`; beside an image of its own, prostate.nii.gz is one, too."""
    split = set(words(stem(path)))
    return looks_like_mask(path) or bool(split & GLAND_WORDS and split <= FILLERS)


def _patient_of(path, folders):
    """Key of the patient whose folder a mask lies in, or is named after; else a key of its own."""
    above = next((folders[parent] for parent in path.parents if parent in folders), None)
    if above:
        return above
    wanted = [joined_words(PurePath(path.parent.name)), *case_names(path)]
    named = [key for key in folders.values() if joined_words(PurePath(key[1])) in wanted]
    return named[0] if len(named) == 1 else (None, _below_path(path))


def _below_path(path):
    return "/".join(path.parts[1:])


def _patients(source, options):
    """ID/t2.nii.gz with other contrasts and masks beside it."""
    scans = [volume for volume in source.volumes if not _is_patients_mask(volume.path)]
    folders = _grouped((volume.path.parent, volume) for volume in scans)
    if not folders or any(
        len(folder.parts) == 1 or IMAGE_FOLDERS.fullmatch(folder.name) for folder in folders
    ):
        return None
    repeated = Counter((_set_of(volume.path), stem(volume.path).lower()) for volume in scans)
    bare = any(set(words(stem(volume.path))) <= T2_WORDS | FILLERS for volume in scans)
    if max(repeated.values()) == 1 and not bare:
        return None
    names = _distinct_names(folders)
    images = _grouped(
        ((_set_of(folder), names[folder]), _t2_of(source, folder, volumes))
        for folder, volumes in folders.items()
    )
    keys = {folder: (_set_of(folder), name) for folder, name in names.items()}
    masks = [volume for volume in source.volumes if _is_patients_mask(volume.path)]
    return Layout(
        "one folder per patient",
        images,
        _grouped((_patient_of(volume.path, keys), volume) for volume in masks),
    )


def _distinct_names(folders):
    """Folder -> its name, or that of the first folder above that is not called the same in all."""
    level = 1
    while len(folders) > 1 and len({folder.parts[-level] for folder in folders}) == 1:
        level += 1
    return {folder: folder.parts[-level] for folder in folders}


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


# Names ------------------------------------------------------------------------------------------


def _names(source, options):
    """img/ and gt/, NAME and NAME_segmentation, images/ and labels/, NAME_seg and the like."""
    scans = [volume for volume in source.volumes if not looks_like_mask(volume.path)]
    layout = Layout("NAME and NAME_segmentation", {}, lone_masks="keep", is_ours=True)
    t2 = [volume for volume in scans if is_t2(volume.path)]
    if t2 and any(is_other_contrast(volume.path) for volume in scans):
        scans = [volume for volume in scans if not is_other_contrast(volume.path)]
    elif scans and all(is_other_contrast(volume.path) for volume in scans):
        layout.remarks.append("no T2 images by their names; this network is for T2")
    layout.images = _grouped(((_set_of(v.path), stem(v.path)), v) for v in scans)
    known = defaultdict(set)
    for volume in scans:
        split = words(stem(volume.path))
        for end in range(len(split), 0, -1):
            if T2_WORDS.issuperset(split[end:]):
                known[_set_of(volume.path), " ".join(split[:end])].add(stem(volume.path))
    masks = [volume for volume in source.volumes if looks_like_mask(volume.path)]
    layout.masks = _grouped((_key_of_mask(source, mask, known, options), mask) for mask in masks)
    renamed = [_below(m) for m in masks if not stem(m.path).endswith(MASK_SUFFIX)]
    if renamed:
        layout.name = "images and masks told by their names and folders"
        layout.remarks.append(f"taken for masks: {_few(renamed)}")
    return layout


def _key_of_mask(source, mask, known, options):
    """Set and case of the image that a mask belongs to."""
    set_name = _set_of(mask.path)
    for name in case_names(mask.path):
        cases = known.get((set_name, name), set())
        exact = {case for case in cases if " ".join(words(case)) == name} or cases
        if len(exact) == 1:
            return set_name, *exact
    case = stem(mask.path)
    is_lesion = outlines_lesions(mask.path)
    if case.endswith(MASK_SUFFIX) or is_lesion or options.mask_pattern:
        return set_name, case.removesuffix(MASK_SUFFIX)
    why = "name" if named_as_mask(mask.path) else "folder"
    raise DataError(
        f"{source.path}: {_below(mask)}: a mask by its {why}, and no image for it; give the folder "
        "that holds both, or say where they are: --image_pattern and --mask_pattern"
    )
