"""The layout of a source: candidate images and masks by case, and pairs of both."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypeVar

from ..sources import Dicom, Volume

Key = tuple[str | None, str]  # set (None if no name says it) and case
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Options:
    """Options of the command line for reading a source.

    Attributes:
        labels: mask values that together are the prostate; empty: masks have only 0 and 1.
        channel: index of the T2 image in 4-D files or among nnU-Net's channels; None: by name.
        series: DICOM series, see `src.images.dicom.choose_series`.
        image_pattern, mask_pattern: paths below the source with `{case}`, see `match_case`.
    """

    labels: tuple[int, ...] = ()
    channel: int | None = None
    series: str = ""
    image_pattern: str = ""
    mask_pattern: str = ""


@dataclass(frozen=True)
class Pair:
    """An image and its mask (one of them may be missing), and the set and case they become."""

    set_name: str
    case: str
    image: Volume | Dicom | None
    mask: Volume | None = None


@dataclass
class Layout:
    """The images and masks that a rule has found in a source.

    Attributes:
        name: of the layout, for the user.
        images, masks: candidates; there must be one image and at most one mask per case.
        lone_masks: what to do with masks without an image: "refuse" raises an error, "keep" places
            them, "leave" leaves them out with a remark.
        channel: index of the T2 image in 4-D files.
        is_own: whether it is this project's, NAME and NAME_segmentation; faults of such files are
            left to the check, which reports them case by case.
        remarks: lines for the user.
        mentioned: volumes that a remark names.
    """

    name: str
    images: dict[Key, list[Volume | Dicom]]
    masks: dict[Key, list[Volume]] = field(default_factory=dict)
    lone_masks: str = "refuse"
    channel: int | None = None
    is_own: bool = False
    remarks: list[str] = field(default_factory=list)
    mentioned: set[PurePosixPath] = field(default_factory=set)


def group(items: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """Collects the values of each key."""
    found = defaultdict(list)
    for key, value in items:
        found[key].append(value)
    return dict(found)


def use_sets_of(
    images: dict[Key, list[Volume | Dicom]], masks: dict[Key, list[Volume]]
) -> dict[Key, list[Volume]]:
    """Returns the masks under the key of the only image of the same case, whatever their folder."""
    keys = group((case, (set_name, case)) for set_name, case in images)
    return group(
        (key if key in images or len(keys.get(key[1], [])) != 1 else keys[key[1]][0], mask)
        for key, found in masks.items()
        for mask in found
    )
