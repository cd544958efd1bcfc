"""Pairs the masks of a folder, such as another program's results, with references by name.

A case has the name of its file without suffix and without one of the endings `_test` (this
project's predictions), `_segmentation`, `_seg`, `_label`, `_mask`: Case03_segmentation.mhd,
Case03_test.mhd, Case03_test.seg.nrrd and nnU-Net's Case03.nii.gz are of one case, and so is
Case03_0000_test.nii.gz, the prediction of nnU-Net's image Case03_0000.nii.gz, unless there is a
reference of Case03_0000.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from .data_manager import Case
from .images.formats import MASK_ENDING, list_images, only_file, stem
from .utils.errors import DataError, list_few

log = logging.getLogger(__name__)

PREDICTION_ENDING = "_test"
FIRST_CHANNEL = "_0000"  # end of the names of nnU-Net's images


def case_name(path: str | Path) -> str:
    """Returns the name of the case that a mask is of."""
    name = stem(path)
    bare = MASK_ENDING.sub("", name).removesuffix(PREDICTION_ENDING)
    return MASK_ENDING.sub("", bare) or name


def masks_of(folder: str | Path) -> dict[str, Path]:
    """Returns the masks of a folder, {case: path}.

    Raises:
        DataError: no such folder, no mask there, or several of one case.
    """
    masks: dict[str, Path] = {}
    for paths in list_images(folder).values():
        path = only_file(paths)
        other = masks.setdefault(case_name(path), path)
        if other != path:
            raise DataError(
                f"{folder}: {other.name} and {path.name} would both be the mask of "
                f"{case_name(path)}; move one of them away"
            )
    if not masks:
        raise DataError(f"{folder}: no masks there; expected a file for each case")
    return masks


def reference_cases(folder: str | Path) -> list[Case]:
    """Returns the masks of a folder as references of cases whose images are not known."""
    return [Case(name, path, path) for name, path in sorted(masks_of(folder).items())]


def has_image(case: Case) -> bool:
    """Whether the image of a case is known; False for those of `reference_cases`."""
    return case.image_path != case.mask_path


def masks_for(cases: Iterable[Case], folder: str | Path) -> dict[str, Path]:
    """Returns the mask of each case, {case_id: path}; logs the masks of other cases.

    Args:
        cases: with references.
        folder: of the masks to evaluate.

    Raises:
        DataError: a case has no mask in the folder, or its reference itself; two cases would have
            the same; or the folder is no such folder.
    """
    masks = masks_of(folder)
    wanted: dict[str, Case] = {}
    for case in cases:
        other = wanted.setdefault(case_name(case.case_id), case)
        if other != case:
            raise DataError(
                f"{folder}: a mask {case_name(case.case_id)} could be of {other.case_id} or "
                f"{case.case_id}; rename one of these cases"
            )
    for name in list(masks.keys() - wanted.keys()):
        of_image = name.removesuffix(FIRST_CHANNEL)
        if of_image not in wanted:
            continue
        if of_image in masks:
            raise DataError(
                f"{folder}: {masks[of_image].name} and {masks[name].name} would both be the mask "
                f"of {of_image}; move one of them away"
            )
        masks[of_image] = masks.pop(name)
    extra = sorted(masks.keys() - wanted.keys())
    left_out = f"without a reference: {list_few((masks[n].name for n in extra), 5)}"
    missing = [case.case_id for name, case in wanted.items() if name not in masks]
    if missing:
        also = f"; {left_out}" if extra else ""
        raise DataError(
            f"{folder}: no mask of {list_few(missing, 5)}{also}; add the missing masks, or leave "
            "these cases out of the references"
        )
    if extra:
        log.info(f"{folder}: {len(extra)} mask(s) left out, {left_out}")
    for name, case in wanted.items():
        if masks[name].samefile(case.mask_path):
            raise DataError(
                f"{masks[name]}: the reference itself, expected another program's mask; give the "
                "folder of these"
            )
    return {case.case_id: masks[name] for name, case in wanted.items()}
