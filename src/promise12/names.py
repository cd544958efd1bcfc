"""What the names of files and folders say: set, mask, lesion, T2.

The rules look at words: a name is split at blanks, dots, `_` and `-`, and case is ignored.
"""

import re
from pathlib import PurePath

from ..images.formats import MASK_FOLDER, stem

# Set -> word of the challenge's archives and folders, old and new; the first that fits is taken.
SETS = {
    name: re.compile(f"({word})(data|images?|cases?|scans?|volumes?)?(sets?)?")
    for name, word in (
        ("LiveTestData", "live(challenge)?(test(ing)?)?"),
        ("TestData", "test(ing)?"),
        ("TrainData", "train(ing)?"),
    )
}


def _set(text):
    return frozenset(text.split())


LESION_WORDS = _set("lesion lesions tumor tumors tumour tumours cspca")
FIRST_WORDS = _set("seg segmentation label labels labelmap mask masks")  # mask_07, labels-3
MASK_WORDS = LESION_WORDS | FIRST_WORDS | _set("segmentations dseg roi contour gt anatomy")
GLAND_WORDS = _set("prostate gland whole wg zones zonal")
PROSTATE_WORDS = GLAND_WORDS | _set("prostata foreground label mask")
ZONE_WORDS = _set("zone zones zonal pz tz cz peripheral transition transitional central")
T2_WORDS = _set("t2 t2w t2wi t2tse")
OTHER_CONTRASTS = _set(
    "adc dwi hbv dce dti t1 t1w pd ct pet flair ktrans perfusion cor coronal sag sagittal"
)
# May follow the case's name beside a mask word.
FILLERS = GLAND_WORDS | T2_WORDS | _set("manual auto final ax axial tra tse")
IMAGE_FOLDERS = re.compile(
    r"ima?ge?s?(tr|ts)?|(live)?(train|test)(ing)?([_-]?(data|set))?", re.IGNORECASE
)
# PI-CAI's PATIENT_STUDY, of five and seven digits: a year or a date is no patient; and BIDS'
# sub-PATIENT_ses-SESSION or another entity than a session.
STUDY_NAME = re.compile(r"(\d{5})_\d{7}(?:_t2w)?|(sub-[^_]+)_.+")
IMAGE_WORDS = _set("image images img volume vol scan mr mri case")


def set_named(folder_name: str) -> str | None:
    """Returns the set of a folder's name: `TrainingData_Part2` -> `TrainData`, `img` -> None."""
    apart = re.sub("(?<=[a-z])(?=[A-Z])", " ", folder_name)  # TrainImages -> Train Images
    split = re.findall("[a-z]+", apart.lower())
    return next((name for name, word in SETS.items() if any(map(word.fullmatch, split))), None)


def set_folder(path: PurePath) -> str:
    """Returns the name of the nearest folder above that names a set, else ""."""
    return next(filter(set_named, reversed(path.parts[:-1])), "")


def set_of_path(path: PurePath) -> str | None:
    """Returns the set of the nearest folder whose name names one, else None."""
    return set_named(set_folder(path))


def relative_path(path: PurePath) -> str:
    """Returns a path below its source, whose name is the first part."""
    return "/".join(path.parts[1:])


def words(name: str) -> list[str]:
    """Returns the words of a name, in lower case."""
    return [word for word in re.split(r"[ _.\-]+", name.lower()) if word]


def looks_like_mask(path: PurePath) -> bool:
    """Whether the name ends with a mask word (or begins with one), or its folder is for masks."""
    return bool(MASK_FOLDER.fullmatch(path.parent.name)) or has_mask_name(path)


def is_patient_mask(path: PurePath) -> bool:
    """Whether a volume in a patient's folder is a mask by name, also as prostate.nii.gz."""
    split = set(words(stem(path)))
    return looks_like_mask(path) or bool(split & GLAND_WORDS and split <= FILLERS)


def has_mask_name(path: PurePath) -> bool:
    """Whether the file's own name ends with a mask word, or begins with one."""
    split = words(stem(path))
    return bool(_mask_words(split)) or (len(split) > 1 and split[0] in FIRST_WORDS)


def _mask_words(split):
    """The last words of a mask's name that are not the case's; empty without a mask word."""
    start = len(split)
    while start and (split[start - 1] in MASK_WORDS | FILLERS or _is_number(split[start - 1])):
        start -= 1
    ending = split[start:]
    # A number or version belongs to the mask word before it: P1_v2_mask is of P1_v2.
    while ending and re.fullmatch(r"v?\d", ending[0]):
        ending = ending[1:]
    return ending if MASK_WORDS.intersection(ending) else []


def _is_number(word):
    return bool(re.fullmatch(r"(reader|rater|r|v)?\d", word))


def outlines_lesions(path: PurePath) -> bool:
    """Whether the name of a mask or of a folder says that it is of lesions, not of the gland."""
    ending = _mask_words(words(stem(path)))
    in_folders = {word for part in path.parts[1:-1] for word in words(part)}
    return bool(LESION_WORDS.intersection(ending) or in_folders & LESION_WORDS)


def case_names(mask: PurePath) -> list[str]:
    """Returns possible names of the image of a mask, as joined words; the likeliest first."""
    split = words(stem(mask))
    ending = _mask_words(split)
    names = [split[:end] for end in range(len(split), len(split) - len(ending) - 1, -1)]
    if split[0] in FIRST_WORDS:
        names += [split[1:], *([word, *split[1:]] for word in sorted(IMAGE_WORDS))]
    return [" ".join(name) for name in names if name]


def joined_words(path: PurePath) -> str:
    """Returns an image's name in the form of `case_names`."""
    return " ".join(words(stem(path)))


def patient_of(case: str) -> str:
    """Returns the patient of a case by its name: `10005_1000005` -> `10005`, else the name."""
    found = STUDY_NAME.fullmatch(case)
    return (found[1] or found[2]) if found else case


def is_t2(path: PurePath) -> bool:
    """Whether a name says T2, and neither another contrast nor another plane than axial."""
    split = set(words(stem(path)))
    return bool(split & T2_WORDS) and not split & OTHER_CONTRASTS


def is_other_contrast(path: PurePath) -> bool:
    """Whether a name says another contrast than T2 (ADC, diffusion, ...) or another plane."""
    return bool(OTHER_CONTRASTS.intersection(words(stem(path))))
