"""What the names of files and folders say: set, mask, lesion, T2.

Every rule is about words: a name is split at blanks, dots, `_` and `-`, and case does not count.
"""

import re
from pathlib import PurePath

from ..images.formats import stem

# Set -> what its name begins with in the challenge's archives and folders, old and new.
SETS = {"LiveTestData": "live", "TestData": "test", "TrainData": "train"}


def _set_of(text):
    return frozenset(text.split())


LESION_WORDS = _set_of("lesion lesions tumor tumors tumour tumours cspca")
FIRST_WORDS = _set_of("seg segmentation label labels labelmap mask masks")  # mask_07, labels-3
MASK_WORDS = LESION_WORDS | FIRST_WORDS | _set_of("segmentations roi contour gt anatomy")
GLAND_WORDS = _set_of("prostate gland whole wg zones zonal")
PROSTATE_WORDS = GLAND_WORDS | _set_of("prostata foreground label mask")
ZONE_WORDS = _set_of("zone zones zonal pz tz cz peripheral transition transitional central")
T2_WORDS = _set_of("t2 t2w t2wi t2tse")
OTHER_CONTRASTS = _set_of(
    "adc dwi hbv dce dti t1 t1w pd ct pet flair ktrans perfusion cor coronal sag sagittal"
)
# May stand beside a mask word behind the case's name.
FILLERS = GLAND_WORDS | T2_WORDS | _set_of("manual auto final ax axial tra tse")
MASK_FOLDER = re.compile(
    r"(labels?|masks?|segs?|segmentations?|gt|ground_?truth|annotations?|delineations?|rois?"
    r"|contours?)([_-]?(tr|ts|va|train|test|val))?",
    re.IGNORECASE,
)
IMAGE_WORDS = _set_of("image images img volume vol scan mr mri case")


def set_named(folder_name: str) -> str | None:
    """The set that a folder's name tells: `TrainingData_Part2` -> `TrainData`, `img` -> None."""
    return next(
        (
            name
            for name, word in SETS.items()
            if re.search(f"(^|[^a-z]){word}", folder_name.lower())
        ),
        None,
    )


def words(name: str) -> list[str]:
    """The words of a name, in lower case."""
    return [word for word in re.split(r"[ _.\-]+", name.lower()) if word]


def looks_like_mask(path: PurePath) -> bool:
    """Whether the name ends with a mask word (or begins with one), or its folder is for masks."""
    return bool(MASK_FOLDER.fullmatch(path.parent.name)) or named_as_mask(path)


def named_as_mask(path: PurePath) -> bool:
    """Whether the file's own name ends with a mask word, or begins with one."""
    split = words(stem(path))
    return bool(_ending(split)) or (len(split) > 1 and split[0] in FIRST_WORDS)


def _ending(split):
    """The last words that say what kind of mask it is; empty without a mask word among them."""
    start = len(split)
    while start and (split[start - 1] in MASK_WORDS | FILLERS or _counts(split[start - 1])):
        start -= 1
    ending = split[start:]
    while ending and ending[0].isdigit():  # a number belongs to the mask word before it
        ending = ending[1:]
    return ending if MASK_WORDS.intersection(ending) else []


def _counts(word):
    return bool(re.fullmatch(r"(reader|rater|r|v)?\d", word))


def outlines_lesions(path: PurePath) -> bool:
    """Whether a mask is one of lesions and not of the gland, by its name or a folder's."""
    ending = _ending(words(stem(path)))
    in_folders = {word for part in path.parts[1:-1] for word in words(part)}
    return bool(LESION_WORDS.intersection(ending) or in_folders & LESION_WORDS)


def case_names(mask: PurePath) -> list[str]:
    """Names that the image of a mask may have, as joined words; the likeliest first."""
    split = words(stem(mask))
    ending = _ending(split)
    names = [split[:end] for end in range(len(split), len(split) - len(ending) - 1, -1)]
    if split[0] in FIRST_WORDS:
        names += [split[1:], *([word, *split[1:]] for word in sorted(IMAGE_WORDS))]
    return [" ".join(name) for name in names if name]


def joined_words(path: PurePath) -> str:
    """An image's name in the form of `case_names`."""
    return " ".join(words(stem(path)))


def is_t2(path: PurePath) -> bool:
    """Whether a name says T2, and no other plane than the axial one."""
    split = set(words(stem(path)))
    return bool(split & T2_WORDS) and not split & OTHER_CONTRASTS


def is_other_contrast(path: PurePath) -> bool:
    """Whether a name says ADC, diffusion, another plane and the like."""
    return bool(OTHER_CONTRASTS.intersection(words(stem(path))))
